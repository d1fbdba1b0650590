"""Some slots where the user wants them. [atomr-cluster-sharding: PinnedAllocationStrategy, which sends all to one
place]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from shardmem.policy.least_load import HotSlot, LeastLoad
from shardmem.policy.placement import Move, Strategy, View


@dataclass(frozen=True)
class Pinned:
    """`mapping` names the shard of some slots; they go there as soon as it takes slots, and stay.

    All other slots, and those whose shard is not there, are placed by `fallback`, which sees pinned slots as they are
    (they count) but cannot move them.
    """

    mapping: Mapping[int, int]
    fallback: Strategy = field(default_factory=LeastLoad)

    def allocate(self, slot: int, view: View) -> int:
        shard = self.mapping.get(slot)
        return shard if shard in view.shards else self.fallback.allocate(slot, view)

    def rebalance(self, view: View) -> list[Move]:
        present = set(view.shards)
        held = [(slot, shard) for slot, shard in self.mapping.items() if shard in present and slot < len(view.owners)]
        moves = [
            Move(slot, int(view.owners[slot]), shard)
            for slot, shard in held
            if 0 <= view.owners[slot] != shard and not view.locked[slot]
        ]
        locked = view.locked.copy()
        locked[np.array([slot for slot, _ in held], int)] = True
        return [*moves, *self.fallback.rebalance(replace(view.after(moves), locked=locked))]

    def hot_slots(self, view: View) -> list[HotSlot]:
        """As the fallback sees them."""
        found = getattr(self.fallback, "hot_slots", None)
        return [] if found is None else found(view)
