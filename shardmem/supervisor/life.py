"""The life of a supervisor, and the one function that moves it from stage to stage.

OPENING ──▶ BOOTING ──▶ RUNNING ──stop──▶ DRAINING ──▶ STOPPING ──▶ ENDED
   │           │           └─────────stop now─────────────▲            ▲
   │           └──a worker cannot boot, or stop now───────┘            │
   └──the engine cannot be opened──────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
from enum import IntEnum

from shardmem.errors import ShardmemError
from shardmem.runtime.child import ExitCode


class Stage(IntEnum):
    OPENING = 0  # nothing runs: the segments are created, or taken over
    BOOTING = 1  # workers are started or adopted; the last act is to announce that the engine runs
    RUNNING = 2  # the control loop ticks, commands are carried out
    DRAINING = 3  # producers are refused, workers go on
    STOPPING = 4  # workers end
    ENDED = 5  # the outcome is known; nothing of ours runs


class Shutdown(IntEnum):
    """How the supervisor has been asked to end. It only ever grows."""

    NONE = 0
    DRAIN = 1
    NOW = 2


class Life:
    """`request_stop` and `fail` say what is wanted; `advance`, and nothing else, moves on."""

    def __init__(self) -> None:
        self.stage = Stage.OPENING
        self.shutdown = Shutdown.NONE
        self.error: ShardmemError | None = None
        self.exit_code = ExitCode.OK
        self.has_run = False
        self.was_asked = False  # to stop, by somebody
        self._changed = asyncio.Event()

    def advance(self) -> Stage:
        """The next stage. Called when the work of this one is over."""
        if self.stage is Stage.OPENING:
            # OPENING ends when the memory is ours and the API's sockets are bound. What failed left nothing behind.
            self.stage = Stage.ENDED if self.error is not None else Stage.BOOTING
        elif self.stage is Stage.BOOTING:
            # BOOTING ends when each worker has been ready once and the engine has been announced. A stop that may take
            # its time waits for that: an earlier run may have left events, and only workers drain them. One that did
            # not get ready may never listen, so then all are stopped now.
            self.has_run = self.shutdown is not Shutdown.NOW
            self.stage = Stage.RUNNING if self.has_run else Stage.STOPPING
        elif self.stage is Stage.RUNNING:
            # RUNNING ends when somebody asks for it: TERM, `shardmem stop`, the parent of an embedded engine.
            self.stage = Stage.STOPPING if self.shutdown is Shutdown.NOW else Stage.DRAINING
        elif self.stage is Stage.DRAINING:
            # DRAINING ends when no lane of a shard that works holds an event, at drain_timeout, or when asked a second
            # time.
            self.stage = Stage.STOPPING
        elif self.stage is Stage.STOPPING:
            # STOPPING ends when the kernel says that the last worker is dead.
            self.stage = Stage.ENDED
        return self.stage

    # ---- how it has been asked to end -------------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        """A stop was asked for: nothing new is begun."""
        return self.shutdown is not Shutdown.NONE

    @property
    def is_stopping_now(self) -> bool:
        return self.shutdown is Shutdown.NOW

    def request_stop(self, now: bool = False) -> None:
        """Drain and stop; asked a second time, or with `now`, stop without draining."""
        self.was_asked = True
        self.shutdown = Shutdown.NOW if now or self.is_stopping else Shutdown.DRAIN
        self.wake()

    def fail(self, error: ShardmemError, exit_code: ExitCode = ExitCode.FAILED) -> None:
        """The engine cannot go on: it stops now. The first error is the one that is told."""
        if self.error is None:
            self.error = error
            # Asked to stop is not a failure: a service manager would start it again at once.
            self.exit_code = ExitCode.OK if self.has_run and self.was_asked else exit_code
        self.shutdown = Shutdown.NOW

    def end(self, error: ShardmemError) -> None:
        """The engine has to end, and can do so in good order: what it holds is handled first."""
        if self.error is None:
            self.error, self.exit_code = error, ExitCode.FAILED
        self.shutdown = max(self.shutdown, Shutdown.DRAIN)
        self.wake()

    # ---- news -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._changed.set()

    async def wait(self, timeout: float) -> None:
        """Until there is news, or that many seconds have passed."""
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the news, and a loop that waits
        # here then never ends, nor does its process.
        clock = asyncio.get_running_loop().call_later(timeout, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            clock.cancel()
        self._changed.clear()
