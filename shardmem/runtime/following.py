"""A stateful worker's view of the partition table: of which partitions its state is, and which of their events are
in it.

The source takes a partition up with a new epoch, perhaps after it has put the state of another host in place. Its
events are not taken before the worker has followed: given up what it had, and taken up what is there now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.partition_table import NO_PARTITION, PartitionRow
from shardmem.memory.reader import Reader
from shardmem.runtime.applied import Applied
from shardmem.state.keeper import Keeper
from shardmem.state.partitions import Layout

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch

OWNED = ("owned", "draining")


class Following:
    """Without partitions all slots are here, and no batch costs anything."""

    def __init__(self, control: ControlSegment, reader: Reader, keeper: Keeper) -> None:
        self._table, self._reader, self._keeper = control.partitions, reader, keeper
        self._slots = control.slots
        self._layout: Layout | None = None
        self._rows: list[PartitionRow] = []
        self._version: int | None = None  # of the table, as of when it was looked at
        self.applied = Applied()
        self._in_hand: tuple[np.ndarray, np.ndarray] | None = None  # places and offsets of events that have an origin
        self._passed = b""  # places in the lanes of rows that were left out

    # ---- the table -----------------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        return self._table.version != self._version

    def look(self) -> set[int]:
        """Slots of partitions that are in another epoch than when it was looked before. Nothing waits to be saved."""
        self._version = self._table.version
        before = {row.row: row.epoch for row in self._rows}
        if self._layout is None and (count := self._table.count):
            self._layout = Layout(self._slots, count)
            self._keeper.share_out(self._layout)
            self.applied.share_out(self._layout)
        self._rows = self._table.rows()
        if self._layout is None:
            return set()
        self.applied.know([(row.topic, row.number) for row in self._rows])
        return {
            slot for row in self._rows if before.get(row.row) != row.epoch for slot in self._layout.slots_of(row.number)
        }

    def here(self, slots: set[int]) -> set[int]:
        """Those of partitions that this host has. The state of others is somewhere else by now."""
        if self._layout is None:
            return slots
        owned = {row.number for row in self._rows if row.state in OWNED}
        return {slot for slot in slots if slot // self._layout.width in owned}

    def ready(self) -> None:
        """The state is that of the epochs that were looked at."""
        assert self._version is not None
        self._reader.follow(self._version, [row.epoch for row in self._rows])

    # ---- a batch -------------------------------------------------------------------------------------------------

    def take(self, batch: sm_batch) -> bool:
        self._in_hand, self._passed = None, b""
        if self._layout is None:
            return True
        if batch.partition != NO_PARTITION:
            self._keeper.enter(batch.partition)
        if (found := self._reader.origins(batch)) is None:
            return True
        rows, offsets = found
        slots = self._table.slots_of_batch(batch, len(rows))
        known = rows < len(self._rows)
        if not known.all():  # events without an origin, of the same partition
            rows, offsets, slots = rows[known], offsets[known], slots[known]
        places = self.applied.places(rows, slots)
        done = self.applied.has(places, offsets)
        if done.any():
            skipped = np.zeros(len(known), bool)
            skipped[known] = done
            self._passed = self._reader.skip_rows(skipped, batch)
            places, offsets = places[~done], offsets[~done]
        self._in_hand = places, offsets
        return batch.rows > 0

    def enter(self, slot: int) -> None:
        self._in_hand, self._passed = None, b""
        if self._layout is not None:
            self._keeper.enter(slot // self._layout.width)

    def handled(self) -> bytes:
        """The batch in hand was. Places of its rows that were left out."""
        if self._in_hand is not None:
            self.applied.advance(*self._in_hand)
            self._in_hand = None
        passed, self._passed = self._passed, b""
        return passed
