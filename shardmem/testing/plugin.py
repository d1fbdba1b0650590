"""Fixtures for pytest: `pytest_plugins = ["shardmem.testing.plugin"]` in conftest.py, or `-p shardmem.testing.plugin`.

def test_it(shardmem_harness):                       # milliseconds: in this process, on a virtual clock
    harness = shardmem_harness(Sessions)
    harness.feed([("ann", b"/")])

def test_all_of_it(shardmem_engine):                 # a real engine, drained and removed at the end of the test
    engine, producer = shardmem_engine(Sessions, shards=2)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # a test run that does not use them does not pay for them
    from pathlib import Path

    from shardmem.client.engine import Engine
    from shardmem.runtime.producer import Producer
    from shardmem.testing.harness import Harness


@pytest.fixture
def shardmem_harness() -> Callable[..., Harness]:
    """`shardmem_harness(handler, ...)`: a `shardmem.testing.Harness`."""
    from shardmem.testing.harness import Harness

    return Harness


@pytest.fixture
def shardmem_engine(tmp_path: Path) -> Iterator[Callable[..., tuple[Engine, Producer]]]:
    """`shardmem_engine(handler, ...)`: a real engine, its state in the directory of the test, and a producer of it."""
    from shardmem.client.engine import Engine

    with contextlib.ExitStack() as stack:

        def made(handler: Any, **settings: Any) -> tuple[Engine, Producer]:
            settings.setdefault("state_dir", str(tmp_path / "state"))
            engine = stack.enter_context(Engine(handler=handler, **settings))
            return engine, stack.enter_context(engine.producer())

        yield made
