"""Keeps a supervisor at an embedded engine: one that was killed is followed by another, whoever waits for what it does.

A producer whose lane is full, a flush, a worker that has to be started again: they may be in another process, and none
of them asks the engine for anything. So a thread watches, and nobody has to call.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import weakref
from typing import Protocol

SOON = 10.0  # seconds; a supervisor that lives shorter is not followed at once
LONGEST = 30.0  # seconds between two supervisors
FINISH = 1.0  # seconds that the end of an engine waits for the thread

log = logging.getLogger("shardmem.engine")


class Revivable(Protocol):
    def supervisor_pidfd(self) -> int | None:
        """Of the supervisor, for the caller to close. None: it has ended, or it is not to be followed by another."""

    def revive(self) -> bool:
        """Another supervisor if it was killed. False: it was not, or the engine ends."""


class Revival:
    """A daemon thread, which does not keep the engine from being forgotten."""

    def __init__(self, engine: Revivable) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=_watch, args=(weakref.ref(engine), self._over), name="shardmem-supervisor", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        self._over.set()

    def join(self) -> None:
        """Once the supervisor has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(FINISH)


def _watch(reference: weakref.ref[Revivable], over: threading.Event) -> None:
    pause = 0.0
    while (engine := reference()) is not None and not over.is_set():
        began, pidfd = time.monotonic(), engine.supervisor_pidfd()
        del engine
        if pidfd is not None:
            waiting = select.poll()
            waiting.register(pidfd, select.POLLIN)
            waiting.poll()
            os.close(pidfd)
        pause = 0.0 if time.monotonic() - began > SOON else min(LONGEST, 2 * pause + 0.1)
        if over.wait(pause) or (engine := reference()) is None:
            return
        try:
            if not engine.revive():
                return
        except OSError as error:  # this thread is all that keeps the engine going
            log.error("no supervisor could be started, which is tried again: %s", error)
        del engine
