"""To test a handler: run it in this process, on a clock that the test drives; or feed an engine from a broker in a
file. Fixtures for pytest come with it: see plugin.py."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardmem.testing.broker import FakeBroker
    from shardmem.testing.harness import Harness, VirtualClock

_HOME = {"FakeBroker": "broker", "Harness": "harness", "VirtualClock": "harness"}

__all__ = ["FakeBroker", "Harness", "VirtualClock"]


def __getattr__(name: str) -> Any:
    """Imported when it is used: pytest loads the plugin of this package in every run."""
    if name in _HOME:
        return getattr(importlib.import_module(f"shardmem.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'shardmem.testing' has no attribute {name!r}")
