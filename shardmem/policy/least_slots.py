"""Every shard the same number of slots. [atomr-cluster-sharding: LeastShardAllocationStrategy]"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardmem.policy.placement import Move, View, check_limits, limit_of


@dataclass(frozen=True)
class LeastSlots:
    """Counts differ by at most one in the end, reached with as few moves as there are slots in excess.

    absolute_limit, relative_limit: a round moves at most this many slots, and this share of all; at least one. What has
    to leave a draining shard goes first, then what comes from the fullest shard, whichever that is after the move
    before.

    The quota of a shard is the average rounded up for those that own most already, and rounded down for the others. All
    moves are planned at once against the quotas, so nothing can overshoot; a newcomer with no slots has a quota like
    all. (Akka's second least-shard strategy has the same idea of an optimum, and the same two limits; akka-core#29543,
    #32928.)
    """

    absolute_limit: int | None = None
    relative_limit: float = 0.1

    def __post_init__(self) -> None:
        check_limits(self.absolute_limit, self.relative_limit)

    def allocate(self, slot: int, view: View) -> int:
        """The shard with fewest slots; of several, the lowest id."""
        return view.shards[int(view.counts.argmin())]

    def rebalance(self, view: View) -> list[Move]:
        counts, places, shards = view.counts, view.places, np.array(view.shards)
        if not len(shards):
            return []
        total = int(counts.sum()) + len(view.leaving)
        quota = np.full(len(shards), total // len(shards))
        quota[np.argsort(-counts, kind="stable")[: total % len(shards)]] += 1
        # who gives: slots of shards above their quota, the lowest first; the level is how full the shard is before it
        # goes
        free = np.flatnonzero((places >= 0) & ~view.locked)
        free = free[np.argsort(places[free], kind="stable")]
        rank = np.arange(len(free)) - np.searchsorted(places[free], places[free])
        given = rank < (counts - quota)[places[free]]
        free, level = free[given], (counts[places[free]] - rank)[given]
        free = np.concatenate([view.leaving, free[np.argsort(-level, kind="stable")]])
        # who takes: places below quota, the emptiest first
        missing = np.maximum(quota - counts, 0)
        takers = np.repeat(np.arange(len(shards)), missing)
        level = counts[takers] + np.arange(len(takers)) - np.repeat(np.cumsum(missing) - missing, missing)
        takers = takers[np.argsort(level, kind="stable")]
        count = min(len(free), len(takers), limit_of(len(places), self.absolute_limit, self.relative_limit))
        free, takers = free[:count], takers[:count]
        return list(map(Move, free.tolist(), view.owners[free].tolist(), shards[takers].tolist()))
