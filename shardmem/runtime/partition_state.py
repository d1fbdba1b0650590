"""The state of one partition as one file: taken while its workers go on, and put where they take it up.

Each slot is of one moment, that of a checkpoint of the shard that has it: its rows, its timers and how far it is in
each topic. Slots need not be of the same moment. Whoever takes the partition up begins at an offset before which all
had been handled when the file was begun, and each slot passes over what it has already.

A restored file is one more file with rows of slots, and its owner numbers are the highest: workers copy their slots
from it as they do after a handoff, and a worker that dies in between does it again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from itertools import starmap
from urllib.parse import quote

from shardmem.errors import ConfigError, ShardmemError, StateError
from shardmem.private_files import make_file
from shardmem.runtime.journal import changes_of
from shardmem.runtime.state_files import (
    SCHEMA,
    attached,
    copy_slots,
    look,
    of_slots,
    remove_file,
    restored_file,
    restored_files,
    shard_files,
    write,
)
from shardmem.state.partitions import AppliedRow, Layout, merged

FORMAT = 1
_ABOUT = (
    "create table about (format integer not null, slots integer, partitions integer, number integer, made integer);"
)
_PASSES = 20  # over slots that move from file to file while they are read
_REST = 0.05
SQLITE = b"SQLite format 3\0"


class StateFiles:
    """Those of one engine, for whoever is none of its workers; None: of one that does not run. keep: what earlier
    engines of that name have left is its state; else their files say nothing."""

    def __init__(self, directory: str, engine_id: int | None, keep: bool = False) -> None:
        self.directory, self._engine = directory, None if engine_id is None else f"{engine_id:x}"
        self._keep = keep or engine_id is None

    def owners(self, slots: Iterable[int]) -> dict[int, tuple[int, str]]:
        """slot -> (owner, file) of the highest owner."""
        wanted, newest = set(slots), dict[int, tuple[int, str]]()
        for path in (*shard_files(self.directory).values(), *restored_files(self.directory).values()):
            if self._keep or any(engine == self._engine for (engine,) in look(path, "select engine from life")):
                for slot, owner in look(path, "select slot, owner from slots"):
                    if slot in wanted and owner > newest.get(slot, (0, ""))[0]:
                        newest[slot] = owner, path
        return newest

    # ---- taken ---------------------------------------------------------------------------------------------------

    def export(self, layout: Layout, number: int, path: str) -> None:
        """To a file of that name. Raises ShardmemError; what is there then is of no use."""
        with _made(path, layout, number) as made:
            left = set(layout.slots_of(number))
            for attempt in range(_PASSES):
                owners = self.owners(left)
                left &= owners.keys()
                for source in sorted({source for _, source in owners.values()}):
                    slots = sorted(slot for slot in left if owners[slot][1] == source)
                    try:
                        left -= self._take(made, source, slots, number)
                    except ShardmemError:
                        if os.path.exists(source):  # else its shard has gone, and others have all of it
                            raise
                if not left:
                    return
                time.sleep(_REST * bool(attempt))
        raise ShardmemError(f"partition {number}: {len(left)} of its slots move from shard to shard all the time")

    def _take(self, made: sqlite3.Connection, source: str, slots: list[int], number: int) -> set[int]:
        """Those of these slots that this file had, for sure, when it was read."""
        with attached(made, source):
            made.execute("begin")
            mine = dict(made.execute("select slot, owner from other.slots").fetchall())
            # Whoever gives a slot away deletes its rows when another file has them. If none has now, the rows that this
            # transaction sees are whole, because it began before.
            now = self.owners(slots)
            sure = {slot for slot in slots if now.get(slot) == (mine.get(slot), source)}
            copy_slots(made, sure)
            for body, total in made.execute("select body, sum from other.journal order by number").fetchall():
                write(made, of_slots(changes_of(body, total, source), sure))
            if made.execute("select 1 from other.sqlite_master where name = 'applied'").fetchall():
                theirs = made.execute("select topic, number, offsets from other.applied where number = ?", (number,))
                ours = made.execute("select topic, number, offsets from main.applied").fetchall()
                rows = merged(starmap(AppliedRow, ours), starmap(AppliedRow, theirs.fetchall()), sure)
                made.executemany("insert or replace into main.applied values (?, ?, ?)", rows)
            made.execute("commit")
        return sure

    # ---- put there -----------------------------------------------------------------------------------------------

    def install(self, path: str, layout: Layout, number: int) -> None:
        """The file is moved: it is the state of its partition from here on, in place of what is there. Raises
        ConfigError when it is of other slots or partitions, StateError when it is no such file."""
        check_snapshot(path, layout, number)
        with _open(path) as made:
            # One that claims from an older file at this moment writes the number after that; this is above it, too.
            newest = max((owner for owner, _ in self.owners(layout.slots_of(number)).values()), default=0) + 2
            made.execute("update slots set owner = ?", (newest,))
            life = 1, self._engine or "", layout.slots, 0, 0, b"", time.time_ns() // 1_000_000
            made.execute("insert or replace into life values (?, ?, ?, ?, ?, ?, ?)", life)
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        os.replace(path, restored_file(self.directory, number))

    def clear(self, layout: Layout, number: int) -> None:
        """Its state is none, as that of a partition that has never been handled."""
        path = restored_file(self.directory, number) + ".new"
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        with _made(path, layout, number):
            pass
        self.install(path, layout, number)

    def remove_taken_up(self) -> None:
        """Of restored files, those of which each slot was taken up."""
        for path in restored_files(self.directory).values():
            if not any(source == path for _, source in self.owners(range(1 << 16)).values()):
                remove_file(path)


def check_snapshot(path: str, layout: Layout, number: int) -> None:
    try:
        with _open(path) as made:
            found = made.execute("select format, slots, partitions, number from about").fetchone()
    except sqlite3.Error as error:
        raise StateError(f"{path} is not the state of a partition: {error}") from None
    if found is None or found[0] != FORMAT:
        raise StateError(f"{path} is the state of a partition in form {found and found[0]}, and this reads {FORMAT}")
    if tuple(found[1:3]) != (layout.slots, layout.partitions):
        raise ConfigError(
            f"the state of partition {found[3]} was saved with slots={found[1]} and {found[2]} partitions, and this "
            f"engine has slots={layout.slots} and {layout.partitions}: keys would not find their state",
            hint=f"Run every host with slots={found[1]}; if the topic has grown, see `partitions`",
        )
    if found[3] != number:
        raise StateError(f"{path} is the state of partition {found[3]}, and not of {number}")


def layout_of(path: str) -> tuple[Layout, int]:
    """What a file that `export` made is of. Raises StateError."""
    try:
        with _open(path) as made:
            slots, partitions, number = made.execute("select slots, partitions, number from about").fetchone()
    except (sqlite3.Error, TypeError) as error:
        raise StateError(f"{path} is not the state of a partition: {error}") from None
    return Layout(slots, partitions), number


@contextlib.contextmanager
def _made(path: str, layout: Layout, number: int) -> Iterator[sqlite3.Connection]:
    """A file without any rows."""
    remove_file(path)
    make_file(path)
    with _open(path) as made:
        made.execute("pragma page_size = 65536")  # in smaller ones a value of some kilobytes takes whole pages
        made.execute("pragma journal_mode = off")  # whoever meets half a file throws it away
        made.execute("pragma synchronous = off")
        made.executescript(SCHEMA + _ABOUT)
        about = FORMAT, layout.slots, layout.partitions, number, time.time_ns() // 1_000_000
        made.execute("insert into about values (?, ?, ?, ?, ?)", about)
        made.executemany("insert into slots values (?, 0)", ((slot,) for slot in layout.slots_of(number)))
        yield made


@contextlib.contextmanager
def _open(path: str) -> Iterator[sqlite3.Connection]:
    address = f"file:{quote(path)}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, isolation_level=None)) as made:
        yield made
