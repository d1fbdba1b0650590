"""When a worker that ended is started again: at once, after a while, or not any more.

Two kinds of deaths are told apart, because more of the one help and more of the other do not:

- With a batch in hand. The worker's attempt record halves that batch with every life until the one event is found that
  does it, so lives are short on purpose and follow each other quickly. They come to an end by themselves; if they do
  not, and nothing is handled in between, somebody has to know.
- Without one: the machine, the code around the handler. Once may be chance; then waits that double, and a budget.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

BOOT_CRASHES = 3  # in a row before the worker was ready: it will not get there
NARROWING = 50  # deaths with a batch in hand and nothing handled between them; halving 4096 rows to one takes 12
NARROWING_STEP, NARROWING_MOST = 0.01, 0.1  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
FORGOTTEN_AFTER = 60.0  # of life: what ends then is not the end of the same story


@dataclass(frozen=True)
class WorkerDeath:
    """How a life of a worker ended, by nobody's order. progress: events that were handled in all lives of its shard."""

    how: str
    ready: bool
    in_hand: bool
    seconds: float
    progress: int = 0


@dataclass(frozen=True)
class Restart:
    """delay: seconds until the next life; None: there is none, and `reason` says why."""

    delay: float | None
    reason: str
    boot: bool = False


class Restarts:
    """The deaths of the workers of one engine. most: how many restarts within `window` seconds are worth trying."""

    def __init__(self, most: int = 10, window: float = 60.0) -> None:
        self.most, self.window = most, window
        self._shards: dict[int, _DeathRecord] = {}

    def ended(self, shard: int, life: WorkerDeath, now: float) -> Restart:
        past = self._shards.setdefault(shard, _DeathRecord())
        if not life.ready:
            return self._booting(past, life)
        past.boots = 0
        if life.in_hand:
            return self._narrowing(past, life)
        return self._idle(past, life, now)

    def forget(self, shard: int) -> None:
        """It is gone; the next shard with this number is another one."""
        self._shards.pop(shard, None)

    @staticmethod
    def _booting(past: _DeathRecord, life: WorkerDeath) -> Restart:
        past.boots += 1
        if past.boots >= BOOT_CRASHES:
            return Restart(
                None,
                f"its worker ended {past.boots} times in a row before it was ready, the last time: {life.how}",
                boot=True,
            )
        return Restart(FIRST_WAIT * 2 ** (past.boots - 1), life.how)

    @staticmethod
    def _narrowing(past: _DeathRecord, life: WorkerDeath) -> Restart:
        past.narrowing = past.narrowing + 1 if life.progress == past.progress else 1
        past.progress = life.progress
        if past.narrowing >= NARROWING:
            return Restart(
                None,
                f"its worker ended {past.narrowing} times with a batch in hand and handled nothing in "
                f"between, the last time: {life.how}",
            )
        return Restart(min(NARROWING_MOST, NARROWING_STEP * (past.narrowing - 1)), life.how)

    def _idle(self, past: _DeathRecord, life: WorkerDeath, now: float) -> Restart:
        if life.seconds >= FORGOTTEN_AFTER:
            past.waits = 0
        while past.recent and past.recent[0] <= now - self.window:
            past.recent.popleft()
        if len(past.recent) >= self.most:
            return Restart(
                None,
                f"its worker was started again {len(past.recent)} times within {self.window:g} s "
                f"(max_restarts, restart_window) and ended once more: {life.how}",
            )
        past.recent.append(now)
        past.waits += 1
        return Restart(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (past.waits - 2)) if past.waits > 1 else 0.0, life.how)


class _DeathRecord:
    def __init__(self) -> None:
        self.boots = self.narrowing = self.waits = 0
        self.progress = -1
        self.recent: deque[float] = deque()
