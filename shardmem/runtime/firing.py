"""Timers that are due, between batches."""

from __future__ import annotations

import logging
import random
import time
from typing import Protocol

from shardmem.policy import retry_wait
from shardmem.runtime.commit import REST_NS
from shardmem.runtime.forked import end_if_forked
from shardmem.runtime.outcomes import OnError, Retry, RetryOn
from shardmem.runtime.waiting import LOG_S, SAID_EACH_S
from shardmem.state.keeper import Keeper
from shardmem.state.timers import USER, Timer
from shardmem.text import of_error

FIRE_SECONDS = 0.05  # how long timers may keep events waiting
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # before a timer that failed is tried again

log = logging.getLogger("shardmem.checkpoint")


class Undoes(Protocol):
    def settle(self) -> None: ...

    def roll_back(self) -> None: ...


class Firing:
    """One whose `on_timer` raises is tried again later, alone, for as long as it takes: it is no event that could be
    set aside, and others go on. One that asks for another try later says that of all: they wait, and then go on in
    their order.

    A failure undoes what was not saved: what events did, that other timers have fired, and when one that failed before
    is due again. So as long as there are failures, all of that is saved before the next timer fires.
    """

    def __init__(self, shard: int, keeper: Keeper, commit: Undoes, rules: OnError) -> None:
        self._shard, self._keeper, self._commit = shard, keeper, commit
        self._retry_on, self._longest = RetryOn(rules.retry_on), rules.retry_max_wait
        self._failed: dict[Timer, int] = {}  # times in a row
        self.is_behind = False  # there was no time for all that are due
        self._later, self._until, self._said_at = 0, 0.0, -LOG_S  # tries in vain of all; when the next one is

    @property
    def patience_ns(self) -> int:
        wait = self._keeper.next_due() - self._keeper.scope.now_ms()
        if self._later:
            wait = max(wait, int(1000 * (self._until - time.monotonic())))
        return max(0, min(REST_NS, wait * 1_000_000))

    def step(self) -> None:
        now, self.is_behind = time.monotonic(), False
        if self._later and now < self._until:
            return
        if (self._failed or self._later) and self._keeper.next_due() <= self._keeper.scope.now_ms():
            self._commit.settle()
        until = now + FIRE_SECONDS
        while (timer := self._keeper.take_due()) is not None:
            try:
                self._keeper.fire(timer)
            except BaseException as error:  # sys.exit too: see Worker.run
                end_if_forked(error)
                self._failing(timer, error)
                return
            end_if_forked()
            self._failed.pop(timer, None)
            self._later = 0
            if time.monotonic() > until:
                self.is_behind = True
                return

    def _failing(self, timer: Timer, error: BaseException) -> None:
        what = f"on_timer({timer.key!r}, {timer.name!r})" if timer.kind == USER else f"on_expire({timer.key!r}, ...)"
        retry, text = self._retry_on.retry_of(error), of_error(error)
        if retry is not None:
            self._commit.roll_back()  # it is due as it was
            self._wait(what, retry)
            return
        tries = self._failed[timer] = self._failed.get(timer, 0) + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        log.error(
            "shard %d: %s raised %.500s; it is tried again in %g s",
            self._shard,
            what,
            text,
            pause,
            exc_info=error if tries == 1 else None,
        )
        self._commit.roll_back()
        self._keeper.postpone(timer, pause)

    def _wait(self, what: str, retry: Retry) -> None:
        wait = retry.wait()
        if wait is None:
            wait = retry_wait(self._later, self._longest, random.random())
        self._later, self._until = self._later + 1, time.monotonic() + wait
        if time.monotonic() - self._said_at > LOG_S and (self._later == 1 or wait > SAID_EACH_S):
            self._said_at = time.monotonic()
            reason = retry.reason or "it asks for another try later"
            log.warning("shard %d: timers wait %.3g s, since %s raised: %.500s", self._shard, wait, what, reason)
