"""Campaigns: a few seconds each in the default run, as long as SHARDMEM_SECONDS says in `tox -e hostile`. Every seed is
printed before it is used; SHARDMEM_SEED repeats one."""

from __future__ import annotations

import importlib.util
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.rig import Rig

SECONDS = float(os.environ.get("SHARDMEM_SECONDS", 2))

# the engine without processes of the unit tests
_spec = importlib.util.spec_from_file_location("unit_conftest", Path(__file__).parents[1] / "unit" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_unit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_unit)
loopback = _unit.loopback


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setenv("RECORD_DIR", str(tmp_path))
    return Rig(tmp_path)


@pytest.fixture
def draws(request: pytest.FixtureRequest) -> Callable[[], Iterator[random.Random]]:
    """Random numbers of one seed after the other, until the time is over; one at least."""

    def until_the_time_is_over() -> Iterator[random.Random]:
        pinned, until = os.environ.get("SHARDMEM_SEED"), time.monotonic() + SECONDS
        seed = int(pinned) if pinned else int.from_bytes(os.urandom(4), "little")
        while True:
            print(f"{request.node.name}: SHARDMEM_SEED={seed}", flush=True)
            yield random.Random(seed)
            seed += 1
            if pinned or time.monotonic() >= until:
                return

    return until_the_time_is_over


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(120 + 3 * SECONDS))
