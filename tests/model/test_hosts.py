"""State that goes from host to host: however it goes, every event is counted once where its partition is in the end;
and planted faults are caught."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from .hosts_sim import Faults, World

STEPS = 120


def run(directory: Path, seed: int, faults: Faults = Faults()) -> str | None:
    with contextlib.closing(World(directory / str(seed), seed, faults)) as world:
        return world.run(STEPS)


@pytest.mark.parametrize("seed", range(6))
def test_every_event_is_counted_once_wherever_its_partition_goes_and_whoever_dies(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, seed) is None


@pytest.mark.parametrize("fault", Faults._fields)
def test_each_planted_fault_is_caught(tmp_path: Path, fault: str) -> None:
    found = (run(tmp_path, seed, Faults(**{fault: True})) for seed in range(12))
    print(next(each for each in found if each is not None))
