"""A worker's end of its inbox, typed. What its functions do is said in csrc/shardmem.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shardmem.errors import AlreadyRunning
from shardmem.memory.native import borrow, ffi, lib
from shardmem.memory.refusals import out_of_memory

if TYPE_CHECKING:
    from shardmem.memory.engine_segment import ControlSegment
    from shardmem.memory.inbox_segment import InboxSegment
    from shardmem.memory.native import sm_batch, sm_reader, sm_trial_view

_RANGE_BYTES = ffi.sizeof("sm_range")


TRIAL_NONE, TRIAL_WAITS, TRIAL_DIED = lib.SM_TRIAL_NONE, lib.SM_TRIAL_WAITS, lib.SM_TRIAL_DIED
TRIAL_ASIDE, TRIAL_TAKEN = lib.SM_TRIAL_ASIDE, lib.SM_TRIAL_TAKEN


class Place(NamedTuple):
    """Where a row of the batch in hand lies: `row` of the frame at `position` in the lane of `seat`. raw: for the
    reader."""

    seat: int
    position: int
    row: int
    raw: bytes


class TrialView(NamedTuple):
    """An event on trial, as csrc/trials.c keeps it. hash: of its key; 0: it has none."""

    seat: int
    position: int
    row: int
    hash: int
    seen: int
    number: int
    state: int
    tries: int
    due_ns: int


class Deferred(NamedTuple):
    """rows: handled and not committed. pressed: lanes or ranges run full. awaited: a producer waits in flush."""

    rows: int
    pressed: bool
    awaited: bool


def rejected_of(ranges: bytes) -> bytes:
    """Those of saved ranges that are rows that were rejected, or skipped."""
    if not ranges:
        return b""
    views, raw = ffi.from_buffer("sm_range[]", ranges), range(0, len(ranges), _RANGE_BYTES)
    return b"".join(ranges[at : at + _RANGE_BYTES] for number, at in enumerate(raw) if views[number].rejected)


def places_aside(ranges: bytes) -> list[Place]:
    """Of ranges of rows that were set aside: those that are in the quarantine."""
    if not ranges:
        return []
    views, found = ffi.from_buffer("sm_range[]", ranges), []
    for number, at in enumerate(range(0, len(ranges), _RANGE_BYTES)):
        if (view := views[number]).rejected == 1:
            found.append(Place(view.seat, view.position, view.row, ranges[at : at + _RANGE_BYTES]))
    return found


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

    def failed(self, limit: int) -> None:
        """The batch in hand comes again in parts, the first of at most so many rows; 0: of half of them."""
        self._sound(lib.sm_failed(self._pointer, limit))

    def try_later(self) -> None:
        """The batch in hand comes again, as if it had never been taken."""
        self._sound(lib.sm_try_later(self._pointer))

    def set_aside(self) -> None:
        """The one row in hand is in quarantine; takes the place of its commit."""
        self._sound(lib.sm_set_aside(self._pointer))

    def rows_in_hand(self, rows: list[int]) -> list[Place]:
        found, where = [], ffi.new("sm_range *")
        for row in rows:
            if lib.sm_row_in_hand(self._pointer, row, where) != lib.SM_OK:
                raise IndexError(f"row {row} is not in the batch in hand")
            found.append(Place(where.seat, where.position, where.row, bytes(ffi.buffer(where))))
        return found

    def skip_rows(self, rows: np.ndarray, batch: sm_batch) -> bytes:
        """rows: bool array, of the batch in hand: they were applied already, and it goes on without them. Their places,
        for `set_aside_rows` when the state that says so is saved. Raises ValueError: one of them has no origin."""
        ranges = ffi.new("sm_range[]", max(1, len(rows)))
        count = lib.sm_skip_rows(self._pointer, borrow("uint8_t[]", rows.view("u1")), batch, ranges)
        if count < 0:
            raise ValueError("events without an origin cannot be skipped")
        return bytes(ffi.buffer(ranges, count * _RANGE_BYTES))

    def follow(self, version: int, epochs: list[int]) -> None:
        """No event is taken of another epoch than these, of the rows of the table, and a batch is of one partition."""
        lib.sm_follow(self._pointer, version, ffi.new("uint32_t[]", epochs), len(epochs))

    def origins(self, batch: sm_batch) -> tuple[np.ndarray, np.ndarray] | None:
        """Row of the table and offset of each event; None: no event has any."""
        rows, offsets = np.empty(batch.rows, "u4"), np.empty(batch.rows, "u8")
        some = lib.sm_batch_origins(
            batch, ffi.cast("uint32_t *", rows.ctypes.data), ffi.cast("uint64_t *", offsets.ctypes.data)
        )
        return (rows, offsets) if some else None

    def set_aside_rows(self, places: bytes) -> bool:
        """`raw` of each: they are in quarantine, or skipped, before the rest of their batch is committed."""
        count = len(places) // _RANGE_BYTES
        return self._sound(
            lib.sm_set_aside_rows(self._pointer, ffi.from_buffer("sm_range[]", places), count) if count else lib.SM_OK
        )

    def is_left(self, seat: int, position: int, row: int) -> bool:
        """Whether a row is in its lane, and will be handed out again. Nothing may be deferred."""
        return bool(lib.sm_row_left(self._pointer, seat, position, row))

    def probe(self, rows: int) -> None:
        """No batch is larger from here on; 0: they are as ever."""
        lib.sm_probe(self._pointer, rows)

    def arrived(self) -> int:
        """Bytes that ever came into the lanes."""
        return lib.sm_arrived(self._pointer)

    def handled(self) -> int:
        """Events that this shard has handled, ever."""
        return lib.sm_handled(self._pointer)

    # ---- events on trial -----------------------------------------------------------------------------------------

    def trials(self) -> dict[int, TrialView]:
        views = lib.sm_trials(self._pointer)
        return {at: self._trial(views[at]) for at in range(lib.SM_TRIALS) if views[at].state != TRIAL_NONE}

    def trial(self, trial: int) -> TrialView:
        return self._trial(lib.sm_trials(self._pointer)[trial])

    @staticmethod
    def _trial(view: sm_trial_view) -> TrialView:
        return TrialView(
            view.seat, view.position, view.row, view.hash, view.seen, view.number, view.state, view.tries, view.due_ns
        )

    def put_on_trial(self, tries: int, due_ns: int) -> int | None:
        """The one row in hand has failed, and waits. Its number; None: there is room for no more."""
        trial = lib.sm_put_on_trial(self._pointer, tries, due_ns)
        if trial == lib.SM_FENCED:
            self._sound(trial)
        return trial if trial >= 0 else None

    def next_trial(self, trial: int, batch: sm_batch) -> bool:
        """Choose it. False: it is in no lane any more, and not on trial."""
        self._sound(lib.sm_next_trial(self._pointer, trial, batch))
        return batch.rows > 0

    def trial_waits(self, trial: int) -> bool:
        """It is of a partition whose lease is over: it may not be handled for now."""
        return bool(lib.sm_trial_waits(self._pointer, trial))

    def set_trial(self, trial: int, state: int, tries: int, due_ns: int) -> None:
        lib.sm_set_trial(self._pointer, trial, state, tries, due_ns)

    def end_trial(self, trial: int) -> None:
        """Its key is free. Nothing may be deferred."""
        lib.sm_end_trial(self._pointer, trial)

    def take_back(self, trial: int) -> None:
        """It is no longer counted as quarantined."""
        self._sound(lib.sm_amend_trial(self._pointer, trial, TRIAL_TAKEN, 0))

    def end_taken(self, trial: int, *, handled: bool) -> None:
        """Of one that was taken back: it was handled, or it is in the quarantine again."""
        self._sound(lib.sm_amend_trial(self._pointer, trial, TRIAL_NONE, handled))
        self.rescan()

    def begin_taken(self, trial: int) -> None:
        """The handler gets it now. A worker that dies before `done_taken` died of it."""
        lib.sm_begin_taken(self._pointer, trial)

    def done_taken(self, *, handled: bool) -> None:
        lib.sm_end_taken(self._pointer, handled)

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
        """What an earlier life saved; rows that were rejected are set aside before. False: of rows that its lanes do
        not have."""
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
