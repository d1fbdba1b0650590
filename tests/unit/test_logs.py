"""What is written to standard error: for people and for programs, by whom, and how often."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from shardmem.runtime import logs


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(logs.time, "monotonic", found)
    return found


@pytest.fixture
def written(monkeypatch, clock):
    """`written(form)` sets logging up, once; then a logger and what it has written, line by line."""
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)  # the root logger is pytest's
    monkeypatch.setattr(logs, "_who", None)
    monkeypatch.setattr(logs.Repeats.__init__, "__defaults__", (clock,))
    log = logging.Logger("shardmem.some")

    def begin(form, shard=None):
        stream = io.StringIO()
        handler = logs.set_up(form, "info", "ticks", shard, stream)
        log.addHandler(handler)
        return log, handler, lambda: stream.getvalue().splitlines()

    return begin


def test_a_json_line_has_time_level_logger_message_and_who_says_it(written):
    log, _, lines = written("json", shard=3)
    log.info("before %d", 1)
    logs.incarnate(7)
    log.warning("after\nit", extra={"slot": 17, "seat": 2, "level": "mine"})

    before, after = map(json.loads, lines())
    assert datetime.fromisoformat(before.pop("ts")).tzinfo is not None
    assert {
        "level": "info",
        "logger": "shardmem.some",
        "message": "before 1",
        "engine": "ticks",
        "shard": 3,
        "incarnation": None,
    } == before
    names = ("message", "incarnation", "slot", "seat", "level")
    assert ("after\nit", 7, 17, 2, "warning") == tuple(after[name] for name in names)


def test_an_exception_is_one_field_of_its_json_line_and_what_is_no_json_is_text(written):
    log, _, lines = written("json")
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        log.exception("it failed", extra={"what": {1}, "of": b"x"})

    (line,) = map(json.loads, lines())
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ValueError: bad\nnews")
    assert ("it failed", "{1}", "b'x'", None) == (line["message"], line["what"], line["of"], line["shard"])


def test_a_line_for_people_says_engine_shard_and_incarnation(written):
    log, _, lines = written("human", shard=3)
    logs.incarnate(7)
    log.warning("so it %s", "is")

    assert lines()[0].endswith(" shardmem[ticks] shard 3/7 WARNING so it is")


def test_the_same_event_is_written_once_in_ten_seconds_and_counted(written, clock):
    log, _, lines = written("human")
    for number in range(100):
        log.error("shard %d is not well", number)
    log.error("another kind")
    clock.now += logs.PAUSE - 0.001
    log.error("shard %d is not well", 100)
    clock.now += 0.001
    log.error("shard %d is not well", 101)
    log.error("another kind")
    clock.now += logs.PAUSE
    log.error("shard %d is not well", 102)

    assert [
        "shard 0 is not well",
        "another kind",
        "shard 101 is not well (100 more like this)",
        "another kind",
        "shard 102 is not well",
    ] == [line.partition("ERROR ")[2] for line in lines()]


def test_the_same_event_of_another_shard_is_another_event(written):
    log, _, lines = written("json")
    for shard in (1, 2, 1, 2):
        log.error("shard %d is not well", shard, extra={"shard": shard})

    assert [(1, "shard 1 is not well"), (2, "shard 2 is not well")] == [
        (line["shard"], line["message"]) for line in map(json.loads, lines())
    ]


def test_the_same_words_of_another_logger_are_another_event(written):
    log, handler, lines = written("human")
    other = logging.Logger("other")
    other.addHandler(handler)
    log.error("words")
    other.error("words")

    assert 2 == len(lines())


def test_what_was_held_back_to_the_end_is_counted_at_the_end(written):
    log, handler, lines = written("json")
    for _ in range(4):
        log.error("shard %d is not well", 1)
    handler.close()
    handler.close()

    said = [(json.loads(line)["level"], json.loads(line)["message"]) for line in lines()]
    assert [("error", "shard 1 is not well"), ("error", "3 more like this: shard 1 is not well")] == said


def test_what_is_held_back_keeps_nothing_alive_that_it_speaks_of(written):
    import gc
    import weakref

    class Rows:
        pass

    log, _, lines = written("human")
    rows = Rows()
    seen = weakref.ref(rows)
    for _ in range(3):
        log.warning("rows %s", rows)
    del rows
    gc.collect()

    assert seen() is None, (
        "an argument of a record that was held back is still referred to: BatchEscaped, if it is a batch's"
    )
    assert 1 == len(lines())


def test_format_strings_without_end_do_not_fill_the_memory(written):
    log, handler, lines = written("human")
    for number in range(3 * logs.KINDS):
        log.error(f"the value is {number}")

    assert 3 * logs.KINDS == len(lines())
    assert logs.KINDS == len(handler._repeats._kinds)
