"""Producers that say what they are called."""

from __future__ import annotations

from typing import Any

import pytest

from shardmem.console import render
from shardmem.console.top_view import Rates, frame
from shardmem.errors import ConfigError
from shardmem.status.observer import Observer


def producers(engine: Any) -> dict[int, dict[str, Any]]:
    observer = Observer(engine.control)
    found = {each["seat"]: each for each in observer.status()["producers"]}
    observer.close()
    return found


def test_a_producer_is_shown_by_its_name_until_another_has_its_seat(loopback) -> None:
    engine = loopback()
    web, plain, named = engine.producer(client="web"), engine.producer(), engine.producer(seat="importer")
    found = producers(engine)
    assert [found[each.seat]["client"] for each in (web, plain, named)] == ["web", None, "importer"]
    assert f"'web' of engine {engine.name!r}" in repr(web) and "Producer of" in repr(plain)
    document = Observer(engine.control).status()
    assert f"web {found[web.seat]['pid']}" in frame(document, Rates()).plain
    assert render.who(found[web.seat]).startswith("web ") and render.who(found[plain.seat]).isdecimal()
    seat = web.seat
    web.close()
    after = engine.producer()
    assert after.seat == seat and producers(engine)[seat]["client"] is None, "the name of the one before"


@pytest.mark.parametrize("client", ["", "x" * 33, "ü" * 17, "two\nlines", "\x1b[2J", 7])
def test_what_is_no_name_is_refused(loopback, client) -> None:
    with pytest.raises(ConfigError, match="1 to 32 bytes of printable text"):
        loopback().producer(client=client)


def test_a_name_of_32_bytes_is_shown_whole(loopback) -> None:
    engine = loopback()
    producer = engine.producer(client="ü" * 16)
    assert producers(engine)[producer.seat]["client"] == "ü" * 16
