"""The databases that sinks are tried on: a file of SQLite, and a PostgreSQL server of its own behind a unix socket."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest


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
def postgresql(postgresql_server: str, request: pytest.FixtureRequest) -> Iterator[Tried]:
    import psycopg

    schema = f"t{zlib.crc32(request.node.nodeid.encode())}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"create schema {schema}")
    options = f"-c search_path={schema}"
    with contextlib.closing(Tried(lambda: psycopg.connect(postgresql_server, options=options), "%s")) as tried:
        yield tried


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Tried:
    tried: Tried = request.getfixturevalue(request.param)
    return tried


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """How to connect. It runs as a user who is not root, since it refuses to be that."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb = shutil.which("initdb") or max(glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    directory = tempfile.mkdtemp(prefix="shardmem-postgresql-")  # short: the address of its socket has 107 bytes
    run: dict[str, Any] = {"env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, "cwd": "/"}
    run |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        run |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    control = [os.path.join(os.path.dirname(initdb), "pg_ctl"), "-D", f"{directory}/data", "-w", "-t", "60"]
    options = f"-c listen_addresses= -c fsync=off -c max_connections=20 -k {directory}"
    try:
        subprocess.run(
            [initdb, "-D", f"{directory}/data", "-A", "trust", "-U", "tester", "-E", "UTF8", "-N"], check=True, **run
        )
        subprocess.run([*control, "-l", f"{directory}/log", "-o", options, "start"], check=True, **run)
        yield f"host={directory} user=tester dbname=postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
        shutil.rmtree(directory, ignore_errors=True)
