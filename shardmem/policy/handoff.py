"""Handoffs: reroute, drain, release; who is waited for, and since when. [atomr-cluster-sharding: HandoffCoordinator]

    begin ─▶ rerouting ─marks_settled▶ draining ─drained▶ releasing ─released▶ none
              (Reroute)                 (Drain)            (Release)           (Finished)

The words are those of the handoff table in shared memory (sm_move_phase of csrc/shardmem.h), and this is the only state
machine of a handoff: supervisor/carrier.py carries out its actions on that table, and a supervisor that takes over
feeds it from there.

Events come in, and what has to be done next goes out: each method returns a list of actions. It always runs forward,
there is no abort: once the slot words name the target, events wait there, and the way back would be as long. A phase
that takes longer than its deadline is late, which says who is waited for and nothing else; other handoffs do not wait
for it. A dead worker is waited for as what it is: its shard has to be started again (Respawn), and then it is told once
more. One whose shard has failed is not started again until somebody says so: its handoffs wait, and whoever asks is
told for what.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from shardmem.errors import ShardmemError
from shardmem.policy.slots import ShardCoordinator


class HandoffState(str, Enum):
    """Of a slot, or of slots that move together: the words of the handoff table. [atomr-cluster-sharding: Idle,
    Beginning, HandingOff, Stopped, Started; the names that differ are here as aliases]
    """

    NONE = "none"
    REROUTING = "rerouting"
    DRAINING = "draining"
    RELEASING = "releasing"
    IDLE = NONE
    STOPPED = RELEASING
    STARTED = NONE  # noqa: PIE796 - an alias, on purpose

    __str__ = str.__str__


class HandoffError(ShardmemError):
    """An event that cannot be: of a handoff that was never begun, or for a phase that it has not reached."""


# ---- what to do next -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reroute:
    """Set the hold bits of these slots on the target, then their slot words; then wait for the marks:
    `marks_settled`."""

    handoff: int
    slots: tuple[int, ...]
    source: int
    target: int


@dataclass(frozen=True)
class Drain:
    """Tell the source's worker to handle what it has of these slots, hand over their state and drop it: `drained`."""

    handoff: int
    slots: tuple[int, ...]
    shard: int


@dataclass(frozen=True)
class Release:
    """Tell the target's worker to take up the state of these slots, and let their hold bits fall: `released`."""

    handoff: int
    slots: tuple[int, ...]
    shard: int


@dataclass(frozen=True)
class Respawn:
    """These handoffs wait for a shard whose worker is dead: start it again, then `respawned`."""

    shard: int
    handoffs: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """The slots have arrived. `seconds` of each phase by name."""

    handoff: int
    slots: tuple[int, ...]
    source: int
    target: int
    seconds: dict[str, float]


