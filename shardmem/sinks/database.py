"""A connection of the user's: when it is made, what a transaction of it is, and which of its errors are no fault of the
events. PostgreSQL by any DB-API driver, and SQLite."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardmem.runtime.outcomes import Retry
from shardmem.text import of_error

PARAMETERS = 30_000  # of one statement: PostgreSQL takes 65,535 and SQLite 32,766
ROWS = 500  # of one statement: more of them make it no faster, and its text longer


@dataclass(frozen=True)
class Dialect:
    """differs: of two values, either of which may be null. locking: at the end of a select of rows that are about to be
    changed; SQLite has one writer at a time, so there it has nothing to lock."""

    differs: str
    locking: str
    begin: str
    add_column: str


POSTGRESQL = Dialect("is distinct from", "for update", "begin", "add column if not exists")
SQLITE = Dialect("is not", "", "begin immediate", "add column")


class Database:
    """`transaction` is all that is done with it. given: a connection, or a function that makes one: then one that is
    lost is made again. set_up: what is done first with each connection, in a transaction of its own."""

    def __init__(self, given: Any, set_up: Callable[[Statements], None]) -> None:
        is_connection = hasattr(given, "cursor")  # callable() says nothing: a connection of sqlite3 is
        if not is_connection and not callable(given):
            raise TypeError(f"{given!r} is neither a connection nor a function that makes one")
        self._make: Callable[[], Any] | None = None if is_connection else given
        self.connection: Any = given if is_connection else None
        self._set_up, self._is_set_up = set_up, False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Statements]:
        """All or nothing. Raises Retry when the database cannot be reached, loses the connection, or asks to be tried
        later; then nothing, or, where the answer to the commit was lost, perhaps all."""
        try:
            self._open()
            if not self._is_set_up:
                with self._begun() as statements:
                    self._set_up(statements)
                self._is_set_up = True
            with self._begun() as statements:
                yield statements
        except BaseException as error:
            if not is_passing(error):
                raise
            self.close()
            raise Retry(f"the database: {of_error(error)}") from error

    @contextlib.contextmanager
    def _begun(self) -> Iterator[Statements]:
        statements = Statements(self.connection)
        try:
            statements.begin()
            yield statements
            statements.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # a connection that is lost has rolled back
                statements.rollback()
            raise

    def _open(self) -> None:
        if self.connection is None:
            assert self._make is not None
            try:
                self.connection = self._make()
            except OSError as error:
                raise Retry(f"the database cannot be reached: {of_error(error)}") from error
            self._is_set_up = False

    def close(self) -> None:
        """A connection that was made here."""
        if self._make is not None and self.connection is not None:
            with contextlib.suppress(Exception):
                self.connection.close()
            self.connection = None


class Statements:
    """A cursor of a transaction, that knows how the driver writes parameters: `?` in what it is given."""

    def __init__(self, connection: Any) -> None:
        driver = _driver_of(connection)
        self.connection, self.dialect = connection, SQLITE if driver.__name__ == "sqlite3" else POSTGRESQL
        self._cursor: Any = connection.cursor()
        self._mark = "?" if driver.paramstyle == "qmark" else "%s"
        self._by_statement = getattr(connection, "autocommit", None) is True

    def execute(self, query: str, values: Sequence[Any] = ()) -> int:
        """How many rows it changed."""
        if self._mark != "?":
            query = query.replace("%", "%%").replace("?", self._mark) if values else query
        self._cursor.execute(query, values) if values else self._cursor.execute(query)
        return int(self._cursor.rowcount)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self.execute(query, values)
        return list(self._cursor.fetchall())

    def columns(self, table: str) -> list[str]:
        self.execute(f"select * from {table} limit 0")
        return [each[0] for each in self._cursor.description]

    def begin(self) -> None:
        """In the other modes of a connection the driver begins one by itself; SQLite's would first only read, and not
        be let write when another has written since."""
        is_open = getattr(self.connection, "in_transaction", None)
        if self._by_statement or is_open is False:
            self.execute(self.dialect.begin)

    def commit(self) -> None:
        self.execute("commit") if self._by_statement else self.connection.commit()

    def rollback(self) -> None:
        self.execute("rollback") if self._by_statement else self.connection.rollback()


def chunks(rows: Iterable[Sequence[Any]], width: int) -> Iterator[list[Sequence[Any]]]:
    """As many as fit into one statement."""
    rows, most = list(rows), max(1, min(ROWS, PARAMETERS // max(1, width)))
    for first in range(0, len(rows), most):
        yield rows[first : first + most]


def marks(rows: int, columns: int) -> str:
    one = f"({', '.join('?' * columns)})"
    return ", ".join([one] * rows)


def quoted(name: str) -> str:
    """A name as it is spelt; schema.table is two."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def is_passing(error: BaseException) -> bool:
    """Whether it says something of the database or the connection, and nothing of what was to be written. DB-API has
    these names; drivers derive from them."""
    if isinstance(error, sqlite3.Error):
        text = str(error)
        return any(part in text for part in ("locked", "disk", "unable to open", "readonly", "closed database"))
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError"})


def _driver_of(connection: Any) -> Any:
    """The module that says how parameters are written: of the class, or of one that it derives from."""
    for base in type(connection).__mro__:
        module = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(module, "paramstyle"):
            return module
    raise TypeError(f"{connection!r} is not a connection of a DB-API driver")
