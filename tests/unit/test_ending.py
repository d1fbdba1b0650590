"""Workers that were told to end, have nothing left to do, and do not end."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from shardmem.config import Config
from shardmem.memory.native import PHASES
from shardmem.supervisor import stuck
from shardmem.supervisor.stuck import CLOSES, FINISHED, LAST_GRACE, Stuck


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Worker:
    shard, pid, spawned_at, killed, alive = 3, 4711, 0.0, False, True

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def signal(self, number: int) -> None:
        self.sent.append(number)

    def terminate(self, reason: str) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        self.killed = True
        self.signal(signal.SIGKILL)


class Ending:
    """A worker in the phase that the test says, and the look of its supervisor, four times a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.worker, self.notes = clock, Worker(), list[str]()
        self.view = SimpleNamespace(pid=4711, batch_since_ns=0, phase=PHASES.index("stopped"), heartbeat_ns=0)
        control: Any = SimpleNamespace(view_shard=lambda shard: self.view)
        workers: Any = SimpleNamespace(living=lambda: [self.worker], is_stopping=lambda shard: True)
        history: Any = SimpleNamespace(note=lambda kind, text, shard: self.notes.append(text))
        self.stuck = Stuck(control, workers, history, Config.of(name="ticks", handler="m:f"))

    def after(self, seconds: float) -> list[Any]:
        """What it was sent meanwhile."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.stuck.look()
            self.clock.now += 0.25
        sent, self.worker.sent = self.worker.sent, []
        return sent


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Ending:
    clock = Clock()
    monkeypatch.setattr(stuck, "time", clock)
    monkeypatch.setattr(stuck, "_is_stopped", lambda pid: False)
    return Ending(clock)


ALL = [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL]


def test_a_worker_that_has_finished_and_does_not_end_is_shown_and_killed(ending: Ending) -> None:
    assert ending.after(FINISHED) == []
    assert ending.after(LAST_GRACE + 2) == ALL
    assert "a thread that is no daemon, or an exit handler, of its handler holds it" in ending.notes[0]


def test_one_that_is_in_its_close_has_longer(ending: Ending) -> None:
    ending.view.phase = PHASES.index("ready")
    assert ending.after(CLOSES) == []
    assert ending.after(LAST_GRACE + 2) == ALL
    assert "close() of its handler holds it" in ending.notes[0]


def test_one_that_has_a_batch_in_hand_is_given_the_time_that_takes(ending: Ending) -> None:
    ending.view.batch_since_ns = 1
    assert ending.after(3600) == []
    ending.view.batch_since_ns = 0
    assert ending.after(FINISHED) == []


def test_one_that_ends_after_all_is_left_alone(ending: Ending) -> None:
    assert ending.after(FINISHED + 0.5) == [signal.SIGUSR2]
    ending.view.pid = 4712  # the next life has come in
    assert ending.after(60) == []


def test_those_that_were_told_to_stop_now_are_shown_before_they_are_killed(ending: Ending) -> None:
    worker: Any = ending.worker
    ending.stuck.end_now([worker])
    assert worker.sent == [signal.SIGUSR2]
    ending.stuck.end_now([worker])
    ending.stuck.end_now([worker])
    assert worker.sent == [signal.SIGUSR2, signal.SIGKILL]
