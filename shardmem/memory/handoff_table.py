"""Slot words, holds, the handoff table and marks, as the supervisor carries out handoffs on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.words import SlotMove, now_ns


class HandoffTable:
    """wake: rings a shard's worker, so that it looks at what is asked of it. Deadlines are seconds from now."""

    def __init__(self, control: ControlSegment, wake: Callable[[int], None]) -> None:
        self._control, self.wake = control, wake

    def begin(self, slot: int, source: int, target: int, seconds: float) -> None:
        """Table, hold and slot word of a handoff that begins."""
        self._control.begin_move(slot, source, target, _deadline(seconds))

    def set_phase(self, slot: int, phase: str, seconds: float) -> None:
        self._control.set_move_phase(slot, str(phase), _deadline(seconds) if seconds else 0)

    def set_slot(self, slot: int, shard: int) -> None:
        self._control.set_slot(slot, shard)

    def set_holds(self, shard: int, holds: int) -> None:
        self._control.set_holds(shard, holds)

    def view(self, slot: int) -> SlotMove:
        return self._control.move(slot)

    def moving(self) -> list[int]:
        """Slots in some phase, in ascending order."""
        return [move.slot for move in self._control.moves()]

    def owners(self) -> np.ndarray:
        """uint32 array: the shard that the events of each slot are sent to; NOBODY: none yet."""
        return self._control.slot_table()[0]

    def marks(self) -> Sequence[int]:
        return self._control.marks()

    def seat_alive(self, seat: int) -> bool:
        return self._control.seat_alive(seat)

    def is_stateful(self) -> bool:
        """Whether any handler here takes up slots itself: its words say so, whoever started it."""
        return any(self._control.view_shard(shard).stateful for shard in self._control.known_shards())


def _deadline(seconds: float) -> int:
    return now_ns() + int(seconds * 1e9)
