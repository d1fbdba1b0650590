"""Tasks that nobody waits for: their failure goes to the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from shardmem.errors import ShardmemError

log = logging.getLogger("shardmem.supervisor")


class Background:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, what: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """what: the subject of "failed" in the log."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s failed: %s", what, error, exc_info=None if isinstance(error, ShardmemError) else error)

        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(ended)
        return task

    async def finish(self, timeout: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
