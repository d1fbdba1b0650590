"""To test a handler: run it in this process, on a clock that the test drives. Fixtures for pytest come with it: see
plugin.py."""

from shardmem.testing.harness import Harness, VirtualClock

__all__ = ["Harness", "VirtualClock"]
