"""The worker's side of a handoff: give up what is drained, take up what is handed over. Between batches only.

    source   phase draining    no row of the slot is left here: snapshot, store, drop, lost, say drained
    target   phase releasing   restore, gained, say restored; the hold falls when the supervisor has heard it

Between reroute and release the target keeps rows of the slot back in its lanes (csrc/reader.c); it needs no word for
that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import point
from shardmem.memory.reader import Reader
from shardmem.runtime.commit import REST_NS, Commit

LOOK_AGAIN = 0.001  # seconds between two looks at what is left: each goes over all that is waiting in the lanes


class Moves:
    """What this worker owes to handoffs."""

    def __init__(
        self, control: ControlSegment, shard: int, reader: Reader, commit: Commit, say: Callable[..., None]
    ) -> None:
        self._control, self._shard, self._reader = control, shard, reader
        self._commit, self._say = commit, say
        self._seen = -1
        self._draining: dict[int, int] = {}  # slot -> number of the handoff
        self._looked = 0.0

    @property
    def patience_ns(self) -> int:
        """How long the worker may sleep: shortly while something is draining, so that it looks again."""
        return 1_000_000 if self._draining else REST_NS

    def step(self, idle: bool) -> None:
        """Called between batches; idle: there was nothing to handle."""
        orders = self._reader.orders()
        if orders != self._seen:
            self._seen = orders
            self._commit.settle()  # rows that are handled and not committed would come again
            self._reader.rescan()  # a hold may have fallen: what it kept back lies behind the cursors
            self._draining = self._control.unacknowledged(self._shard, "draining")
            self._restore(self._control.unacknowledged(self._shard, "releasing"))
        if self._draining and (idle or time.monotonic() - self._looked > LOOK_AGAIN):
            self._give_up()

    def _give_up(self) -> None:
        slots = list(self._draining)
        self._looked = time.monotonic()
        if (undone := self._reader.undone(slots)) is None:
            return  # no memory to look with: later
        empty = [slot for slot, left in zip(slots, undone) if not left]
        if not empty:
            return
        self._commit.hand_over(empty)
        point("move.saved")
        for slot in empty:
            self._control.acknowledge_drained(slot, self._draining.pop(slot))
        self._say(drained=empty)

    def _restore(self, slots: dict[int, int]) -> None:
        if slots:
            self._commit.restore(slots)
            point("move.copied")
        for slot, number in slots.items():
            self._control.acknowledge_restored(slot, number)
        if slots:
            self._say(restored=list(slots))
