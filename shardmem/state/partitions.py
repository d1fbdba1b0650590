"""How the slots of an engine are shared out among the partitions of its topics, and how far each slot is in each.

A key that came with an event of partition `number` belongs to slot `number * width + hash mod width`, so all of a
partition is in `width` neighbours, whatever topic it is of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NEVER = -1  # as an offset that was applied: none was


@dataclass(frozen=True)
class Layout:
    """partitions: how many each topic has at most."""

    slots: int
    partitions: int

    @property
    def width(self) -> int:
        """Slots of one partition."""
        return self.slots >> (self.partitions - 1).bit_length()

    def slots_of(self, number: int) -> range:
        return range(number * self.width, (number + 1) * self.width)


class AppliedRow(NamedTuple):
    """Of one partition of a topic, as it is saved: the highest offset that is in the state of each of its slots, int64;
    NEVER: none is."""

    topic: str
    number: int
    offsets: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.offsets, "<i8")


def merged(ours: Iterable[AppliedRow], theirs: Iterable[AppliedRow], slots: Iterable[int]) -> list[AppliedRow]:
    """Ours, with what theirs say of these slots, NEVER if they say nothing."""
    chosen = np.fromiter(slots, "i8")
    found = {(row.topic, row.number): row.array.copy() for row in ours}
    other = {(row.topic, row.number): row.array for row in theirs}
    for name in sorted(found.keys() | other.keys()):
        number, source = name[1], other.get(name)
        width = len(found[name] if source is None else source)
        if name not in found or len(found[name]) != width:
            found[name] = np.full(width, NEVER, "<i8")
        at = chosen[chosen // width == number] % width
        found[name][at] = NEVER if source is None else source[at]
    return [AppliedRow(topic, number, array.tobytes()) for (topic, number), array in found.items()]
