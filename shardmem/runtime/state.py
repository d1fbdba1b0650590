"""The state of the slots of one shard outside its worker, and which events it reflects: one SQLite file per shard, so
that no shard waits for another's checkpoint.

A checkpoint is one transaction: the rows and timers that changed, and the ranges of events that made them so. Heads
move after it. A worker that is killed in between leaves ranges beyond its heads; its successor commits them first and
then reads the state, so both are of one moment whenever the kill comes (`sm_commit_ranges`).

Each file that has rows of a slot says of which owner in a row, by number; the highest number has the slot. A new owner
copies the rows from there, in one transaction with its own number; the old one deletes its copy when it has time to.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import starmap

from shardmem.errors import AlreadyRunning, ShardmemError, StateError
from shardmem.runtime import outbox
from shardmem.runtime.journal import Journal, body_of, changes_of
from shardmem.runtime.sqlite import Database, explained
from shardmem.runtime.state_files import (
    DUE,
    SCHEMA,
    attached,
    checked_row,
    copy_slots,
    look,
    of_slots,
    remove_file,
    restored_files,
    shard_file,
    shard_files,
    write,
)
from shardmem.state.keys import after, prefix
from shardmem.state.partitions import AppliedRow, merged
from shardmem.state.store import Changes, Row, first_of

_SNAPSHOT = b""  # the name under which the snapshot of a slot is kept; those of keyed states are not empty
_PAGES_KB = 16_384  # all but the leaves of a file of 10 million keys: 2 MB, which is usual, held a third of them
_TOGETHER = 128  # rows that are read by one statement
_GET_MANY = f"select key, value, sum, version, expires from rows where key in ({', '.join('?' * _TOGETHER)})"
_PURGE_ROWS = 2000  # at a time, when there is nothing else to do


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class StateStore:
    """Raises ShardmemError when a file cannot be used, AlreadyRunning when another life of this shard has begun.

    keep: state of an earlier engine of that name is taken up; otherwise it is dropped.
    """

    def __init__(self, directory: str, shard: int, engine_id: int, slots: int, *, keep: bool) -> None:
        self.directory, self._shard, self._slots, self._keep = directory, shard, slots, keep
        self._engine = f"{engine_id:x}"
        self.path = shard_file(directory, shard)
        self._database = Database(self.path, SCHEMA + DUE + outbox.SCHEMA, "the state file", durable=keep)
        self._incarnation = self._generation = 0
        self._one = self._database.connection.execute
        self._one(f"pragma cache_size = -{_PAGES_KB}")
        self._journal = Journal()
        self._claimed: set[int] = set()
        self._given: set[int] = set()  # slots of which this file may have rows that another one has newer
        for path in shard_files(directory).values():
            self._expect_slots(path)

    def _expect_slots(self, path: str) -> None:
        for engine, slots in look(path, "select engine, slots from life"):
            if slots != self._slots and (self._keep or engine == self._engine):
                raise ShardmemError(
                    f"the state file {path} was made with slots={slots} and the engine has slots={self._slots}: "
                    f"keys would not find their state; run it with slots={slots}, or set another state_dir"
                )

    def last_incarnation(self) -> int:
        return max((found for (found,) in self._database.rows("select incarnation from life")), default=0)

    def begin_life(self, incarnation: int, generation: int, expected: bool = False) -> bytes:
        """From here on only this incarnation writes. The ranges of its predecessor's last checkpoint. expected: there
        was a predecessor, which had saved state in this file."""
        self._incarnation, self._generation = incarnation, generation
        with self._database.transaction() as connection:
            found = connection.execute("select engine, incarnation, generation, ranges from life").fetchone()
            if expected and not (found and found[0] == self._engine and found[2] == generation):
                raise ShardmemError(
                    f"the state file {self.path} knows nothing of shard {self._shard}, whose last worker had saved "
                    "state in it: it has been removed or replaced",
                    hint="Put the file back; or lose the state and go on without it: `shardmem reload`",
                )
            ranges = b""
            if found and found[0] == self._engine:
                if found[1] > incarnation:
                    raise AlreadyRunning(
                        f"shard {self._shard}: incarnation {found[1]} has begun, this is {incarnation}"
                    )
                ranges = found[3] if found[2] == generation else b""
            elif found and not self._keep:
                for table in ("rows", "timers", "applied", "slots", "journal", "outbox", "outbox_after"):
                    connection.execute(f"delete from {table}")
            connection.execute(
                "insert or replace into life values (1, ?, ?, ?, ?, ?, ?)",
                (self._engine, self._slots, incarnation, generation, ranges, _now_ms()),
            )
            for body, total in connection.execute("select body, sum from journal order by number").fetchall():
                self._journal.add(changes_of(body, total, self.path), len(body))
            if not (found and found[0] == self._engine):  # other files may have newer rows of what it speaks of
                self._merge(connection)
                self._journal.clear()
        return ranges

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save(
        self,
        snapshots: Iterable[tuple[int, bytes]],
        changes: Changes,
        ranges: bytes,
        *,
        applied: Iterable[AppliedRow] = (),
        messages: Iterable[outbox.Message] = (),
        merge: bool = False,
    ) -> None:
        """(slot, state) of what changed, what changed by key, how far each partition is in it, what was sent, and the
        ranges of events behind it: all or nothing. merge: the tables say all of it then, for whoever reads them
        next."""
        changes.rows.update((prefix(slot, _SNAPSHOT), (state, 0, None)) for slot, state in snapshots)
        merge = merge or self._journal.would_be_full(changes)
        body = b"" if merge or not (changes.rows or changes.timers) else body_of(changes)
        if shortened := bool(body) and self._journal.is_long(len(body)):
            changes = self._journal.with_(changes)
            body = body_of(changes)
            merge = not self._journal.may_begin_with(len(body))
        with self._writing() as connection:
            connection.execute("update life set ranges = ?, saved = ?", (ranges, _now_ms()))
            connection.executemany("insert or replace into applied values (?, ?, ?)", applied)
            outbox.put(connection, messages)
            if merge:
                self._merge(connection, changes)
            elif body:
                if shortened:
                    connection.execute("delete from journal")
                connection.execute("insert into journal (body, sum) values (?, ?)", (body, zlib.crc32(body)))
        if merge or shortened:
            self._journal.clear()
        if not merge:
            self._journal.add(changes, len(body))

    def _merge(self, connection: sqlite3.Connection, changes: Changes | None = None) -> None:
        """All that is in the journal, and what changed since. It is cleared when that is committed, and not before."""
        write(connection, self._journal.with_(changes or Changes()))
        connection.execute("delete from journal")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of this incarnation."""
        with self._database.transaction() as connection:
            mine = connection.execute(
                "select 1 from life where engine = ? and incarnation = ? and generation = ?",
                (self._engine, self._incarnation, self._generation),
            ).fetchone()
            if not mine:
                raise AlreadyRunning(
                    f"shard {self._shard}: incarnation {self._incarnation} may not write to {self.path}, "
                    f"another life of the shard has begun"
                )
            yield connection

    # ---- reading: shardmem.state.store.Store ---------------------------------------------------------------------

    def get(self, key: bytes) -> Row | None:
        if key in self._journal.rows:
            return self._journal.rows[key]
        with explained("the state file", self.path):  # without a look at the file: what is open is what was saved
            found = self._one("select value, sum, version, expires from rows where key = ?", (key,)).fetchone()
        return checked_row(key, found, self.path) if found else None

    def get_many(self, keys: list[bytes]) -> dict[bytes, Row | None]:
        newer = self._journal.rows
        found: dict[bytes, Row | None] = {key: row for key in keys if (row := newer.get(key)) is not None}
        stored = sorted(key for key in keys if key not in newer)
        with explained("the state file", self.path):
            for first in range(0, len(stored), _TOGETHER):
                some = stored[first : first + _TOGETHER]
                some += some[-1:] * (_TOGETHER - len(some))  # so that it is one statement, prepared once
                for key, *row in self._one(_GET_MANY, some):
                    try:
                        found[key] = checked_row(key, row, self.path)
                    except StateError:
                        found[key] = None
        return found

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, Row]]:
        at, end = prefix, after(prefix)
        newer = dict(self._journal.in_range(at, end))
        yield from ((key, row) for key, row in newer.items() if row is not None)
        while found := self._database.rows(
            "select key, value, sum, version, expires from rows where key >= ? and key < ? order by key limit 1000",
            at,
            end,
        ):
            for key, *row in found:
                if key not in newer:
                    yield key, checked_row(key, row, self.path)
            at = found[-1][0] + b"\0"

    def timers(self, due_from: int, due_to: int, limit: int) -> list[tuple[int, bytes]]:
        newer = self._journal.timers
        query = "select due, key from timers where due between ? and ? order by due"
        stored = self._database.rows(f"{query} limit ?", due_from, due_to, limit + len(newer))
        if len(stored) == limit + len(newer):  # all that are due together with the last
            due_to = stored[-1][0]
            stored = [each for each in stored if each[0] < due_to] + self._database.rows(query, due_to, due_to)
        found = [(due, key) for due, key in stored if key not in newer]
        found += [(due, key) for key, due in newer.items() if due is not None and due_from <= due <= due_to]
        return first_of(found, limit)

    def snapshots(self, slots: Iterable[int]) -> dict[int, bytes]:
        """Of those of these slots that have one."""
        found = ((slot, self.get(prefix(slot, _SNAPSHOT))) for slot in slots)
        return {slot: row[0] for slot, row in found if row is not None}

    def applied(self) -> list[AppliedRow]:
        """Of slots that this file does not have, it may say anything."""
        return [AppliedRow(*row) for row in self._database.rows("select topic, number, offsets from applied")]

    def backlog(self) -> int:
        """Messages that were sent and are not published. They are deleted in their order."""
        ((first, last),) = self._database.rows("select min(number), max(number) from outbox")
        return 0 if first is None else last - first + 1

    # ---- slots that come and go ----------------------------------------------------------------------------------

    def claim(self, slots: Iterable[int]) -> None:
        """The rows of these slots are here from now on, copied from the file of whoever had them last. Done twice, it
        is done once."""
        wanted = set(slots)
        mine, newest = dict(self._database.rows("select slot, owner from slots")), self._newest_elsewhere()
        self._given = {slot for slot in mine if slot not in wanted and slot not in self._claimed}
        self._claimed |= wanted
        sources: dict[str, list[tuple[int, int]]] = {}
        for slot in sorted(wanted):
            owner, path = newest.get(slot, (0, ""))
            if owner > mine.get(slot, 0):
                sources.setdefault(path, []).append((slot, owner + 1))
            elif slot not in mine:
                sources.setdefault("", []).append((slot, 1))
        for path, numbered in sources.items():
            if path:
                self._copy(path, numbered)
            else:
                with self._writing() as connection:
                    connection.executemany("insert into slots values (?, ?)", numbered)
                    self._set_applied(connection, [], [slot for slot, _ in numbered])

    def give(self, slots: Iterable[int]) -> None:
        """All of them is saved; whoever claims them next copies it."""
        self._claimed.difference_update(slots)
        self._given.update(slots)

    def purge(self) -> None:
        """Delete some of the rows that another file has newer."""
        if not self._given:
            return
        mine, newest = dict(self._database.rows("select slot, owner from slots")), self._newest_elsewhere()
        self._given &= mine.keys()
        budget = _PURGE_ROWS
        for slot in sorted(self._given):
            if newest.get(slot, (0, ""))[0] <= mine[slot]:
                continue
            with self._writing() as connection:
                for table in ("rows", "timers"):
                    budget -= connection.execute(
                        f"delete from {table} where key in "
                        f"(select key from {table} where key >= ? and key < ? limit {_PURGE_ROWS})",
                        (prefix(slot), after(prefix(slot))),
                    ).rowcount
                if budget > 0:
                    connection.execute("delete from slots where slot = ?", (slot,))
            if budget <= 0:
                return
            self._given.discard(slot)

    def _newest_elsewhere(self) -> dict[int, tuple[int, str]]:
        """slot -> (owner, file) of the highest owner in the files of other shards."""
        newest: dict[int, tuple[int, str]] = {}
        for path in (*shard_files(self.directory).values(), *restored_files(self.directory).values()):
            if path == self.path or not self._is_of_ours(path):
                continue
            for slot, owner in look(path, "select slot, owner from slots"):
                if owner > newest.get(slot, (0, ""))[0]:
                    newest[slot] = owner, path
        return newest

    def _is_of_ours(self, path: str) -> bool:
        return self._keep or any(engine == self._engine for (engine,) in look(path, "select engine from life"))

    def _copy(self, path: str, numbered: list[tuple[int, int]]) -> None:
        """From one file to the other: a slot may be larger than memory."""
        slots = [slot for slot, _ in numbered]
        with attached(self._database.connection, path), self._writing() as connection:
            self._merge(connection)  # what it says of these slots is older than what comes
            copy_slots(connection, slots)
            bodies = connection.execute("select body, sum from other.journal order by number").fetchall()
            for body, total in bodies:
                write(connection, of_slots(changes_of(body, total, path), set(slots)))
            has_applied = connection.execute("select 1 from other.sqlite_master where name = 'applied'").fetchall()
            theirs = connection.execute("select topic, number, offsets from other.applied") if has_applied else []
            self._set_applied(connection, starmap(AppliedRow, theirs), slots)
            outbox.put_after(connection, os.path.basename(path))
            connection.executemany("insert or replace into slots values (?, ?)", numbered)
        self._journal.clear()

    @staticmethod
    def _set_applied(connection: sqlite3.Connection, theirs: Iterable[AppliedRow], slots: list[int]) -> None:
        """To what is known of the rows that these slots have now."""
        ours = starmap(AppliedRow, connection.execute("select topic, number, offsets from applied").fetchall())
        connection.executemany("insert or replace into applied values (?, ?, ?)", merged(ours, theirs, slots))

    def leave(self) -> None:
        """As a process does that is killed."""
        self._database.close()

    def close(self) -> None:
        """The file goes as well when others have all of it newer."""
        mine, newest = dict(self._database.rows("select slot, owner from slots")), self._newest_elsewhere()
        is_over = all(newest.get(slot, (0, ""))[0] > owner for slot, owner in mine.items()) and not self.backlog()
        self._database.close()
        if is_over:
            remove_file(self.path)
