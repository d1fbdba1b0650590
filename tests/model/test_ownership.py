"""Who owns a partition, through moves, freezes and deaths: nothing is lost, the order of first handling is kept,
nothing is repeated unless something unplanned has happened, and nobody handles what another owns. The Ownership that
ships is what is run; planted faults are caught."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from shardmem.sources.contract import Position
from shardmem.sources.ownership import NONE_KNOWN, Held, Ownership

from .explorer import explore, find_violation
from .ownership_model import PARTITION, Limits, World, invariant, is_final

ALWAYS = {"invariant": invariant, "final": is_final}


def unplanned(label: str) -> bool:
    return any(word in label for word in ("late", "frozen", "killed", "dies"))


QUICK = [Limits(1, 0, 1, 0), Limits(0, 1, 0, 0), Limits(0, 0, 0, 1)]
LONG = [Limits(1, 1, 1, 0), Limits(2, 0, 1, 0), Limits(1, 0, 1, 1)] if "SHARDMEM_RUNS" in os.environ else []


@pytest.mark.parametrize("limits", QUICK + LONG, ids=lambda limits: "-".join(map(str, limits)))
def test_whatever_happens_to_two_hosts_no_promise_is_broken(limits: Limits) -> None:
    found = explore(World(limits=limits), World.steps, **ALWAYS, unhelpful=unplanned)
    print(found)
    assert found.states > 100


class CommitsBeforeItDrains(Ownership):
    def _drain(self, those: Sequence[Held], deadline: float) -> bool:
        for held in those:
            held.safe = held.pushed
        self._commit(those)
        return super()._drain(those, deadline)


class SeeksToCommittedWhileLanesLive(Ownership):
    def _resume(self, partition: str, row: int, committed: Position | None) -> None:
        at = committed.offset if committed else 0
        self._hold(partition, row, self._table.resume(row), at, at, committed, NONE_KNOWN)


class ClaimsNothing(Ownership):
    def _claim(self, committed: Mapping[str, Position]) -> bool:
        return True


class EndsNoEpoch(Ownership):
    def _end(self, gone: Iterable[Held]) -> None:
        for held in list(gone):
            self._table.state = "none"  # type: ignore[attr-defined]
            del self.held[held.partition]


class CommitsWhatItPushed(Ownership):
    def _look(self, drained: Iterable[Held] = ()) -> None:
        super()._look(list(self.held.values()))


class ForgetsWhatWasPushedLast(Ownership):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._in_lanes = {}


class ResumesWhatAnotherHad(Ownership):
    def _is_ours(self, committed: Position | None, row: int) -> bool:
        return True


class PushesTheRestOfAnotherLife(Ownership):
    """What found no room is pushed later, behind what was read after it."""

    def take(self, columns: Any) -> int:
        held = self.held.get(columns.partition)
        rest = held and held.rest
        accepted = super().take(columns)
        if held and held.rest is not None and rest is None:
            self._source.resume([PARTITION])
            held.rest, held.pushed = None, int(np.max(columns.offsets)) + 1
        return accepted


@pytest.mark.parametrize(
    "kind",
    [
        CommitsBeforeItDrains,
        SeeksToCommittedWhileLanesLive,
        ClaimsNothing,
        EndsNoEpoch,
        CommitsWhatItPushed,
        ForgetsWhatWasPushedLast,
        ResumesWhatAnotherHad,
        PushesTheRestOfAnotherLife,
    ],
)
def test_each_planted_fault_is_caught(kind: type[Ownership]) -> None:
    for limits in (Limits(1, 0, 0, 0), Limits(1, 0, 1, 0)):
        violation = find_violation(World(kind, limits), World.steps, **ALWAYS, unhelpful=unplanned)
        if violation is not None:
            print(violation)
            return
    raise AssertionError("it was not noticed")


def test_workers_that_do_not_look_at_the_lease_are_caught() -> None:
    limits = Limits(0, 1, 0, 0)
    assert find_violation(World(limits=limits, fence=False), World.steps, **ALWAYS, unhelpful=unplanned) is not None
