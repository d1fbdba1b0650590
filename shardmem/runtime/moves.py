"""The worker's side of a handoff: give up what is drained, take up what is handed over. Between batches only.

    source   phase draining    no row of the slot is left here: snapshot, store, drop, say drained
    target   phase releasing   restore, say restored; the hold falls when the supervisor has heard it

Between reroute and release the target keeps rows of the slot back in its lanes (csrc/worker.c); it needs no word for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shardmem.memory.native import ffi, lib
from shardmem.runtime.checkpoint import Checkpointed, Immediate

LOOK_AGAIN = 0.001  # seconds between two looks at what is left: each goes over all that is waiting in the lanes


class Moves:
    """What this worker owes to handoffs."""

    def __init__(
        self, control: Any, shard: int, reader: Any, keeper: Immediate | Checkpointed, say: Callable[..., None]
    ) -> None:
        self._control, self._shard, self._reader = control, shard, reader
        self._keeper, self._say = keeper, say
        self._seen = -1
        self._draining: dict[int, int] = {}
        self._looked = 0.0
        self._slots = ffi.new("uint32_t[]", control.slots)
        self._numbers = ffi.new("uint64_t[]", control.slots)
        self._present = ffi.new("uint8_t[]", control.slots)

    @property
    def patience_ns(self) -> int:
        """How long the worker may sleep: shortly while something is draining, so that it looks again."""
        return 1_000_000 if self._draining else 100_000_000

    def step(self, idle: bool) -> None:
        """Called between batches; idle: there was nothing to handle."""
        orders = lib.sm_orders(self._reader)
        if orders != self._seen:
            self._seen = orders
            self._keeper.settle()  # rows that are handled and not committed would come again
            lib.sm_rescan(self._reader)  # a hold may have fallen: what it kept back lies behind the cursors
            self._draining = self._found(lib.SM_MOVE_DRAINING, "drained")
            self._restore(self._found(lib.SM_MOVE_RELEASING, "restored"))
        if self._draining and (idle or time.monotonic() - self._looked > LOOK_AGAIN):
            self._give_up()

    def _found(self, phase: int, done: str) -> dict[int, int]:
        """slot -> number of the handoff, of those in this phase that are not acknowledged yet."""
        address, view = self._control.address, ffi.new("sm_move_view *")
        count = lib.sm_moves_at(
            address, self._control.geometry, self._shard, phase, self._slots, self._numbers, self._control.slots
        )
        found = {}
        for i in range(count):
            lib.sm_view_move(address, self._slots[i], view)
            if getattr(view, done) != self._numbers[i]:
                found[self._slots[i]] = self._numbers[i]
        return found

    def _give_up(self) -> None:
        slots = list(self._draining)
        for i, slot in enumerate(slots):
            self._slots[i] = slot
        self._looked = time.monotonic()
        if lib.sm_undone(self._reader, self._slots, len(slots), self._present) < 0:
            return  # no memory to look with: later
        empty = [slot for i, slot in enumerate(slots) if not self._present[i]]
        if not empty:
            return
        self._keeper.hand_over(empty)
        for slot in empty:
            lib.sm_move_drained(self._control.address, slot, self._draining.pop(slot))
        self._say(drained=empty)

    def _restore(self, slots: dict[int, int]) -> None:
        if slots:
            self._keeper.restore(slots)
        for slot, number in slots.items():
            lib.sm_move_restored(self._control.address, slot, number)
        if slots:
            self._say(restored=list(slots))
