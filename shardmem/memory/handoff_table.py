"""The handoff table, slot words, holds and marks: what a handoff is made of, as the supervisor writes and reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shardmem.memory.engine_segment import ControlSegment, name_of
from shardmem.memory.native import MOVE_PHASES, ffi, lib


class MoveView(NamedTuple):
    """The entry of one slot. phase: none, rerouting, draining, releasing. drained, restored: number of the handoff that was
    answered last by its source, and by its target.
    """

    phase: str
    source: int
    target: int
    number: int
    drained: int
    restored: int


class HandoffTable:
    """The supervisor's side. wake: rings a shard's worker, so that it looks at what is asked of it."""

    def __init__(self, control: ControlSegment, wake: Callable[[int], None]) -> None:
        self._control, self.wake = control, wake
        self._view = ffi.new("sm_move_view *")

    def begin(self, slot: int, source: int, target: int, seconds: float) -> int:
        """Table, hold and slot word of a handoff that begins; its number. seconds: until its first phase is late."""
        return int(lib.sm_move_begin(self._control.address, slot, source, target, _deadline(seconds)))

    def set_phase(self, slot: int, phase: str, seconds: float) -> None:
        lib.sm_move_phase(
            self._control.address, slot, MOVE_PHASES.index(str(phase)), _deadline(seconds) if seconds else 0
        )

    def set_slot(self, slot: int, shard: int) -> None:
        lib.sm_set_slot(self._control.address, slot, shard)

    def set_holds(self, shard: int, holds: int) -> None:
        lib.sm_set_holds(self._control.address, shard, holds)

    def view(self, slot: int) -> MoveView:
        view = self._view
        lib.sm_view_move(self._control.address, slot, view)
        return MoveView(
            name_of(MOVE_PHASES, view.phase), view.source, view.target, view.number, view.drained, view.restored
        )

    def moving(self) -> list[int]:
        """Slots in some phase, in ascending order."""
        slots = np.empty(self._control.slots, "u4")
        count = lib.sm_view_moving(
            self._control.address, self._control.geometry, ffi.cast("uint32_t *", slots.ctypes.data), len(slots)
        )
        found: list[int] = slots[:count].tolist()
        return found

    def owners(self) -> np.ndarray:
        """For each slot the shard that its events are sent to; 65535: none yet."""
        return self._control.slot_table()[0]

    def marks(self) -> np.ndarray:
        """The send mark of every seat; odd: inside a send."""
        return self._control.marks()

    def seat_alive(self, seat: int) -> bool:
        return self._control.seat_alive(seat)

    def is_stateful(self) -> bool:
        """Whether any handler here keeps state: its words say so, whoever started it."""
        return any(self._control.view_shard(shard).stateful for shard in self._control.known_shards())


def _deadline(seconds: float) -> int:
    return int(lib.sm_now_ns()) + int(seconds * 1e9)
