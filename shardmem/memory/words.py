"""The words of a control segment, by who may write them. Each is named and owned in csrc/layout.h; here they have
Python types."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shardmem.memory.native import (
    BOARD_BYTES,
    BOARDS,
    ENGINE_STATES,
    MOVE_PHASES,
    PHASES,
    REASONS,
    SHARD_STATES,
    ffi,
    lib,
)

if TYPE_CHECKING:
    from shardmem.memory.inbox_segment import LaneView
    from shardmem.memory.native import CData, sm_engine_view, sm_geometry, sm_seat_view, sm_shard_view

NOBODY = 65535  # the shard of a slot that has none yet
FLOORS_NS = [lib.sm_histogram_floor_ns(bucket) for bucket in range(lib.SM_HISTOGRAM)]  # of the latency histogram


class SlotMove(NamedTuple):
    """The handoff of one slot, as its words say at one moment. drained, restored: this handoff is acknowledged by its
    source, by its target. since_ns, deadline_ns: of the phase, on the clock of `now_ns`."""

    slot: int
    source: int
    target: int
    phase: str
    number: int
    drained: bool
    restored: bool
    since_ns: int
    deadline_ns: int


class Retired(NamedTuple):
    """What became of the events of an inbox that is about to go, as its words take it."""

    accepted: int
    handled: int
    quarantined: int
    shed: int  # as producers asked
    skipped: int
    lost: int

    @classmethod
    def of(cls, lanes: Iterable[LaneView]) -> Retired:
        sums = [
            sum(each)
            for each in zip(
                *((a.accepted, a.handled, a.quarantined, a.shed - a.lost, a.skipped, a.lost) for a in lanes)
            )
        ]
        return cls(*(count & (1 << 64) - 1 for count in sums or [0] * 6))  # damaged ones are beyond all bounds


class Words:
    """What a control segment says and is told. Waits for nothing, allocates nothing in it."""

    address: CData
    geometry: sm_geometry
    slots: int
    room: int
    max_producers: int

    # ---- read: any ---------------------------------------------------------------------------------------------

    def view_engine(self) -> sm_engine_view:
        view = ffi.new("sm_engine_view *")
        lib.sm_view_engine(self.address, view)
        return view

    @property
    def state(self) -> str:
        return name_of(ENGINE_STATES, self.view_engine().state)

    def view_shard(self, shard: int) -> sm_shard_view:
        view = ffi.new("sm_shard_view *")
        lib.sm_view_shard(self.address, shard, view)
        return view

    def shard_state(self, shard: int) -> str:
        return name_of(SHARD_STATES, self.view_shard(shard).state)

    def shard_error(self, shard: int) -> str:
        """What the worker said when it failed, or what the supervisor noted of one that could not; empty if neither."""
        view = self.view_shard(shard)
        return bytes(ffi.buffer(view.error, view.error_bytes)).decode(errors="replace")

    def worker_phase(self, shard: int) -> str:
        return name_of(PHASES, self.view_shard(shard).phase)

    def view_seat(self, seat: int) -> sm_seat_view:
        view = ffi.new("sm_seat_view *")
        lib.sm_view_seat(self.address, seat, view)
        return view

    def shard_generation(self, shard: int) -> int:
        """Of its inbox."""
        return self.view_shard(shard).generation

    def known_shards(self) -> list[int]:
        return [shard for shard in range(self.room) if self.view_shard(shard).state]

    def known_seats(self) -> Iterator[tuple[int, sm_seat_view]]:
        for seat in range(self.max_producers):
            view = self.view_seat(seat)
            if view.incarnation:
                yield seat, view

    def marks(self) -> list[int]:
        """The send mark of every seat; odd: inside a send. Plain integers: numpy 1 takes no `uint64 & 1`."""
        marks = np.empty(self.max_producers, "u8")
        lib.sm_marks(self.address, ffi.cast("uint64_t *", marks.ctypes.data), len(marks))
        found: list[int] = marks.tolist()
        return found

    def slot_table(self) -> tuple[np.ndarray, np.ndarray]:
        """(shard of each slot, epoch of each slot), uint32 arrays; shard NOBODY: none yet."""
        shards, epochs = np.empty(self.slots, "u4"), np.empty(self.slots, "u4")
        lib.sm_view_slots(
            self.address,
            self.geometry,
            ffi.cast("uint32_t *", shards.ctypes.data),
            ffi.cast("uint32_t *", epochs.ctypes.data),
        )
        return shards, epochs

    def busy_by_slot(self) -> np.ndarray:
        """uint64 array: nanoseconds that handling the events of each slot took, ever."""
        busy_ns = np.empty(self.slots, "u8")
        lib.sm_view_busy(self.address, self.geometry, ffi.cast("uint64_t *", busy_ns.ctypes.data))
        return busy_ns

    def move(self, slot: int) -> SlotMove:
        """Of one slot; phase "none": it is not in motion."""
        view = ffi.new("sm_move_view *")
        lib.sm_view_move(self.address, slot, view)
        return SlotMove(
            slot,
            view.source,
            view.target,
            name_of(MOVE_PHASES, view.phase),
            view.number,
            view.drained == view.number,
            view.restored == view.number,
            view.since_ns,
            view.deadline_ns,
        )

    def moves(self) -> list[SlotMove]:
        """Every slot in motion."""
        slots = np.empty(self.slots, "u4")
        count = lib.sm_view_moving(self.address, self.geometry, ffi.cast("uint32_t *", slots.ctypes.data), self.slots)
        moves = map(self.move, slots[:count].tolist())
        return [move for move in moves if move.phase != "none"]

    def board(self, board: str) -> bytes:
        """What the supervisor posted last there: JSON, if it is not damaged. board: one of BOARDS."""
        text = ffi.new("char[]", lib.SM_BOARD_BYTES)
        return bytes(ffi.buffer(text, lib.sm_view_board(self.address, BOARDS.index(board), text)))

    # ---- write: a producer ---------------------------------------------------------------------------------------

    def enter_seat(self, seat: int) -> None:
        """By the holder of the lease of the seat, as is what it writes from here on."""
        lib.sm_seat_enter(self.address, seat, os.getpid(), lib.sm_now_ns())

    def name_seat(self, seat: int, name: int) -> None:
        """name: hash of what it is called; it keeps that when it is left."""
        lib.sm_name_seat(self.address, seat, name)

    def call_seat(self, seat: int, client: bytes) -> None:
        """client: what its holder calls itself, of at most SM_CLIENT_BYTES; empty: nothing."""
        lib.sm_seat_client(self.address, seat, client, len(client))

    def leave_seat(self, seat: int) -> None:
        lib.sm_seat_leave(self.address, seat)

    # ---- write: the worker of the shard --------------------------------------------------------------------------

    def enter_worker(self, shard: int) -> None:
        """By the holder of the lease of the shard, as is all of this section. A new incarnation begins."""
        lib.sm_worker_enter(self.address, shard, os.getpid(), lib.sm_now_ns())

    def set_worker_phase(self, shard: int, phase: str) -> None:
        lib.sm_worker_phase(self.address, shard, PHASES.index(phase))

    def set_worker_error(self, shard: int, text: str) -> None:
        """Cut at SM_ERROR_BYTES."""
        encoded = text.encode(errors="backslashreplace")[: lib.SM_ERROR_BYTES]
        lib.sm_worker_error(self.address, shard, encoded, len(encoded))

    def set_worker_waiting(self, shard: int, kind: int, tries: int, since_ns: int, until_ns: int) -> None:
        """kind: a place in WAITING."""
        lib.sm_worker_waits(self.address, shard, kind, tries, since_ns, until_ns)

    def beat_worker(self, shard: int) -> None:
        """It lives, and waits: no batch does it for it."""
        lib.sm_worker_beat(self.address, shard)

    def note_checkpoint(self, shard: int, took_ns: int) -> None:
        """One has ended now."""
        lib.sm_worker_checkpointed(self.address, shard, took_ns)

    def set_worker_stateful(self, shard: int, takes_up: bool, saves: bool) -> None:
        """Whether it takes up slots itself, so that their rows wait until it has, and whether it saves their state.
        Before the phase says ready."""
        lib.sm_worker_stateful(self.address, shard, self._saving(shard) if saves else int(takes_up))

    def has_saved_state(self, shard: int) -> bool:
        """Whether a worker of this inbox has been ready that saves state. Its successor asks, before its own answer."""
        return bool(self.view_shard(shard).stateful == self._saving(shard))

    def _saving(self, shard: int) -> int:
        """The shard's number may be that of an earlier one, so its generation is part of the word."""
        return int(self.view_shard(shard).generation << 1 & 0xFFFFFFFF) | 1

    def is_told_to_stop(self, shard: int) -> bool:
        """Whether engine or shard are "stopped". Called once a batch: 0.2 us."""
        orders = lib.sm_worker_orders(self.address, shard)
        return orders & 0xFF == _ENGINE_STOPPED or orders >> 8 == _SHARD_STOPPED

    def unacknowledged(self, shard: int, phase: str) -> dict[int, int]:
        """slot -> number of the handoff: what this shard owes, as source in "draining", as target in "releasing"."""
        slots, numbers = np.empty(self.slots, "u4"), np.empty(self.slots, "u8")
        count = lib.sm_moves_at(
            self.address,
            self.geometry,
            shard,
            MOVE_PHASES.index(phase),
            ffi.cast("uint32_t *", slots.ctypes.data),
            ffi.cast("uint64_t *", numbers.ctypes.data),
            self.slots,
        )
        owed, view = {}, ffi.new("sm_move_view *")
        for slot, number in zip(slots[:count].tolist(), numbers[:count].tolist()):
            lib.sm_view_move(self.address, slot, view)
            if (view.drained if phase == "draining" else view.restored) != number:
                owed[slot] = number
        return owed

    def acknowledge_drained(self, slot: int, number: int) -> None:
        lib.sm_move_drained(self.address, slot, number)

    def acknowledge_restored(self, slot: int, number: int) -> None:
        lib.sm_move_restored(self.address, slot, number)

    # ---- write: the supervisor -----------------------------------------------------------------------------------

    def enter_supervisor(self) -> None:
        """By the holder of the supervisor's lease, as is all of this section."""
        lib.sm_supervisor_enter(self.address, os.getpid(), lib.sm_now_ns())

    def beat(self) -> None:
        """Its loop has gone round."""
        lib.sm_supervisor_beat(self.address, lib.sm_now_ns())

    def set_state(self, state: str) -> None:
        lib.sm_set_engine_state(self.address, ENGINE_STATES.index(state))

    def set_shard_state(self, shard: int, state: str) -> None:
        lib.sm_set_shard_state(self.address, shard, SHARD_STATES.index(state))

    def set_shard_generation(self, shard: int, generation: int) -> None:
        lib.sm_set_shard_generation(self.address, shard, generation)

    def set_shard_weight(self, shard: int, weight: int) -> None:
        lib.sm_set_shard_weight(self.address, shard, weight)

    def set_slot(self, slot: int, shard: int) -> None:
        lib.sm_set_slot(self.address, slot, shard)

    def begin_move(self, slot: int, source: int, target: int, deadline_ns: int) -> int:
        """The hold, then the slot word. The number of the handoff."""
        return lib.sm_move_begin(self.address, slot, source, target, deadline_ns)

    def set_move_phase(self, slot: int, phase: str, deadline_ns: int = 0) -> None:
        lib.sm_move_phase(self.address, slot, MOVE_PHASES.index(phase), deadline_ns)

    def set_holds(self, shard: int, holds: int) -> None:
        lib.sm_set_holds(self.address, shard, holds)

    def give_orders(self, shard: int, inbox: CData) -> None:
        """The worker of the shard looks at its handoffs. inbox: the address of the inbox in which it may sleep."""
        lib.sm_give_orders(self.address, shard, inbox)

    def retire(self, shard: int, generation: int, counts: Retired) -> None:
        """The counts of an inbox that is about to go."""
        lib.sm_retire(self.address, shard, generation, *counts)

    def forget_retired(self, shard: int, generation: int) -> None:
        """The word that says which was the last inbox to go was damaged: it was this one."""
        lib.sm_forget_retired(self.address, shard, generation)

    def post(self, board: str, text: bytes) -> bool:
        """False: it is too long for the board, which says what it said."""
        if len(text) > BOARD_BYTES:
            return False
        lib.sm_post(self.address, BOARDS.index(board), text, len(text))
        return True

    def note_shard(self, shard: int, text: str) -> None:
        """Of a worker that cannot say it."""
        encoded = text.encode(errors="backslashreplace")
        lib.sm_shard_note(self.address, shard, encoded, len(encoded))


