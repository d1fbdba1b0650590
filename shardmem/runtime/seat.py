"""A seat: a producer's registration at one life of an engine, with its lease, its lanes and its counts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from shardmem.errors import AlreadyRunning, NotRunning, SegmentCorrupt, TooManyProducers
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import REASONS, ffi, lib
from shardmem.memory.refusals import out_of_memory
from shardmem.memory.segment import outlive_lost_memory
from shardmem.memory.words import refused_by_reason
from shardmem.text import plural


class Counts(NamedTuple):
    """What became of events. refused: by reason."""

    accepted: int = 0
    handled: int = 0
    quarantined: int = 0
    shed: int = 0
    skipped: int = 0
    refused: dict[str, int] = {}

    @property
    def in_flight(self) -> int:
        return self.accepted - self.handled - self.quarantined - self.shed - self.skipped

    def plus(self, other: Counts) -> Counts:
        refused = {
            reason: self.refused.get(reason, 0) + other.refused.get(reason, 0)
            for reason in REASONS
            if reason in self.refused or reason in other.refused
        }
        return Counts(
            self.accepted + other.accepted,
            self.handled + other.handled,
            self.quarantined + other.quarantined,
            self.shed + other.shed,
            self.skipped + other.skipped,
            refused,
        )


class Seat:
    """Taken when made, until `leave`. Its memory is unmapped with the last reference to it: who uses an address of it
    outside of a method holds one meanwhile, because another thread may leave it.
    """

    def __init__(self, control: ControlSegment, name: str | None = None) -> None:
        """Raises AlreadyRunning (every seat is taken, or that of this name); the control segment is the caller's
        then."""
        self.number, self._leases = take_seat(control) if name is None else take_named_seat(control, name)
        control.enter_seat(self.number)
        self.sender = lib.sm_sender_new(control.address, control.geometry, self.number)
        if self.sender == ffi.NULL:
            self._release()
            raise out_of_memory(f"cannot push into engine {control.engine!r}", 0)
        control.segment.let_go()  # whoever closes descriptors that are not its own closes none of ours
        self.control = control
        self.incarnation = control.view_seat(self.number).incarnation
        self.inboxes: dict[int, InboxSegment] = {}
        self._ended: list[InboxSegment] = []  # of shards that ended; a thread may still wait in one
        self._lanes: list[tuple[InboxSegment, tuple[int, ...]]] = []  # every lane, and its counts before
        self._refused_before = refused_by_reason(control.view_seat(self.number))
        self._opening = threading.Lock()
        self._cut_short: dict[str, bool] = {}  # inboxes of which that was noticed, and whether somebody was told
        if name is not None:
            self._open_lanes_before()

    @classmethod
    def at(cls, engine: str, name: str | None = None, wait: float = 0.0) -> Seat:
        """Of the engine of that name. Raises NotRunning, also when it is stopping, LayoutMismatch, SegmentError."""
        outlive_lost_memory()  # an inbox that another program cuts short is an error, and not the end of this one
        control = ControlSegment.attach(engine, wait)
        try:
            if (state := control.state) in ("draining", "stopped"):
                raise NotRunning(f"engine {engine!r} is {state}; it accepts nothing any more")
            return cls(control, name)
        except BaseException:
            control.close()
            raise

    @property
    def is_inherited(self) -> bool:
        """In a forked child: it is the parent's."""
        return bool(lib.sm_sender_forked(self.sender))

    @property
    def largest(self) -> int:
        """Bytes of key and payload of the largest event."""
        return lib.sm_max_payload(self.sender, 0)

    @property
    def state(self) -> str:
        """Of the engine, as far as it is this one."""
        return self.control.state if self.control.segment.is_current() else "gone"

    def leave(self) -> None:
        """Later calls find it closed."""
        lib.sm_sender_close(self.sender)
        if self._leases[0].held:  # last: the next holder must find nobody writing
            if self.control.view_seat(self.number).incarnation == self.incarnation:
                self.control.leave_seat(self.number)
            self._release()

    def _release(self) -> None:
        for held in self._leases:
            held.release()

    def __del__(self) -> None:
        if getattr(self, "_opening", None) is None or lib is None:
            return
        try:
            self.leave()
            lib.sm_sender_free(self.sender)
            for inbox in [*self.inboxes.values(), *self._ended]:
                inbox.close()
            self.control.close()
        except (TypeError, AttributeError):
            pass  # at the interpreter's end, when modules are being taken apart

    # ---- lanes -------------------------------------------------------------------------------------------------------

    def open_lane(self, shard: int) -> None:
        """Raises OutOfMemory, NotRunning, SegmentCorrupt."""
        with self._opening:  # one thread at a time: the loser of a race would unmap what the winner has linked
            generation = lib.sm_sender_generation(self.sender, shard)
            known = self.inboxes.get(shard)
            if known is not None and known.generation == generation:
                return
            inbox = self._find_inbox(shard, generation)
            if inbox is None:
                return
            try:
                inbox.reserve_lane(self.number)
                before = inbox.counts(self.number)
                status = lib.sm_sender_link(self.sender, shard, generation, inbox.address)
            except BaseException:
                inbox.close()
                raise
            if status < 0:
                inbox.close()
                if status != lib.SM_CORRUPT:
                    return  # the seat is no longer this one's, which the call that needs the lane will find
                raise SegmentCorrupt(
                    f"the lane of producer {self.number} to shard {shard} contradicts itself: its head and "
                    f"tail are further apart than the lane is long; connect again to get another seat"
                )
            inbox.segment.let_go()
            if known is not None:
                self.is_cut_short(shard)
                self._ended.append(known)
            self.inboxes[shard] = inbox
            self._lanes.append((inbox, before))

    def _open_lanes_before(self) -> None:
        """Those that the last holder of this name had: what is left in them is waited for, too."""
        for shard in self.control.known_shards():
            try:
                inbox = self.control.open_inbox(shard)
            except NotRunning:
                continue  # it ended, with empty lanes
            has_lane = any(lane.seat == self.number and not lane.broken for lane in inbox.lanes())
            inbox.close()
            if has_lane:
                self.open_lane(shard)

    def _find_inbox(self, shard: int, generation: int) -> InboxSegment | None:
        """None: the shard ended since, and its events go elsewhere by now."""
        try:
            return self.control.open_inbox(shard, generation)
        except NotRunning:
            if self.state == "running" and lib.sm_sender_generation(self.sender, shard) == generation:
                raise
            return None

    def position(self, shard: int) -> tuple[int, int] | None:
        """Where the lane to a shard ends, and how far its worker has come. None: there is no such lane. Raises
        SegmentCorrupt when somebody has cut the inbox short: what this seat had pushed into it is lost."""
        inbox = self.inboxes.get(shard)
        if inbox is not None and self.is_cut_short(shard):
            self._cut_short[inbox.segment.name] = True
            raise _cut_short(inbox.segment.name)
        tail, head = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        if lib.sm_sender_position(self.sender, shard, tail, head) != lib.SM_OK:
            return None
        return tail[0], head[0]

    def is_cut_short(self, shard: int) -> bool:
        """Whether somebody has cut the inbox of this shard short."""
        inbox = self.inboxes.get(shard)
        if inbox is None or inbox.has_lane(self.number):
            return False
        self._cut_short.setdefault(inbox.segment.name, False)
        return True

    def expect_none_cut_short(self) -> None:
        """Raises SegmentCorrupt, once for each inbox that was: this seat pushes into another in its place."""
        for name in [name for name, is_told in self._cut_short.items() if not is_told]:
            self._cut_short[name] = True
            raise _cut_short(name)

    def has_come_to(self, shard: int, position: int) -> bool:
        """Whether all before it is handled. One beyond the tail was of an inbox that ended since, with empty lanes."""
        at = self.position(shard)
        return at is None or at[1] >= min(position, at[0])

    def shards_of(self, slots: Iterable[int] | None) -> list[int]:
        """Those of its lanes in which events of these slots may be; None: of any. The table is read before the moves: a
        slot that has left a shard has no events there, or is still on its way."""
        if slots is None:
            return list(self.inboxes)
        owners, wanted = self.control.slot_table()[0], set(slots)
        shards = {int(owners[slot]) for slot in wanted}
        shards |= {move.source for move in self.control.moves() if move.slot in wanted}
        return [shard for shard in list(self.inboxes) if shard in shards]

    def has_handled_all(self) -> bool:
        return all(at is None or at[1] >= at[0] for at in map(self.position, list(self.inboxes)))

    # ---- what its last holder had pushed -----------------------------------------------------------------------------

    def last_call(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Of the last pass with an origin of any holder of this seat, what is in the lanes: (row of the partition
        table, its epoch then, offsets)."""
        control = self.control
        row, epoch, position = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("uint64_t *")
        offsets = np.empty(lib.SM_CHUNK, "u8")
        for shard in control.known_shards():
            try:
                inbox = control.open_inbox(shard)
            except NotRunning:
                continue  # it ended, with empty lanes
            try:
                if not any(lane.seat == self.number and not lane.broken for lane in inbox.lanes()):
                    continue
                position[0] = 0
                place = position, row, epoch, ffi.cast("uint64_t *", offsets.ctypes.data)
                while count := lib.sm_recover(control.address, control.geometry, inbox.address, self.number, *place):
                    yield row[0], epoch[0], offsets[:count].copy()
            finally:
                inbox.close()

    def resume_call(self, row: int, epoch: int, until: int) -> None:
        """Until all before that offset is pushed, what is pushed of this partition belongs to the call that the last
        holder left."""
        lib.sm_resume_call(self.sender, row, epoch, until)

    # ---- counts ------------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Since the seat was taken."""
        lanes = [(inbox.counts(self.number), before) for inbox, before in list(self._lanes)]
        accepted, handled, quarantined, shed, skipped = (
            sum(now[i] - before[i] for now, before in lanes) for i in range(5)
        )
        new = {
            reason: count - self._refused_before.get(reason, 0)
            for reason, count in refused_by_reason(self.control.view_seat(self.number)).items()
        }
        refused = {reason: count for reason, count in new.items() if count}
        return Counts(accepted, handled, quarantined, shed, skipped, refused)


def _cut_short(name: str) -> SegmentCorrupt:
    return SegmentCorrupt(
        f"{name} was cut short while it was in use; what it held is lost",
        hint="Look for a program that truncates files in /dev/shm",
    )


def take_seat(control: ControlSegment) -> tuple[int, list[lease.Lease]]:
    """One that has no name, as long as there are any; the lease of it."""
    for seat in sorted(range(control.max_producers), key=lambda seat: control.view_seat(seat).name != 0):
        held = lease.Lease.take(control.segment, lease.seat_byte(seat))
        if held is not None:
            return seat, [held]
    pids = Counter(control.view_seat(seat).pid for seat in range(control.max_producers))
    holders = ", ".join(f"pid {pid} has {count}" for pid, count in pids.most_common(3))
    raise TooManyProducers(
        f"engine {control.engine!r} has {plural(control.max_producers, 'producer')}, all alive, as many as "
        f"max_producers allows: {holders}",
        hint="Make one producer for each process and share it among threads; or raise max_producers and run it again",
    )


def take_named_seat(control: ControlSegment, name: str) -> tuple[int, list[lease.Lease]]:
    """The seat of that name, or another that gets it; the leases of the seat and of the name, which two that begin at
    once cannot both have."""
    encoded = name.encode()
    number = lib.sm_hash_bytes(encoded, len(encoded)) or 1
    of_name = lease.Lease.take(control.segment, lease.name_byte(number))
    known = [seat for seat in range(control.max_producers) if control.view_seat(seat).name == number]
    if of_name is None:
        raise AlreadyRunning(
            f"a producer of engine {control.engine!r} has the seat named {name!r}"
            + (f": process {control.view_seat(known[0]).pid}" if known else "")
        )
    try:
        if not known:
            seat, leases = take_seat(control)
            control.name_seat(seat, number)
            return seat, [*leases, of_name]
        held = lease.Lease.take(control.segment, lease.seat_byte(known[0]))
        if held is None:
            raise AlreadyRunning(
                f"seat {known[0]} of engine {control.engine!r}, named {name!r}, was taken by a producer without a "
                f"name, process {control.view_seat(known[0]).pid}, when all others were",
                hint="Close a producer, or raise `max_producers`",
            )
        return known[0], [held, of_name]
    except BaseException:
        of_name.release()
        raise
