"""The state of slots outside the workers, and which events it reflects: one SQLite file per engine.

A checkpoint is one transaction: the states of the slots that changed, and the ranges of rows that made them so. Heads
move after it. A worker that is killed in between leaves ranges beyond its heads; its successor commits them first and
then reads the state, so both are of one moment whenever the kill comes (`sm_commit_ranges`).
"""

from __future__ import annotations

from collections.abc import Iterable

from shardmem.errors import AlreadyRunning, ShardmemError
from shardmem.runtime.sqlite import Database

_SCHEMA = """
create table if not exists engine (one integer primary key check (one = 1), id text, slots integer);
create table if not exists state (slot integer primary key, shard integer, value blob not null);
create table if not exists life (      -- the fence: who may write for a shard, and what its last checkpoint covered
    shard integer primary key, incarnation integer not null, generation integer not null, ranges blob not null);
"""


class StateStore:
    """Raises ShardmemError when the file cannot be used, AlreadyRunning when another life of this shard has begun.

    keep: states of an earlier engine of that name are taken up; otherwise they are dropped.
    """

    def __init__(self, path: str, engine_id: int, slots: int, *, keep: bool) -> None:
        self.path = path
        self._database = Database(path, _SCHEMA, "the state file", durable=keep)
        self._shard = self._incarnation = self._generation = 0
        with self._database.transaction() as connection:
            found = connection.execute("select id, slots from engine").fetchone()
            if found and found[1] != slots and keep:
                raise ShardmemError(
                    f"the state file {path} was made with slots={found[1]} and the engine has slots={slots}: "
                    f"keys would not find their state; run it with slots={found[1]}, or set another state_dir"
                )
            if not found or found[0] != f"{engine_id:x}":
                connection.execute("delete from life")  # about lanes that are gone
                if not keep:
                    connection.execute("delete from state")
                connection.execute("insert or replace into engine values (1, ?, ?)", (f"{engine_id:x}", slots))

    def begin_life(self, shard: int, incarnation: int, generation: int, expected: bool = False) -> bytes:
        """From here on only this incarnation writes for the shard. The ranges of its predecessor's last checkpoint.
        expected: there was a predecessor, which had saved state in this file."""
        self._shard, self._incarnation, self._generation = shard, incarnation, generation
        with self._database.transaction() as connection:
            found = connection.execute(
                "select incarnation, generation, ranges from life where shard = ?", (shard,)
            ).fetchone()
            if found and found[0] > incarnation:
                raise AlreadyRunning(f"shard {shard}: incarnation {found[0]} has begun, this is {incarnation}")
            if expected and not (found and found[1] == generation):
                raise ShardmemError(
                    f"the state file {self.path} knows nothing of shard {shard}, whose last worker had saved state in "
                    "it: it has been removed or replaced",
                    hint="Put the file back; or lose the state and go on without it: `shardmem reload`",
                )
            ranges = found[2] if found and found[1] == generation else b""
            connection.execute(
                "insert or replace into life values (?, ?, ?, ?)", (shard, incarnation, generation, ranges)
            )
        return ranges

    def save(self, states: Iterable[tuple[int, bytes]], ranges: bytes) -> None:
        """(slot, state) of what changed, and the ranges of rows behind it, all or nothing."""
        with self._database.transaction() as connection:
            written = connection.execute(
                "update life set ranges = ? where shard = ? and incarnation = ? and generation = ?",
                (ranges, self._shard, self._incarnation, self._generation),
            ).rowcount
            if not written:
                raise AlreadyRunning(
                    f"shard {self._shard}: incarnation {self._incarnation} may not write to {self.path}, "
                    f"another life of the shard has begun"
                )
            connection.executemany(
                "insert or replace into state values (?, ?, ?)", [(slot, self._shard, value) for slot, value in states]
            )

    def load(self, slots: Iterable[int]) -> dict[int, bytes]:
        """The states of these slots that have one."""
        wanted = set(slots)
        if len(wanted) == 1:
            return dict(self._database.rows("select slot, value from state where slot = ?", *wanted))
        return {slot: value for slot, value in self._database.rows("select slot, value from state") if slot in wanted}

    def close(self) -> None:
        self._database.close()
