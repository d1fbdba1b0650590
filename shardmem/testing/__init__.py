"""To test a handler: run it in this process, on a clock that the test drives. Fixtures for pytest come with it: see
plugin.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardmem.testing.harness import Harness, VirtualClock

__all__ = ["Harness", "VirtualClock"]


def __getattr__(name: str) -> Any:
    """Imported when it is used: pytest loads the plugin of this package in every run."""
    if name in __all__:
        from shardmem.testing import harness

        return getattr(harness, name)
    raise AttributeError(f"module 'shardmem.testing' has no attribute {name!r}")
