"""Worker processes that have started and wait for their orders, for shards whose workers die often.

An interpreter takes a few hundred milliseconds to import what a handler needs. Where something kills a worker again and
again that is most of the time; one that has done so already is ready in a few.
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


class Spares:
    """started: makes one for a shard. Raises OSError; then there is none, and that is all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, started: Callable[[int], Child]) -> None:
        self._loop, self._started = loop, started
        self._waiting: deque[Child] = deque()
        self._importing: set[Child] = set()
        self._deaths: deque[float] = deque(maxlen=256)
        self._shard = 0
        self._timer: asyncio.TimerHandle | None = None

    def died(self, shard: int) -> None:
        """A worker of this shard."""
        self._shard = shard
        self._deaths.append(self._loop.time())
        self._look_again(0.0)

    def take(self) -> Child | None:
        """The one that has come furthest. Another takes its place."""
        while self._waiting:
            child = self._waiting.popleft()
            self._let_go(child)
            self._look_again(0.0)
            if child.poll() is None:
                return child
            child.close()
        return None

    def close(self) -> None:
        """None is kept; what is started from here on reads its code anew."""
        self._deaths.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop()

    def _wanted(self) -> int:
        now = self._loop.time()
        recent = [at for at in self._deaths if at > now - WITHIN]
        lately = sum(at > now - MEANWHILE for at in recent)
        return min(MOST, max(1, lately)) if len(recent) >= OFTEN else 0

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
        if not wanted:
            self._drop()
        self._timer = self._loop.call_later(WITHIN, self._look) if wanted else None

    def _reported(self, child: Child) -> None:
        """It has imported all, or has died of it."""
        child.reports.read()
        self._let_go(child)
        self._look_again(0.0)

    def _let_go(self, child: Child) -> None:
        if child in self._importing:
            self._importing.discard(child)
            self._loop.remove_reader(child.reports)

    def _drop(self) -> None:
        while self._waiting:
            child = self._waiting.popleft()
            self._let_go(child)
            child.kill()  # it has nothing yet that could be lost
            child.wait()
            child.close()
