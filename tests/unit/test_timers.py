"""Timers and expiry, on a clock that the test drives."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

import shardmem
from shardmem.state import timers as timers_module
from shardmem.state.scope import seconds_of
from shardmem.testing import Harness


class Alarm(shardmem.Handler):
    """An event is when its timer is to fire: "name after". What fired is written down, with the time, in state."""

    fired = shardmem.KeyedState(list[tuple[str, float]], default=list)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            name, _, after = payload.decode().partition(" ")
            if after == "cancel":
                self.timers.cancel(key, name)
            else:
                self.timers.set(key, name, after=float(after))

    def on_timer(self, key: Any, name: str) -> None:
        self.fired[key].append((name, self.now()))
        if name == "again":
            self.timers.set(key, name, after=10)

    def now(self) -> float:
        return round(vars(self)["_shardmem_keeper"].scope.clock() - 1_700_000_000.0, 3)


def test_a_timer_fires_once_at_its_time_without_an_event() -> None:
    harness = Harness(Alarm)
    harness.feed([("a", b"x 5"), (b"a", b"x 7"), ("a", b"y 6")])
    harness.advance(4.9)
    assert [] == harness.handler.fired["a"]
    harness.advance("1 h")
    assert [("x", 5.0), ("y", 6.0)] == harness.handler.fired["a"]
    assert [("x", 7.0)] == harness.handler.fired[b"a"]
    assert {} == harness.timers


def test_a_timer_that_is_set_again_is_moved_and_one_that_is_cancelled_does_not_fire() -> None:
    harness = Harness(Alarm)
    harness.feed([("a", b"x 5"), ("a", b"y 5"), ("a", b"x 50")])
    harness.checkpoint()
    harness.feed([("a", b"y cancel")])
    harness.advance(10)
    assert [] == harness.handler.fired["a"]
    assert {("a", "x"): harness.clock.now + 40} == harness.timers
    harness.feed([("a", b"x 1")])
    harness.advance(100)
    assert [("x", 11.0)] == harness.handler.fired["a"]


def test_a_timer_sets_itself_again() -> None:
    harness = Harness(Alarm)
    harness.push("a", b"again 10")
    harness.advance(35)
    assert [("again", 10.0), ("again", 20.0), ("again", 30.0)] == harness.handler.fired["a"]


@pytest.mark.parametrize("saved", [True, False])
def test_timers_survive_and_each_has_fired_once_in_the_state(saved: bool) -> None:
    harness = Harness(Alarm)
    harness.feed([(key, b"x %d" % key) for key in range(20)])
    harness.checkpoint()
    harness.advance(10.5)
    if saved:
        harness.checkpoint()
    harness.crash()
    harness.advance(100)
    times = {key: [name for name, _ in harness.handler.fired[key]] for key in range(20)}
    assert dict.fromkeys(range(20), ["x"]) == times


def test_timers_that_were_due_while_nothing_ran_fire_at_once() -> None:
    harness = Harness(Alarm)
    harness.push("a", b"x 5")
    harness.close()
    harness.clock.now += 3600
    harness.restart()
    harness.fire()
    assert [("x", 3600.0)] == harness.handler.fired["a"]


def test_at_takes_a_moment() -> None:
    class At(Alarm):
        def handle(self, batch: shardmem.Batch) -> None:
            for key, payload in batch:
                seconds = 1_700_000_000 + int(payload)
                aware = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
                self.timers.set(key, "x", at=aware if key == 1 else seconds)

    harness = Harness(At)
    harness.feed([(1, b"3"), (2, b"4"), (3, b"-100")])
    harness.fire()
    harness.advance(10)
    assert [[("x", 3.0)], [("x", 4.0)], [("x", 0.0)]] == [harness.handler.fired[key] for key in (1, 2, 3)]


def test_more_timers_than_memory_holds_fire_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers_module, "MOST_IN_MEMORY", 50)
    harness = Harness(Alarm)
    count = 1000
    harness.feed([(key, b"x %f" % ((key * 37 % count) / 40)) for key in range(count)])
    harness.feed([(key, b"y 7") for key in range(count)])  # many at one moment
    harness.advance(3)
    harness.checkpoint()
    assert len(harness._keeper.timers._armed) < count
    harness.advance(4.5)
    harness.crash()
    harness.advance(60)
    for key in range(count):
        assert {"x", "y"} == {name for name, _ in harness.handler.fired[key]} and 2 == len(harness.handler.fired[key])


def test_a_timer_needs_a_handler_that_hears_it_and_a_time() -> None:
    class Deaf(shardmem.Handler):
        n = shardmem.KeyedState(int)

        def handle(self, batch: shardmem.Batch) -> None:
            self.timers.set(1, "x", after=1)

    with pytest.raises(TypeError, match="needs on_timer"):
        Harness(Deaf).push(1)
    timers = Harness(Alarm).handler.timers
    for wrong in ({}, {"after": 1, "at": 1}, {"after": None}):
        with pytest.raises(TypeError, match="after= or at="):
            timers.set(1, "x", **wrong)
    for wrong_after in (-1, "soon", float("nan")):
        with pytest.raises(ValueError, match="not a duration"):
            timers.set(1, "x", after=wrong_after)
    for wrong_name in (5, "a\0b", "\ud800"):
        with pytest.raises(TypeError, match="the name of a timer"):
            timers.set(1, wrong_name, after=1)  # type: ignore[arg-type]
    for wrong_at in (float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match="not a moment"):
            timers.set(1, "x", at=wrong_at)


def test_durations_in_words() -> None:
    seconds = {"200 ms": 0.2, "1s": 1, "30 min": 1800, "30m": 1800, "1.5 hours": 5400, "1 d": 86400, "2 days": 172800}
    assert seconds == {text: seconds_of(text) for text in seconds}
    assert [2.0, 90.0] == [seconds_of(2), seconds_of(datetime.timedelta(minutes=1.5))]


# ---- expiry ----------------------------------------------------------------------------------------------------------


class Sessions(shardmem.Handler):
    session = shardmem.KeyedState(int, default=0, ttl="30 min")
    ended = shardmem.KeyedState(list[int], default=list)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            if payload == b"end":
                del self.session[key]
            else:
                self.session[key] += 1

    def on_expire(self, key: Any, value: int) -> None:
        assert key not in self.session
        self.ended[key].append(value)


def test_a_value_expires_so_long_after_it_was_last_written() -> None:
    harness = Harness(Sessions)
    for _ in range(3):
        harness.push("a")
        harness.advance("20 min")
    assert 3 == harness.handler.session["a"] and [] == harness.handler.ended["a"]
    harness.advance("10 min")
    assert [3] == harness.handler.ended["a"] and 0 == harness.handler.session["a"]
    harness.push("a")
    harness.advance("1 h")
    assert [3, 1] == harness.handler.ended["a"]
    harness.restart()
    assert [3, 1] == harness.handler.ended["a"] and "a" not in harness.handler.session


def test_reading_does_not_keep_a_value_alive_and_one_that_was_deleted_does_not_expire() -> None:
    harness = Harness(Sessions)
    harness.feed([("a", b""), ("b", b"")])
    harness.push("b", b"end")
    harness.advance("29 min")
    assert 1 == harness.handler.session["a"]
    harness.advance("2 min")
    assert [1] == harness.handler.ended["a"] and [] == harness.handler.ended["b"]


@pytest.mark.parametrize("saved", [True, False])
def test_a_value_expires_once_across_a_crash(saved: bool) -> None:
    harness = Harness(Sessions)
    harness.feed([("a", b""), ("a", b"")])
    harness.checkpoint()
    harness.advance("31 min")
    if saved:
        harness.checkpoint()
    harness.crash()
    harness.fire()
    assert [2] == harness.handler.ended["a"]


def test_an_event_that_comes_when_a_value_has_expired_unseen_finds_it_gone() -> None:
    harness = Harness(Sessions)
    harness.push("a")
    harness.close()
    harness.clock.now += 3600  # nothing runs
    harness.restart()
    harness.push("a")
    assert 1 == harness.handler.session["a"]
    assert [1] == harness.handler.ended["a"]
    harness.advance("1 h")
    assert [1, 1] == harness.handler.ended["a"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_event_that_races_an_expiry_keeps_the_value_or_finds_it_told_of(in_memory: bool) -> None:
    """What was past its time, and not in memory, was gone for an event that came before its timer fired, and
    `on_expire` was never told of it."""
    harness = Harness(Sessions)
    harness.feed([("a", b""), ("b", b"")])
    harness.checkpoint()
    if not in_memory:
        harness.crash()
    harness.clock.now += 1801
    assert 1 == harness.handler.session["a"] and {"a", "b"} == set(harness.handler.session)
    harness.handler.session["a"] += 1  # its timer is due and has not fired
    harness._keeper.after_batch()
    harness.fire()
    assert ([], 2) == (harness.handler.ended["a"], harness.handler.session["a"])
    assert [1] == harness.handler.ended["b"]
    harness.advance("31 min")
    assert [2] == harness.handler.ended["a"]


def test_of_the_keys_of_a_batch_what_has_expired_is_gone_before_it_however_many_timers_are_due() -> None:
    harness = Harness(Sessions)
    harness.feed([(key, b"") for key in range(100)])
    harness.clock.now += 1801
    harness._keeper.expire_first([7, None, 7, 1000])
    assert [1] == harness.handler.ended[7] and 7 not in harness.handler.session
    assert 99 == len(harness.handler.session)
    harness.fire()
    assert all([1] == harness.handler.ended[key] for key in range(100))
