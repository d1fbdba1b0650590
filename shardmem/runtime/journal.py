"""Checkpoints that are saved and not yet merged into the tables of their file.

A row of a table costs ten times what it costs in one blob, and a key that is written all the time would be written into
the table by each checkpoint. So a checkpoint is one blob, what the blobs say is in memory as well, and now and then all
of it goes into the tables at once. Before that, while the keys are few, one blob takes the place of many: what 10,000
keys cost that are written all the time does not depend on how many others there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec

from shardmem.errors import StateError
from shardmem.state.store import Changes, Row

MOST_ENTRIES = 20_000  # in memory; to merge as many takes a tenth of a second
MOST_BYTES = 4 << 20  # of blobs, which the next life has to read

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(tuple[dict[bytes, Row | None], dict[bytes, int | None]])


def body_of(changes: Changes) -> bytes:
    return _encode((changes.rows, changes.timers))


def changes_of(body: bytes, total: int, path: str) -> Changes:
    if zlib.crc32(body) != total:
        raise StateError(
            f"a checkpoint in the state file {path} is damaged: its check sum is wrong",
            hint="Move the file away and import what an export has of it",
        )
    return Changes(*_decoder.decode(body))


class Journal:
    """rows, timers: by store key, what the tables do not say yet. None: it is gone."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row | None] = {}
        self.timers: dict[bytes, int | None] = {}
        self._bytes = 0

    def add(self, changes: Changes, size: int) -> None:
        self.rows.update(changes.rows)
        self.timers.update(changes.timers)
        self._bytes += size

    def is_long(self, size: int) -> bool:
        """With so many bytes more: of keys that are written all the time the blobs say the same again and again."""
        return self._bytes + size > MOST_BYTES

    def may_begin_with(self, size: int) -> bool:
        return size <= MOST_BYTES // 2

    def with_(self, changes: Changes) -> Changes:
        return Changes({**self.rows, **changes.rows}, {**self.timers, **changes.timers})

    def would_be_full(self, changes: Changes) -> bool:
        more = len(changes.rows) + len(changes.timers)
        if (held := len(self.rows) + len(self.timers)) + more <= MOST_ENTRIES:
            return False
        fresh = len(changes.rows.keys() - self.rows.keys()) + len(changes.timers.keys() - self.timers.keys())
        return held + fresh > MOST_ENTRIES

    def clear(self) -> None:
        self.rows.clear()
        self.timers.clear()
        self._bytes = 0

    def in_range(self, start: bytes, end: bytes) -> Iterable[tuple[bytes, Row | None]]:
        return [(key, row) for key, row in self.rows.items() if start <= key < end]
