"""Handlers and a strategy for the autoscale tests, where worker processes can import them."""

from __future__ import annotations

import time

import shardmem
from shardmem.policy import Move


class Slow(shardmem.Handler):
    """A millisecond for ten events: one worker takes 10,000 a second, and three take three times that."""

    def handle(self, batch: shardmem.Batch) -> None:
        time.sleep(len(batch) / 10_000)


class Backwards:
    """A strategy of the user's own: everything belongs to the highest shard."""

    def allocate(self, slot, view):
        return max(view.shards)

    def rebalance(self, view):
        return [
            Move(slot, int(owner), max(view.shards))
            for slot, owner in enumerate(view.owners)
            if owner != max(view.shards) and not view.locked[slot]
        ]


def quick(batch: shardmem.Batch) -> None:
    """Two microseconds for each event: enough to be a load."""
    time.sleep(len(batch) * 2e-6)


def costly_keys(batch: shardmem.Batch) -> None:
    """A millisecond for each event of a key "costly...", 0.02 ms for each of any other; all of it asleep."""
    time.sleep(sum(0.001 if str(key).startswith("costly") else 0.00002 for key, _ in batch))
