"""Which shard owns which slot: what a strategy is given, what it answers, and what it has to be.

[atomr-cluster-sharding: ShardAllocationStrategy. What is called a shard there is a slot here, and a region is a shard]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

NOBODY = -1


def first_table(slots: int, shards: Sequence[int]) -> list[int]:
    """The owner of each slot of a new engine: counts differ by at most one, neighbours differ.

    Raises ValueError without a shard.
    """
    if not shards:
        raise ValueError("a slot needs a shard to own it; got none")
    return [shards[slot % len(shards)] for slot in range(slots)]


class Move(NamedTuple):
    """One slot changes its owner."""

    slot: int
    source: int
    target: int


@dataclass(frozen=True, eq=False)
class View:
    """The slots as a strategy sees them.

    owners: for each slot the shard that owns it, or will once the handoff that it is in is over; NOBODY if no shard
        does, or if it is out of bounds for now.
    shards: who may own slots, in ascending order; those that own none are here too. A slot whose owner is not among
        them (it drains) has to leave.
    locked: for each slot, whether it has to stay where it is: it is being moved.
    rates: for each slot the share of a worker's time that its events take, or None if nothing is measured yet.
    busy: for each shard the share of time that its worker is busy, as far as known, whatever with.
    eager: even out small differences too. Otherwise a strategy leaves alone what a little noise could bring about.
    """

    owners: np.ndarray
    shards: tuple[int, ...]
    locked: np.ndarray
    rates: np.ndarray | None = None
    busy: Mapping[int, float] = field(default_factory=dict)
    eager: bool = False

    @classmethod
    def of(
        cls,
        owners: Sequence[int],
        shards: Sequence[int],
        *,
        rates: Sequence[float] | None = None,
        locked: Sequence[int] = (),
        busy: Mapping[int, float] | None = None,
        eager: bool = False,
    ) -> View:
        """A view from plain values; `locked` lists slots."""
        mask = np.zeros(len(owners), bool)
        mask[list(locked)] = True
        return cls(
            np.asarray(owners, np.int64),
            tuple(sorted(shards)),
            mask,
            None if rates is None else np.asarray(rates, float),
            {} if busy is None else busy,
            eager,
        )

    @cached_property
    def places(self) -> np.ndarray:
        """For each slot the position of its owner in `shards`; -1 if it is not there."""
        table = np.full(max(int(self.owners.max(initial=0)), max(self.shards, default=0)) + 2, -1)
        table[list(self.shards)] = np.arange(len(self.shards))
        places: np.ndarray = table[self.owners]
        return places  # NOBODY is the last entry, which is no shard's

    @cached_property
    def counts(self) -> np.ndarray:
        """For each of `shards` how many slots it owns."""
        return np.bincount(self.places[self.places >= 0], minlength=len(self.shards))

    @cached_property
    def leaving(self) -> np.ndarray:
        """Slots that have to leave a shard which is not among `shards`, and can."""
        return np.flatnonzero((self.places < 0) & (self.owners >= 0) & ~self.locked)

    def after(self, moves: Sequence[Move]) -> View:
        """As if these had been made."""
        if not moves:
            return self
        owners = self.owners.copy()
        owners[[move.slot for move in moves]] = [move.target for move in moves]
        return replace(self, owners=owners)


class Strategy(Protocol):
    """Two functions of a view; they keep nothing to themselves, so that the same view gives the same answer.

    What a plan has to be, so that rebalancing comes to rest: it counts slots on their way as arrived (the view does),
    it moves nothing to where it is, and applied to its own result it is empty. [atomr-cluster-sharding: allocate_shard
    and rebalance, which answers with shards to stop; where they go is decided later, one at a time, by counts that do
    not know of each other: 3/2 becomes 0/5]
    """

    def allocate(self, slot: int, view: View) -> int:
        """The shard for a slot that nobody owns: one of `view.shards`, which are not empty."""

    def rebalance(self, view: View) -> Sequence[Move]:
        """The moves to make now, most urgent first; none if things are well as they are."""


class Plan(NamedTuple):
    """What a strategy answers. hot: of `hot_slots`, if it has that."""

    hot: Sequence[Any]
    moves: Sequence[Move]


class Undecided(Exception):
    """A strategy thinks longer than is waited for; its plan comes with a later round. seconds: for so long, so far."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it has been thinking for {seconds:.1f} s")
        self.seconds = seconds


class DirectlyAsked:
    """How a strategy is asked: by calling it. supervisor/thinking.py has another way, which raises Undecided."""

    @property
    def complaint(self) -> str:
        """Of how it answers, for people; empty: there is none."""
        return ""

    def plan(self, strategy: Strategy, view: View) -> Plan:
        hot_slots = getattr(strategy, "hot_slots", None)
        return Plan([] if hot_slots is None else hot_slots(view), strategy.rebalance(view))

    def allocate(self, strategy: Strategy, slot: int, view: View) -> int:
        return strategy.allocate(slot, view)


def fault_of(move: Move, view: View, seen: Collection[int]) -> str:
    """Why this cannot be done, after moves of the slots `seen`; empty if it can. A slot that is given to a shard which
    is not there has no owner, and producers find no lane for it.
    """
    if not 0 <= move.slot < len(view.owners):
        return f"there are slots 0 to {len(view.owners) - 1}"
    if move.slot in seen:
        return f"slot {move.slot} is there twice"
    if view.owners[move.slot] != move.source:
        return f"slot {move.slot} belongs to shard {view.owners[move.slot]}"
    if view.locked[move.slot]:
        return f"slot {move.slot} is locked"
    if move.target not in view.shards:
        return f"shards that take slots are {', '.join(map(str, view.shards))}"
    return f"slot {move.slot} is there already" if move.target == move.source else ""


def limit_of(slots: int, absolute: int | None, relative: float) -> int:
    """How many moves a round may have: at least one, at most `absolute` and that share of all slots."""
    return max(1, min(slots if absolute is None else absolute, int(slots * relative)))


def check_limits(absolute: int | None, relative: float) -> None:
    """Raises ValueError."""
    if absolute is not None and absolute < 1:
        raise ValueError(f"absolute_limit is how many slots a round may move, at least 1, not {absolute}")
    if not 0 < relative <= 1:
        raise ValueError(f"relative_limit is a share of all slots, above 0 and at most 1, not {relative}")
