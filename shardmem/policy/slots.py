"""Who owns which slot, and which slots are on their way. [atomr-cluster-sharding: ShardCoordinator]

There a shard exists only through the slots that it owns, so one with none is never given any. Here the shards are
known, whatever they own. The death of a worker changes nothing here: it is started again on the same inbox and owns
what it owned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from shardmem.policy.least_load import HotSlot, LeastLoad
from shardmem.policy.least_slots import LeastSlots
from shardmem.policy.placement import NOBODY, DirectlyAsked, Move, Strategy, Undecided, View, fault_of, first_table
from shardmem.policy.scaling import ScalingError, ScalingErrorKind

_PATIENCE = 10.0  # seconds that a drain waits for a strategy which thinks
_RESCUED = 64  # slots per round that are moved off a draining shard when the strategy forgets them


class ShardCoordinator:
    """The table of slots.

    slots: how many there are.
    shards: those that take slots.
    strategy: LeastLoad() if not given.
    asked: how the strategy is asked for a plan.
    owners: for each slot its owner or NOBODY, as found by a supervisor that takes over; owners that are not among
        `shards` are draining. Nobody owns anything if not given.

    `shard_for` is who handles a slot: one shard, until the last step of a handoff makes it another.
    """

    def __init__(
        self,
        slots: int,
        shards: Iterable[int],
        strategy: Strategy | None = None,
        *,
        owners: Sequence[int] | None = None,
        asked: DirectlyAsked | None = None,
    ) -> None:
        self._asked = DirectlyAsked() if asked is None else asked
        self.strategy: Strategy = LeastLoad() if strategy is None else strategy
        self._owner = np.full(slots, NOBODY, np.int64) if owners is None else np.array(owners, np.int64)
        if len(self._owner) != slots:
            raise ValueError(f"there are {slots} slots, and owners of {len(self._owner)}")
        self._heading = self._owner.copy()  # where each slot will be when nothing is on its way
        self._takers = set(shards)
        self._draining = set(self._owner[self._owner >= 0].tolist()) - self._takers
        self._lives: dict[int, int] = {}  # how many shards have had an id
        self._cordoned: set[int] = set()
        self.pins: dict[int, int] = {}  # slot -> shard, by the user's word: stronger than any strategy
        self.complaints: list[str] = []  # what was wrong with the strategy's last plan
        self._hot: list[HotSlot] = []
        self.undecided: Undecided | None = None  # the strategy thinks still: there is no plan yet

    # ---- shards ------------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> tuple[int, ...]:
        """Those that take slots, in ascending order."""
        return tuple(sorted(self._takers))

    def add_shard(self, shard: int) -> None:
        """It takes slots from now on."""
        if shard not in self._draining and shard not in self._takers:
            self._lives[shard] = self.life(shard) + 1
        self._draining.discard(shard)
        self._takers.add(shard)

    def drain_shard(self, shard: int) -> None:
        """It takes no more, and the next plans move away what it has. Raises ScalingError: unknown_shard."""
        self._check_shard(shard)
        self._takers.discard(shard)
        self._draining.add(shard)

    def succeed(self, shard: int, successor: int) -> None:
        """The successor takes slots, and the shard drains. What was said of the one by hand holds for the other. Raises
        ScalingError: unknown_shard.
        """
        self._check_shard(shard)
        self.add_shard(successor)
        self.drain_shard(shard)
        if shard in self._cordoned:
            self._cordoned.remove(shard)
            self._cordoned.add(successor)
        self.pins = {slot: successor if pinned == shard else pinned for slot, pinned in self.pins.items()}

    @property
    def draining(self) -> frozenset[int]:
        """Those that give everything away."""
        return frozenset(self._draining)

    @property
    def cordoned(self) -> frozenset[int]:
        return frozenset(self._cordoned)

    @property
    def open_shards(self) -> frozenset[int]:
        """Those that take slots, and are not cordoned."""
        return frozenset(self._takers - self._cordoned)

    def cordon(self, shard: int) -> None:
        """It takes no more and keeps what it has, until `uncordon`. Raises ScalingError: unknown_shard."""
        self._check_shard(shard)
        self._cordoned.add(shard)

    def uncordon(self, shard: int) -> None:
        """Raises ScalingError: unknown_shard."""
        self._check_shard(shard)
        self._cordoned.discard(shard)

    def remove_shard(self, shard: int) -> None:
        """Forgets it. Raises ScalingError: unknown_shard; wrong_state when it owns a slot or one is on its way to
        it."""
        self._check_shard(shard)
        owned = int((self._owner == shard).sum())
        coming = int(((self._heading == shard) & (self._owner != shard)).sum())
        if owned or coming:
            raise ScalingError(
                ScalingErrorKind.WRONG_STATE,
                f"shard {shard} cannot be removed: it owns {owned} slots, and "
                f"{coming} are on their way to it; drain it first",
            )
        self._takers.discard(shard)
        self._draining.discard(shard)
        self._cordoned.discard(shard)
        self.pins = {slot: pinned for slot, pinned in self.pins.items() if pinned != shard}

    def life(self, shard: int) -> int:
        """Tells a shard from another that has, or had, the same id."""
        return self._lives.get(shard, 0)

    def shard_slot_counts(self, coming: bool = False) -> dict[int, int]:
        """How many slots each shard owns, those with none too. With `coming`, slots on their way to it count as well: a
        draining shard is done when that is zero.
        """
        counts = dict.fromkeys(sorted(self._takers | self._draining), 0)
        owned = self._owner[self._owner >= 0]
        if coming:
            owned = np.concatenate([owned, self._heading[self._owner != self._heading]])
        shards, found = np.unique(owned, return_counts=True)
        counts.update(zip(shards.tolist(), found.tolist()))
        return counts

    # ---- slots -------------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        return len(self._owner)

    @property
    def owners(self) -> np.ndarray:
        """The owner of each slot or NOBODY, read-only."""
        view = self._owner.view()
        view.flags.writeable = False
        return view

    def shard_for(self, slot: int) -> int | None:
        """The owner, who handles its events. None: nobody yet. [atomr-cluster-sharding: region_for]"""
        owner = int(self._owner[self._check_slot(slot)])
        return None if owner == NOBODY else owner

    def heading_for(self, slot: int) -> int | None:
        """Where its events are sent: the owner, or the shard that it is on its way to."""
        shard = int(self._heading[self._check_slot(slot)])
        return None if shard == NOBODY else shard

    def allocations(self) -> dict[int, int]:
        """slot -> owner, for slots that have one."""
        return {slot: owner for slot, owner in enumerate(self._owner.tolist()) if owner != NOBODY}

    def slots_of(self, shard: int) -> list[int]:
        return np.flatnonzero(self._owner == shard).tolist()

    def resting_slots_of(self, shard: int) -> list[int]:
        """Its slots that are not on their way."""
        return np.flatnonzero((self._owner == shard) & (self._heading == shard)).tolist()

    def in_motion(self) -> list[Move]:
        slots = np.flatnonzero(self._owner != self._heading)
        return list(map(Move, slots.tolist(), self._owner[slots].tolist(), self._heading[slots].tolist()))

    def without_owner(self) -> list[int]:
        return np.flatnonzero(self._owner == NOBODY).tolist()

    def allocate(self, slot: int, shard: int | None = None) -> int:
        """The owner of a slot; one that has none gets one: `shard`, or as the strategy says. The first answer stands.

        Raises ScalingError: unknown_shard when `shard` does not take slots; wrong_state when there is none that does.
        """
        if (owner := self.shard_for(slot)) is not None:
            return owner
        if shard is None:
            if not self._takers:
                raise ScalingError(
                    ScalingErrorKind.WRONG_STATE, f"slot {slot} needs an owner, and no shard takes slots"
                )
            shard = self._asked.allocate(self.strategy, slot, self.view())
        if shard not in self._takers:
            raise ScalingError(
                ScalingErrorKind.UNKNOWN_SHARD,
                f"slot {slot} cannot go to shard {shard}: those that take slots are {list(self.shards)}",
            )
        self._owner[slot] = self._heading[slot] = shard
        return shard

    def propose(self) -> dict[int, list[int]]:
        """shard -> slots that should be allocated to it: all that nobody owns. Changes nothing."""
        missing = self.without_owner()
        found: dict[int, list[int]] = {}
        if not missing or not self._takers:
            return found
        if len(missing) == self.slots and isinstance(self.strategy, (LeastLoad, LeastSlots)):
            table = first_table(self.slots, self.shards)
        else:
            view = self.view()
            table = self._owner.tolist()
            for slot in missing:
                table[slot] = self._asked.allocate(self.strategy, slot, view)
                view = view.after([Move(slot, NOBODY, table[slot])])
        for slot in missing:
            found.setdefault(table[slot], []).append(slot)
        return found

    # ---- moves -------------------------------------------------------------------------------------------------------

    def view(
        self,
        *,
        rates: Sequence[float] | np.ndarray | None = None,
        busy: Mapping[int, float] | None = None,
        eager: bool = False,
        without: Collection[int] = (),
        resting: np.ndarray | None = None,
    ) -> View:
        """What a strategy is given. Shards named in `without`, and cordoned ones, are out of bounds, with all that they
        own or expect. resting: for each slot, whether it has to stay where it is unless its shard drains.
        """
        owners, moving = self._heading, self._owner != self._heading
        without = self._cordoned.difference(self._draining).union(without)
        if without:
            shut = np.array(sorted(without), np.int64)
            owners = np.where(np.isin(owners, shut) | np.isin(self._owner, shut), NOBODY, owners)
        else:
            owners = owners.copy()
        shards = tuple(sorted(self._takers.difference(without)))
        if rates is not None:
            rates = np.asarray(rates, float)
            if rates.shape != owners.shape:
                raise ValueError(f"there are {self.slots} slots, and rates of shape {rates.shape}")
        if resting is not None:
            moving = moving | resting & ~np.isin(owners, list(self._draining))
        return View(owners, shards, moving, rates, busy or {}, eager)

    def rebalance(
        self,
        *,
        rates: Sequence[float] | np.ndarray | None = None,
        busy: Mapping[int, float] | None = None,
        eager: bool = False,
        without: Collection[int] = (),
        resting: np.ndarray | None = None,
    ) -> list[Move]:
        """The strategy's plan, pins first: moves that would be good now, the most urgent first. Changes nothing.

        A slot that is on its way, or whose move makes no sense, is left out of the plan, whatever the strategy says;
        what is wrong with it is in `complaints`. If the strategy leaves slots on a draining shard and moves none of
        them, its `allocate` is asked where they should go. A strategy that raises has made no plan.
        """
        view = self.view(rates=rates, busy=busy, eager=eager, without=without, resting=resting)
        hot, self._hot, self.complaints, self.undecided = self._hot, [], [], None
        if not view.shards:
            return []
        plan = self.pinned_moves(view)
        view = self._with_pins(view.after(plan))
        seen = {move.slot for move in plan}
        for move in self._ask(view):
            if why := fault_of(move, view, seen):
                self._complain(f"rebalance answered {move}, but {why}")
            else:
                plan.append(move)
                seen.add(move.slot)
        if self.undecided is not None:
            self._hot = hot  # as far as is known
            if self.undecided.seconds < _PATIENCE:
                return plan
        left = [slot for slot in view.leaving.tolist() if slot not in seen]
        if left and len(left) == len(view.leaving):
            for slot in left[:_RESCUED]:
                plan.append(Move(slot, int(view.owners[slot]), self._rescued(slot, view)))
                view = view.after(plan[-1:])
        return plan

    def _rescued(self, slot: int, view: View) -> int:
        """Where a slot goes that the strategy has forgotten on a draining shard."""
        if self.undecided is not None:
            if not self.complaints:
                self._complain(f"{self.undecided}; what leaves draining shards goes where least slots are")
            return LeastSlots().allocate(slot, view)
        try:
            target = self._asked.allocate(self.strategy, slot, view)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's code, and the drain must go on
            target = NOBODY
            self._complain(f"allocate({slot}) raised {error!r}")
        if not isinstance(target, (int, np.integer)) or target not in view.shards:
            self._complain(f"allocate({slot}) gave shard {target}, which takes no slots; least slots decides")
            target = LeastSlots().allocate(slot, view)
        return int(target)

    def pinned_moves(self, view: View) -> list[Move]:
        """Pinned slots that are elsewhere, and free to go."""
        return [
            Move(slot, int(view.owners[slot]), target)
            for slot, target in self.pins.items()
            if 0 <= view.owners[slot] != target
            and target in view.shards
            and self._owner[slot] == self._heading[slot] == view.owners[slot]
        ]

    def _with_pins(self, view: View) -> View:
        """As the strategy sees it: what is pinned to a shard that takes slots stays there."""
        held = [slot for slot, target in self.pins.items() if target in view.shards]
        if not held:
            return view
        locked = view.locked.copy()
        locked[held] = True
        return replace(view, locked=locked)

    @property
    def all_complaints(self) -> list[str]:
        """What was wrong with the last plan, and with how long it took."""
        late = self._asked.complaint
        return [*self.complaints, *([f"strategy {type(self.strategy).__name__}: {late}"] if late else [])]

    def hot_slots(self) -> list[HotSlot]:
        """Slots that exceed a shard's fair share, as of the last `rebalance`; empty unless the strategy measures
        load."""
        return list(self._hot)

    def depart(self, slots: Collection[int], target: int) -> None:
        """These begin to move there: their events are sent to it, their owner stays. All or none.

        Raises ScalingError: unknown_shard; wrong_state when one has no owner, is there already, or is on its way.
        """
        if target not in self._takers:
            raise ScalingError(
                ScalingErrorKind.UNKNOWN_SHARD, f"shard {target} takes no slots; those that do are {list(self.shards)}"
            )
        for slot in slots:
            self._check_slot(slot)
            owner, heading = int(self._owner[slot]), int(self._heading[slot])
            if owner == NOBODY or owner == target or owner != heading:
                what = (
                    "has no owner yet"
                    if owner == NOBODY
                    else f"is on its way from shard {owner} to {heading} already"
                    if owner != heading
                    else "is there already"
                )
                raise ScalingError(
                    ScalingErrorKind.WRONG_STATE, f"slot {slot} cannot move to shard {target}: it {what}"
                )
        self._heading[list(slots)] = target

    def arrive(self, slots: Collection[int]) -> None:
        """These have been released by their target, which owns them now."""
        numbers = list(slots)
        self._owner[numbers] = self._heading[numbers]

    def resume(self, slots: Collection[int], source: int) -> None:
        """These are on their way from `source` to where the table says, as a supervisor that takes over finds them."""
        self._owner[list(slots)] = source
        if source not in self._takers:
            self._draining.add(source)

    def _ask(self, view: View) -> list[Move]:
        try:
            hot, moves = self._asked.plan(self.strategy, view)
            self._hot = [HotSlot(int(slot), int(shard), float(share), bool(alone)) for slot, shard, share, alone in hot]
            return [Move(*map(int, move)) for move in moves]
        except Undecided as thinking:
            self.undecided = thinking
            return []
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it may be the user's code; without a plan all stays and works
            self._complain(f"rebalance raised {type(error).__name__}: {error}")
            return []

    # ---- rules -------------------------------------------------------------------------------------------------------

    def _complain(self, text: str) -> None:
        if len(self.complaints) < 16:
            self.complaints.append(f"strategy {type(self.strategy).__name__}: {text}")

    def _check_shard(self, shard: int) -> None:
        if shard not in self._takers and shard not in self._draining:
            raise ScalingError(
                ScalingErrorKind.UNKNOWN_SHARD,
                f"there is no shard {shard}; there are {sorted(self._takers | self._draining)}",
            )

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < len(self._owner):
            raise ValueError(f"slots are 0 to {len(self._owner) - 1}, not {slot}")
        return slot
