"""Who may ask what over TCP: from this machine, from another, through a proxy, with and without the token."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest

from shardmem.config import Config
from shardmem.errors import ConfigError
from shardmem.http.access import Access
from shardmem.http.listeners import listen_on_tcp, url_of
from support.door import ask, run

TOKEN = "open sesame"
FAR = {"X-Forwarded-For": "203.0.113.7"}  # passed on by a proxy, which is on this machine
OPEN, SHOWN, PRIVATE = ("/metrics", "/livez", "/readyz"), ("/status", "/", "/slots", "/series"), ("/settings", "/log")


async def code(client: Any, path: str, method: str = "GET", **headers: str) -> int:
    async with client.request(method, path, headers=headers) as response:
        await response.read()
        return int(response.status)


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{token}".encode()).decode()


def test_from_elsewhere_all_but_health_and_metrics_needs_the_token(loopback, sockets) -> None:
    async def test(api, private, tcp):
        for path in OPEN:
            assert await code(tcp, path, **FAR) in (200, 503) and await code(tcp, path) in (200, 503)
        for path in (*SHOWN, *PRIVATE):
            assert await code(tcp, path, **FAR) == 401, path
            for shown in (f"Bearer {TOKEN}", basic(TOKEN)):
                assert await code(tcp, path, **FAR, Authorization=shown) in (200, 409), path
            for wrong in ("Bearer wrong", basic("wrong"), "Basic !", f"Digest {TOKEN}", TOKEN):
                assert await code(tcp, path, **FAR, Authorization=wrong) == 401, (path, wrong)
        for path in SHOWN:
            assert await code(tcp, path) == 200, path
        for path in PRIVATE:
            assert await code(tcp, path) == 401, path
        assert await code(tcp, "/nowhere", **FAR) == 401, "what there is, is not told either"
        assert await code(tcp, "/scale", "POST", **FAR) == 401 == await code(tcp, "/scale", "POST")
        async with tcp.get("/status", headers=FAR) as response:
            assert response.headers["WWW-Authenticate"].startswith("Basic "), "a browser asks for it"

    run(loopback(), test, token=TOKEN, address="0.0.0.0")


def test_without_a_token_there_are_health_and_metrics_from_elsewhere_and_nothing_else(loopback, sockets) -> None:
    async def test(api, private, tcp):
        assert [await code(tcp, path, **FAR) in (200, 503) for path in OPEN] == [True] * 3
        for path in (*SHOWN, *PRIVATE):
            status, answer = await ask(tcp, "GET", path, headers=FAR)
            assert status == 403 and "http_token" in answer["hint"], path

    run(loopback(), test, address="0.0.0.0")


@pytest.mark.parametrize(
    "address, hosts, host, allowed",
    [
        ("127.0.0.1", (), "localhost:9105", True),
        ("127.0.0.1", (), "web01.example.com:9105", False),
        ("127.0.0.1", (), "10.0.0.7:9105", False),
        ("127.0.0.1", ("web01.example.com",), "WEB01.example.com:9105", True),
        ("127.0.0.1", (".example.com",), "web01.example.com", True),
        ("127.0.0.1", (".example.com",), "evilexample.com", False),
        ("0.0.0.0", (), "10.0.0.7:9105", True),
        ("0.0.0.0", (), "[2001:db8::7]:9105", True),
        ("0.0.0.0", (), "web01:9105", False),
        ("0.0.0.0", ("*",), "web01:9105", True),
    ],
)
def test_the_header_host_has_to_name_this_engine(loopback, sockets, address, hosts, host, allowed) -> None:
    async def test(api, private, tcp):
        assert await code(tcp, "/status", Host=host) == (200 if allowed else 403)
        open_anyway = allowed or address == "0.0.0.0"
        assert (await code(tcp, "/livez", Host=host) != 403) == open_anyway, "a scrape by whatever name"

    run(loopback(), test, address=address, hosts=hosts)


@pytest.mark.parametrize(
    "peer, far",
    [
        (("127.0.0.1", 1), False),
        (("127.3.2.1", 1), False),
        (("::1", 1, 0, 0), False),
        (("::ffff:127.0.0.1", 1, 0, 0), False),
        (("172.17.0.1", 1), True),
        (("fe80::1%eth0", 1, 0, 2), True),
        (("::ffff:10.0.0.1", 1, 0, 0), True),
        (None, True),
        ((), True),
    ],
)
def test_who_is_on_this_machine_is_told_by_the_address_and_in_doubt_is_not(peer, far) -> None:
    request: Any = SimpleNamespace(headers={}, transport=SimpleNamespace(get_extra_info=lambda name: peer))
    assert Access(None)._is_far(request) is far
    request.headers["Forwarded"] = "for=127.0.0.1"
    assert Access(None)._is_far(request) is True


def test_an_address_that_is_none_or_of_another_machine_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="http_address='web01' is not an IP address"):
        Config.of(name="e", handler="app:handle", http_address="web01")
    with pytest.raises(ConfigError, match="http_address=203.0.113.7") as error:
        listen_on_tcp("203.0.113.7", 0)
    assert "0.0.0.0" in (error.value.hint or "")
    assert [url_of(each, 9105) for each in ("127.0.0.1", "0.0.0.0", "::", "10.0.0.7")] == [
        "http://127.0.0.1:9105",
        "http://127.0.0.1:9105",
        "http://[::1]:9105",
        "http://10.0.0.7:9105",
    ]
