"""Whoever can reach the port holds nothing up, and reads no user's data without the token."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardmem.http import application
from shardmem.http import connections as module
from shardmem.http.connections import MOST, MOST_OF_PEER
from shardmem.http.public import HIDDEN, public
from shardmem.status.findings import findings
from support.door import ask, run

TOKEN = "open sesame"
PATIENCE = 30.0
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is given less time. What is asked has the time that it has."""
    monkeypatch.setattr(module, "IDLE_S", 0.2)


class Wire:
    """A connection of which every byte is the test's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, url: str | None) -> Wire:
        assert url is not None
        return cls(*await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2])))

    async def answer(self) -> tuple[int, Any]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await asyncio.wait_for(self.reader.readexactly(length), PATIENCE)
        return int(head.split()[1]), json.loads(body)

    async def ended(self) -> bytes:
        """What still came before the other end closed it."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        except ConnectionResetError:
            return b""
        finally:
            self.writer.close()

    def close(self) -> None:
        self.writer.close()


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\nHost: local"])
def test_a_header_has_seconds_to_arrive(loopback, sockets, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(module, "HEADER_S", 0.2)

    async def test(api, private, tcp):
        wire = await Wire.to(api.http)
        wire.writer.write(said)
        assert await wire.ended() == b""

    run(loopback(), test)


@pytest.mark.parametrize("said", [GET + b"GET /livez HT", GET])
def test_a_connection_that_does_not_ask_again_is_ended(loopback, sockets, impatient, said: bytes) -> None:
    async def test(api, private, tcp):
        wire = await Wire.to(api.http)
        wire.writer.write(said)
        assert b"200 OK" in await wire.ended()
        assert 200 == (await ask(tcp, "GET", "/livez"))[0]

    run(loopback(), test)


def test_a_body_that_does_not_arrive_is_not_waited_for(loopback, sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "BODY_S", 0.2)

    async def test(api, private, tcp):
        wire = await Wire.to(api.http)
        head = f"POST /scale HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\n"
        wire.writer.write(head.encode() + b'{"sha')
        status, answer = await wire.answer()
        assert status == 408 and "has not arrived within 0.2 s" in answer["error"]
        await wire.ended()

    run(loopback(), test, token=TOKEN)


def test_a_client_that_goes_away_in_the_middle_of_a_body_is_no_error_of_ours(
    loopback, sockets, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(api, private, tcp):
        wire = await Wire.to(api.http)
        head = f"POST /scale HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\n"
        wire.writer.write(head.encode() + b'{"sha')
        await wire.writer.drain()
        assert 200 == (await ask(tcp, "GET", "/livez"))[0]  # by then the command waits for its body
        wire.writer.transport.abort()
        assert 200 == (await ask(tcp, "GET", "/livez"))[0]

    with caplog.at_level(logging.ERROR):
        run(loopback(), test, token=TOKEN)
    assert caplog.messages == []


def test_an_answer_that_nobody_reads_is_not_kept_for_ever(loopback, sockets, impatient) -> None:
    async def test(api, private, tcp):
        connected = socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, ("127.0.0.1", int(api.http.rpartition(":")[2])))
        await loop.sock_sendall(connected, GET.replace(b"/livez", b"/openapi.json") * 200)
        while api.connections():
            await asyncio.sleep(0.01)
        connected.close()

    run(loopback(), test)


def test_more_than_an_answer_may_hold_is_refused(loopback, sockets) -> None:
    async def test(api, private, tcp):
        for client in (private, tcp):
            body = io.BytesIO(b'{"shards": 1, "x": "' + b"x" * (2 << 20) + b'"}')
            status, _ = await ask(client, "POST", "/scale", data=body, headers={"Authorization": f"Bearer {TOKEN}"})
            assert status == 413
        wire = await Wire.to(api.http)
        wire.writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
        assert b" 400 " in (await wire.ended())[:20]

    run(loopback(), test, token=TOKEN)


# ---- number ----------------------------------------------------------------------------------------------------------


def test_silent_connections_make_room_for_one_that_asks(loopback, sockets) -> None:
    """1,100 of them took every descriptor of the supervisor: no worker was started again, and commands hung."""

    async def test(api, private, tcp):
        before = len(os.listdir("/proc/self/fd"))
        wires = [await Wire.to(api.http) for _ in range(3 * MOST)]
        assert await wires[0].ended() == b"", "the one that has waited longest"
        assert api.connections() <= MOST_OF_PEER
        assert (200, {"live": True, "reasons": []}) == await ask(tcp, "GET", "/livez")
        assert 200 == (await ask(private, "POST", "/scale", json={"shards": 2}))[0]
        for wire in wires:
            wire.close()
        del wires
        assert len(os.listdir("/proc/self/fd")) < before + 4 * MOST

    run(loopback(), test)


class Transport(asyncio.Transport):
    def __init__(self, peer: object) -> None:
        super().__init__()
        self.peer, self.aborted, self.written = peer, False, b""

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0


@pytest.fixture
def admitted() -> Iterator[Callable[..., tuple[module.Connections, list[Transport]]]]:
    """`admitted(peer, ...)`: connections of these peers, one after the other."""
    loop = asyncio.new_event_loop()

    def connect(*peers: object, most: int = 6, most_of_peer: int = 4) -> tuple[module.Connections, list[Transport]]:
        all_of_them = module.Connections(
            asyncio.Protocol, lambda transport: transport.peer, paced=True, most=most, most_of_peer=most_of_peer
        )
        made: list[Transport] = []

        async def inside() -> None:
            for peer in peers:
                connection = all_of_them()
                made.append(Transport(peer))
                connection.connection_made(made[-1])
                if peer == "busy":
                    connection.is_answering = True

        loop.run_until_complete(inside())
        return all_of_them, made

    yield connect
    loop.close()


def test_a_peer_that_has_too_many_loses_its_own(admitted) -> None:
    all_of_them, made = admitted("a", *["b"] * 6, "c")
    assert [each.aborted for each in made] == [False, True, True, *[False] * 5] and len(all_of_them) == 6


def test_in_all_the_peer_that_has_most_makes_room(admitted) -> None:
    all_of_them, made = admitted("a", "b", "b", "b", "c", "d", "e", "f")
    assert [each.peer for each in made if each.aborted] == ["b", "b"] and len(all_of_them) == 6


def test_what_is_being_answered_is_not_ended_for_another(admitted) -> None:
    all_of_them, made = admitted(*["busy"] * 4, "a", most=4)
    assert made[-1].written.startswith(b"HTTP/1.1 503 ") and b"too many connections" in made[-1].written
    assert [each.aborted for each in made] == [False] * 4 + [True] and len(all_of_them) == 4


def test_a_peer_that_asks_without_end_has_to_wait_and_another_has_not() -> None:
    greedy, modest = module.Peer(0.0), module.Peer(0.0)
    delays = [greedy.delay(1.0) for _ in range(400)]
    assert not any(delays[:200]) and delays[-1] == pytest.approx(2.0)
    assert modest.delay(1.0) == 0.0
    assert greedy.delay(60.0) == 0.0


def test_answers_are_made_as_long_as_that_takes_a_small_part_of_the_time(loopback, sockets) -> None:
    async def test(api, private, tcp):
        made: list[int] = []
        await ask(private, "GET", "/livez")  # the application is loaded when somebody asks
        reads = api._application.reads
        reads._credit = 0.0
        reads._answers["x"] = "old"
        reads._credited_at = float("inf")
        assert reads._made("x", lambda: made.append(1) or "new") == "old" and not made
        reads._credit, reads._credited_at = 1.0, 0.0
        assert reads._made("x", lambda: made.append(1) or "new") == "new" and made

    run(loopback(), test)


# ---- who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://evil.example:9105", "null", "", "http://localhost."]
)
def test_a_page_of_another_site_is_refused_whatever_it_asks(loopback, sockets, origin: str) -> None:
    async def test(api, private, tcp):
        headers = {"Origin": origin, "Authorization": f"Bearer {TOKEN}"}
        for method, path in (("GET", "/status"), ("GET", "/quarantine"), ("POST", "/scale")):
            status, answer = await ask(tcp, method, path, headers=headers, json={"shards": 2})
            assert status == 403 and "page of another site" in answer["error"]
        headers["Origin"] = api.http
        assert 200 == (await ask(tcp, "POST", "/scale", headers=headers, json={"shards": 2}))[0]

    run(loopback(), test, token=TOKEN)


