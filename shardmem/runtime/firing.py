"""Timers that are due, between batches."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from shardmem.runtime.forked import end_if_forked
from shardmem.state.keeper import Keeper
from shardmem.state.timers import USER, Timer
from shardmem.text import of_error

FIRE_SECONDS = 0.05  # how long timers may keep events waiting
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # before a timer that failed is tried again

log = logging.getLogger("shardmem.checkpoint")


class Undoes(Protocol):
    def roll_back(self) -> None: ...


class Firing:
    """One whose `on_timer` raises is tried again later, alone, for as long as it
    takes: it is no event that could be set aside, and others go on."""

    def __init__(self, shard: int, keeper: Keeper, commit: Undoes) -> None:
        self._shard, self._keeper, self._commit = shard, keeper, commit
        self._failed: dict[Timer, int] = {}  # times in a row
        self.is_behind = False  # there was no time for all that are due

    @property
    def patience_ns(self) -> int:
        wait_ms = self._keeper.next_due() - self._keeper.scope.now_ms()
        return max(0, min(100_000_000, wait_ms * 1_000_000))

    def step(self) -> None:
        until, self.is_behind = time.monotonic() + FIRE_SECONDS, False
        while (timer := self._keeper.take_due()) is not None:
            try:
                self._keeper.fire(timer)
            except BaseException as error:  # sys.exit too: see Worker.run
                end_if_forked(error)
                self._failing(timer, error)
                return
            end_if_forked()
            self._failed.pop(timer, None)
            if time.monotonic() > until:
                self.is_behind = True
                return

    def _failing(self, timer: Timer, error: BaseException) -> None:
        """What it did is undone, and with it what others did since the last checkpoint: so the next attempt is made
        behind a checkpoint of its own."""
        tries = self._failed[timer] = self._failed.get(timer, 0) + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        what = f"on_timer({timer.key!r}, {timer.name!r})" if timer.kind == USER else f"on_expire({timer.key!r}, ...)"
        log.error(
            "shard %d: %s raised %.500s; it is tried again in %g s",
            self._shard,
            what,
            of_error(error),
            pause,
            exc_info=error if tries == 1 else None,
        )
        self._commit.roll_back()
        self._keeper.postpone(timer, pause)
