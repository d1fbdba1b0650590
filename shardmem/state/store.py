"""What keyed state asks of a store, and a store in memory for handlers that are run without an engine."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from shardmem.state.keys import after

Row = tuple[bytes, int, int | None]  # value, version, when it expires: milliseconds since 1970, or never


@dataclass
class Changes:
    """What a checkpoint writes, by store key. rows: None: the value is gone. timers: when they are due, in
    milliseconds since 1970; None: the timer is gone."""

    rows: dict[bytes, Row | None] = field(default_factory=dict)
    timers: dict[bytes, int | None] = field(default_factory=dict)


class Store(Protocol):
    """Raises ShardmemError when it cannot be used, StateError for a row that is damaged."""

    def get(self, key: bytes) -> Row | None: ...

    def get_many(self, keys: list[bytes]) -> dict[bytes, Row | None]:
        """Of those of these that there are. None: it is damaged, and `get` says how."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, Row]]:
        """Rows whose keys begin so, in any order."""

    def timers(self, due_from: int, due_to: int, limit: int) -> list[tuple[int, bytes]]:
        """(due, key) of timers in this time, both ends included, the earliest first; at most so many, and then all
        that are due together with the last."""


def first_of(timers: list[tuple[int, bytes]], limit: int) -> list[tuple[int, bytes]]:
    """The earliest, and all that are due together with the last of them."""
    found = sorted(timers)
    if len(found) > limit:
        last = found[limit - 1][0]
        found = [each for each in found if each[0] <= last]
    return found


class MemoryStore:
    """Holds what is committed to it, as bytes: a handler that is run on it is restarted as from a file."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Row] = {}
        self._timers: dict[bytes, int] = {}

    def get(self, key: bytes) -> Row | None:
        return self._rows.get(key)

    def get_many(self, keys: list[bytes]) -> dict[bytes, Row | None]:
        return {key: self._rows[key] for key in keys if key in self._rows}

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, Row]]:
        keys = sorted(self._rows)
        for key in keys[bisect.bisect_left(keys, prefix) : bisect.bisect_left(keys, after(prefix))]:
            yield key, self._rows[key]

    def timers(self, due_from: int, due_to: int, limit: int) -> list[tuple[int, bytes]]:
        return first_of([(due, key) for key, due in self._timers.items() if due_from <= due <= due_to], limit)

    def save(self, changes: Changes) -> None:
        for key, row in changes.rows.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row
        for key, due in changes.timers.items():
            if due is None:
                self._timers.pop(key, None)
            else:
                self._timers[key] = due
