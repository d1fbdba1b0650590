"""Carries out handoffs on shared memory: what policy/handoff.py decides, on the words that producers and workers read.

It decides nothing and waits for nothing. `carry` does what it is told; `look` reads what has happened since, tells the
coordinator, and carries out what follows. Every phase is in the handoff table, so a supervisor that takes over goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from shardmem.policy import (
    Action,
    Deadlines,
    Drain,
    Finished,
    HandoffCoordinator,
    HandoffState,
    Release,
    Reroute,
    Respawn,
)

_PHASES = {str(each) for each in HandoffState}
STOPPED_AFTER = 0.5  # seconds inside one push: it takes microseconds, so that producer is stopped, or starved


class MoveWords(Protocol):
    """The entry of one slot in the handoff table. drained, restored: its source, its target has acknowledged this
    handoff."""

    @property
    def phase(self) -> str: ...
    @property
    def source(self) -> int: ...
    @property
    def target(self) -> int: ...
    @property
    def drained(self) -> bool: ...
    @property
    def restored(self) -> bool: ...


class HandoffWords(Protocol):
    """The words of shared memory that handoffs are made of: memory/handoff_table.py, or arrays in a simulation."""

    def begin(self, slot: int, source: int, target: int, seconds: float) -> None: ...
    def set_phase(self, slot: int, phase: HandoffState, seconds: float) -> None: ...
    def set_slot(self, slot: int, shard: int) -> None: ...
    def set_holds(self, shard: int, holds: int) -> None: ...
    def view(self, slot: int) -> MoveWords: ...
    def moving(self) -> list[int]: ...
    def owners(self) -> np.ndarray: ...
    def marks(self) -> Sequence[int]: ...
    def seat_alive(self, seat: int) -> bool: ...
    def is_stateful(self) -> bool: ...
    def wake(self, shard: int) -> None: ...


class Marks:
    """The sends that were in progress at some moment."""

    def __init__(self, words: HandoffWords) -> None:
        self._words = words
        self._before = words.marks()
        self._odd = [seat for seat, mark in enumerate(self._before) if mark & 1]

    def inside(self) -> list[int]:
        """Seats of those that are not over, and whose process lives."""
        if self._odd:
            now = self._words.marks()
            self._odd = [seat for seat in self._odd if now[seat] == self._before[seat] and self._words.seat_alive(seat)]
        return self._odd


class Carrier:
    """All handoffs of one engine, on its memory. point: passes a named point at which tests kill this process."""

    def __init__(
        self, words: HandoffWords, handoffs: HandoffCoordinator, point: Callable[[str], None] = lambda name: None
    ) -> None:
        self._words, self._handoffs, self._point = words, handoffs, point
        self._holds: Counter[int] = Counter()
        self._marks: dict[int, Marks] = {}  # handoff -> sends that may still go by the old slot words
        self._pushing: dict[int, tuple[int, float]] = {}  # seat -> its odd mark, and since when it is seen

    @property
    def deadlines(self) -> Deadlines:
        return self._handoffs.deadlines

    def begin(self, slots: Iterable[int], source: int, target: int, now: float) -> list[Finished]:
        """Raises as `HandoffCoordinator.begin`."""
        return self.carry(self._handoffs.begin(slots, source, target, now), now)

    def look(self, now: float) -> list[Finished]:
        """Reads the words of all handoffs under way, and moves each on as far as they allow."""
        actions: list[Action] = []
        for number, state, target, undrained, unreleased in self._handoffs.under_way():
            if state is HandoffState.REROUTING:
                actions += self._settled(number, now)
                continue
            if drained := [slot for slot in undrained if self._words.view(slot).drained]:
                self._point("handoff.drained")
                actions += self._handoffs.drained(number, now, drained)
            if restored := [slot for slot in unreleased if self._words.view(slot).restored]:
                self._arrive(restored, target)
                actions += self._handoffs.released(number, now, restored)
        return self.carry(actions, now)

    def carry(self, actions: Sequence[Action], now: float) -> list[Finished]:
        """Does what is told, and what follows from it at once; the handoffs that are over with it."""
        left, finished = deque(actions), []
        while left:
            action = left.popleft()
            if isinstance(action, Reroute):
                left.extend(self._reroute(action, now))
            elif isinstance(action, Drain):
                self._drain(action)
            elif isinstance(action, Release):
                left.extend(self._release(action, now))
            elif isinstance(action, Respawn):
                continue  # workers.py starts every dead worker again, whether or not a handoff waits for it
            else:
                finished.append(action)
        return finished

    def resume(self, now: float) -> list[Finished]:
        """Takes up the handoffs that an earlier supervisor left in some phase."""
        groups: dict[tuple[int, int, HandoffState], list[int]] = {}
        known = set(self._handoffs.shards)
        for slot in self._words.moving():
            view = self._words.view(slot)
            can_be = {view.source, view.target} <= known and view.source != view.target and view.phase in _PHASES
            if not can_be:
                self._words.set_phase(slot, HandoffState.NONE, 0.0)  # damaged: nobody could ever answer it
                continue
            self._holds[view.target] += 1
            groups.setdefault((view.source, view.target, HandoffState(view.phase)), []).append(slot)
        for shard, holds in self._holds.items():
            self._words.set_holds(shard, holds)  # it may have been left too high; never too low while rows are held
        actions: list[Action] = []
        for (source, target, state), slots in groups.items():
            actions += self._handoffs.resume(slots, source, target, state, now)
        for action in actions:
            if isinstance(action, Reroute):  # held already; the slot word may not have been stored
                for slot in action.slots:
                    self._words.set_slot(slot, action.target)
                self._marks[action.handoff] = Marks(self._words)
        return self.carry([action for action in actions if not isinstance(action, Reroute)], now)

    def stopped_seats(self, now: float) -> list[int]:
        """Producers that have been inside one push for so long that no handoff would get past its first phase."""
        marks = self._words.marks()
        odd = [seat for seat, mark in enumerate(marks) if mark & 1]
        seen = {seat: self._pushing.get(seat, (-1, now)) for seat in odd}
        self._pushing = {
            seat: (marks[seat], since if mark == marks[seat] else now) for seat, (mark, since) in seen.items()
        }
        return [
            seat
            for seat, (_, since) in self._pushing.items()
            if now - since >= STOPPED_AFTER and self._words.seat_alive(seat)
        ]

    def forget(self, shard: int) -> None:
        self._holds.pop(shard, None)

    # ---- the phases --------------------------------------------------------------------------------------------------

    def _reroute(self, action: Reroute, now: float) -> list[Action]:
        # before the first row can come: a target looks at holds only if it has some
        self._hold(action.target, len(action.slots))
        for slot in action.slots:
            self._words.begin(slot, action.source, action.target, self.deadlines.reroute)
        self._point("handoff.begun")
        self._marks[action.handoff] = Marks(self._words)
        return self._settled(action.handoff, now)

    def _settled(self, handoff: int, now: float) -> list[Action]:
        inside = self._marks[handoff].inside()
        if inside:
            self._handoffs.waiting_for_marks(handoff, inside)
            return []
        del self._marks[handoff]
        self._point("handoff.rerouted")
        return self._handoffs.marks_settled(handoff, now)

    def _drain(self, action: Drain) -> None:
        for slot in action.slots:
            self._words.set_phase(slot, HandoffState.DRAINING, self.deadlines.drain)
        self._point("handoff.draining")
        self._words.wake(action.shard)

    def _release(self, action: Release, now: float) -> list[Action]:
        if not self._words.is_stateful():  # nothing to restore, and nobody to tell: the hold falls at once
            self._arrive(action.slots, action.shard)
            return self._handoffs.released(action.handoff, now, action.slots)
        for slot in action.slots:
            self._words.set_phase(slot, HandoffState.RELEASING, self.deadlines.release)
        self._point("handoff.releasing")
        self._words.wake(action.shard)
        return []

    def _arrive(self, slots: Sequence[int], target: int) -> None:
        """The hold falls, and the target is told: what it kept back lies behind its cursors."""
        for slot in slots:
            self._words.set_phase(slot, HandoffState.NONE, 0.0)
        self._point("handoff.released")
        self._hold(target, -len(slots))
        self._words.wake(target)

    def _hold(self, shard: int, change: int) -> None:
        self._holds[shard] += change
        self._words.set_holds(shard, self._holds[shard])
