"""What the state file and the quarantine file share: opening, transactions, errors that say what to do."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from shardmem.errors import ShardmemError

PATIENCE = 60.0  # seconds: another worker may be stopped by a signal in the middle of its transaction


class Database:
    """One SQLite file that several processes write to (WAL). Every failure is a ShardmemError that names the file.

    durable: survives a power loss as well; without it, the death of any process, which is what is promised. patience:
    seconds to wait for others.
    """

    def __init__(self, path: str, schema: str, what: str, durable: bool = False, patience: float = PATIENCE) -> None:
        self.path, self._what = path, what
        with self._explained():
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            except OSError as error:
                raise ShardmemError(
                    f"cannot create {os.path.dirname(path)} for {what}: {error.strerror}; set state_dir to a "
                    f"directory that this user can write to"
                ) from error
            self.connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
            try:
                os.chmod(path, 0o600)
                self.connection.execute("pragma journal_mode = wal")
                self.connection.execute(f"pragma synchronous = {'normal' if durable else 'off'}")
                self.connection.executescript(schema)
            except BaseException:
                self.connection.close()
                raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises ShardmemError: then nothing."""
        with self._explained():
            self.connection.execute("begin immediate")
            try:
                yield self.connection
                self.connection.execute("commit")
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("rollback")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._explained():
            return self.connection.execute(query, values).fetchall()

    def close(self) -> None:
        self.connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ShardmemError(
                f"{self._what} {self.path} cannot be used: {error}; nothing of this step was written. Make room, "
                f"or mend or remove the file, or set state_dir to another directory"
            ) from error
