"""One row per key, and never an older one over a newer one: each row says which event it is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shardmem.errors import ConfigError
from shardmem.runtime.batch import Batch
from shardmem.sinks.database import Database, Statements, chunks, marks, quoted
from shardmem.sinks.origins import stamps_of

STAMP = {"_topic": "text", "_partition": "bigint", "_offset": "bigint"}


def upsert(connection: Any, table: str, *, key: str | Sequence[str], columns: str | Sequence[str] = ()) -> Upsert:
    """A sink that keeps one row per key in a table of PostgreSQL or SQLite.

    connection: of any DB-API driver, or a function that makes one: then a connection that is lost is made again. It
        is used by nobody else in the meantime.
    key: the column, or columns, that a unique index is on. columns: the others that are written. Names as they are
        spelt.

    The table gets three columns more, `_topic`, `_partition` and `_offset`: the event that the row is of. An event that
    comes again, or late from a host that was frozen and whose partitions another one has taken, is older than what is
    there, and changes nothing. Events without an origin (batch.origins) are written in any case, and so is an event of
    another topic or partition than the row's: between these there is no order.

        orders = sinks.upsert(connect, "orders", key="id", columns=["item", "amount"])
        orders.write(batch, [json.loads(payload) for payload in batch.payloads])
    """
    return Upsert(connection, table, _names(key), _names(columns))


class Upsert:
    """Made by `upsert`."""

    def __init__(self, connection: Any, table: str, key: list[str], columns: list[str]) -> None:
        if not key or len({*key, *columns, *STAMP}) != len(key) + len(columns) + len(STAMP):
            raise ConfigError(f"key={key!r} and columns={columns!r} are not different names, or there is no key")
        self._database, self._table, self._key, self._columns = Database(connection, self._set_up), table, key, columns

    def write(self, batch: Batch, rows: Iterable[Mapping[str, Any] | Sequence[Any] | None] | None = None) -> int:
        """One transaction. How many rows it changed: of a batch that comes again, none.

        rows: one for each event of the batch, in its order: a mapping by name of column, or a tuple of key and columns
            in the order in which they were named; None: nothing is written for that event. Left out: of records, their
            fields; of events, their key and payload, for one key and one column.
        Raises shardmem.Retry when the database is away, or asks to be tried later: the batch comes again, and nothing
        is quarantined. ConfigError when the table lacks a column. What the database says of a value is raised as it is.
        """
        latest: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        given = list(self._rows_of(batch) if rows is None else rows)
        if len(given) != len(batch):
            raise ValueError(
                f"{len(given):,} rows for a batch of {len(batch):,} events; None is one that writes nothing"
            )
        for row, stamp in zip(given, stamps_of(batch)):
            if row is not None:
                values = self._values(row)
                latest[values[: len(self._key)]] = (*values, *stamp)
        if not latest:
            return 0
        with self._database.transaction() as statements:
            return self._write(statements, list(latest.values()))

    def close(self) -> None:
        """The connection, if it was made by the function that was given."""
        self._database.close()

    def _rows_of(self, batch: Batch) -> Iterable[Any]:
        names = [*self._key, *self._columns]
        if batch._schema.is_records:
            return zip(*(batch.records[name].tolist() for name in names))
        if len(self._key) != 1 or len(self._columns) != 1:
            raise ValueError("rows are missing: what of an event goes into which column is for the handler to say")
        return batch

    def _values(self, row: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...]:
        names = [*self._key, *self._columns]
        if isinstance(row, Mapping):
            return tuple(row[name] for name in names)
        if len(row) != len(names):
            raise ValueError(f"a row of {len(row)} values for {', '.join(names)}")
        return tuple(value.item() if isinstance(value, np.generic) else value for value in row)

    def _write(self, statements: Statements, rows: list[tuple[Any, ...]]) -> int:
        names, differs = [*self._key, *self._columns, *STAMP], statements.dialect.differs
        into = f"insert into {quoted(self._table)} as was ({', '.join(map(quoted, names))}) values "
        change = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in [*self._columns, *STAMP])
        guard = (
            f" on conflict ({', '.join(map(quoted, self._key))}) do update set {change} "
            f'where excluded."_offset" is null or excluded."_offset" > was."_offset" '
            f'or was."_topic" {differs} excluded."_topic" or was."_partition" {differs} excluded."_partition"'
        )
        written = 0
        for some in chunks(rows, len(names)):
            values = [value for row in some for value in row]
            written += statements.execute(into + marks(len(some), len(names)) + guard, values)
        return written

    def _set_up(self, statements: Statements) -> None:
        there = statements.columns(quoted(self._table))
        missing = [name for name in (*self._key, *self._columns) if name not in there]
        if missing:
            raise ConfigError(f"table {self._table} has no column {missing[0]!r}; it has {', '.join(there)}")
        for name, kind in STAMP.items():
            if name not in there:
                add = statements.dialect.add_column
                statements.execute(f"alter table {quoted(self._table)} {add} {quoted(name)} {kind}")


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)