def test_a_command_of_a_client_that_has_gone_is_not_carried_out(loopback, sockets) -> None:
    """`timeout 3 shardmem scale 2` failed while the supervisor was stopped, and was carried out when it went on."""
    carried_out: list[object] = []

    async def test(api, private, tcp):
        async def note(wanted: dict[str, Any]) -> dict[str, Any]:
            carried_out.append(wanted)
            return {}

        declared = next(each for each in application.COMMANDS if each.name == "rebalance")
        await ask(private, "GET", "/livez")  # the application is loaded when somebody asks
        answer = api._application._command(declared, note)
        ours, theirs = socket.socketpair()
        with ours:
            theirs.close()

            class Request:
                class transport:
                    is_closing = staticmethod(lambda: False)
                    get_extra_info = staticmethod(lambda name: ours)

                @staticmethod
                async def read() -> bytes:
                    return b"{}"

            assert 499 == (await answer(Request())).status and not carried_out

    run(loopback(), test)


def test_bad_requests_write_nothing_into_the_log(loopback, sockets, caplog: pytest.LogCaptureFixture) -> None:
    async def test(api, private, tcp):
        for bad in (
            b"\x1b]0;PWN\x07\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ):
            wire = await Wire.to(api.http)
            wire.writer.write(bad)
            assert b" 400 " in (await wire.ended())[:20]

    with caplog.at_level(logging.DEBUG):
        run(loopback(), test)
    assert not [each for each in caplog.records if "PWN" in each.getMessage() or each.exc_info]


# ---- what is shown ---------------------------------------------------------------------------------------------------

SECRET = "card 4111111111111111 of alice@example.com"


def test_what_a_handler_said_is_not_shown_without_the_token(loopback, sockets) -> None:
    """A card's number stood in /readyz, and load balancers write that into their logs."""
    engine = loopback(shards=2)
    engine.control.set_shard_state(1, "failed")
    engine.control.set_worker_error(1, f"the handler of shard 1 raised ValueError: {SECRET}")
    engine.control.post(
        "events",
        json.dumps(
            {
                "quarantined": 0,
                "events": [
                    {"at": 1.0, "kind": kind, "shard": 1, "text": f"{said}{SECRET}", "level": "error"}
                    for kind, said in (
                        ("shard_failed", ""),
                        ("worker_died", "worker pid 7 ended: exit code 1, "),
                        ("stopped", "stopped with 3 events not handled: "),
                        ("not_done", "scale: "),
                        ("invented since", ""),
                    )
                ],
            }
        ).encode(),
    )

    async def texts(client: Any, **headers: str) -> str:
        found = ""
        for path in ("/status", "/readyz", "/livez", "/metrics", "/openapi.json", "/access", "/slots", "/lanes/1", "/"):
            async with client.get(path, headers=headers) as response:
                found += await response.text()
        return found

    async def test(api, private, tcp):
        shown = await texts(tcp)
        assert "4111" not in shown and "alice" not in shown
        assert "shard 1 failed" in shown and HIDDEN in shown
        assert "worker pid 7 ended: exit code 1" in shown and "stopped with 3 events not handled" in shown
        assert "4111" not in await texts(tcp, Authorization="Bearer wrong")
        for told in (await texts(tcp, Authorization=f"Bearer {TOKEN}"), await texts(private)):
            assert told.count("4111") >= 8

    run(engine, test, token=TOKEN)


def test_what_is_shown_without_the_token_is_still_a_status_document(loopback, sockets) -> None:
    engine = loopback(shards=2)

    async def test(api, private, tcp):
        whole, shown = (await ask(private, "GET", "/status"))[1], (await ask(tcp, "GET", "/status"))[1]
        assert whole.keys() == shown.keys()
        assert [each.keys() for each in whole["shards"]] == [each.keys() for each in shown["shards"]]
        assert [(each["level"], each["kind"]) for each in whole["findings"]] == [
            (each["level"], each["kind"]) for each in shown["findings"]
        ]

    run(engine, test)


def test_every_text_of_a_document_that_is_not_known_to_be_ours_is_hidden(loopback) -> None:
    from shardmem.status.observer import Observer

    observer = Observer(loopback(shards=2).control)
    document = observer.status()
    observer.close()
    shard = document["shards"][0]
    shard.update(condition="waiting", reason=SECRET, error="", last_exit=SECRET, state="active")
    document["moves"]["complaints"] = [f"the strategy raised ValueError: {SECRET}"]
    document["sources"] = [
        {
            "name": "file",
            "kind": "file",
            "pid": 1,
            "alive": True,
            "incarnation": 1,
            "state": "failed",
            "error": SECRET,
            "seat": None,
            "events": 0,
            "bytes": 0,
            "skipped": 0,
            "reasons": {},
            "group": SECRET,
            "apart": [SECRET],
            "waits_for": SECRET,
            "remote": SECRET,
            "remote_error": SECRET,
            "remote_error_age_s": 1.0,
            "uploaded_age_s": None,
            "partitions": {SECRET: {"offset": 7, "at": "", "state": "paused"}},
            "last_commit_age_s": None,
        }
    ]
    document["supervisor"]["alive"] = True
    document["findings"] = findings(document)
    assert SECRET in json.dumps(document["findings"]) and SECRET not in json.dumps(public(document))
