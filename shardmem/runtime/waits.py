"""What a call of a producer waits for, and how: in its own thread, or in an event loop's (aio.py).

A call is a generator that yields what it waits for, so that both wait for the same things, in the same order, for as
long.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable
from typing import TypeVar

from shardmem.memory.native import lib
from shardmem.runtime.seat import Seat

SLICE = 0.1  # the longest single wait, so that signals, a stop and a failed shard are noticed


class Pause:
    """For so many seconds; for what nobody rings a bell."""

    key: Hashable = "pause"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def block(self) -> None:
        time.sleep(self.seconds)


class LaneWait:
    """Until the worker of a shard has made room in a lane, or has come to a position in it; at most so many seconds."""

    def __init__(self, seat: Seat, shard: int, position: int | None, spin_ns: int, seconds: float | None) -> None:
        self._seat, self._shard, self._position, self._spin_ns = seat, shard, position, spin_ns
        self.seconds = SLICE if seconds is None else max(0.0, min(SLICE, seconds))
        self.is_over = False  # it has come: whoever waited need not ask why it has not

    @property
    def key(self) -> Hashable:
        return id(self._seat), self._shard, self._position

    def block(self) -> None:
        seat, ns = self._seat, int(1e9 * self.seconds)
        if self._position is None:
            status = lib.sm_wait_room(seat.sender, self._shard, self._spin_ns, ns)
        else:
            status = lib.sm_wait_handled(seat.sender, self._shard, self._position, self._spin_ns, ns)
        self.is_over = status == lib.SM_OK


Wait = Pause | LaneWait
T = TypeVar("T")
Steps = Generator[Wait, None, T]


def finish(steps: Steps[T]) -> T:
    """The result of a call that waits in this thread."""
    while True:
        try:
            wait = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        wait.block()
