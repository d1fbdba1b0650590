"""Batches as a source of a broker makes them, by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import shardmem

Event = tuple[Any, bytes, int]  # key, payload, offset


def batch_of(events: Iterable[Event], topic: str = "clicks", partition: int = 3) -> shardmem.Batch:
    events = list(events)
    origins = [(topic, partition, offset) for _, _, offset in events]
    return shardmem.Batch.of([(key, payload) for key, payload, _ in events], origins=origins)
