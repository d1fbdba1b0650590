"""Where the events of a batch come from, as a database remembers it: topic, partition, offset, and a word for the key.

What has no origin (it came from a producer and not from a broker) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shardmem.runtime.batch import Batch

NO_ORIGIN = 2**32 - 1


@dataclass(frozen=True)
class Stream:
    """Of one partition, in the order of the batch. rows: their numbers in it. words: of two events with the same key
    the same. keyless: these have none, and no order."""

    topic: str
    partition: int
    rows: np.ndarray
    offsets: np.ndarray
    words: np.ndarray
    keyless: np.ndarray


def streams_of(batch: Batch) -> Iterator[Stream]:
    origins = batch.origins
    if origins is None:
        return
    words, keyless = batch.key_words()
    offsets = origins["offset"].astype("i8")
    places = origins["topic"].astype("i8") << 32 | origins["partition"]
    for place in np.unique(places[origins["partition"] != NO_ORIGIN]).tolist():
        rows = np.flatnonzero(places == place)
        topic, partition = batch.topics[place >> 32], place & NO_ORIGIN
        yield Stream(topic, partition, rows, offsets[rows], words[rows].view("i8"), keyless[rows])


def stamps_of(batch: Batch) -> list[tuple[str | None, int | None, int | None]]:
    """(topic, partition, offset) of each event."""
    origins = batch.origins
    if origins is None:
        return [(None, None, None)] * len(batch)
    topics = batch.topics
    return [
        (None, None, None) if partition == NO_ORIGIN else (topics[topic], partition, offset)
        for topic, partition, offset in origins.tolist()
    ]
