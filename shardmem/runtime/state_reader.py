"""The state of an engine as its files say it, from any process and without its workers: the last committed values."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from shardmem.errors import ShardmemError
from shardmem.private_files import acting_as, check_file, owner_of
from shardmem.runtime.journal import Journal, changes_of
from shardmem.runtime.partition_count import counted
from shardmem.runtime.sqlite import address_of, has_log
from shardmem.runtime.state_files import checked_row, shard_files
from shardmem.state.keys import Key, after, prefix, read_store_key, slot_of, store_key
from shardmem.state.partitions import NEVER, AppliedRow, Layout, merged
from shardmem.state.store import Row

PATIENCE = 5.0  # seconds


class Saved(NamedTuple):
    """saved_ms: when the shard's last checkpoint was, since 1970: the value is what it was then."""

    row: Row
    saved_ms: int
    shard: int
    slot: int


class _File:
    """One shard's file. Nothing is made or changed."""

    def __init__(self, shard: int, path: str) -> None:
        self.shard, self.path = shard, path
        self.identity = _identity(path)
        self._owner = owner_of(path)
        check_file(path, "the state file", self._owner)
        with acting_as(self._owner):
            self._connection = sqlite3.connect(
                address_of(path), uri=True, timeout=PATIENCE, check_same_thread=False, isolation_level=None
            )
        self._journal, self._first, self._last = Journal(), 0, 0

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """What is asked for inside is as of one checkpoint."""
        self.rows("begin")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("rollback")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with acting_as(self._owner):
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if "no such table" in str(error):  # its worker is just making it
                return []
            raise ShardmemError(
                f"the state file {self.path} cannot be read: {error}",
                hint="Mend the file, or move it away and lose what it holds",
            ) from error

    def journal(self) -> Journal:
        """What the tables do not say yet; only what came since the last time is read."""
        first, last = (self.rows("select min(number), max(number) from journal") or [(None, None)])[0]
        if first is None or first != self._first:
            self._journal, self._first, self._last = Journal(), first or 0, 0
        if last is not None and last > self._last:
            for body, total in self.rows("select body, sum from journal where number > ? order by number", self._last):
                self._journal.add(changes_of(body, total, self.path), len(body))
            self._last = last
        return self._journal

    def get(self, stored: bytes) -> tuple[Row, int] | None:
        """The row, and when the last checkpoint was."""
        with self.at_one_moment():
            saved = next((saved for (saved,) in self.rows("select saved from life")), 0)
            newer = self.journal().rows
            if stored in newer:
                row = newer[stored]
                return None if row is None else (row, saved)
            for found in self.rows("select value, sum, version, expires from rows where key = ?", stored):
                return checked_row(stored, found, self.path), saved
        return None

    def slot(self, slot: int, name: bytes | None = None) -> tuple[dict[bytes, Row], dict[bytes, int]]:
        """Rows and timers of a slot, by store key; of one name only, rows."""
        start, end = prefix(slot, name), after(prefix(slot, name))
        with self.at_one_moment():
            newer = self.journal()
            stored = self.rows(
                "select key, value, sum, version, expires from rows where key >= ? and key < ?", start, end
            )
            rows = {key: checked_row(key, row, self.path) for key, *row in stored if key not in newer.rows}
            timers = dict(self.rows("select key, due from timers where key >= ? and key < ?", start, end))
        rows.update((key, row) for key, row in newer.in_range(start, end) if row is not None)
        for key, due in newer.timers.items():
            if start <= key < end:
                timers.pop(key, None)
                if due is not None:
                    timers[key] = due
        return dict(sorted(rows.items())), dict(sorted(timers.items()))

    def close(self) -> None:
        with acting_as(self._owner):
            self._connection.close()


def _identity(path: str) -> tuple[int, int, bool]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, has_log(path)


