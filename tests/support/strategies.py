"""Strategies of a user's own, as the supervisors of process tests import them."""

from __future__ import annotations

import time
from typing import Any

from shardmem.policy import LeastSlots


class Raising(LeastSlots):
    def rebalance(self, view: Any) -> Any:
        raise KeyError("no\nplan")


class Still(LeastSlots):
    """Moves nothing, also from a shard that drains."""

    def rebalance(self, view: Any) -> Any:
        return []


class Leaving(Still):
    """Of the kind that ends the program it is in."""

    def rebalance(self, view: Any) -> Any:
        raise SystemExit(3)


class Odd(Still):
    """Says of hot slots what cannot be."""

    def hot_slots(self, view: Any) -> Any:
        return [1, None, "x"]


class Slow(LeastSlots):
    """Takes its time for each plan."""

    def rebalance(self, view: Any) -> Any:
        time.sleep(0.6)
        return super().rebalance(view)
