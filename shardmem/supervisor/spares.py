"""Worker processes that have started, have imported the handler's module, and wait for their orders.

An interpreter takes a few hundred milliseconds to import what a handler needs: nearly all of the time until the first
event after a death, or of another shard. One that has done so already is ready in a few. Some are always kept; where
workers die often, more. A spare makes no handler and touches no shard until it has become a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from shardmem.runtime.child import Child

OFTEN, WITHIN = 2, 10.0  # deaths in so many seconds: then some are kept
MOST = 3  # each has imported what the handler needs
AT_ONCE = 2  # that import: more would only slow each other down
MEANWHILE = 2.0  # seconds: as many are kept as died in these
SETTLED = 2.0  # seconds after the last start: what starts now has all cores, and an engine of a moment no spares


class Spares:
    """kept: how many there are when all is well; 0: none, whatever happens. started: makes one for a shard. Raises
    OSError; then there is none, and that is all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, kept: int, started: Callable[[int], Child]) -> None:
        self._loop, self._kept, self._started = loop, kept, started
        self._may_keep = False  # a worker is ready, so that one can be
        self._waiting: deque[Child] = deque()
        self._importing: set[Child] = set()
        self._deaths: deque[float] = deque(maxlen=256)
        self._shard = 0
        self._timer: asyncio.TimerHandle | None = None

    def died(self, shard: int) -> None:
        """A worker of this shard."""
        self._shard = shard
        self._deaths.append(self._loop.time())
        self._look_again(0.0 if self._is_often() else SETTLED)

    def settle(self, shard: int) -> None:
        """A worker of this shard is ready."""
        self._shard, self._may_keep = shard, True
        if len(self._waiting) < self._kept and not self._is_often():
            self._look_again(SETTLED)

    def keep(self, count: int) -> None:
        self._kept = count
        self._look_again(SETTLED)

    def take(self) -> Child | None:
        """The one that has come furthest. Another takes its place."""
        while self._waiting:
            child = self._waiting.popleft()
            self._let_go(child)
            self._look_again(0.0 if self._is_often() else SETTLED)
            if child.poll() is None:
                return child
            child.close()
        return None

    def close(self) -> None:
        """None is kept; what is started when a worker is ready again reads its code anew."""
        self._deaths.clear()
        self._may_keep = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._drop(self._waiting.pop())

    def _recent(self, seconds: float) -> int:
        since = self._loop.time() - seconds
        return sum(at > since for at in self._deaths)

    def _is_often(self) -> bool:
        return self._recent(WITHIN) >= OFTEN

    def _wanted(self) -> int:
        if not self._kept:
            return 0
        kept = self._kept if self._may_keep else 0
        return max(kept, 1, min(MOST, self._recent(MEANWHILE))) if self._is_often() else kept

    def _look_again(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        wanted = self._wanted()
        with contextlib.suppress(OSError):
            while len(self._waiting) < wanted and len(self._importing) < AT_ONCE:
                child = self._started(self._shard)
                self._waiting.append(child)
                self._importing.add(child)
                self._loop.add_reader(child.reports, self._reported, child)
        while len(self._waiting) > wanted:
            self._drop(self._waiting.pop())
        self._timer = self._loop.call_later(WITHIN, self._look) if self._deaths and self._is_often() else None

    def _reported(self, child: Child) -> None:
        """It has imported all, or has died of it."""
        child.reports.read()
        self._let_go(child)
        self._look_again(0.0)

    def _let_go(self, child: Child) -> None:
        if child in self._importing:
            self._importing.discard(child)
            self._loop.remove_reader(child.reports)

    def _drop(self, child: Child) -> None:
        self._let_go(child)
        child.kill()  # it has nothing yet that could be lost
        child.wait()
        child.close()
