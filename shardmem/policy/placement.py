"""Which shard owns which slot."""
from __future__ import annotations

from typing import Sequence


def first_table(slots: int, shards: Sequence[int]) -> list[int]:
    """The owner of each slot of a new engine: counts differ by at most one, neighbours differ.

    Raises ValueError without a shard.
    """
    if not shards:
        raise ValueError("a slot needs a shard to own it; got none")
    return [shards[slot % len(shards)] for slot in range(slots)]
