"""Changes that take a while: what is wanted has been said, and somebody waits until it is so.

Nobody holds anything while waiting. A change is a task that ends when its condition holds; whoever asked waits for it
as long as he likes, is told what is done and who is waited for, and it goes on without him.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from shardmem.errors import NotRunning, ShardmemError, Superseded
from shardmem.policy import Finished

LOOK, LOOKS = 0.25, 7  # seconds between two looks at who is waited for, and how many that find the same are believed

log = logging.getLogger("shardmem.supervisor")


class Conditions:
    """Conditions that somebody waits for, looked at after every step of the control loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._ended: str | None = None

    async def until(self, holds: Callable[[], bool]) -> None:
        """Raises NotRunning when the engine stops before. What `holds` raises, is raised here."""
        if self._ended is not None:
            raise NotRunning(self._ended)
        if holds():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holds, future))
        await future

    @property
    def any(self) -> bool:
        return bool(self._waiting)

    def look(self) -> None:
        left = []
        for holds, future in self._waiting:
            if future.done():
                continue
            try:
                if holds():
                    future.set_result(None)
                else:
                    left.append((holds, future))
            except Exception as error:
                future.set_exception(error)
        self._waiting = left

    def end(self, why: str) -> None:
        """The engine stops: what was wished will not come."""
        self._ended = why
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(NotRunning(why))
        self._waiting.clear()


class Change:
    """What one change has come to. mine: which handoffs are part of it."""

    def __init__(self, mine: Callable[[Finished], bool] = lambda finished: True) -> None:
        self.started = time.monotonic()
        self._mine = mine
        self._finished: list[Finished] = []
        self.seconds: dict[str, float] = {}

    def finished(self, handoff: Finished) -> None:
        if self._mine(handoff):
            self._finished.append(handoff)

    @property
    def moved(self) -> list[Finished]:
        return list(self._finished)

    def mark(self, phase: str) -> None:
        """The seconds since the last mark, or the start, were this phase."""
        self.seconds[phase] = time.monotonic() - self.started - sum(self.seconds.values())

    def summary(self) -> dict[str, Any]:
        """moved: each slot with its source and target. seconds: of each phase, the longest of its handoffs."""
        moved = [
            {"slot": slot, "from": each.source, "to": each.target} for each in self._finished for slot in each.slots
        ]
        seconds = dict(self.seconds)
        for phase in ("reroute", "drain", "release"):
            seconds[phase] = max((each.seconds.get(phase, 0.0) for each in self._finished), default=0.0)
        seconds["total"] = time.monotonic() - self.started
        return {"moved": moved, "seconds": {key: round(value, 6) for key, value in seconds.items()}}


class Changes:
    """All changes under way, and the handoffs that they consist of."""

    def __init__(self) -> None:
        self._open: list[Change] = []

    def open(self, mine: Callable[[Finished], bool] = lambda finished: True) -> Change:
        change = Change(mine)
        self._open.append(change)
        return change

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def close(self, change: Change) -> None:
        self._open.remove(change)

    def finished(self, handoff: Finished) -> None:
        for change in self._open:
            change.finished(handoff)


async def answer(
    what: str,
    work: Coroutine[Any, Any, dict[str, Any]],
    timeout: float,
    late: Callable[[], dict[str, Any]],
    in_vain: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """What the work answers; or, when that takes longer, `late()`, and it goes on in the background. in_vain: something
    that stays the same for as long as nobody can say how long it takes; then nobody is kept waiting."""
    task, deadline, looks, before = asyncio.create_task(work), time.monotonic() + timeout, 0, None
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    try:
        while (left := deadline - time.monotonic()) > 0 and looks < LOOKS:
            done, _ = await asyncio.wait({task}, timeout=min(left, LOOK))
            if done:
                return {"done": True, "waiting_for": [], **task.result()}
            looks = looks + 1 if (now := in_vain()) and now == before else 0
            before = now
        return {"done": False, **late()}
    finally:
        if not task.done():  # whoever asked may be gone too
            task.add_done_callback(lambda ended: _log_failure(what, ended))


_unfinished: set[asyncio.Task[Any]] = set()  # the event loop keeps weak references only


def _log_failure(what: str, task: asyncio.Task[Any]) -> None:
    if (
        not task.cancelled()
        and (error := task.exception()) is not None
        and not isinstance(error, (NotRunning, Superseded))
    ):
        log.error("%s failed: %s", what, error, exc_info=None if isinstance(error, ShardmemError) else error)
