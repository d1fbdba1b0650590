"""The control API over real sockets, on an engine without processes: who may ask, and what is answered."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import stat
import struct
import time
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from shardmem.client.quarantine import NEWEST, describe, plain
from shardmem.errors import AlreadyRunning, ConfigError
from shardmem.http import listeners as module
from shardmem.http.access import Access
from shardmem.http.metrics import rows_of, seconds_of
from shardmem.http.operations import COMMANDS, PAGE_FILES, READS
from shardmem.http.server import Api
from shardmem.memory.native import lib
from shardmem.memory.words import FLOORS_NS
from shardmem.runtime.quarantine import Entry, Quarantine
from shardmem.slot_ranges import parse_slots, slot_ranges
from shardmem.status.figures import FIGURES, HISTOGRAM
from shardmem.status.findings import STALE_S
from shardmem.status.health import against_life, against_readiness
from support.door import ask, run

TOKEN = "open sesame"


# ---- who may ask -----------------------------------------------------------------------------------------------------


def test_tcp_reads_and_without_a_token_changes_nothing(loopback, sockets):
    async def test(api, private, tcp):
        assert 200 == (await ask(tcp, "GET", "/status"))[0]
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
            status, answer = await ask(tcp, "POST", "/scale", json={"shards": 2}, headers=headers)
            assert 403 == status and "Set `http_token`" in answer["hint"]
        assert (200, {"asked": {"shards": 2}}) == await ask(private, "POST", "/scale", json={"shards": 2})

    run(loopback(), test)


@pytest.mark.parametrize(
    "header, status",
    [
        (None, 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        ("Bearer", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer ü", 401),
    ],
)
def test_commands_over_tcp_have_to_show_the_token(loopback, sockets, header, status):
    async def test(api, private, tcp):
        headers = {"Authorization": header} if header else {}
        found, answer = await ask(tcp, "POST", "/scale", json={"shards": 2}, headers=headers)
        assert status == found and ("error" in answer) == (status == 401), answer

    run(loopback(), test, token=TOKEN)


@pytest.mark.parametrize(
    "token, header, over_tcp",
    [
        (None, None, "read"),
        (None, f"Bearer {TOKEN}", "read"),
        (TOKEN, None, "token"),
        (TOKEN, "Bearer no", "token"),
        (TOKEN, f"Bearer {TOKEN}", "all"),
    ],
)
def test_what_may_be_done_is_known_beforehand(loopback, sockets, token, header, over_tcp):
    async def test(api, private, tcp):
        headers = {"Authorization": header} if header else {}
        assert (200, {"access": over_tcp}) == await ask(tcp, "GET", "/access", headers=headers)
        assert (200, {"access": "all"}) == await ask(private, "GET", "/access", headers=headers)
        status, _ = await ask(tcp, "POST", "/scale", json={"shards": 2}, headers=headers)
        assert (status == 200) == (over_tcp == "all"), "what is said is not what is done"

    run(loopback(), test, token=token)


def test_the_page_may_load_nothing_from_elsewhere_and_make_no_markup_of_texts(loopback, sockets):
    async def test(api, private, tcp):
        served = set()
        for path in ("/", *(f"/page/{name}" for name in PAGE_FILES)):
            async with tcp.get(path) as response:
                assert 200 == response.status and "nosniff" == response.headers["X-Content-Type-Options"], path
                may = response.headers["Content-Security-Policy"]
                assert (
                    "default-src 'none'" in may and "unsafe" not in may and "require-trusted-types-for 'script'" in may
                )
                text = await response.text()
                assert not re.search(
                    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=|\son\w+=", text
                ), path
                assert not re.search(r"(https?:)?//(?!www\.w3\.org/2000/svg)[a-z]", re.sub(r"//[ -].*", "", text)), path
                served.add(path.rpartition("/")[2])
        there = {each.name for each in files("shardmem.http").joinpath("page").iterdir()}
        assert there == served - {""}, "a file of the page is not served"
        for name in ("../api.py", "api.py", "..%2fapi.py", "page.html%00", ""):
            assert 404 == (await tcp.get(f"/page/{name}")).status, name

    run(loopback(), test)


def test_lanes_of_a_shard_say_whose_they_are(loopback, sockets):
    engine = loopback(shards=2)
    engine.producer().push_many([1] * 100, [b"x" * 50] * 100)
    shard = next(shard for shard in range(2) if engine.inboxes[shard].lanes())

    async def test(api, private, tcp):
        (lane,) = (await ask(tcp, "GET", f"/lanes/{shard}"))[1]["lanes"]
        assert (100, 100, os.getpid(), True) == (lane["accepted"], lane["in_flight"], lane["pid"], lane["alive"])
        assert 0.0 < lane["fill_ratio"] < 1.0 and not lane["broken"]
        assert 404 == (await ask(tcp, "GET", "/lanes/7"))[0]

    run(engine, test)


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:9", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.", 403),
        ("", 403),
        ("[::1", 403),
        ("user@localhost", 403),
    ],
)
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

    answer = asyncio.run(Access(None).admit(request, handler))
    assert "let in" == answer if allowed else 403 == answer.status and f"this connection is of uid {uid}" in answer.text


@pytest.mark.parametrize("path", ["/quarantine", "/quarantine/1", "/%71uarantine", "/quarantine?x=1"])
@pytest.mark.parametrize("token", [None, TOKEN])
def test_the_users_events_are_not_read_over_tcp_without_the_token(loopback, sockets, path, token):
    set_aside(sockets / "e.quarantine", 1)

    async def test(api, private, tcp):
        for method in ("GET", "HEAD"):
            async with tcp.request(method, path) as response:
                assert response.status == (403 if token is None else 401)
                assert b"secret" not in await response.read()
        with_token = (await ask(tcp, "GET", path, headers={"Authorization": f"Bearer {TOKEN}"}))[0]
        assert with_token == (403 if token is None else 200)
        assert 200 == (await ask(private, "GET", path))[0], "the unix socket needs none"
        assert 200 == (await ask(tcp, "GET", "/status"))[0], "figures need none"

    run(loopback(), test, token=token)


# ---- the sockets -----------------------------------------------------------------------------------------------------


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

    dead, first._unix = first._unix, None
    dead.socket.close()  # as the kernel does when it is killed: the name stays
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
        with pytest.raises(ConfigError, match=f"^cannot listen on http_port={port}"):
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


# ---- what is answered ------------------------------------------------------------------------------------------------


def test_what_cannot_be_answered_says_so_in_json(loopback, sockets):
    async def test(api, private, tcp):
        for client in (private, tcp):
            status, answer = await ask(client, "GET", "/nothing")
            assert (
                404 == status
                and "/metrics, /move, /moves, /openapi.json, /page/{file}, /pin, /quarantine, /quarantine/purge"
                in answer["hint"]
            )
            assert 405 == (await ask(client, "GET", "/scale"))[0]
        for body in (b"{", b"[1]", b"\xff\xfe", b"3", b"{}}", b"[" * 100_000):
            status, answer = await ask(
                private, "POST", "/scale", data=body, headers={"Content-Type": "x/y; charset=none"}
            )
            assert 400 == status and "JSON" in answer["error"], body
        assert (409, {"error": "the engine is being stopped", "hint": None, "kind": "NotRunning"}) == await ask(
            private, "POST", "/scale", json={"shards": 0}
        )
        assert (500, "KeyError: 'a mistake of ours'") == (
            (found := await ask(private, "POST", "/scale", json={"shards": 13}))[0],
            found[1]["error"],
        )

    run(loopback(), test)


@pytest.mark.parametrize(
    "command, body, fault",
    [
        ("scale", {"shards": 2}, None),
        ("scale", {"shards": "auto"}, None),
        ("move", {"slots": 3, "to": 1}, None),
        ("move", {"slots": "17,40-60", "to": 1}, None),
        ("move", {"slots": [1, 2], "to": 1}, None),
        ("stop", {}, None),
        ("stop", {"now": True}, None),
        ("rebalance", {}, None),
        ("scale", {}, "shards is missing"),
        ("scale", {"shards": "many"}, "shards='many' is not a whole number or 'auto'"),
        ("scale", {"shards": True}, "shards=True is not a"),
        ("scale", {"shards": 1.5}, "shards=1.5 is not a"),
        ("scale", {"shards": None}, "shards=None is not a"),
        ("scale", {"shards": 2, "shard": 1}, "shard is not a member"),
        ("drain", {"shard": "0"}, "shard='0' is not a whole number"),
        ("rebalance", {"now": True}, "now is not a member"),
        ("move", {"slots": "1-x"}, "slots='1-x' is not a list of numbers or text like '17,40-60' or a whole number"),
        ("move", {"slots": "1 ", "to": 1}, "slots='1 ' is not a list"),
        ("move", {"slots": [1, "2"], "to": 1}, "is not a list"),
        ("quarantine/replay", {"ids": [1, 2]}, None),
        ("quarantine/replay", {"all": True, "timeout": 0.5}, None),
        ("quarantine/purge", {"all": True}, None),
        ("quarantine/purge", {"all": False}, "all=False is not true"),
        ("quarantine/purge", {}, "exactly one of ids, all is required"),
        ("quarantine/purge", {"ids": []}, "ids=[] is not a list of"),
        ("quarantine/purge", {"ids": [1], "all": True}, "exactly one of ids, all"),
        ("quarantine/replay", {"ids": [1.5]}, "is not a list of"),
        ("quarantine/replay", {"all": True, "timeout": 61}, "timeout=61 is not a number of seconds from 0 to 60"),
        ("quarantine/replay", {"all": True, "timeout": -1}, "timeout=-1 is"),
        ("quarantine/replay", {"timeout": 1}, "one of ids"),
        ("quarantine/replay", {"all": True, "timeout": True}, "timeout=True is"),
        ("quarantine/purge", {"ids": 1}, "ids=1 is not"),
        ("move", {"slots": {"1": 2}, "to": 1}, "is not a list"),
        ("stop", {"now": 1}, "now=1 is not true or false"),
    ],
)
def test_a_body_is_checked_against_what_openapi_says(loopback, sockets, command, body, fault):
    async def test(api, private, tcp):
        status, answer = await ask(private, "POST", f"/{command}", json=body)
        if fault is None:
            assert (200, {"asked": body}) == (status, answer)
        else:
            assert 400 == status and fault in answer["error"], answer
        document = (await ask(tcp, "GET", "/openapi.json"))[1]
        schema = document["paths"][f"/{command}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert (fault is None) == jsonschema.Draft4Validator(schema).is_valid(body), (
            "the page and the check do not agree"
        )

    run(loopback(), test)


def test_openapi_asks_for_the_token_where_it_is_needed_and_nowhere_else(loopback, sockets):
    async def test(api, private, tcp):
        needed = {f"/{each.name}" for each in COMMANDS} | {each.path for each in READS if each.private}
        for client, guarded in ((private, set()), (tcp, needed)):
            paths = (await ask(client, "GET", "/openapi.json"))[1]["paths"]
            said = {path: list(methods.values())[0] for path, methods in paths.items()}
            assert guarded == {path for path, each in said.items() if "security" in each}
            assert guarded == {path for path, each in said.items() if "401" in each["responses"]}

    run(loopback(), test)


def test_openapi_has_every_path_that_is_answered_and_no_other(loopback, sockets):
    set_aside(sockets / "e.quarantine", 1)

    async def test(api, private, tcp):
        document = (await ask(private, "GET", "/openapi.json"))[1]
        for path, methods in document["paths"].items():
            for method in methods:
                asked = path.format(id=1, shard=0, file="words.js", name="visits", key="a/b")
                answer = await private.request(method, asked, data=b"[]" if method == "post" else None)
                if path.startswith("/state/"):  # it has none
                    assert "state 'visits' has no value for key 'a/b'" == (await answer.json())["error"]
                else:
                    assert answer.status not in (404, 405), (method, path)
        there = (await ask(private, "GET", "/nothing"))[1]["hint"].partition("There are ")[2].split(", ")
        assert sorted(document["paths"]) == there

    run(loopback(), test)


def set_aside(
    path: Any, count: int, *, key: Any = "secret key", payload: bytes = b"secret", schema: Any = None
) -> None:
    store = Quarantine(str(path))
    for number in range(count):
        store.add(
            Entry(
                f"{time.monotonic_ns()} {number}",
                shard=0,
                slot=3,
                seat=1,
                sequence=number,
                kind="exception",
                reason="ValueError: no",
                traceback="in handle",
                attempts=3,
                key=key,
                payload=payload,
                schema=schema or {"kind": "events"},
            )
        )
    store.close()


def test_the_quarantine_is_shown_newest_first_without_payloads_and_one_event_whole(loopback, sockets):
    async def test(api, private, tcp):
        file = sockets / "e.quarantine"
        assert (200, {"file": str(file), "count": 0, "limit": 7, "events": []}) == await ask(
            private, "GET", "/quarantine"
        )
        assert not file.exists(), "looking made one"
        assert 404 == (await ask(private, "GET", "/quarantine/1"))[0]
        set_aside(file, NEWEST + 3)
        status, found = await ask(private, "GET", "/quarantine")
        assert (200, NEWEST + 3, NEWEST) == (status, found["count"], len(found["events"]))
        assert [NEWEST + 3, NEWEST + 2] == [each["id"] for each in found["events"][:2]]
        assert {
            "id",
            "at",
            "shard",
            "slot",
            "producer",
            "sequence",
            "kind",
            "reason",
            "attempts",
            "key",
            "bytes",
            "replayed_at",
        } == found["events"][0].keys() and 6 == found["events"][0]["bytes"]
        status, whole = await ask(private, "GET", "/quarantine/2")
        shown = [whole[key] for key in ("id", "key", "payload", "traceback")]
        assert (200, [2, "secret key", "secret", "in handle"]) == (status, shown)
        for number in ("104", "0", "9" * 18, "9" * 19, "9" * 5000, "-1", "x"):
            assert 404 == (await ask(private, "GET", f"/quarantine/{number}"))[0], number

    run(loopback(), test)


def test_a_quarantine_that_is_no_database_is_a_sentence_and_no_traceback(loopback, sockets):
    async def test(api, private, tcp):
        (sockets / "e.quarantine").write_bytes(b"not a database" * 1000)
        for path in ("/quarantine", "/quarantine/1"):
            status, answer = await ask(private, "GET", path)
            assert 409 == status and "cannot be used" in answer["error"], answer

    run(loopback(), test)


@pytest.mark.parametrize(
    "value, shown",
    [
        (b"text", "text"),
        (b"\xff", {"base64": "/w=="}),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32(0.5), 0.5),
        (None, None),
        (np.array([1.0, math.inf]), [1.0, "inf"]),
        (np.zeros((), [("a", "i4"), ("b", "S2")])[()], [0, ""]),
        ((1 << 64) - 1, (1 << 64) - 1),
        (np.datetime64("2026-01-02", "D"), "2026-01-02"),
        (np.complex64(1j), "1j"),
        (np.True_, True),
    ],
)
def test_what_is_in_an_event_is_shown_as_json_that_every_reader_takes(value, shown):
    assert shown == json.loads(json.dumps(plain(value), allow_nan=False))


def test_a_list_of_events_is_not_made_large_by_their_keys(tmp_path):
    set_aside(tmp_path / "q", 1, key=b"k" * 100_000)
    with Quarantine(str(tmp_path / "q")) as store:
        (event,) = store.events(payloads=False)
        assert len(describe(event)["key"]) == 1000 and len(describe(store.events([1])[0], whole=True)["key"]) == 100_000
        assert (b"", 6) == (event.payload, event.size)


@pytest.mark.parametrize(
    "given, slots", [("3", [3]), ("0" * 5000 + "3", [3]), ("5,1-3,2", [1, 2, 3, 5]), (7, [7]), ([4, 2, 4], [2, 4])]
)
def test_slots_are_read_from_text_and_numbers(given, slots):
    assert slots == parse_slots(given, 8) == parse_slots(slot_ranges(slots), 8)


@pytest.mark.parametrize(
    "given", ["8", "0-99999999999999", "99999999999999", "9" * 5000, "0-" + "9" * 5000, "3-1", -1, 8, [], [1, 8], [-1]]
)
def test_slots_that_are_not_there_are_refused_before_they_are_counted(given):
    with pytest.raises(ConfigError, match="slots 0 to 7"):
        parse_slots(given, 8)


def samples(families: Any) -> dict[tuple[str, tuple], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    "accept, kind, parse",
    [
        ("*/*", "text/plain", prometheus_text),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", open_metrics),
    ],
)
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
                assert {f"{figure.metric}_{part}" for part in ("bucket", "sum", "count")} <= names
            elif figure.metric and any(value is not None for _, value in figure.read(document)):
                assert figure.metric in names, figure
        name = (("engine", document["engine"]["name"]),)
        assert 100 == told["shardmem_handled_total", name] == told["shardmem_accepted_total", name]
        assert 0 == told["shardmem_in_flight", name] == told["shardmem_refused_total", (*name, ("reason", "full"))]
        assert 1 == told["shardmem_shard_state", (*name, ("shard", "0"), ("state", "active"))]
        assert 0 == told["shardmem_shard_state", (*name, ("shard", "0"), ("state", "failed"))]
        buckets = [
            value for (metric, labels), value in told.items() if metric == "shardmem_shard_latency_seconds_bucket"
        ]
        assert sorted(buckets) == buckets and 100 == buckets[-1]
        shard = (*name, ("shard", "0"))
        assert (
            100 == told["shardmem_shard_latency_seconds_count", shard] == told["shardmem_shard_batch_rows_sum", shard]
        )
        upto = {
            bound: told["shardmem_shard_batch_rows_bucket", (*name, ("le", bound), shard[1])]
            for bound in ("64.0", "128.0")
        }
        assert {"64.0": 0, "128.0": 1} == upto and 1 == told["shardmem_shard_batch_rows_count", shard]
        seconds = told["shardmem_shard_latency_seconds_sum", shard]
        assert (
            0 < seconds / 100 < 60
            and abs(seconds / 100 - document["shards"][0]["latency_p50_us"] / 1e6) < 0.3 * seconds / 100
        )

    engine = loopback()
    engine.producer().push_many(list(range(100)), [b""] * 100)
    while engine.take() is not None:
        engine.commit()
    run(engine, test)


@pytest.mark.parametrize("bucket", [0, 35, 36, 37, 40, 134, 135, 159])
def test_an_event_is_counted_from_the_bound_that_its_latency_is_below(bucket):
    counts = np.zeros(lib.SM_HISTOGRAM, "u8")
    counts[bucket] = 7
    found = seconds_of(counts)
    below = [float(bound) for bound, events in found if not events]
    within = [float(bound) for bound, events in found if events == 7]
    assert len(found) == len(below) + len(within) and math.inf == within[-1]
    assert max(below, default=0) <= FLOORS_NS[bucket] / 1e9 < min(within)


@pytest.mark.parametrize("bucket", [0, 1, 12, 20, 21, 31])
def test_a_batch_is_counted_up_to_the_bound_that_holds_it(bucket):
    counts = np.zeros(lib.SM_BATCH_SIZES, "u8")
    counts[bucket] = 7
    found = [(float(bound), batches) for bound, batches in rows_of(counts)]
    assert [bound for bound, batches in found if batches][0] == (2.0**bucket if bucket <= 20 else math.inf)
    assert ["1.0", "2.0", "4.0"] == [bound for bound, _ in rows_of(counts)][:3] and (math.inf, 7) == found[-1]


def test_health_says_why_not(loopback, sockets):
    engine = loopback()

    async def test(api, private, tcp):
        assert (200, {"live": True, "reasons": []}) == await ask(tcp, "GET", "/livez")
        status, answer = await ask(tcp, "GET", "/readyz")  # there are no workers in this test
        assert 503 == status and not answer["ready"] and "64 of 64 slots have no live owner" in answer["reasons"]
        lib.sm_supervisor_beat(engine.control.address, lib.sm_now_ns() - int(2 * STALE_S * 1e9))
        status, answer = await ask(tcp, "GET", "/livez")
        assert 503 == status and "has not responded for 20" in answer["reasons"][0]

    run(engine, test)


def healthy(**changes: Any) -> dict[str, Any]:
    shard = {
        "id": 3,
        "state": "active",
        "alive": True,
        "phase": "ready",
        "slots": 8,
        "error": "",
        "condition": "idle",
        "reason": "nothing is waiting",
    }
    return {
        "engine": {"state": changes.pop("engine", "running"), "slots": 8, "slots_unowned": changes.pop("unowned", 0)},
        "supervisor": {"heartbeat_age_s": changes.pop("age", 0.1)},
        "shards": [{**shard, **changes}],
    }


@pytest.mark.parametrize(
    "changes, part",
    [
        ({}, None),
        ({"state": "draining"}, None),
        ({"age": 1e6}, None),
        ({"alive": False, "slots": 0}, None),
        ({"engine": "draining"}, "the engine is draining"),
        ({"unowned": 8}, "8 of 8 slots"),
        ({"state": "failed", "error": "it was bad"}, "shard 3 failed: it was bad"),
        ({"alive": False}, "shard 3 has 8 slots and no"),
        ({"phase": "booting"}, "no worker that is ready"),
    ],
)
def test_ready_is_an_engine_that_handles_every_slot(changes, part):
    reasons = against_readiness(healthy(**changes))
    assert [] == reasons if part is None else any(part in each for each in reasons), reasons


def test_what_workers_do_is_no_reason_to_end_the_supervisor():
    assert [] == against_life(healthy(state="failed", alive=False, unowned=8)) == against_life(healthy(age=None))
    assert against_life(healthy(age=STALE_S + 1))
