"""The user's own statements, and which events they were for, in one transaction: each event once, whoever handles it,
and however often."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

from shardmem.runtime.batch import Batch
from shardmem.sinks import applied
from shardmem.sinks.database import Database, Statements
from shardmem.sinks.origins import streams_of

FORGET_EVERY = 10.0  # seconds


def transaction(connection: Any) -> Transaction:
    """A sink that applies each event once to a database of PostgreSQL or SQLite.

    connection: of any DB-API driver, or a function that makes one: then a connection that is lost is made again. It
        is used by nobody else in the meantime.

        once = sinks.transaction(connect)

        with once as tx:
            for user, payload in tx.fresh(batch):
                tx.connection.execute("update visits set count = count + 1 where name = %s", [user])

    Which events were applied is in a table `shardmem_applied` of the same database, and becomes true with the commit at
    the end of the block. An event that comes again (its worker or host was killed, its partition was taken by another
    host, this host was frozen) is not fresh. Events without an origin (batch.origins) always are.
    """
    return Transaction(connection)


class Transaction:
    """Made by `transaction`. A context manager, to be used again for each batch."""

    def __init__(self, connection: Any) -> None:
        self._database = Database(connection, applied.create)
        self._open: contextlib.AbstractContextManager[Statements] | None = None
        self._statements: Statements | None = None
        self._safe: dict[tuple[str, int], int] = {}  # of partitions whose events were asked for
        self._forgot_at = time.monotonic()

    def __enter__(self) -> Transaction:
        if self._open is not None:
            raise RuntimeError("this transaction is open already: one block of it at a time")
        self._open = self._database.transaction()
        try:
            self._statements = self._open.__enter__()
        except BaseException:
            self._open = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commits, or rolls back if the block has raised. Raises shardmem.Retry when the database is away, or asks to
        be tried later: the batch comes again, and nothing is quarantined."""
        assert self._open is not None
        opened, self._open, self._statements = self._open, None, None
        opened.__exit__(kind, error, trace)
        if error is None and time.monotonic() - self._forgot_at > FORGET_EVERY:
            self.forget()

    @property
    def connection(self) -> Any:
        """What the statements of the block are given to. It is committed at the end, and not before."""
        return self._database.connection

    def close(self) -> None:
        """The connection, if it was made by the function that was given."""
        self._database.close()

    def forget(self) -> None:
        """Rows of events that no host will be given again are deleted; done by itself from time to time."""
        for place, low in self._safe.items():
            with self._database.transaction() as statements:
                applied.forget(statements, place, low)
        self._safe, self._forgot_at = {}, time.monotonic()

    def fresh(self, batch: Batch) -> Iterator[Any]:
        """Over those events of the batch that were not applied before, as iterating over the batch gives them. They all
        count as applied when the block ends."""
        rows = set(self.fresh_rows(batch).tolist())
        return (event for row, event in enumerate(batch) if row in rows)

    def fresh_rows(self, batch: Batch) -> np.ndarray:
        """The same, as numbers of rows."""
        if self._statements is None:
            raise RuntimeError("fresh events are those of an open transaction: with transaction as tx: tx.fresh(batch)")
        is_fresh, safe = np.ones(len(batch), "?"), batch.safe()
        for stream in streams_of(batch):
            if (place := (stream.topic, stream.partition)) in safe:
                self._safe[place] = safe[place]
            is_fresh[stream.rows] = False
            is_fresh[applied.take(self._statements, stream)] = True
        return np.flatnonzero(is_fresh)