class StateReader:
    """Raises ShardmemError for a file that cannot be read, StateError for a value that is damaged."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._files: dict[int, _File] = {}

    def get(self, name: str, key: Key) -> Saved | None:
        """Of a state with partitions: of the first partition that has a value."""
        slots, partitions = self.slots, self.partitions
        if not slots:
            return None
        stored = store_key(key, name.encode(), slots)
        places = [int.from_bytes(stored[:2], "big")]
        if partitions:
            layout = Layout(slots, partitions)
            places += [layout.slots_of(number)[slot_of(key, layout.width)] for number in range(partitions)]
        for slot in dict.fromkeys(places):
            if found := self._get(slot, prefix(slot) + stored[2:]):
                return found
        return None

    def _get(self, slot: int, stored: bytes) -> Saved | None:
        file = self._owner(slot)
        while file is not None:
            if (got := file.get(stored)) is not None:
                return Saved(*got, file.shard, slot)
            # If the slot has moved between the two questions, its rows may have been deleted where this one looked.
            before, file = file, self._owner(slot)
            if file is before:
                break
        return None

    def _owner(self, slot: int) -> _File | None:
        owner, found = 0, None
        for file in self._known():
            for (number,) in file.rows("select owner from slots where slot = ?", slot):
                if number > owner:
                    owner, found = number, file
        return found

    @property
    def partitions(self) -> int:
        """That slots are shared out among; 0: no source has any."""
        found = counted(self.directory)
        return 0 if found is None else found.partitions

    def applied(self, slots: Container[int] | None = None) -> list[AppliedRow]:
        """How far each partition is in its slots."""
        found: list[AppliedRow] = []
        owners = self.owners()
        for file in self._known():
            mine = [slot for slot, owner in owners.items() if owner is file and (slots is None or slot in slots)]
            theirs = [AppliedRow(*row) for row in file.rows("select topic, number, offsets from applied")]
            found = merged(found, theirs, mine)
        return [row for row in found if (row.array != NEVER).any()]

    @property
    def slots(self) -> int:
        """Of the engine; 0: nothing was ever saved."""
        return max((slots for file in self._known() for (slots,) in file.rows("select slots from life")), default=0)

    def owners(self) -> dict[int, _File]:
        """The file that has the rows of each slot."""
        newest: dict[int, tuple[int, _File]] = {}
        for file in self._known():
            for slot, owner in file.rows("select slot, owner from slots"):
                if slot not in newest or owner > newest[slot][0]:
                    newest[slot] = owner, file
        return {slot: file for slot, (_, file) in sorted(newest.items())}

    def rows(self, name: str | None = None) -> Iterator[tuple[int, str, Key, Row]]:
        """(slot, name, key, row) of keyed states. One slot at a time is in memory."""
        for slot, file in self.owners().items():
            for stored, row in file.slot(slot, None if name is None else name.encode())[0].items():
                if stored[2:3] != b"\0":  # a snapshot of the whole slot
                    _, stored_name, key = read_store_key(stored)
                    yield slot, stored_name.decode(), key, row

    def snapshots(self) -> dict[int, bytes]:
        """Of slots of a handler with `snapshot`."""
        found = ((slot, file.get(prefix(slot, b""))) for slot, file in self.owners().items())
        return {slot: got[0][0] for slot, got in found if got is not None}

    def timers(self) -> Iterator[tuple[int, str, Key, int]]:
        """(slot, name as stored, key, due in ms)."""
        for slot, file in self.owners().items():
            for stored, due in file.slot(slot)[1].items():
                _, name, key = read_store_key(stored)
                yield slot, name.decode("utf-8", "surrogateescape"), key, due

    def slot(self, slot: int) -> tuple[list[tuple[Any, ...]], list[tuple[bytes, int]]]:
        """(key, value, version, expires) of all rows of a slot, and (key, due) of its timers."""
        if (file := self.owners().get(slot)) is None:
            return [], []
        rows, timers = file.slot(slot)
        return [(key, *row) for key, row in rows.items()], list(timers.items())

    def _known(self) -> list[_File]:
        """Open as long as they are what they were."""
        paths = shard_files(self.directory)
        for shard, file in list(self._files.items()):
            with contextlib.suppress(FileNotFoundError):
                if shard in paths and _identity(file.path) == file.identity:
                    continue
            self._files.pop(shard).close()
        for shard, path in paths.items():
            if shard not in self._files:
                with contextlib.suppress(FileNotFoundError):
                    self._files[shard] = _File(shard, path)
        return list(self._files.values())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
