"""What worker processes use of the machine, by psutil. For readers of status; producers and workers do not load it."""

from __future__ import annotations

from typing import Any

import psutil

from shardmem.runtime.child import KINDS

WORKER = KINDS["worker"].module


class Usage:
    """Of one worker after another; its process is looked up once in each life."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[tuple[int, int], Any]] = {}

    def of(self, shard: int, incarnation: int, pid: int) -> tuple[float | None, int | None]:
        """(CPU seconds used so far, bytes of resident memory); None when the process cannot be seen from here."""
        life, process = self._found.get(shard, (None, None))
        if life != (incarnation, pid):
            process = _worker(pid)
            self._found[shard] = (incarnation, pid), process
        if process is None:
            return None, None
        try:
            with process.oneshot():
                times = process.cpu_times()
                return times.user + times.system, process.memory_info().rss
        except psutil.Error:
            return None, None


def _worker(pid: int) -> Any:
    """A worker's process, or None: a number from another pid namespace may be another process here."""
    try:
        process = psutil.Process(pid)
        return process if any(WORKER in part for part in process.cmdline()) else None
    except (psutil.Error, ValueError, OverflowError):  # the number is what shared memory says
        return None
