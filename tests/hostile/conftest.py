"""Campaigns. In the default run a moment of each; `tox -e hostile` runs all of them for SHARDMEM_MINUTES together.
Every seed is printed before it is used, SHARDMEM_SEED repeats one, and the figures are printed at the end."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.rig import Rig

HERE = Path(__file__).parent
MOMENT = 2.0  # seconds

Figures = dict[str, Counter[str]]
_SHARE, _FIGURES = pytest.StashKey[float](), pytest.StashKey[Figures]()

# the engine without processes of the unit tests
_spec = importlib.util.spec_from_file_location("unit_conftest", HERE.parent / "unit" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_unit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_unit)
loopback = _unit.loopback


class Draw(random.Random):
    """number: its seed. Those of one test come one after the other."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.number = seed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    campaigns = [item for item in items if item.path.parent == HERE]
    minutes = os.environ.get("SHARDMEM_MINUTES")
    share = MOMENT if minutes is None else 60 * float(minutes) / max(1, len(campaigns))
    config.stash[_SHARE], config.stash[_FIGURES] = share, {}
    for item in campaigns:
        item.add_marker(pytest.mark.timeout(240 + 3 * share))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, {})
    if not figures or "SHARDMEM_MINUTES" not in os.environ:
        return
    terminalreporter.section("figures")
    whole: Counter[str] = Counter()
    for name, counts in figures.items():
        terminalreporter.write_line(f"{name}: {json.dumps(counts)}")
        whole.update({key: count for key, count in counts.items() if not key.startswith("longest")})
    terminalreporter.write_line(f"all of them: {json.dumps(whole)}")


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setenv("RECORD_DIR", str(tmp_path))
    return Rig(tmp_path)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Counter[str]:
    """What the test counts, printed at the end."""
    return request.config.stash[_FIGURES].setdefault(request.node.name, Counter())


@pytest.fixture
def draws(request: pytest.FixtureRequest, figures: Counter[str]) -> Callable[[], Iterator[Draw]]:
    """Random numbers of one seed after the other, until the time is over; one at least."""

    def until_the_time_is_over() -> Iterator[Draw]:
        pinned, until = os.environ.get("SHARDMEM_SEED"), time.monotonic() + request.config.stash[_SHARE]
        seed = int(pinned) if pinned else int.from_bytes(os.urandom(4), "little")
        while True:
            print(f"{request.node.name}: SHARDMEM_SEED={seed}", flush=True)
            yield Draw(seed)
            figures["seeds"] += 1
            seed += 1
            if pinned or time.monotonic() >= until:
                return

    return until_the_time_is_over
