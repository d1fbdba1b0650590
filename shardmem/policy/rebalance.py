"""From a plan to handoffs, a few at a time. [atomr-cluster-sharding: RebalanceRunner]

There the same first few are proposed in each round, and those under way are skipped without replacement, so as many stuck
ones as a round is long end all rebalancing. Here the plan is made around what is stuck: a handoff past its deadline no
longer takes up room, and the shard that it waits for is out of bounds, with its slots, until it moves again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from shardmem.policy.coordinator import ShardCoordinator
from shardmem.policy.handoff import HandoffCoordinator


@dataclass(frozen=True)
class BeginHandoff:
    """To carry out: `HandoffCoordinator.begin` with these. [atomr-cluster-sharding: the same name]"""

    slots: tuple[int, ...]
    source: int
    target: int


@dataclass(frozen=True)
class Allocate:
    """Slots that nobody owns get an owner. To carry out: write the slot words, then `ShardCoordinator.allocate` each.

    [atomr-cluster-sharding: the same name, also for what has been stopped at its source: that is `Release` here, and names
    the target that was settled when the handoff began, so it cannot be the source]
    """

    slots: tuple[int, ...]
    shard: int


class RebalanceRunner:
    """What to begin now. Asked once per control tick.

    max_in_flight: slots in handoffs at a time, those past their deadline not counted.
    max_per_pair: slots in handoffs from one shard to another, those counted too.

    Small differences of load are left alone until one is large enough to act on; then they are evened out as well, as far
    as the plan made at that moment had moves. Without this a plan of which a part fits into a round would be given up half
    way, as soon as what is left is small.
    """

    def __init__(
        self, table: ShardCoordinator, handoffs: HandoffCoordinator, *, max_in_flight: int = 256, max_per_pair: int = 64
    ) -> None:
        if max_in_flight < 1 or max_per_pair < 1:
            raise ValueError(f"max_in_flight={max_in_flight} and max_per_pair={max_per_pair} must be at least 1")
        self.max_in_flight, self.max_per_pair = max_in_flight, max_per_pair
        self._table, self._handoffs = table, handoffs
        self._budget = 0
        self.planned = 0  # moves of the last plan, whether or not there was room to begin them
        self.held_back = ""  # why nothing is begun although there is a plan

    def step(
        self,
        now: float,
        *,
        rates: Sequence[float] | np.ndarray | None = None,
        busy: Mapping[int, float] | None = None,
        eager: bool = False,
    ) -> list[BeginHandoff | Allocate]:
        """Allocations first, then the most urgent moves that there is room for, those of a pair of shards in one handoff.

        rates, busy: the load, as in `View`. eager: even out small differences too, because somebody asked for it.
        """
        actions: list[BeginHandoff | Allocate] = [
            Allocate(tuple(slots), shard) for shard, slots in sorted(self._table.propose().items())
        ]
        timely, pairs, stuck, seats = self._handoffs.load(now)
        plan = self._table.rebalance(rates=rates, busy=busy, eager=eager or self._budget > 0, without=stuck)
        if not plan:
            self._budget = 0
        elif not self._budget:
            self._budget = len(plan)
        self.planned, self.held_back = len(plan), ""
        if seats and plan:
            # every handoff waits for every push in progress: one more would only make the events of its slots wait too
            named = ", ".join(map(str, sorted(seats)))
            self.held_back = f"{len(plan)} moves wait: the producer of seat {named} is stopped in the middle of a push"
            return actions
        room = self.max_in_flight - timely
        chosen: dict[tuple[int, int], list[int]] = {}
        for slot, source, target in plan:
            if room <= 0:
                break
            pair = source, target
            if pairs.get(pair, 0) < self.max_per_pair:
                chosen.setdefault(pair, []).append(slot)
                pairs[pair] = pairs.get(pair, 0) + 1
                room -= 1
        actions += [BeginHandoff(tuple(slots), source, target) for (source, target), slots in chosen.items()]
        self._budget = max(0, self._budget - sum(map(len, chosen.values())))
        return actions

    @property
    def moves(self) -> int:
        """Slots that are moving or would be, for `ShardMapper.evaluate_scaling`; 0: moving cannot help."""
        return self.planned + self._handoffs.slots_in_flight()
