"""The descriptors of the supervisor: as many as the system grants, and a few that nobody else can take.

A shard takes several, a client of the API one. When others have used up all, a worker that died has to be started all
the same: that needs six for a moment, and two for good, which the last one has just given back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

from shardmem.memory.refusals import refused

RESERVE = 8
BEGIN = 4  # those of an event loop: one that cannot be made leaves a traceback of asyncio's own
MOST = 1 << 20


class Descriptors:
    """before: the soft limit that this process was started with; workers get it back, because programs that use select
    cannot have more than 1,024. Raises SegmentError when not even these few are left."""

    def __init__(self) -> None:
        self.before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
        with contextlib.suppress(OSError, ValueError):
            if self.before != resource.RLIM_INFINITY and self.before < most:
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        self._reserve: list[int] = []
        self._fill(RESERVE + BEGIN)
        if len(self._reserve) < RESERVE + BEGIN:
            self.close()
            raise refused("cannot start a supervisor", OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        while len(self._reserve) > RESERVE:
            os.close(self._reserve.pop())

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """For the block, the reserve may be used."""
        while self._reserve:
            os.close(self._reserve.pop())
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        while self._reserve:
            os.close(self._reserve.pop())

    def _fill(self, most: int = RESERVE) -> None:
        with contextlib.suppress(OSError):
            while len(self._reserve) < most:
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
