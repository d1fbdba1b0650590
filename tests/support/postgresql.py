"""A PostgreSQL server for tests, behind a unix socket."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from typing import Any


@dataclass(frozen=True)
class Server:
    """directory: of its socket. programs: where its psql is."""

    directory: str
    programs: str

    @property
    def conninfo(self) -> str:
        return f"host={self.directory} user=tester dbname=postgres"

    @property
    def environ(self) -> dict[str, str]:
        """With these a program that names nothing but a database finds it."""
        return {"PGHOST": self.directory, "PGUSER": "tester"}


def programs() -> str | None:
    """Where those of a server are; None: none is installed."""
    initdb = shutil.which("initdb") or max(glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    return initdb and os.path.dirname(initdb)


@contextlib.contextmanager
def serving(programs: str) -> Iterator[Server]:
    """It runs as a user who is not root, since it refuses to be that."""
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
    initdb = [f"{programs}/initdb", "-D", f"{directory}/data", "-A", "trust", "-U", "tester", "-E", "UTF8", "-N"]
    control = [f"{programs}/pg_ctl", "-D", f"{directory}/data", "-w", "-t", "60"]
    options = f"-c listen_addresses= -c fsync=off -c max_connections=20 -k {directory}"
    try:
        subprocess.run(initdb, check=True, **run)
        subprocess.run([*control, "-l", f"{directory}/log", "-o", options, "start"], check=True, **run)
        yield Server(directory, programs)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
        shutil.rmtree(directory, ignore_errors=True)
