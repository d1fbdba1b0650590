"""Reaching an engine that some other process runs: its status from shared memory, its supervisor by signal."""
from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, Callable

from shardmem.errors import NotRunning
from shardmem.memory.control import Control
from shardmem.memory.segment import engine_names
from shardmem.runtime.snapshot import Observer


class Client:
    """The engine `name`. Raises NotRunning, LayoutMismatch, SegmentError."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._control = Control.attach(name)
        self._observer = Observer(self._control)

    def status(self) -> dict[str, Any]:
        """The document of `shardmem status --json`. Works with the supervisor dead."""
        return self._observer.status()

    def stop(self, now: bool = False, timeout: float | None = None,
             progress: Callable[[int], None] = lambda in_flight: None) -> dict[str, Any]:
        """Drain and stop; returns the last status that could be read. now: leave unhandled events in shared memory.

        progress: called with the number of events in flight while waiting. Raises NotRunning without a live supervisor,
        TimeoutError when it has not ended after `timeout` seconds.
        """
        if not self._control.supervisor_alive():
            raise NotRunning(f"engine {self.name!r} has no supervisor; its shared memory is there, and 'shardmem run' with "
                             f"the same settings takes it up")
        pid = self._control.view_engine().pid
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise NotRunning(f"the supervisor of engine {self.name!r} (pid {pid}) has just ended") from None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGINT if now else signal.SIGTERM)
            while True:
                status = self.status()
                if select.select([pidfd], [], [], 0.1)[0]:
                    return self.status()
                progress(status["accounting"]["in_flight"])
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"engine {self.name!r} has not ended after {timeout:g} s; "
                                       f"{status['accounting']['in_flight']:,} events are in flight")
        finally:
            os.close(pidfd)

    def close(self) -> None:
        self._observer.close()
        self._control.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def only_engine() -> str:
    """The name of the one engine on this host. Raises NotRunning when there is none or more than one."""
    names = engine_names()
    if len(names) == 1:
        return names[0]
    raise NotRunning("no engine is running here; start one with 'shardmem run module:handler'" if not names else
                     f"several engines are here, name one: {', '.join(names)}")
