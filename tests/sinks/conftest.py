"""The databases that sinks are tried on: a file of SQLite, and a PostgreSQL server of its own behind a unix socket."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.postgresql import Server


class Tried:
    """A database without tables. mark: how its driver writes a parameter."""

    def __init__(self, make: Callable[[], Any], mark: str) -> None:
        self._make, self.mark = make, mark
        self.connections: list[Any] = []

    def connect(self) -> Any:
        """Another connection; it is closed when the test is over."""
        self.connections.append(self._make())
        return self.connections[-1]

    def run(self, *statements: str) -> list[Any]:
        """What the last one answers."""
        with contextlib.closing(self._make()) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            found = cursor.fetchall() if cursor.description else []
            connection.commit()
        return found

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Tried]:
    path = str(tmp_path / "sink.sqlite")
    with contextlib.closing(Tried(lambda: sqlite3.connect(path, timeout=30.0, check_same_thread=False), "?")) as tried:
        yield tried


@pytest.fixture
def postgresql(postgresql_server: Server, request: pytest.FixtureRequest) -> Iterator[Tried]:
    import psycopg

    schema = f"t{zlib.crc32(request.node.nodeid.encode())}"
    with psycopg.connect(postgresql_server.conninfo, autocommit=True) as connection:
        connection.execute(f"create schema {schema}")
    options = f"-c search_path={schema}"
    with contextlib.closing(Tried(lambda: psycopg.connect(postgresql_server.conninfo, options=options), "%s")) as tried:
        yield tried


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Tried:
    tried: Tried = request.getfixturevalue(request.param)
    return tried
