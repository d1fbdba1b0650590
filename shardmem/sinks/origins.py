"""Where the events of a batch come from, as a database remembers it: topic, partition, offset, and a word for the key.

What has no origin (it came from a producer and not from a broker) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shardmem.memory.partition_table import NO_PARTITION
from shardmem.runtime.batch import Batch


@dataclass(frozen=True)
class Stream:
    """Events of one partition, in the order of the batch. rows: their numbers in it. words: the same for the same key;
    of events without one, which have no order, nothing."""

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
    offsets, known = origins["offset"].astype("i8"), origins["partition"] != NO_PARTITION
    places = origins["topic"].astype("i8") << 32 | origins["partition"]
    for place in np.unique(places[known]).tolist():
        rows = np.flatnonzero(known & (places == place))
        topic, partition = batch.topics[place >> 32], place & NO_PARTITION
        yield Stream(topic, partition, rows, offsets[rows], words[rows], keyless[rows])


def stamps_of(batch: Batch) -> list[tuple[str | None, int | None, int | None]]:
    """(topic, partition, offset) of each event."""
    origins = batch.origins
    if origins is None:
        return [(None, None, None)] * len(batch)
    topics = batch.topics
    return [
        (None, None, None) if partition == NO_PARTITION else (topics[topic], partition, offset)
        for topic, partition, offset in origins.tolist()
    ]
