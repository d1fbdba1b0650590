"""The errors of shardmem. Each says what happened, with which value, against which limit, and what to do.

ShardmemError
├── ConfigError           a setting is wrong; one error lists all faults
├── SegmentError          shared memory is not what it should be
│   ├── LayoutMismatch    made by another version of shardmem, or for another schema
│   ├── SegmentCorrupt    a word contradicts the geometry
│   └── OutOfMemory       /dev/shm has too little room
├── Backpressure          events were refused; `.rest` is exactly what was not accepted
├── Interrupted           a call that waited for room was told to give up
├── NotRunning            the engine does not exist, is stopping, or this end of it is closed
├── AlreadyRunning        somebody else holds the role
├── BatchEscaped          a view of a batch was kept past its end
└── HandlerError          the user's handler failed; the events it had in hand stay in shared memory
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ShardmemError(Exception):
    """Base of all errors that shardmem raises on its own account. left: of a call of a producer with many events, the numbers of
    those that were not accepted."""

    left: Any = ()


class ConfigError(ShardmemError):
    """Wrong settings. `faults` holds one sentence for each."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__(self.faults[0] if len(self.faults) == 1 else "\n".join(f"- {fault}" for fault in self.faults))


class SegmentError(ShardmemError):
    """Shared memory is not what it should be."""


class LayoutMismatch(SegmentError):
    """The segment was made by another version of shardmem or for another schema."""


class SegmentCorrupt(SegmentError):
    """A word in shared memory contradicts the geometry."""


class OutOfMemory(SegmentError):
    """/dev/shm has too little room. `need` and `free` are bytes. Nothing was touched."""

    def __init__(self, what: str, need: int, free: int, directory: str) -> None:
        self.need, self.free = need, free
        super().__init__(
            f"{what} needs {need:,} bytes of shared memory and {directory} has {free:,} free; "
            f"make it larger (docker run --shm-size, a memory-backed emptyDir with sizeLimit in Kubernetes, "
            f"mount -o remount,size=... {directory}) or lower lane_bytes"
        )

    @classmethod
    def told(cls, text: str, need: int, free: int) -> OutOfMemory:
        """The error of another process, with its text."""
        error = cls("", need, free, "")
        error.args = (text,)
        return error


class Backpressure(ShardmemError):
    """Events were refused because a lane is full. Nothing of them was written.

    rest: exactly what was not accepted, in order and in the form it was offered: `(key, payload)` after `push`,
        `(keys, payloads)` after `push_many`, `(keys, data, offsets)` after `push_columns`, an array after `send`.
    accepted: how many events of the call were accepted.
    shard: the shard whose lane was full.
    """

    def __init__(self, rest: Any, accepted: int, refused: int, shard: int, waited: float) -> None:
        self.rest, self.accepted, self.shard = rest, accepted, shard
        super().__init__(
            f"the lane to shard {shard} is full: {refused:,} of {accepted + refused:,} events were not accepted "
            f"after waiting {waited:.3g} s; they are in .rest (wait longer, add shards, or raise lane_bytes)"
        )


class Interrupted(ShardmemError):
    """A call that waited for room was told to give up: `Producer.interrupt`."""


class NotRunning(ShardmemError):
    """The engine does not exist, is stopping, or this end of it is closed."""


class AlreadyRunning(ShardmemError):
    """Another process holds the role (supervisor of this engine, worker of this shard, every producer seat)."""


class BatchEscaped(ShardmemError):
    """A view of a batch was kept past the return of the handler; its memory is about to be reused."""


class HandlerError(ShardmemError):
    """The user's handler could not be loaded, or failed. The events it had in hand stay in shared memory."""
