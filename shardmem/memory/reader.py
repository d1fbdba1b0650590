"""A worker's end of its inbox, typed. What its functions do is said in csrc/shardmem.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shardmem.errors import AlreadyRunning
from shardmem.memory.native import ffi, lib
from shardmem.memory.refusals import out_of_memory

if TYPE_CHECKING:
    from shardmem.memory.engine_segment import ControlSegment
    from shardmem.memory.inbox_segment import InboxSegment
    from shardmem.memory.native import sm_batch, sm_reader

_RANGE_BYTES = ffi.sizeof("sm_range")


class Deferred(NamedTuple):
    """rows: handled and not committed. pressed: lanes or ranges run full. awaited: a producer waits in flush."""

    rows: int
    pressed: bool
    awaited: bool


class Reader:
    """Every method that moves heads raises AlreadyRunning when another life of the shard has begun. Those that answer
    bool say False when a lane contradicts itself, which is broken then: the others go on."""

    def __init__(self, pointer: sm_reader, shard: int) -> None:
        self._pointer, self._shard = pointer, shard
        self._pressed, self._awaited, self._count = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("uint32_t *")

    @classmethod
    def open(cls, control: ControlSegment, inbox: InboxSegment, batch_rows: int) -> Reader:
        descriptor = inbox.segment.descriptor
        pointer = lib.sm_reader_new(
            control.address, control.geometry, inbox.address, descriptor, inbox.shard, batch_rows
        )
        if pointer == ffi.NULL:
            raise out_of_memory(f"cannot read the inbox of shard {inbox.shard}", batch_rows * ffi.sizeof("sm_span"))
        return cls(pointer, inbox.shard)

    def _sound(self, status: int) -> bool:
        if status == lib.SM_FENCED:
            raise AlreadyRunning(
                f"another life of shard {self._shard} has begun; this process handles and commits nothing any more"
            )
        return status != lib.SM_CORRUPT

    # ---- batches -------------------------------------------------------------------------------------------------

    def next(self, spin_ns: int, timeout_ns: int, batch: sm_batch) -> bool:
        """Choose a batch; without rows after the time is over, or when there are orders. False: the lane of
        batch.broken_seat."""
        return self._sound(lib.sm_next(self._pointer, spin_ns, timeout_ns, batch))

    def commit(self) -> bool:
        return self._sound(lib.sm_commit(self._pointer))

    # ---- a batch that failed -------------------------------------------------------------------------------------

    def recheck(self) -> bool:
        """False: a frame of the batch in hand is not what it was."""
        return lib.sm_recheck(self._pointer) != lib.SM_CORRUPT

    def forgive(self) -> None:
        """Before the first batch: attempts of earlier lives do not count."""
        lib.sm_forgive(self._pointer)

    def failed(self, *, whole: bool) -> None:
        """The batch in hand comes again, whole or in halves."""
        self._sound(lib.sm_failed(self._pointer, whole))

    def set_aside(self) -> None:
        """The one row in hand is in quarantine; takes the place of its commit."""
        self._sound(lib.sm_set_aside(self._pointer))

    # ---- commits that wait for state -----------------------------------------------------------------------------

    def defer_commits(self) -> None:
        lib.sm_defer_commits(self._pointer)

    def defer(self) -> bool:
        return self._sound(lib.sm_defer(self._pointer))

    def deferred(self) -> Deferred:
        rows = lib.sm_deferred(self._pointer, self._pressed, self._awaited)
        return Deferred(rows, bool(self._pressed[0]), bool(self._awaited[0]))

    def ranges(self) -> bytes:
        """Which rows are deferred, for `commit_ranges` of the next life."""
        ranges = lib.sm_ranges(self._pointer, self._count)
        return bytes(ffi.buffer(ranges, self._count[0] * _RANGE_BYTES))

    def commit_deferred(self) -> bool:
        return self._sound(lib.sm_commit_deferred(self._pointer))

    def commit_ranges(self, ranges: bytes) -> bool:
        """What an earlier life saved. False: of rows that its lanes do not have."""
        if not ranges:
            return True
        count = len(ranges) // _RANGE_BYTES
        return lib.sm_commit_ranges(self._pointer, ffi.from_buffer("sm_range[]", ranges), count) != lib.SM_CORRUPT

    def touched(self, slots: np.ndarray) -> int:
        """Set the uint8 of every slot of the batch in hand to 1; how many of its rows have no slot."""
        return lib.sm_touched(self._pointer, ffi.cast("uint8_t *", slots.ctypes.data))

    # ---- handoffs ------------------------------------------------------------------------------------------------

    def orders(self) -> int:
        """How many were ever given; the reader remembers that they are known."""
        return lib.sm_orders(self._pointer)

    def undone(self, slots: list[int]) -> list[bool] | None:
        """Whether rows of each slot are left here. None: there was no memory to look with."""
        present = ffi.new("uint8_t[]", len(slots))
        if lib.sm_undone(self._pointer, ffi.new("uint32_t[]", slots), len(slots), present) < 0:
            return None
        return [bool(each) for each in present]

    def rescan(self) -> None:
        """Look from the heads again: a hold has fallen, or a batch is to come again."""
        lib.sm_rescan(self._pointer)
