"""The control API over real sockets, on an engine without processes: who may ask, and what is answered."""
from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import stat
import struct
import tempfile
from types import SimpleNamespace
from typing import Any, AsyncIterator, Awaitable, Callable

import aiohttp
import jsonschema
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from shardmem.control import api as module
from shardmem.control.api import Api
from shardmem.control.health import against_life, against_readiness
from shardmem.control.commands import parse_slots
from shardmem.control.metrics import buckets_of
from shardmem.control.operations import COMMANDS
from shardmem.errors import AlreadyRunning, ConfigError, NotRunning
from shardmem.memory.native import lib
from shardmem.runtime.catalogue import FIGURES, HISTOGRAM
from shardmem.runtime.findings import STALE
from shardmem.runtime.snapshot import FLOORS_NS, Observer

TOKEN = "open sesame"


@pytest.fixture
def sockets(tmp_path, monkeypatch):
    """Where sockets are, for this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def scale(wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted.get("shards") == 0:
        raise NotRunning("the engine is being stopped")
    if wanted.get("shards") == 13:
        raise KeyError("a mistake of ours")
    return {"asked": wanted}


@contextlib.asynccontextmanager
async def served(engine: Any, port: int | None = 0, token: str | None = None) -> AsyncIterator[tuple[Api, Any, Any]]:
    """(the API, a client on its unix socket, one on TCP)."""
    api, observer = Api(engine.name, port, token), Observer(engine.control)
    api.bind()
    await api.start({each.name: scale for each in COMMANDS}, observer)
    try:
        async with aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(api.path)) as private:
            async with aiohttp.ClientSession(api.http or "http://localhost:1") as tcp:
                yield api, private, tcp
    finally:
        await api.stop()
        observer.close()
    assert not os.path.exists(api.path)


async def ask(client: Any, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, **options) as response:
        return response.status, await response.json()


def run(engine: Any, test: Callable[..., Awaitable[None]], **options: Any) -> None:
    async def inside() -> None:
        async with served(engine, **options) as found:
            await test(*found)

    asyncio.run(inside())


# ---- who may ask --------------------------------------------------------------------------------------------------------

def test_tcp_reads_and_without_a_token_changes_nothing(loopback, sockets):
    async def test(api, private, tcp):
        assert 200 == (await ask(tcp, "GET", "/status"))[0]
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
            status, answer = await ask(tcp, "POST", "/scale", json={"shards": 2}, headers=headers)
            assert 403 == status and "set http_token" in answer["error"]
        assert (200, {"asked": {"shards": 2}}) == await ask(private, "POST", "/scale", json={"shards": 2})

    run(loopback(), test)


@pytest.mark.parametrize("header, status", [
    (None, 401), (f"Bearer {TOKEN}", 200), (f"bearer  {TOKEN}", 200), ("Bearer", 401), (f"Bearer {TOKEN}x", 401),
    (f"Basic {TOKEN}", 401), (TOKEN, 401), ("Bearer ü", 401)])
def test_commands_over_tcp_have_to_show_the_token(loopback, sockets, header, status):
    async def test(api, private, tcp):
        headers = {"Authorization": header} if header else {}
        found, answer = await ask(tcp, "POST", "/scale", json={"shards": 2}, headers=headers)
        assert status == found and ("error" in answer) == (status == 401), answer

    run(loopback(), test, token=TOKEN)


@pytest.mark.parametrize("host, status", [("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1:9", 200), ("[::1]:9", 200),
                                          ("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil.example", 403),
                                          ("localhost.", 403), ("", 403), ("[::1", 403), ("user@localhost", 403)])
def test_a_name_that_was_rebound_to_this_machine_reads_nothing(loopback, sockets, host, status):
    async def test(api, private, tcp):
        found, answer = await ask(tcp, "GET", "/status", headers={"Host": host})
        assert status == found and (status == 200 or "header Host" in answer["error"]), answer

    run(loopback(), test)


def test_no_page_of_another_origin_is_let_in(loopback, sockets):
    async def test(api, private, tcp):
        origin = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        for method, path in (("GET", "/status"), ("OPTIONS", "/scale"), ("POST", "/scale")):
            async with tcp.request(method, path, headers=origin) as response:
                assert not [name for name in response.headers if name.lower().startswith("access-control")]
                assert method == "GET" or response.status in (401, 403, 405)

    run(loopback(), test, token=TOKEN)


@pytest.mark.parametrize("uid, allowed", [(os.getuid(), True), (0, True), (os.getuid() + 1, False)])
def test_the_kernel_says_who_is_at_the_other_end_of_the_unix_socket(loopback, sockets, uid, allowed):
    peer = SimpleNamespace(family=socket.AF_UNIX, getsockopt=lambda *_: struct.pack("3i", 1, uid, 1))
    request = SimpleNamespace(transport=SimpleNamespace(get_extra_info=lambda name: peer), headers={}, method="POST")

    async def handler(request):
        return "let in"

    answer = asyncio.run(Api("e")._admit(request, handler))
    assert "let in" == answer if allowed else 403 == answer.status and f"you are uid {uid}" in answer.text


# ---- the sockets --------------------------------------------------------------------------------------------------------

def test_the_socket_is_private_from_birth(sockets, monkeypatch):
    seen = []

    class Seen(socket.socket):
        def bind(self, address):
            super().bind(address)
            seen.append(stat.S_IMODE(os.stat(address).st_mode))

    monkeypatch.setattr(module.socket, "socket", Seen)
    api = Api("e")
    before = os.umask(0)
    try:
        api.bind()
    finally:
        os.umask(before)
        api.close()
    assert [0o600] == seen


def test_the_socket_of_a_live_supervisor_is_not_stolen_and_that_of_a_dead_one_is_replaced(sockets, monkeypatch):
    monkeypatch.setattr(module, "DYING", 0.0)
    first, second = Api("e"), Api("e")
    first.bind()
    alive = os.stat(first.path).st_ino
    with pytest.raises(AlreadyRunning, match="another supervisor listens"):
        second.bind()
    assert alive == os.stat(first.path).st_ino

    dead = first._listeners.pop()
    first._bound = None
    dead.close()  # as the kernel does when it is killed: the name stays
    assert os.path.exists(first.path)
    second.bind()
    second.close()
    assert not os.path.exists(second.path)


def test_a_supervisor_that_ends_removes_no_socket_but_its_own(sockets):
    first, second = Api("e"), Api("e")
    first.bind()
    os.unlink(first.path)  # somebody tidied up /tmp
    second.bind()
    first.close()
    assert os.path.exists(second.path)
    second.close()


def test_a_port_that_is_taken_is_a_fault_of_the_setting_and_leaves_nothing_bound(sockets, monkeypatch):
    monkeypatch.setattr(module, "DYING", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        api = Api("e", port)
        with pytest.raises(ConfigError, match=f"^http_port={port} cannot be listened on"):
            api.bind()
        assert not os.path.exists(api.path)


def test_the_port_of_a_supervisor_that_is_just_being_killed_is_waited_for(sockets, monkeypatch):
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: other.close()))
    api = Api("e", port)
    api.bind()
    assert f"http://127.0.0.1:{port}" == api.http
    api.close()


# ---- what is answered ---------------------------------------------------------------------------------------------------

def test_what_cannot_be_answered_says_so_in_json(loopback, sockets):
    async def test(api, private, tcp):
        for client in (private, tcp):
            status, answer = await ask(client, "GET", "/nothing")
            assert 404 == status and "/metrics, /move, /openapi.json, /readyz" in answer["error"]
            assert 405 == (await ask(client, "GET", "/scale"))[0]
        for body in (b"{", b"[1]", b"\xff\xfe", b"3", b"{}}"):
            status, answer = await ask(private, "POST", "/scale", data=body, headers={"Content-Type": "x/y; charset=none"})
            assert 400 == status and "JSON" in answer["error"], body
        assert (409, {"error": "the engine is being stopped", "kind": "NotRunning"}) == await ask(private, "POST", "/scale",
                                                                                                 json={"shards": 0})
        assert (500, "KeyError: 'a mistake of ours'") == (
            (found := await ask(private, "POST", "/scale", json={"shards": 13}))[0], found[1]["error"])

    run(loopback(), test)


@pytest.mark.parametrize("command, body, fault", [
    ("scale", {"shards": 2}, None), ("scale", {"shards": "auto"}, None), ("move", {"slots": 3, "to": 1}, None),
    ("move", {"slots": "17,40-60", "to": 1}, None), ("move", {"slots": [1, 2], "to": 1}, None), ("stop", {}, None),
    ("stop", {"now": True}, None), ("rebalance", {}, None),
    ("scale", {}, "shards is missing"), ("scale", {"shards": "many"}, "shards='many' is neither a whole number nor 'auto'"),
    ("scale", {"shards": True}, "shards=True is neither"), ("scale", {"shards": 1.5}, "shards=1.5 is neither"),
    ("scale", {"shards": None}, "shards=None is neither"), ("scale", {"shards": 2, "shard": 1}, "shard is not a member"),
    ("drain", {"shard": "0"}, "shard='0' is not a whole number"), ("rebalance", {"now": True}, "there is none"),
    ("move", {"slots": "1-x"}, "slots='1-x' is neither a list of numbers nor text like '17,40-60' nor a whole number"),
    ("move", {"slots": "1 ", "to": 1}, "slots='1 ' is neither"), ("move", {"slots": [1, "2"], "to": 1}, "is neither a list"),
    ("move", {"slots": {"1": 2}, "to": 1}, "is neither"), ("stop", {"now": 1}, "now=1 is not true or false"),
])
def test_a_body_is_checked_against_what_openapi_says(loopback, sockets, command, body, fault):
    async def test(api, private, tcp):
        status, answer = await ask(private, "POST", f"/{command}", json=body)
        if fault is None:
            assert (200, {"asked": body}) == (status, answer)
        else:
            assert 400 == status and fault in answer["error"], answer
        document = (await ask(tcp, "GET", "/openapi.json"))[1]
        schema = document["paths"][f"/{command}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert (fault is None) == jsonschema.Draft4Validator(schema).is_valid(body), "the page and the check do not agree"

    run(loopback(), test)


def test_openapi_has_every_path_that_is_answered_and_no_other(loopback, sockets):
    async def test(api, private, tcp):
        document = (await ask(private, "GET", "/openapi.json"))[1]
        for path, methods in document["paths"].items():
            for method in methods:
                status, _ = await ask(private, method, path, data=b"[]") if method == "post" else (
                    (await private.get(path)).status, None)
                assert status not in (404, 405), (method, path)
        there = (await ask(private, "GET", "/nothing"))[1]["error"].partition("; there are ")[2].split(", ")
        assert sorted(document["paths"]) == there

    run(loopback(), test)


@pytest.mark.parametrize("given, slots", [("3", [3]), ("5,1-3,2", [1, 2, 3, 5]), (7, [7]), ([4, 2, 4], [2, 4])])
def test_slots_are_read_from_text_and_numbers(given, slots):
    assert slots == parse_slots(given, 8)


@pytest.mark.parametrize("given", ["8", "0-99999999999999", "99999999999999", "3-1", -1, 8, [], [1, 8], [-1]])
def test_slots_that_are_not_there_are_refused_before_they_are_counted(given):
    with pytest.raises(ConfigError, match="slots 0 to 7"):
        parse_slots(given, 8)


def samples(families: Any) -> dict[tuple[str, tuple], float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families for sample in family.samples}


@pytest.mark.parametrize("accept, kind, parse", [
    ("*/*", "text/plain", prometheus_text),
    ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", open_metrics)])
def test_metrics_say_what_status_says_in_the_format_that_was_asked_for(loopback, sockets, accept, kind, parse):
    async def test(api, private, tcp):
        document = (await ask(private, "GET", "/status"))[1]
        async with tcp.get("/metrics", headers={"Accept": accept}) as response:
            assert kind == response.content_type and 200 == response.status
            families = list(parse(await response.text()))
        told = samples(families)
        names = {name for name, _ in told}
        for figure in FIGURES:
            if figure.kind == HISTOGRAM:
                assert f"{figure.metric}_bucket" in names
            elif figure.metric and any(value is not None for _, value in figure.read(document)):
                assert figure.metric in names, figure
        name = (("engine", document["engine"]["name"]),)
        assert 100 == told["shardmem_handled_total", name] == told["shardmem_accepted_total", name]
        assert 0 == told["shardmem_in_flight", name] == told["shardmem_refused_total", (*name, ("reason", "full"))]
        assert 1 == told["shardmem_shard_state", (*name, ("shard", "0"), ("state", "active"))]
        assert 0 == told["shardmem_shard_state", (*name, ("shard", "0"), ("state", "failed"))]
        buckets = [value for (metric, labels), value in told.items() if metric == "shardmem_shard_latency_seconds_bucket"]
        assert sorted(buckets) == buckets and 100 == buckets[-1]

    engine = loopback()
    engine.producer().push_many(list(range(100)), [b""] * 100)
    while engine.take() is not None:
        engine.commit()
    run(engine, test)


@pytest.mark.parametrize("bucket", [0, 35, 36, 37, 40, 134, 135, 159])
def test_an_event_is_counted_from_the_bound_that_its_latency_is_below(bucket):
    counts = np.zeros(lib.SM_HISTOGRAM, "u8")
    counts[bucket] = 7
    found = buckets_of(counts)
    below = [float(bound) for bound, events in found if not events]
    within = [float(bound) for bound, events in found if events == 7]
    assert len(found) == len(below) + len(within) and math.inf == within[-1]
    assert max(below, default=0) <= FLOORS_NS[bucket] / 1e9 < min(within)


def test_health_says_why_not(loopback, sockets):
    engine = loopback()

    async def test(api, private, tcp):
        assert (200, {"live": True, "reasons": []}) == await ask(tcp, "GET", "/livez")
        status, answer = await ask(tcp, "GET", "/readyz")  # there are no workers in this test
        assert 503 == status and not answer["ready"] and "64 of 64 slots have no live owner" in answer["reasons"]
        lib.sm_supervisor_beat(engine.control.address, lib.sm_now_ns() - int(2 * STALE * 1e9))
        status, answer = await ask(tcp, "GET", "/livez")
        assert 503 == status and "has not gone round for 20" in answer["reasons"][0]

    run(engine, test)


def healthy(**changes: Any) -> dict[str, Any]:
    shard = {"id": 3, "state": "active", "alive": True, "phase": "ready", "slots": 8, "error": "", "condition": "idle",
             "reason": "nothing is waiting"}
    return {"engine": {"state": changes.pop("engine", "running"), "slots": 8, "slots_unowned": changes.pop("unowned", 0)},
            "supervisor": {"heartbeat_age_s": changes.pop("age", 0.1)}, "shards": [{**shard, **changes}]}


@pytest.mark.parametrize("changes, part", [
    ({}, None), ({"state": "draining"}, None), ({"age": 1e6}, None), ({"alive": False, "slots": 0}, None),
    ({"engine": "draining"}, "the engine is draining"), ({"unowned": 8}, "8 of 8 slots"),
    ({"state": "failed", "error": "it was bad"}, "shard 3 failed: it was bad"),
    ({"alive": False}, "shard 3 has 8 slots and no"),
    ({"phase": "booting"}, "no worker that is ready"),
])
def test_ready_is_an_engine_that_handles_every_slot(changes, part):
    reasons = against_readiness(healthy(**changes))
    assert [] == reasons if part is None else any(part in each for each in reasons), reasons


def test_what_workers_do_is_no_reason_to_end_the_supervisor():
    assert [] == against_life(healthy(state="failed", alive=False, unowned=8)) == against_life(healthy(age=None))
    assert against_life(healthy(age=STALE + 1))
