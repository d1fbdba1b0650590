"""When a worker that ended is started again: at once, or after a while. Never not at all: what made it end, a broken
deploy or a database that is away, may be mended while nobody looks.

Three kinds of deaths are told apart, because what helps differs:

- With a batch in hand. The worker's attempt record halves that batch with every life until the one event is found that
  does it, so lives are short on purpose and follow each other quickly.
- Without one: the machine, the code around the handler. Once may be chance; then waits that double. The same before it
  was ready: a boot that fails.
- From outside, by a signal that the handler is not the sender of. That is not held against it: the next life comes at
  once, unless lives are so short that they are of no use.

What goes on for long makes the shard count as failed until a worker of it is ready again: its slots are not served, and
nothing is planned with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from shardmem.settings import some

BOOT_CRASHES = 3  # in a row before the worker was ready: it will not get there soon
NARROWING = 50  # deaths with a batch in hand and nothing handled between them; halving 4096 rows to one takes 12
NARROWING_STEP, NARROWING_MOST = 0.01, 0.1  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0
FAILED_FROM = 5.0  # seconds of waiting that nobody should plan with
HEALTHY_AFTER = 30.0  # of life: what ends then is not the end of the same story
KILLS = 10  # from outside, of lives shorter than SHORT or not ready, that nobody waits for
SHORT = 0.1


@dataclass(frozen=True)
class WorkerDeath:
    """How a life of a worker ended, by nobody's order. outside: by a signal of somebody else. progress: events that
    were handled in all lives of its shard."""

    how: str
    ready: bool
    in_hand: bool
    seconds: float
    progress: int = 0
    outside: bool = False


class Restart(NamedTuple):
    """delay: seconds until the next life. failed: why the shard counts as failed until then; None: it does not."""

    delay: float
    failed: str | None = None


class Restarts:
    """The deaths of the workers of one engine. most: how many within `window` seconds are no failure yet."""

    def __init__(self, most: int = 10, window: float = 60.0) -> None:
        self.most, self.window = most, window
        self._shards: dict[int, _DeathRecord] = {}

    def ended(self, shard: int, life: WorkerDeath, now: float) -> Restart:
        past = self._shards.setdefault(shard, _DeathRecord())
        harmless = life.outside and self._is_harmless(past, life)
        if not life.ready:
            return Restart(0.0) if harmless else self._booting(past, life)
        past.boots = 0
        if life.in_hand:
            verdict = self._narrowing(past, life)
            return Restart(0.0) if harmless and verdict.failed is None else verdict
        return Restart(0.0) if harmless else self._idle(past, life, now)

    def forget(self, shard: int) -> None:
        """It is gone, or mended; the next shard with this number is another one."""
        self._shards.pop(shard, None)

    @staticmethod
    def _is_harmless(past: _DeathRecord, life: WorkerDeath) -> bool:
        """Whether its lives are of use, whoever ends them."""
        past.kills = 0 if life.ready and life.seconds >= SHORT else past.kills + 1
        return past.kills <= KILLS

    @staticmethod
    def _booting(past: _DeathRecord, life: WorkerDeath) -> Restart:
        past.boots += 1
        if past.boots < BOOT_CRASHES:
            return Restart(_wait(past.boots))
        return Restart(
            _wait(past.boots),
            f"its worker ended {past.boots} times in a row before it was ready, the last time: {life.how}",
        )

    @staticmethod
    def _narrowing(past: _DeathRecord, life: WorkerDeath) -> Restart:
        past.narrowing = past.narrowing + 1 if life.progress == past.progress else 1
        past.progress = life.progress
        if past.narrowing < NARROWING:
            return Restart(min(NARROWING_MOST, NARROWING_STEP * (past.narrowing - 1)))
        return Restart(
            _wait(past.narrowing - NARROWING + 1),
            f"its worker ended {past.narrowing} times with a batch in hand and handled nothing in between, the last "
            f"time: {life.how}",
        )

    def _idle(self, past: _DeathRecord, life: WorkerDeath, now: float) -> Restart:
        if life.seconds >= HEALTHY_AFTER:
            past.waits = 0
        past.waits += 1
        past.recent.append(now)
        while past.recent[0] <= now - self.window:
            past.recent.popleft()
        delay = _wait(past.waits - 1) if past.waits > 1 else 0.0
        if len(past.recent) > self.most:
            return Restart(
                max(delay, FIRST_WAIT),
                f"its worker ended {some(len(past.recent), 'time')} within {self.window:g} s (max_restarts="
                f"{self.most}, restart_window), the last time: {life.how}",
            )
        if delay >= FAILED_FROM:
            return Restart(delay, f"its worker ended {past.waits} times after short lives, the last time: {life.how}")
        return Restart(delay)


class _DeathRecord:
    def __init__(self) -> None:
        self.boots = self.narrowing = self.waits = self.kills = 0
        self.progress = -1
        self.recent: deque[float] = deque()


def _wait(number: int) -> float:
    """Before the so many-th try again."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(number - 1, 30))
