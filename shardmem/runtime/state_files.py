"""The files of an engine's state: their form, where they are, and how one is read by who does not own it.

`shard-N.sqlite` is written by the worker of shard N alone. `partition-N.sqlite` is a snapshot of a partition that was
put there by its source, and that workers copy their slots from as they do from each other's files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from shardmem.errors import ShardmemError, StateError
from shardmem.private_files import check_file
from shardmem.runtime.sqlite import PATIENCE
from shardmem.state.keys import after, prefix
from shardmem.state.store import Changes, Row

SCHEMA = """
create table if not exists life (      -- the fence: who may write, and what its last checkpoint covered
    one integer primary key check (one = 1), engine text not null, slots integer not null,
    incarnation integer not null, generation integer not null, ranges blob not null, saved integer not null);
create table if not exists slots (slot integer primary key, owner integer not null);
create table if not exists rows (
    key blob primary key, value blob not null, sum integer not null, version integer not null, expires integer
) without rowid;
create table if not exists timers (key blob primary key, due integer not null) without rowid;
create table if not exists applied (   -- of each slot of a partition, int64: the highest offset in the rows, or -1
    topic text not null, number integer not null, offsets blob not null, primary key (topic, number)) without rowid;
create table if not exists journal (  -- see journal.py
    number integer primary key autoincrement, body blob not null, sum integer not null);
"""
DUE = "create index if not exists timers_due on timers (due);"  # a snapshot has no use for it
COPIED = {
    "rows": "key, value, sum, version, expires",
    "timers": "key, due",
}  # what a slot takes along, by ranges of keys
PARTITIONS, STANDBY, SCRATCH = "partitions.json", "standby", "scratch"  # beside them
_SHARD = re.compile(r"shard-([0-9]+)\.sqlite")
_RESTORED = re.compile(r"partition-([0-9]+)\.sqlite")


def _named(directory: str, pattern: re.Pattern[str]) -> dict[int, str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return {}
    return {int(match[1]): os.path.join(directory, name) for name in names if (match := pattern.fullmatch(name))}


def shard_files(directory: str) -> dict[int, str]:
    """Of each shard that has one."""
    return _named(directory, _SHARD)


def shard_file(directory: str, shard: int) -> str:
    return os.path.join(directory, f"shard-{shard}.sqlite")


def restored_files(directory: str) -> dict[int, str]:
    """Of each partition of which a snapshot was restored, and perhaps not taken up yet."""
    return _named(directory, _RESTORED)


def restored_file(directory: str, number: int) -> str:
    return os.path.join(directory, f"partition-{number}.sqlite")


def remove_files(directory: str) -> None:
    """And what else is kept of partitions: all that is in it was made by us."""
    for path in (*shard_files(directory).values(), *restored_files(directory).values()):
        remove_file(path)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, PARTITIONS))
    for name in (STANDBY, SCRATCH):
        shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def remove_file(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def checked_row(key: bytes, stored: Sequence[Any], path: str) -> Row:
    """stored: value, sum, version, expires."""
    value, total, version, expires = stored
    if zlib.crc32(value) != total:
        raise StateError(
            f"the value of {key!r} in the state file {path} is damaged: its check sum is wrong",
            hint="Import what an export has of it, or delete the key",
        )
    return value, version, expires


def write(connection: sqlite3.Connection, changes: Changes) -> None:
    """Into the tables, in the order of their keys."""
    rows, timers = changes.rows, changes.timers
    connection.executemany(
        "insert into rows values (?, ?, ?, ?, ?) on conflict do update set value = excluded.value, "
        "sum = excluded.sum, version = excluded.version, expires = excluded.expires",
        [(key, row[0], zlib.crc32(row[0]), row[1], row[2]) for key, row in sorted(rows.items()) if row],
    )
    connection.executemany("delete from rows where key = ?", [(key,) for key, row in rows.items() if not row])
    connection.executemany(
        "insert or replace into timers values (?, ?)",
        sorted((key, due) for key, due in timers.items() if due is not None),
    )
    connection.executemany("delete from timers where key = ?", [(key,) for key, due in timers.items() if due is None])


@contextlib.contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """The file of another shard, to read it. Raises ShardmemError that names it."""
    check_file(path, "the state file", os.geteuid())
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=PATIENCE)) as made:
            yield made
    except sqlite3.Error as error:
        raise ShardmemError(
            f"the state file {path} cannot be read: {error}",
            hint="Mend the file, or move it away and lose what it holds",
        ) from error


@contextlib.contextmanager
def attached(connection: sqlite3.Connection, path: str) -> Iterator[None]:
    """The file of another shard, as `other` in the statements of this connection: for rows that go from file to file
    without a Python object of each. Read-only, so that no transaction here waits for one there."""
    check_file(path, "the state file", os.geteuid())
    try:
        connection.execute("attach ? as other", (f"file:{quote(path)}?mode=ro",))
        try:
            yield
        finally:
            connection.execute("detach other")
    except sqlite3.Error as error:
        raise ShardmemError(
            f"the state file {path} cannot be read: {error}",
            hint="Mend the file, or move it away and lose what it holds",
        ) from error


def copy_slots(connection: sqlite3.Connection, slots: Iterable[int]) -> None:
    """Their rows and timers in `other` take the place of what is here of them."""
    for first, last in _runs(sorted(slots)):
        ends = prefix(first), after(prefix(last))
        for table, columns in COPIED.items():
            connection.execute(f"delete from {table} where key >= ? and key < ?", ends)
            connection.execute(
                f"insert into {table} select {columns} from other.{table} where key >= ? and key < ? order by key", ends
            )


def _runs(slots: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbours."""
    for at, slot in enumerate(slots):
        if not at or slots[at - 1] != slot - 1:
            first = slot
        if at + 1 == len(slots) or slots[at + 1] != slot + 1:
            yield first, slot


def of_slots(changes: Changes, slots: set[int]) -> Changes:
    """What of them is of these slots."""

    def is_wanted(key: bytes) -> bool:
        return int.from_bytes(key[:2], "big") in slots

    return Changes(
        {key: row for key, row in changes.rows.items() if is_wanted(key)},
        {key: due for key, due in changes.timers.items() if is_wanted(key)},
    )


def look(path: str, query: str) -> list[tuple[Any, ...]]:
    """Nothing of a file that is just being made, or has just been removed: it has no slot that is nowhere else."""
    try:
        with opened(path) as connection:
            return connection.execute(query).fetchall()
    except ShardmemError as error:
        if "no such table" in str(error) or not os.path.exists(path):
            return []
        raise
