"""What a stop waits for, and what it does not, with a clock that the test turns."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from shardmem.runtime.child import ExitCode
from shardmem.supervisor import draining
from shardmem.supervisor.draining import KEPT_GRACE, NOTHING_HANDLED, SEND_GRACE, Draining
from shardmem.supervisor.life import Life, Stage

END = 3600.0


class Engine:
    """Shards with events in flight. `handles`: so many of each are handled in a second; `inside`: producers that are in
    the middle of a send until then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: float | None = None, is_kept: bool = False) -> None:
        self.now = 0.0
        self.left: dict[int, float] = {0: 0, 1: 0}
        self.handles: dict[int, float] = {}
        self.in_hand: dict[int, int] = {}
        self.failed: dict[int, str] = {}
        self.unreachable: set[int] = set()
        self.inside_until, self.notes = 0.0, list[str]()
        self.waits: set[int] = set()  # shards that try again each second and handle nothing
        control: Any = SimpleNamespace(
            set_state=lambda state: None,
            view_shard=lambda shard: SimpleNamespace(
                batch_since_ns=self.in_hand.get(shard, 0),
                waiting_kind=int(shard in self.waits),
                waiting_tries=1 + int(self.now),
            ),
            shard_error=lambda shard: "the sink is away",
            view_seat=lambda seat: SimpleNamespace(pid=4711),
        )
        fleet: Any = SimpleNamespace(
            control=control,
            observer=SimpleNamespace(in_flight=lambda: {shard: int(left) for shard, left in self.left.items()}),
            history=SimpleNamespace(note=lambda kind, text: self.notes.append(f"{kind}: {text}")),
            config=SimpleNamespace(drain_timeout=limit),
            workers=SimpleNamespace(failed=lambda: self.failed),
            table=None,
            unreachable=lambda: self.unreachable,
            finish_handoffs=lambda now: None,
        )
        self.life = Life()
        self.life.stage, self.life.has_run = Stage.DRAINING, True
        monkeypatch.setattr(draining, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(draining, "Marks", lambda table: SimpleNamespace(inside=self._inside))
        monkeypatch.setattr(self.life, "wait", self._wait)
        self.draining = Draining(fleet, self.life, is_kept)

    def _inside(self) -> list[int]:
        return [5] if self.now < self.inside_until else []

    async def _wait(self, seconds: float) -> None:
        self.now += 0.25
        assert self.now < END, "it never ends"
        for shard, rate in self.handles.items():
            self.left[shard] = max(0.0, self.left[shard] - rate / 4)

    def stop(self) -> float:
        """Seconds that the drain took."""
        self.life.request_stop()
        asyncio.run(self.draining.run())
        return self.now


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


def test_a_drain_lasts_as_long_as_anything_is_handled(engine: Engine) -> None:
    engine.left, engine.handles = {0: 1000, 1: 5}, {0: 1.0, 1: 1.0}
    assert engine.stop() > 900 and engine.life.error is None and engine.draining.left() == ""


def test_failed_shards_are_not_waited_for_and_what_they_hold_is_said(engine: Engine) -> None:
    engine.left, engine.handles, engine.failed = {0: 7, 1: 3}, {0: 1.0}, {1: "boom"}
    assert engine.stop() < 10
    assert engine.draining.left() == "3 events not handled: 3 of shard 1 (it has failed)"
    assert "shard 1 stopped: boom" in str(engine.draining.failure())


def test_what_a_shard_keeps_back_for_one_that_has_failed_is_not_waited_for(engine: Engine) -> None:
    engine.left, engine.failed, engine.unreachable = {0: 7, 1: 3}, {1: "boom"}, {0, 1}
    assert KEPT_GRACE <= engine.stop() < KEPT_GRACE + 2
    assert "7 of shard 0 (it keeps them back until" in engine.draining.left()


def test_a_handler_that_hangs_ends_the_drain_and_the_engine_stops_now(engine: Engine) -> None:
    engine.left, engine.in_hand = {0: 7, 1: 0}, {0: 123}
    assert NOTHING_HANDLED <= engine.stop() < NOTHING_HANDLED + 2
    assert engine.life.is_stopping_now and "a batch is in hand" in str(engine.life.error)


def test_drain_timeout_is_the_end_whatever_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, limit=3.0)
    engine.left, engine.handles = {0: 1000, 1: 0}, {0: 1.0}
    assert 3 <= engine.stop() < 5
    assert engine.life.is_stopping_now and "drain_timeout=3 s is over" in str(engine.life.error)
    assert "shard 0 (drain_timeout=3 s is over)" in engine.draining.left()


def test_a_producer_stopped_inside_a_send_is_named_and_does_not_keep_the_engine(engine: Engine) -> None:
    engine.inside_until = END
    assert SEND_GRACE <= engine.stop() < SEND_GRACE + 2
    assert engine.draining.has_senders and engine.life.error is None
    assert [note for note in engine.notes if "seat 5, pid 4711" in note and note.startswith("late: ")]


def test_a_shard_that_waits_is_not_waited_for_when_its_events_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, is_kept=True)
    engine.left, engine.waits = {0: 7, 1: 0}, {0}
    assert engine.stop() < 10 and "it waits: the sink is away" in engine.draining.why[0]


def test_a_shard_that_waits_is_waited_for_when_its_events_would_go_with_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(monkeypatch, limit=20.0)
    engine.left, engine.waits = {0: 7, 1: 0}, {0}
    assert 20 <= engine.stop() < 21


def test_asked_to_stop_is_exit_code_0_whatever_went_wrong_and_not_asked_is_none() -> None:
    asked, fell = Life(), Life()
    asked.has_run = fell.has_run = True
    asked.request_stop()
    for life in (asked, fell):
        life.fail(draining.ShardmemError("the disk is full"), ExitCode.FAILED)
    assert (asked.exit_code, fell.exit_code) == (ExitCode.OK, ExitCode.FAILED)
