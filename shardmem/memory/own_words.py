"""The supervisor's own words. It is their only writer, so it knows what they say: it believes what it has written, not
what is read, and sets right what somebody else has changed.

A wild store to the state of an engine refused producers for ever, one to a slot word sent its events to a shard that is
none, and one to a hold kept the events of a slot back, until the next supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shardmem.memory.native import MOVE_PHASES, SHARD_STATES, lib
from shardmem.memory.words import Words, name_of


@dataclass
class _Shard:
    state: str
    generation: int
    holds: int


@dataclass
class _Own:
    state: str
    shards: list[_Shard]
    owners: np.ndarray
    holds: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # slots in motion: phase, source, target


class OwnWords(Words):
    """As of any process until `remember` is called."""

    _own: _Own | None = None

    def remember(self) -> None:
        """By the holder of the supervisor's lease, when it has looked at what was there: that is what it says now."""
        views = [self.view_shard(shard) for shard in range(self.room)]
        shards = [_Shard(name_of(SHARD_STATES, view.state), view.generation, view.holds) for view in views]
        own = _Own(super().state, shards, self.slot_table()[0])
        own.holds = {move.slot: (move.phase, move.source, move.target) for move in self.moves()}
        self._own = own

    def forget(self) -> None:
        self._own = None

    @property
    def are_known(self) -> bool:
        """Whether states and phases that are remembered are some that there are: somebody may have changed them just
        before."""
        own = self._own
        return own is not None and (
            all(said.state in SHARD_STATES for said in own.shards)
            and all(phase in MOVE_PHASES for phase, _, _ in own.holds.values())
        )

    def repair(self) -> list[str]:
        """Words that said something else, which say again what they should: their names."""
        own, found = self._own, list[str]()
        if own is None:
            return found
        if super().state != own.state:
            found.append("the state of the engine")
            super().set_state(own.state)
        for shard, said in enumerate(own.shards):
            view = self.view_shard(shard)
            if name_of(SHARD_STATES, view.state) != said.state:
                found.append(f"the state of shard {shard}")
                super().set_shard_state(shard, said.state)
            if view.generation != said.generation:
                found.append(f"the generation of shard {shard}")
                super().set_shard_generation(shard, said.generation)
            if view.holds != said.holds:
                found.append(f"the holds of shard {shard}")
                super().set_holds(shard, said.holds)
        return found + self._repair_slots(own) + self._repair_holds(own)

    def _repair_slots(self, own: _Own) -> list[str]:
        wrong = np.flatnonzero(self.slot_table()[0] != own.owners).tolist()
        for slot in wrong:
            lib.sm_mend_slot(self.address, slot, int(own.owners[slot]))
        return [f"{len(wrong)} slot words"] if wrong else []

    def _repair_holds(self, own: _Own) -> list[str]:
        there = {move.slot: (move.phase, move.source, move.target) for move in self.moves()}
        wrong = [slot for slot in there.keys() | own.holds.keys() if there.get(slot) != own.holds.get(slot)]
        for slot in wrong:
            phase, source, target = own.holds.get(slot, ("none", 0, 0))
            lib.sm_mend_hold(self.address, slot, MOVE_PHASES.index(phase), source, target)
        return [f"the holds of {len(wrong)} slots"] if wrong else []

    # ---- what is said ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return super().state if self._own is None else self._own.state

    def shard_state(self, shard: int) -> str:
        return super().shard_state(shard) if self._own is None else self._own.shards[shard].state

    def shard_generation(self, shard: int) -> int:
        return super().shard_generation(shard) if self._own is None else self._own.shards[shard].generation

    def known_shards(self) -> list[int]:
        if self._own is None:
            return super().known_shards()
        return [shard for shard, said in enumerate(self._own.shards) if said.state != "none"]

    def set_state(self, state: str) -> None:
        super().set_state(state)
        if self._own is not None:
            self._own.state = state

    def set_shard_state(self, shard: int, state: str) -> None:
        super().set_shard_state(shard, state)
        if self._own is not None:
            self._own.shards[shard].state = state

    def set_shard_generation(self, shard: int, generation: int) -> None:
        super().set_shard_generation(shard, generation)
        if self._own is not None:
            self._own.shards[shard].generation = generation

    def set_holds(self, shard: int, holds: int) -> None:
        super().set_holds(shard, holds)
        if self._own is not None:
            self._own.shards[shard].holds = holds

    def set_slot(self, slot: int, shard: int) -> None:
        super().set_slot(slot, shard)
        if self._own is not None:
            self._own.owners[slot] = shard

    def begin_move(self, slot: int, source: int, target: int, deadline_ns: int) -> int:
        number = super().begin_move(slot, source, target, deadline_ns)
        if self._own is not None and number:
            self._own.holds[slot] = "rerouting", source, target
            self._own.owners[slot] = target
        return number

    def set_move_phase(self, slot: int, phase: str, deadline_ns: int = 0) -> None:
        super().set_move_phase(slot, phase, deadline_ns)
        if self._own is not None:
            _, source, target = self._own.holds.pop(slot, ("none", 0, 0))
            if phase != "none":
                self._own.holds[slot] = phase, source, target
