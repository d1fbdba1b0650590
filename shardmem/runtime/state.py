"""The state of slots, kept outside the workers: what one worker hands over, the next takes up."""
from __future__ import annotations

import os
import sqlite3
from typing import Iterable

from shardmem.errors import ShardmemError

_SCHEMA = """
create table if not exists state (
    slot integer primary key,
    number integer not null,      -- of the handoff that wrote it
    shard integer not null,       -- that wrote it
    value blob not null
) without rowid
"""


class StateStore:
    """One SQLite file per engine, shared by its workers (WAL). Raises ShardmemError when it cannot be used."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = off")  # survives every process; not promised to survive the host
            self._database.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ShardmemError(f"cannot open the state file {path}: {error}; set state_dir to a directory that this user "
                                f"can write to") from error

    def put(self, shard: int, states: Iterable[tuple[int, int, bytes]]) -> None:
        """(slot, number of the handoff, state) of some slots, all or none."""
        with self._guarded():
            self._database.execute("begin immediate")
            self._database.executemany("insert or replace into state values (?, ?, ?, ?)",
                                       [(slot, number, shard, value) for slot, number, value in states])
            self._database.execute("commit")

    def get(self, slot: int) -> bytes | None:
        with self._guarded():
            row = self._database.execute("select value from state where slot = ?", (slot,)).fetchone()
        return None if row is None else row[0]

    def close(self) -> None:
        self._database.close()

    def _guarded(self) -> _Guard:
        return _Guard(self)


class _Guard:
    def __init__(self, store: StateStore) -> None:
        self._store = store

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            if self._store._database.in_transaction:
                self._store._database.execute("rollback")
            raise ShardmemError(f"the state file {self._store.path} failed: {error}; nothing of this step was written") from error