_ENGINE_STOPPED, _SHARD_STOPPED = ENGINE_STATES.index("stopped"), SHARD_STATES.index("stopped")


def latency_of(view: sm_shard_view) -> np.ndarray:
    """uint64 array: events by the time from push to handled, in the buckets of FLOORS_NS."""
    return np.array(ffi.unpack(view.latency, lib.SM_HISTOGRAM), "u8")


def batch_sizes_of(view: sm_shard_view) -> np.ndarray:
    """uint64 array: batches of at most 1, 2, 4, 8, ... events and more than half of that."""
    return np.array(ffi.unpack(view.batch_sizes, lib.SM_BATCH_SIZES), "u8")


def waiting_of(view: sm_shard_view) -> tuple[float | None, float | None]:
    """Seconds since the shard waits, and until its next try; None: it does not wait."""
    if not view.waiting_kind or not view.waiting_tries:
        return None, None
    now = now_ns()
    return max(0, now - view.waiting_since_ns) / 1e9, max(0, view.waiting_until_ns - now) / 1e9


def refused_by_reason(view: sm_seat_view) -> dict[str, int]:
    return {reason: count for reason, count in zip(REASONS, view.refused) if count}


def name_of(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else f"unknown ({number})"


def now_ns() -> int:
    """The clock of every time in shared memory: CLOCK_MONOTONIC."""
    return lib.sm_now_ns()