Action = Reroute | Drain | Release | Respawn | Finished


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which a phase is called late. Nothing is given up then: somebody is told.

    reroute: a push takes microseconds; a producer that is stopped in the middle of one takes as long as it is stopped.
    drain: as long as a full inbox takes to handle.
    release: as long as it takes to read the state of the slots.
    """

    reroute: float = 1.0
    drain: float = 10.0
    release: float = 10.0

    def of(self, state: HandoffState) -> float:
        return {HandoffState.REROUTING: self.reroute, HandoffState.DRAINING: self.drain}.get(state, self.release)


@dataclass(frozen=True)
class Late:
    """A handoff past the deadline of its phase, and whom it waits for, in words."""

    handoff: int
    slots: tuple[int, ...]
    source: int
    target: int
    state: HandoffState
    seconds: float
    waiting_for: str
    shard: int | None = None  # whom that is about
    seats: tuple[int, ...] = ()


class UnderWay(NamedTuple):
    """A handoff, its slots that are not drained, and those that are and have not been released."""

    number: int
    state: HandoffState
    target: int
    undrained: tuple[int, ...]
    unreleased: tuple[int, ...]


@dataclass
class _Handoff:
    number: int
    slots: tuple[int, ...]
    source: int
    target: int
    since: float  # when the phase began, or began again with a new worker
    state: HandoffState = HandoffState.REROUTING
    seconds: dict[str, float] = field(default_factory=dict)
    phase_began: float = 0.0
    undrained: set[int] = field(default_factory=set)
    unreleased: set[int] = field(default_factory=set)  # drained, and not released
    seats: tuple[int, ...] = ()


class HandoffCoordinator:
    """All handoffs under way. It keeps the table of slots up to date: a slot departs at `begin` and arrives at
    `released`.

    A slot is in one handoff at most. News of a phase that is over (a worker that answers twice, a late answer of one
    that was started again) changes nothing and returns no action. Errors are HandoffError; they change nothing either.
    """

    def __init__(self, table: ShardCoordinator, deadlines: Deadlines = Deadlines()) -> None:
        self.deadlines = deadlines
        self._table = table
        self._open: dict[int, _Handoff] = {}
        self._of_slot: dict[int, _Handoff] = {}
        self._last = 0
        self._dead: dict[int, int] = {}  # shards whose worker is dead, as told, and which of those with that id
        self._failed: dict[int, str] = {}  # those of them that nothing starts again, and why
        self.waiting: Mapping[int, str] = {}  # shards that handle nothing until what is downstream is back, and why

    # ---- events ------------------------------------------------------------------------------------------------------

    def begin(self, slots: Iterable[int], source: int, target: int, now: float) -> list[Action]:
        """These slots of `source` go to `target`. No slots: nothing to do, and nothing is begun.

        Raises HandoffError when `source` does not own one of them; ScalingError as `ShardCoordinator.depart`.
        """
        slots = tuple(dict.fromkeys(slots))
        if not slots:
            return []
        strange = [slot for slot in slots if self._table.shard_for(slot) != source]
        if strange:
            raise HandoffError(
                f"shard {source} does not own slots {strange[:8]} and cannot hand them to shard {target}"
            )
        self._table.depart(slots, target)
        return [self._reroute(self._enter(slots, source, target, now))]

    def resume(self, slots: Iterable[int], source: int, target: int, state: HandoffState, now: float) -> list[Action]:
        """A handoff that a supervisor which takes over finds recorded. Its phase is begun again, which does no harm:
        every action may be carried out twice.
        """
        slots = tuple(slots)
        self._table.resume(slots, source)
        handoff = self._enter(slots, source, target, now)
        if state is HandoffState.REROUTING:
            return [self._reroute(handoff)]
        handoff.state = state
        if state is HandoffState.DRAINING:
            return self._drain(handoff, slots)
        handoff.undrained, handoff.unreleased = set(), set(slots)
        return self._release(handoff, slots)

    def waiting_for_marks(self, handoff: int, seats: Collection[int]) -> None:
        """These producers' marks are still odd. Only for the record: it is what makes a late handoff name them."""
        if (found := self._find(handoff)) is not None and found.state is HandoffState.REROUTING:
            found.seats = tuple(sorted(seats))

    def marks_settled(self, handoff: int, now: float, left: int | None = None) -> list[Action]:
        """No event of these slots can reach the source any more.

        left: what the source has to do for them: rows in its lanes, plus one if it may have state to hand over. With 0
            there is nothing to drain, and the source is not asked; None if not known.
        """
        found = self._find(handoff)
        if found is None or found.state is not HandoffState.REROUTING:
            return []
        found.seats = ()
        self._next(found, HandoffState.DRAINING, "reroute", now)
        if left == 0:
            return self.drained(handoff, now)
        return self._drain(found, found.slots)

    def drained(self, handoff: int, now: float, slots: Collection[int] | None = None) -> list[Action]:
        """The source has nothing left of them: of all its slots, or of these. What is drained is released at once.

        Raises HandoffError: not known, or still rerouting.
        """
        found = self._find(handoff)
        if found is None:
            return []
        if found.state is HandoffState.REROUTING:
            raise HandoffError(
                f"handoff {handoff} cannot be drained: producers may still push its slots to shard {found.source}"
            )
        ready = self._part(found, found.undrained, slots)
        if not ready:
            return []
        found.undrained.difference_update(ready)
        found.unreleased.update(ready)
        if not found.undrained:
            self._next(found, HandoffState.RELEASING, "drain", now)
        return self._release(found, ready)

    def released(self, handoff: int, now: float, slots: Collection[int] | None = None) -> list[Action]:
        """The target handles all that was drained so far, or these.

        Raises HandoffError: not known, or still rerouting.
        """
        found = self._find(handoff)
        if found is None:
            return []
        if found.state is HandoffState.REROUTING:
            raise HandoffError(f"handoff {handoff} cannot be released: shard {found.source} has not drained its slots")
        ready = self._part(found, found.unreleased, slots)
        if not ready:
            return []
        found.unreleased.difference_update(ready)
        self._table.arrive(ready)
        for slot in ready:
            del self._of_slot[slot]
        if found.undrained or found.unreleased:
            return []
        self._next(found, HandoffState.NONE, "release", now)
        del self._open[handoff]
        return [Finished(handoff, found.slots, found.source, found.target, found.seconds)]

    def source_died(self, shard: int, now: float) -> list[Action]:
        """The worker of a shard that hands over is dead. What it has is in shared memory: started again, it drains."""
        self._dead[shard] = self._table.life(shard)
        return self._respawn(shard, [each for each in self._open.values() if each.source == shard and each.undrained])

    def target_died(self, shard: int, now: float) -> list[Action]:
        """The worker of a shard that takes over is dead. Held rows are in its lanes; started again, it releases."""
        self._dead[shard] = self._table.life(shard)
        return self._respawn(shard, [each for each in self._open.values() if each.target == shard])

    def failed(self, shard: int, reason: str, now: float) -> None:
        """Its worker is away for long, or until somebody reloads. What needs it waits, and says why."""
        self._dead[shard] = self._table.life(shard)
        self._failed[shard] = reason

    def respawned(self, shard: int, now: float) -> list[Action]:
        """A shard has a new worker, which knows nothing: it is told again, and the deadline begins again."""
        self._dead.pop(shard, None)
        self._failed.pop(shard, None)
        actions: list[Action] = []
        for each in self._open.values():
            if each.source == shard and each.state is HandoffState.DRAINING:
                each.since = now
                actions += self._drain(each, self._ordered(each, each.undrained))
            if each.target == shard and each.unreleased:
                if each.state is HandoffState.RELEASING:
                    each.since = now
                actions += self._release(each, self._ordered(each, each.unreleased))
        return actions

    @property
    def shards(self) -> tuple[int, ...]:
        """All that there are, draining ones too."""
        return tuple(self._table.shard_slot_counts())

    # ---- what there is -----------------------------------------------------------------------------------------------

    def state(self, slot: int) -> HandoffState:
        found = self._of_slot.get(slot)
        if found is None:
            return HandoffState.NONE
        if found.state is HandoffState.REROUTING or slot in found.undrained:
            return found.state
        return HandoffState.RELEASING

    def under_way(self) -> list[UnderWay]:
        return [
            UnderWay(
                each.number,
                each.state,
                each.target,
                self._ordered(each, each.undrained),
                self._ordered(each, each.unreleased),
            )
            for each in self._open.values()
        ]

    def waits(self, now: float, slots: Collection[int] | None = None) -> list[Late]:
        """Handoffs under way, late or not, that any of these slots is in (None: all), and whom each waits for."""
        wanted = (
            self._open.values()
            if slots is None
            else {each.number: each for slot in slots if (each := self._of_slot.get(slot)) is not None}.values()
        )
        return [self._described(each, now) for each in wanted]

    def slots_in_flight(self, without: Collection[int] = ()) -> int:
        """without: those that wait for one of these shards are not counted."""
        if without:
            return sum(
                len(each.undrained) + len(each.unreleased)
                for each in self._open.values()
                if each.state is HandoffState.REROUTING or self._awaited(each) not in without
            )
        return len(self._of_slot)

    def late(self, now: float) -> list[Late]:
        """Handoffs past the deadline of their phase."""
        return [self._described(each, now) for each in self._open.values() if self._is_late(each, now)]

    def _described(self, each: _Handoff, now: float) -> Late:
        return Late(
            each.number,
            each.slots,
            each.source,
            each.target,
            each.state,
            now - each.since,
            self._waiting_for(each),
            None if each.state is HandoffState.REROUTING else self._awaited(each),
            each.seats,
        )

    def _is_late(self, each: _Handoff, now: float) -> bool:
        return now - each.since > self.deadlines.of(each.state)

    @staticmethod
    def _awaited(each: _Handoff) -> int:
        return each.source if each.state is HandoffState.DRAINING else each.target

    def _waiting_for(self, each: _Handoff) -> str:
        if each.state is HandoffState.REROUTING:
            named = ", ".join(map(str, each.seats))
            return (
                f"a push in progress by the producer{'s' * (len(each.seats) != 1)} of seat {named}"
                if named
                else "pushes in progress"
            )
        shard = self._awaited(each)
        doing = "drain" if each.state is HandoffState.DRAINING else "release"
        text = f"shard {shard} to {doing} {len(each.undrained or each.unreleased)} slots"
        if shard in self._failed and self._is_dead(shard):
            return f"{text}; it has failed and has to be started again: {self._failed[shard]}"
        if shard in self.waiting:
            return f"{text}; it waits and tries again: {self.waiting[shard]}"
        return text + ("; its worker is dead and has to be started again" if self._is_dead(shard) else "")

    # ---- for the runner ----------------------------------------------------------------------------------------------

    def load(self, now: float) -> tuple[int, dict[tuple[int, int], int], set[int], set[int]]:
        """(slots in handoffs that are not late; slots by (source, target), late or not; shards that some late handoff
        waits for, and those whose worker is dead; seats that a late one waits for).
        """
        timely, shards = 0, set(filter(self._is_dead, self._dead))
        pairs: dict[tuple[int, int], int] = {}
        seats: set[int] = set()
        for each in self._open.values():
            pair = each.source, each.target
            pairs[pair] = pairs.get(pair, 0) + len(each.slots)
            if not self._is_late(each, now):
                timely += len(each.slots)
            elif each.state is HandoffState.REROUTING:
                seats.update(each.seats)
            else:
                shards.add(self._awaited(each))
        return timely, pairs, shards, seats

    # ---- rules -------------------------------------------------------------------------------------------------------

    def _enter(self, slots: tuple[int, ...], source: int, target: int, now: float) -> _Handoff:
        self._last += 1
        handoff = _Handoff(self._last, slots, source, target, now, phase_began=now, undrained=set(slots))
        self._open[handoff.number] = handoff
        self._of_slot.update(dict.fromkeys(slots, handoff))
        return handoff

    @staticmethod
    def _reroute(handoff: _Handoff) -> Reroute:
        return Reroute(handoff.number, handoff.slots, handoff.source, handoff.target)

    @staticmethod
    def _next(found: _Handoff, state: HandoffState, ended: str, now: float) -> None:
        found.seconds[ended] = now - found.phase_began
        found.state, found.since, found.phase_began = state, now, now

    def _find(self, handoff: int) -> _Handoff | None:
        """None: it is over."""
        if handoff not in self._open and not 0 < handoff <= self._last:
            raise HandoffError(f"there has been no handoff {handoff}; the last is {self._last}")
        return self._open.get(handoff)

    def _part(self, found: _Handoff, left: set[int], slots: Collection[int] | None) -> tuple[int, ...]:
        """Which of `slots` (None: all) are in `left`; the others have been dealt with before."""
        if slots is not None and not set(found.slots).issuperset(slots):
            raise HandoffError(
                f"slots {sorted(set(slots).difference(found.slots))[:8]} are not in handoff {found.number}"
            )
        return self._ordered(found, left if slots is None else left.intersection(slots))

    @staticmethod
    def _ordered(found: _Handoff, slots: Collection[int]) -> tuple[int, ...]:
        return tuple(slot for slot in found.slots if slot in slots)

    def _drain(self, found: _Handoff, slots: tuple[int, ...]) -> list[Action]:
        """A dead worker cannot be told; `respawned` comes back to it."""
        return (
            self._respawn(found.source, [found])
            if self._is_dead(found.source)
            else [Drain(found.number, slots, found.source)]
        )

    def _release(self, found: _Handoff, slots: tuple[int, ...]) -> list[Action]:
        return (
            self._respawn(found.target, [found])
            if self._is_dead(found.target)
            else [Release(found.number, slots, found.target)]
        )

    def _is_dead(self, shard: int) -> bool:
        return self._dead.get(shard) == self._table.life(shard)

    @staticmethod
    def _respawn(shard: int, waiting: list[_Handoff]) -> list[Action]:
        return [Respawn(shard, tuple(each.number for each in waiting))] if waiting else []
