"""Every shard the same load. [atomr-cluster-sharding: none; Akka neither: both count shards, and count is not load]"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from shardmem.policy.least_slots import LeastSlots
from shardmem.policy.placement import Move, View, check_limits, limit_of


class HotSlot(NamedTuple):
    """A slot with more load than a shard's fair share. `share` is its part of all load. `alone`: no other slot of its
    shard has traffic to speak of.
    """

    slot: int
    shard: int
    share: float
    alone: bool


@dataclass(frozen=True)
class LeastLoad:
    """Lowers the highest load and lifts the lowest, by the time that slots take, with few moves; the default.

    tolerance: loads that are within this part of a fair share are left alone, and a plan that would change no shard's
        load by half of it is not made; so noise does not move slots. A plan, once made, goes to within a quarter of it.
    absolute_limit, relative_limit: a plan has at most so many moves, and this share of all slots.
    quiet: the load of an idle engine, as busy share of a worker, spread evenly over all slots and added to what is
        measured. With next to no traffic this is what counts, and slots are balanced by number; so a trickle of events
        on one key does not clear the shard that it falls on, and nothing switches at some rate.

    A slot with more load than a fair share cannot be balanced away: it stays, and all others that have traffic leave
    its shard (two such slots part first). A fair share of the other shards is then what is left for them. `hot_slots`
    names these slots.

    Slots of more than half a fair share part likewise, if they are too much together.

    Nothing moves to a shard whose worker is busier than that of its source, whatever its slots account for: what it
    does with its time may not be measured yet, or be one long batch.

    With nothing measured it is LeastSlots. Greedy: from the shard with most to the one with least, the largest slot
    that overfills neither; whatever has to leave a draining shard is placed first, the heaviest first (Graham, Bounds
    on Multiprocessing Timing Anomalies, 1969). Every move lowers the larger of the two loads, so a series of plans for
    the same rates ends. No shard is filled beyond the average number of slots, unless the view is eager or another
    would remain above the tolerance: so a newcomer does not cost more moves than its part of the slots, if the others
    were even.
    """

    tolerance: float = 0.1
    absolute_limit: int | None = None
    relative_limit: float = 0.1
    quiet: float = 0.01

    def __post_init__(self) -> None:
        check_limits(self.absolute_limit, self.relative_limit)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is a part of a fair share, above 0 and below 1, not {self.tolerance}")
        if not 0 <= self.quiet < 1:
            raise ValueError(f"quiet is a busy share, at least 0 and below 1, not {self.quiet}")

    def allocate(self, slot: int, view: View) -> int:
        """The shard with least load; of several the one with fewest slots, then the lowest id."""
        loads = self._loads(view)
        if loads is None:
            return LeastSlots().allocate(slot, view)
        placed = view.places >= 0
        sums = np.bincount(view.places[placed], loads[placed], len(view.shards))
        sums = np.maximum(sums, [view.busy.get(shard, 0.0) for shard in view.shards])  # what no slot accounts for, too
        return view.shards[int(np.lexsort((view.counts, sums))[0])]

    def rebalance(self, view: View) -> list[Move]:
        loads = self._loads(view) if view.shards else None
        if loads is None:
            return LeastSlots(self.absolute_limit, self.relative_limit).rebalance(view)
        return _Plan(self, view, loads).moves()

    def hot_slots(self, view: View) -> list[HotSlot]:
        """The heaviest first."""
        loads = self._loads(view) if view.shards else None
        if loads is None:
            return []
        mine = np.flatnonzero((view.places >= 0) | (view.owners >= 0) & ~view.locked)
        hot, _ = _hot(loads[mine], len(view.shards))
        if not len(hot):
            return []
        total, cold = loads[mine].sum(), _cold(view.rates)
        warm = np.bincount(view.places[~cold & (view.places >= 0)], minlength=len(view.shards))
        return [
            HotSlot(
                int(slot),
                int(view.owners[slot]),
                float(loads[slot] / total),
                bool(view.places[slot] >= 0 and warm[view.places[slot]] == 1),
            )
            for slot in mine[hot]
        ]

    def _loads(self, view: View) -> np.ndarray | None:
        """For each slot, in busy share of a worker; None if nothing is measured."""
        if view.rates is None:
            return None
        rates = np.nan_to_num(view.rates, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
        total, busy = float(rates.sum()), sum(view.busy.values())
        if total <= 0 or (view.busy and busy <= 0):
            return None
        if view.busy:  # whatever unit the rates are in: together they are what the workers do
            return np.asarray(rates * (busy / total) + self.quiet * len(view.shards) / len(rates))
        return np.asarray(rates + self.quiet * len(view.shards) / len(rates))  # they are shares of a worker already


def _hot(loads: np.ndarray, shards: int) -> tuple[np.ndarray, float]:
    """(positions of the slots that exceed a fair share, the heaviest first; the fair share of what is left)."""
    rest, left = float(loads.sum()), shards
    most = min(shards - 1, len(loads))
    heaviest = np.argpartition(-loads, most - 1)[:most] if most else np.zeros(0, int)
    heaviest = heaviest[np.lexsort((heaviest, -loads[heaviest]))]
    count = 0
    for load in loads[heaviest].tolist():
        if load <= rest / left * (1 + 1e-9):
            break
        rest, left, count = rest - load, left - 1, count + 1
    return heaviest[:count], max(rest, 0.0) / left


def _cold(rates: np.ndarray | None) -> np.ndarray:
    """Slots with next to no traffic: to move them off a shard with a hot slot would relieve nobody."""
    assert rates is not None
    return np.asarray(~(rates > rates.mean() / 100))


class _Plan:
    """One plan in the making. Shards are positions in `view.shards` here."""

    def __init__(self, rule: LeastLoad, view: View, loads: np.ndarray) -> None:
        self.rule, self.view, self.loads = rule, view, loads
        self.places = view.places.copy()
        placed = self.places >= 0
        mine = np.flatnonzero(placed)
        mine = np.concatenate([mine, view.leaving])
        hot, self.fair = _hot(loads[mine], len(view.shards))
        self.hot: set[int] = set(mine[hot].tolist())
        big = mine[loads[mine] > self.fair / 2]
        self.big: list[int] = big[np.lexsort((big, -loads[big]))][: len(view.shards)].tolist()  # the hot ones first
        self.sums: list[float] = np.bincount(self.places[placed], loads[placed], len(view.shards)).tolist()
        self.counts: list[int] = view.counts.tolist()
        self.limit = limit_of(len(loads), rule.absolute_limit, rule.relative_limit)
        self.fixed: list[Move] = []  # these are made whatever they gain
        self.planned: list[Move] = []
        self.inner = rule.tolerance / 4
        self.band = self.inner if view.eager else rule.tolerance
        self.hosts: dict[int, int] = {}  # shard -> the hot slot that stays there
        self.cold = _cold(view.rates)
        self.busy = [view.busy.get(shard, 0.0) for shard in view.shards]

    def moves(self) -> list[Move]:
        self._evacuate()
        self._part_big_slots()
        if self._uneven():
            quota = len(self.loads)
            if not self.view.eager:
                quota = -(-(quota - len(self.hosts)) // max(1, len(self.sums) - len(self.hosts)))
            self._level(self.fair * (1 + self.inner), quota, fill=True)
            self._level(self.fair * (1 + self.rule.tolerance), len(self.loads), fill=False)
        worth = self.planned if self.view.eager else self._worthwhile()
        return (self.fixed + worth)[: self.limit]

    def _move(self, slot: int, target: int, into: list[Move]) -> None:
        source, load = int(self.places[slot]), float(self.loads[slot])
        if source >= 0:
            self.sums[source] -= load
            self.counts[source] -= 1
        self.sums[target] += load
        self.counts[target] += 1
        self.places[slot] = target
        into.append(Move(slot, int(self.view.owners[slot]), self.view.shards[target]))

    def _evacuate(self) -> None:
        leaving = self.view.leaving
        leaving = leaving[np.argsort(-self.loads[leaving], kind="stable")][: self.limit]
        loads = [max(load, busy) for load, busy in zip(self.sums, self.busy)]
        heap = [(load, count, shard) for shard, (load, count) in enumerate(zip(loads, self.counts))]
        heapify(heap)
        for slot in leaving.tolist():
            target = heappop(heap)[2]
            self._move(slot, target, self.fixed)
            heappush(heap, (max(self.sums[target], self.busy[target]), self.counts[target], target))

    def _part_big_slots(self) -> None:
        """Slots of more than half a fair share that are too much together: the heaviest stays, the others go where
        there is none and least to do. Levelling could not do it, because where such a slot arrives is at first worse
        than it was.
        """
        big = [slot for slot in self.big if self.places[slot] >= 0]
        settled = {move.slot for move in self.fixed}
        taken = dict.fromkeys((int(self.places[slot]) for slot in big), 0.0)  # shard -> load of the big slots that stay
        free = sorted(
            (shard for shard in range(len(self.sums)) if shard not in taken), key=self.sums.__getitem__, reverse=True
        )
        for slot in big:
            shard, load = int(self.places[slot]), float(self.loads[slot])
            if (
                0 < taken[shard]
                and taken[shard] + load > self.fair * (1 + self.rule.tolerance)
                and free
                and slot not in settled
                and not self.view.locked[slot]
                and len(self.fixed) < self.limit
                and self.busy[free[-1]] <= self.busy[shard]
            ):
                shard = free.pop()
                self._move(slot, shard, self.fixed)
            taken[shard] = taken.get(shard, 0.0) + load
            if slot in self.hot:
                self.hosts.setdefault(shard, slot)

    def _uneven(self) -> bool:
        """Whether some shard is beyond the band: for one that hosts a hot slot, what it holds besides is."""
        low, high = self.fair * (1 - self.band), self.fair * (1 + self.band)
        warm = np.bincount(self.places[~self.cold & (self.places >= 0)], minlength=len(self.sums))
        return any(
            load > high and not (shard in self.hosts and warm[shard] == 1) or load < low
            for shard, load in enumerate(self.sums)
        )

    def _level(self, enough: float, quota: int, fill: bool) -> None:
        """From shards above `enough` to the emptiest with fewer slots than `quota`, as long as it lowers the higher of
        the two. With `fill`, also from shards above a fair share while one is well below.
        """
        fair, low = self.fair, self.fair * (1 - self.inner)
        donors = [(-load, shard) for shard, load in enumerate(self.sums) if load > fair]
        takers = [
            (load, count, shard)
            for shard, (load, count) in enumerate(zip(self.sums, self.counts))
            if load < fair and count < quota
        ]
        heapify(donors)
        heapify(takers)
        stock = self._stock([shard for _, shard in donors])
        while donors and takers and len(self.fixed) + len(self.planned) < self.limit:
            high, source = donors[0]
            high = -high
            taker = takers[0]
            if self.busy[taker[2]] > self.busy[source]:
                idle = [each for each in takers if self.busy[each[2]] <= self.busy[source]]
                if not idle:
                    heappop(donors)
                    continue
                taker = min(idle)
            least, _, target = taker
            if high <= enough and not (fill and least < low):
                break
            slot = self._pick(stock[source], high, least, (fair - least) / (quota - self.counts[target]))
            if slot is None:
                heappop(donors)
                continue
            self._move(slot, target, self.planned)
            heappop(donors)
            if taker is takers[0]:
                heappop(takers)
            else:
                takers.remove(taker)
                heapify(takers)
            if self.sums[source] > fair:
                heappush(donors, (-self.sums[source], source))
            if self.counts[target] < quota:
                heappush(takers, (self.sums[target], self.counts[target], target))

    def _stock(self, donors: Sequence[int]) -> dict[int, tuple[list[float], list[int]]]:
        """For each donor the slots that it may give: (loads, slots), the lightest first."""
        gives = np.zeros(len(self.sums) + 1, bool)
        gives[donors] = True
        kept = self.view.locked.copy()
        kept[self.big] = True
        kept[[move.slot for move in (*self.fixed, *self.planned)]] = True
        gives = gives[self.places]
        hosted = np.zeros(len(self.sums) + 1, bool)
        hosted[list(self.hosts)] = True
        slots = np.flatnonzero(gives & ~kept & ~(hosted[self.places] & self.cold))
        slots = slots[np.lexsort((slots, self.loads[slots], self.places[slots]))]
        bounds = np.searchsorted(self.places[slots], np.arange(len(self.sums) + 1))
        loads, numbers = self.loads[slots].tolist(), slots.tolist()
        return {
            shard: (loads[bounds[shard] : bounds[shard + 1]], numbers[bounds[shard] : bounds[shard + 1]])
            for shard in donors
        }

    def _pick(self, stock: tuple[list[float], list[int]], high: float, least: float, pace: float) -> int | None:
        """The slot to give: the largest that brings neither shard past a fair share, unless a larger one gains twice as
        much; None if none gains. The giver may go a little below it for a slot of the size at which the taker, with the
        number of slots it may still take, gets its share.
        """
        loads, slots = stock
        spare = min(pace, high - self.fair * (1 - self.rule.tolerance / 2))
        fits = bisect_right(loads, max(spare, min(high - self.fair, self.fair - least))) - 1
        larger = fits + 1
        gain = [min(loads[at], high - least - loads[at]) if 0 <= at < len(loads) else 0.0 for at in (fits, larger)]
        at = larger if gain[1] > 2 * gain[0] else fits
        if max(gain) <= self.fair * 1e-9:
            return None
        loads.pop(at)
        return slots.pop(at)

    def _worthwhile(self) -> list[Move]:
        """Without the moves that help nobody: neither their source nor their target changes by half the tolerance. What
        leaves the shard of a hot slot always helps.
        """
        position = {shard: place for place, shard in enumerate(self.view.shards)}
        given, taken = dict.fromkeys(position, 0.0), dict.fromkeys(position, 0.0)
        for move in self.planned:
            given[move.source] += float(self.loads[move.slot])
            taken[move.target] += float(self.loads[move.slot])
        least = self.fair * self.rule.tolerance / 2
        return [
            move
            for move in self.planned
            if given[move.source] >= least or taken[move.target] >= least or position[move.source] in self.hosts
        ]
