"""Messages out of queues of the library, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.memory.native import borrow, ffi, lib
from shardmem.runtime.columns import Keys
from shardmem.schema import KEY_BYTES
from shardmem.sources.kafka.librdkafka import READER_CALLS

MOST = 16384  # messages at once
LEAST = 4096  # items that there is room for at first


@dataclass
class Messages:
    """Messages of one partition. Its memory is the reader's, until it reads again. keys: None if none has one."""

    topic: str
    number: int
    offsets: np.ndarray
    keys: Keys | None
    payloads: tuple[Any, np.ndarray]
    timestamps: np.ndarray | None = None
    headers: tuple[Any, np.ndarray] | None = None
    missing: np.ndarray | None = None


class Room:
    """An array that grows, and where it is for C."""

    def __init__(self) -> None:
        self._reserve(LEAST)

    def _reserve(self, items: int) -> None:
        self.array = np.empty(items, "u8")
        self.words = borrow("uint64_t[]", self.array)
        self.bytes = borrow("uint8_t[]", self.array)

    def for_words(self, count: int) -> np.ndarray:
        if count > len(self.array):
            self._reserve(2 * count)
        return self.array[:count]

    def for_bytes(self, count: int) -> np.ndarray:
        self.for_words((count + 7) // 8)
        return self.array.view("u1")[:count]


class QueueReader:
    def __init__(self, addresses: Sequence[int], headers: bool) -> None:
        """addresses: of READER_CALLS."""
        calls = ffi.new("sm_kafka_calls *", dict(zip(READER_CALLS, addresses)))
        self._reader = lib.sm_kafka_new(calls, MOST)
        if self._reader == ffi.NULL:
            raise MemoryError
        self._headers = headers
        self._taken, self._columns = ffi.new("sm_kafka_taken *"), ffi.new("sm_kafka_columns *")
        self._keys, self._key_ends, self._kinds = Room(), Room(), Room()
        self._payloads, self._payload_ends, self._missing = Room(), Room(), Room()
        self._header_data, self._header_ends = Room(), Room()
        self._offsets, self._timestamps = Room(), Room()
        self.watch([])

    def close(self) -> None:
        lib.sm_kafka_free(self._reader)

    def watch(self, queues: Sequence[tuple[str, int, int]]) -> None:
        """Read these from now on: topic, number and address of each."""
        self._partitions = [(topic, number) for topic, number, _ in queues]
        self._queues, self._next = ffi.new("uint64_t[]", [address for *_, address in queues]), 0

    def read(self, most: int) -> tuple[Messages | None, tuple[int, str] | None]:
        """What is at hand of the next partition that has any, and the number and text of an error that it has met."""
        taken, count = self._taken, len(self._partitions)
        if not count or not lib.sm_kafka_take(
            self._reader, self._queues, count, self._next, min(most, MOST), self._headers, taken
        ):
            return None, None
        self._next = (taken.queue + 1) % count
        error = (taken.error, ffi.string(taken.reason).decode("utf-8", "replace")) if taken.error else None
        return self._put(*self._partitions[taken.queue]) if taken.rows else None, error

    def _put(self, topic: str, number: int) -> Messages:
        taken, columns = self._taken, self._columns
        rows = taken.rows
        made = Messages(
            topic,
            number,
            self._offsets.for_words(rows),
            None,
            (self._payloads.for_bytes(taken.payload_bytes), self._payload_ends.for_words(rows + 1)),
            self._timestamps.for_words(rows).view("i8"),
        )
        keys, key_ends = self._keys.for_bytes(taken.key_bytes), self._key_ends.for_words(rows + 1)
        columns.offsets, columns.timestamps = self._offsets.words, self._timestamps.words
        columns.payloads, columns.payload_ends = self._payloads.bytes, self._payload_ends.words
        columns.keys, columns.key_ends = self._keys.bytes, self._key_ends.words
        columns.key_kinds = columns.missing = columns.headers = columns.header_ends = ffi.NULL
        if 0 < taken.keyless < rows:
            made.keys = Keys(self._kinds.for_bytes(rows), None, keys, key_ends)
            columns.key_kinds = self._kinds.bytes
        elif not taken.keyless:
            made.keys = Keys(KEY_BYTES, None, keys, key_ends)
        if taken.tombstones:
            made.missing = self._missing.for_bytes(rows).view(bool)
            columns.missing = self._missing.bytes
        if self._headers:
            made.headers = self._header_data.for_bytes(taken.header_bytes), self._header_ends.for_words(rows + 1)
            columns.headers, columns.header_ends = self._header_data.bytes, self._header_ends.words
        lib.sm_kafka_put(self._reader, columns)
        return made
