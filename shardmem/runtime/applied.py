"""How far each partition is in the state of each slot of one worker: events at or below that are in it already.

Events of a slot are handled in the order of their offsets, so the highest offset says it all.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shardmem.state.partitions import NEVER, AppliedRow, Layout


class Applied:
    """Of each row of the partition table an array, one offset for each of its slots."""

    def __init__(self) -> None:
        self._layout = Layout(1, 1)
        self._names: list[tuple[str, int]] = []  # topic and number of each row
        self._now, self._saved = np.empty((0, 1), "i8"), np.empty((0, 1), "i8")

    def share_out(self, layout: Layout) -> None:
        self._layout, self._names = layout, []
        self._now, self._saved = np.empty((0, layout.width), "i8"), np.empty((0, layout.width), "i8")

    def know(self, names: list[tuple[str, int]]) -> None:
        """Topic and number of each row of the table; a row that was known stays what it is."""
        if more := len(names) - len(self._names):
            fresh = np.full((more, self._layout.width), NEVER, "i8")
            self._names = names
            self._now, self._saved = np.concatenate([self._now, fresh]), np.concatenate([self._saved, fresh])

    # ---- around batches ------------------------------------------------------------------------------------------

    def places(self, rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Of events, where their offsets are kept: for `has` and `advance`."""
        width = self._layout.width
        found: np.ndarray = rows.astype("i8") * width + (slots & np.uint32(width - 1))
        return found

    def has(self, places: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """bool array: they are in the state already."""
        done: np.ndarray = np.less_equal(offsets.view("i8"), self._now.reshape(-1)[places])
        return done

    def advance(self, places: np.ndarray, offsets: np.ndarray) -> None:
        """They are in the state now. Offsets of a slot rise, and of several values for one place numpy keeps the
        last."""
        self._now.reshape(-1)[places] = offsets.view("i8")

    # ---- around checkpoints --------------------------------------------------------------------------------------

    def changes(self) -> list[AppliedRow]:
        changed = np.flatnonzero((self._now != self._saved).any(axis=1))
        return [AppliedRow(*self._names[row], self._now[row].astype("<i8").tobytes()) for row in changed.tolist()]

    def saved(self) -> None:
        self._saved[:] = self._now

    def roll_back(self) -> None:
        self._now[:] = self._saved

    # ---- slots that come and go ----------------------------------------------------------------------------------

    def take_up(self, stored: Iterable[AppliedRow], slots: set[int]) -> None:
        """What the store says of these slots."""
        found, layout = {(row.topic, row.number): row.array for row in stored}, self._layout
        for row, name in enumerate(self._names):
            at = [slot - layout.slots_of(name[1])[0] for slot in slots.intersection(layout.slots_of(name[1]))]
            array = found.get(name)
            value = NEVER if array is None or len(array) != layout.width else array[at]
            self._now[row, at] = self._saved[row, at] = value

    def forget(self, slots: set[int]) -> None:
        self.take_up((), slots)
