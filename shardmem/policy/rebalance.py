"""From wishes and a plan to handoffs, a few at a time. [atomr-cluster-sharding: RebalanceRunner]

There the same first few are proposed in each round, and those under way are skipped without replacement, so as many
stuck ones as a round is long end all rebalancing. Here the plan is made around what is stuck: a handoff past its
deadline no longer takes up room, and the shard that it waits for is out of bounds, with its slots, until it moves
again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardmem.policy.handoff import HandoffCoordinator
from shardmem.policy.placement import Move
from shardmem.policy.slots import ShardCoordinator
from shardmem.policy.wishes import Wishes

PERSISTENT = 12.0  # seconds: what lasts for so long will last for a while (a slot's load is an average of about ten)
ROUNDS = 100  # plans for one wish to even out: a strategy of the user's own may never come to rest


@dataclass(frozen=True)
class BeginHandoff:
    """To carry out: `HandoffCoordinator.begin` with these. [atomr-cluster-sharding: the same name]"""

    slots: tuple[int, ...]
    source: int
    target: int


@dataclass(frozen=True)
class Allocate:
    """Slots that nobody owns get an owner. To carry out: write the slot words, then `ShardCoordinator.allocate` each.

    [atomr-cluster-sharding: the same name, also for what has been stopped at its source: that is `Release` here, and
    names the target that was settled when the handoff began, so it cannot be the source]
    """

    slots: tuple[int, ...]
    shard: int


class RebalanceRunner:
    """What to begin now. Asked at every control tick, and when something has changed.

    max_in_flight: slots in handoffs at a time, those past their deadline not counted.
    max_per_pair: slots that the strategy has in handoffs from one shard to another, those counted too.
    rest: seconds that the strategy leaves a slot where it has just arrived, unless its shard drains.
    allowance: slots that the strategy may move in a minute, as a share of all; at least 16. Load that jumps from key to
        key cannot be followed: every move would be late, and cost a pause of its slot. Not counted is what leaves a
        draining shard, goes to its pin, was wished by hand, evens out after a change of the shards, or comes from a
        shard that has had too much for PERSISTENT seconds without a break.

    Small differences of load are left alone until one is large enough to act on; then they are evened out as well, as
    far as the plan made at that moment had moves. Without this a plan of which a part fits into a round would be given
    up half way, as soon as what is left is small.
    """

    def __init__(
        self,
        table: ShardCoordinator,
        handoffs: HandoffCoordinator,
        *,
        wishes: Wishes | None = None,
        max_in_flight: int = 256,
        max_per_pair: int = 64,
        rest: float = 0.0,
        allowance: float | None = None,
    ) -> None:
        if max_in_flight < 1 or max_per_pair < 1:
            raise ValueError(f"max_in_flight={max_in_flight} and max_per_pair={max_per_pair} must be at least 1")
        self.max_in_flight, self.max_per_pair = max_in_flight, max_per_pair
        self.rest, self.allowance = rest, allowance
        self.wishes = Wishes() if wishes is None else wishes
        self._table, self._handoffs = table, handoffs
        self._budget = self._rounds = 0
        self._arrived = np.full(table.slots, -np.inf)  # when the strategy last moved each slot
        self._most = np.inf if allowance is None else max(16.0, allowance * table.slots)
        self._left, self._at = self._most, 0.0
        self._donors: dict[int, float] = {}  # shards that plans take from, and since when
        self.is_even = True  # as of the last step: there is nothing to move that can be moved now
        self.planned = 0  # moves of the last plan, whether or not there was room to begin them
        self.held_back = ""  # why nothing is begun although there is a plan

    def step(
        self,
        now: float,
        *,
        rates: Sequence[float] | np.ndarray | None = None,
        busy: Mapping[int, float] | None = None,
        eager: bool = False,
        without: Collection[int] = (),
        later: bool = False,
        stopped_seats: Collection[int] = (),
        planning: bool = True,
    ) -> list[BeginHandoff | Allocate]:
        """Allocations first, then what is wished by hand, then the most urgent moves that there is room for, those of a
        pair of shards in one handoff.

        rates, busy: the load, as in `View`. eager: even out small differences too, because somebody asked for it.
        without: shards that can neither give nor take now: failed ones, and those in the middle of a long batch.
        later: some of them will be able to soon, so that what is to be even is not yet.
        stopped_seats: producers that have been inside one push for long.
        planning: False: the strategy is not asked, because nothing of a plan would be begun (`needs_plan`).
        """
        actions: list[BeginHandoff | Allocate] = [
            Allocate(tuple(slots), shard) for shard, slots in sorted(self._table.propose().items())
        ]
        timely, pairs, stuck, seats = self._handoffs.load(now)
        eager = eager or self.wishes.eager
        plan = self._plan(now, rates, busy, eager, stuck.union(without)) if planning else []
        is_undecided = self._table.undecided is not None
        self.is_even = self.is_even and not is_undecided
        wished = list(self._wished(stuck))
        seats = seats.union(stopped_seats)
        self.held_back = ""
        if seats and (plan or wished):
            # every handoff waits for every push in progress: one more would only make the events of its slots wait too
            named = ", ".join(map(str, sorted(seats)))
            count = len(plan) + len(wished)
            self.held_back = f"{count} moves wait: the producer of seat {named} is stopped in the middle of a push"
            return actions
        chosen = self._choose(now, wished, plan, eager, self.max_in_flight - timely, pairs)
        actions += [BeginHandoff(tuple(slots), source, target) for (source, target), slots in chosen.items()]
        if is_undecided:  # whether all is even stays open
            return actions
        self._budget = max(0, self._budget - sum(map(len, chosen.values())))
        self.is_even = not plan and not self._handoffs.slots_in_flight(without)
        if self.wishes.eager and self.is_even and not later:
            self.wishes.eager = False
        return actions

    @property
    def needs_plan(self) -> bool:
        """Of a suspended strategy nothing is begun but what a drain or a pin needs."""
        return not self.wishes.suspended or bool(self._table.draining or self._table.pins)

    @property
    def moves(self) -> int:
        """Slots that are moving or would be, for `ShardMapper.evaluate_scaling`; 0: moving cannot help."""
        return self.planned + self._handoffs.slots_in_flight()

    def _plan(
        self,
        now: float,
        rates: Sequence[float] | np.ndarray | None,
        busy: Mapping[int, float] | None,
        eager: bool,
        without: Collection[int],
    ) -> list[Move]:
        """Pins and what the strategy would do; of a suspended one only what a drain or a pin needs."""
        draining = self._table.draining
        resting = (now - self._arrived < self.rest) if self.rest and not eager else None
        plan = self._table.rebalance(
            rates=rates, busy=busy, eager=eager or self._budget > 0, without=set(without) - draining, resting=resting
        )
        plan = [move for move in plan if move.source not in self.wishes.succession]
        if self.wishes.suspended:
            pins = self._table.pins
            plan = [move for move in plan if move.source in draining or pins.get(move.slot) == move.target]
        if self._table.undecided is not None:
            return plan
        if not plan:
            self._budget = self._rounds = 0
        elif not self._budget:
            self._budget = len(plan)
            self._rounds += 1
            if self._rounds > ROUNDS:
                self.wishes.eager, self._rounds = False, 0
        self.planned = len(plan)
        self._donors = {move.source: self._donors.get(move.source, now) for move in plan}
        return plan

    def _wished(self, stuck: Collection[int]) -> Iterator[Move]:
        """By hand, and to the successors of shards that are being replaced. What is there is no wish any more."""
        takers = set(self._table.shards)
        for slot, target in list(self.wishes.moves.items()):
            owner, heading = self._table.shard_for(slot), self._table.heading_for(slot)
            if owner == heading == target or target not in takers:
                del self.wishes.moves[slot]
            elif owner is not None and owner == heading and owner not in stuck and target not in stuck:
                yield Move(slot, owner, target)
        for old, new in self.wishes.succession.items():
            if new in takers and old not in stuck and new not in stuck:
                for slot in self._table.resting_slots_of(old):
                    if slot not in self.wishes.moves:
                        yield Move(slot, old, new)

    def _choose(
        self,
        now: float,
        wished: list[Move],
        plan: list[Move],
        eager: bool,
        room: int,
        pairs: dict[tuple[int, int], int],
    ) -> dict[tuple[int, int], list[int]]:
        chosen: dict[tuple[int, int], list[int]] = {}
        seen = set()
        for slot, source, target in wished[: max(room, 0)]:
            chosen.setdefault((source, target), []).append(slot)
            seen.add(slot)
            room -= 1
        draining, pins = self._table.draining, self._table.pins
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._most / 60)
        self._at = now
        for slot, source, target in plan:
            if room <= 0:
                break
            if slot in seen or pairs.get((source, target), 0) >= self.max_per_pair:
                continue
            free = eager or source in draining or pins.get(slot) == target
            if not free and now - self._donors[source] < PERSISTENT:
                if self._left < 1:
                    continue
                self._left -= 1
            chosen.setdefault((source, target), []).append(slot)
            pairs[source, target] = pairs.get((source, target), 0) + 1
            self._arrived[slot] = now
            room -= 1
        return chosen
