"""What the state file and the quarantine file share: opening, transactions, errors that say what to do."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from shardmem.errors import ShardmemError
from shardmem.private_files import Identity, acting_as, check_file, hide_file, identity, make_file

PATIENCE = 60.0  # seconds: another worker may be stopped by a signal in the middle of its transaction
POLL = 0.01
LOOK_PATIENCE = 1.0
PUT_BACK = "Put the file back and run `shardmem reload`; without it, what it held is lost"


class FileVanished(ShardmemError):
    """The file was removed, or another is in its place. Whoever opens it again makes a new one."""


class Database:
    """One SQLite file that several processes write to (WAL). Every failure is a ShardmemError that names the file.

    durable: survives a power loss as well; without it, the death of any process, which is what is promised. patience:
    seconds to wait for others. owner: the uid whose file it is, if not this process's: root may act for any. if_gone:
    what to do when somebody has removed it.
    """

    def __init__(
        self,
        path: str,
        schema: str,
        what: str,
        durable: bool = False,
        patience: float = PATIENCE,
        owner: int | None = None,
        if_gone: str = PUT_BACK,
    ) -> None:
        self.path, self._what, self._if_gone = path, what, if_gone
        self._owner = os.geteuid() if owner is None else owner
        self._sidecar: Identity | None = None
        with self._explained():
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            except FileExistsError as error:
                raise ShardmemError(
                    f"cannot create the directory {os.path.dirname(path)} for {what}: something else has that name",
                    hint="Remove it, and find who made it; or set state_dir to another directory",
                ) from error
            except OSError as error:
                raise ShardmemError(
                    f"cannot create {os.path.dirname(path)} for {what}: {error.strerror}; set state_dir to a "
                    f"directory that this user can write to"
                ) from error
            make_file(path)
            self._identity = check_file(path, what, self._owner)
            hide_file(path)
            # uri: of files that are attached; its own is taken as it is
            self.connection = sqlite3.connect(path, uri=True, timeout=patience, isolation_level=None)
            try:
                self._set_up(schema, durable, patience)
                self._expect_same()
            except BaseException:
                self.connection.close()
                raise

    def _set_up(self, schema: str, durable: bool, patience: float) -> None:
        """SQLite does not wait while another process turns the same fresh file to WAL, so this does."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self.connection.execute("pragma journal_mode = wal")
                self.connection.execute(f"pragma synchronous = {'normal' if durable else 'off'}")
                self.connection.executescript(schema)
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises ShardmemError: then nothing."""
        with self._explained():
            self._expect_same()
            self.connection.execute("begin immediate")
            try:
                yield self.connection
                self._expect_same()
                self.connection.execute("commit")
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("rollback")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._explained():
            self._expect_same()
            return self.connection.execute(query, values).fetchall()

    def close(self) -> None:
        with acting_as(self._owner):
            self.connection.close()

    def _expect_same(self) -> None:
        """What is written to a file that has lost its name is lost, and SQLite does not say so. The same of the log
        beside it, which is there from the first transaction to the end."""
        log = f"{self.path}-wal"
        if self._sidecar is None:
            self._sidecar = identity(log)
        gone = next(
            (
                path
                for path, ours in ((self.path, self._identity), (log, self._sidecar))
                if ours is not None and identity(path) != ours
            ),
            None,
        )
        if gone is not None:
            _never_close(self.connection)
            state = "has been removed" if identity(gone) is None else "has been replaced by another file"
            raise FileVanished(
                f"{self._what} {self.path} is no longer the one that was opened: {gone} {state}; nothing of this step "
                "was written",
                hint=f"{self._if_gone}. To keep cleaners of temporary files away, set `state_dir`",
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        with explained(self._what, self.path), acting_as(self._owner):
            yield


def _never_close(connection: sqlite3.Connection) -> None:
    """When SQLite closes a file it removes the log beside it by its name, which is that of another file's log by
    now."""
    if connection not in _kept:
        import ctypes  # of a process that ends, too: then nobody is left who could keep it

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        _kept.append(connection)


_kept: list[sqlite3.Connection] = []


class Reading:
    """A file that others write to, looked at: nothing is made or changed. Raises ShardmemError. patience: seconds in
    which a writer that is just opening or closing it may finish."""

    def __init__(self, path: str, what: str, owner: int | None = None, patience: float = LOOK_PATIENCE) -> None:
        self.path, self._what, self._patience = path, what, patience
        self._owner = os.geteuid() if owner is None else owner
        check_file(path, what, self._owner)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with explained(self._what, self.path), acting_as(self._owner):
            deadline = time.monotonic() + self._patience
            while True:
                try:
                    return self._look(address_of(self.path), query, values)
                except sqlite3.OperationalError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(POLL)

    def _look(self, address: str, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=self._patience)) as connection:
            return connection.execute(query, values).fetchall()

    def close(self) -> None: ...


def has_log(path: str) -> bool:
    """Whether there is anything in the log beside it."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(f"{path}-wal").st_size > 0
    return False


def address_of(path: str) -> str:
    """For whoever only looks. SQLite makes files beside one in WAL mode even to read it, unless it is told not to. With
    nothing in the log, all there is is in the file itself."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} has been removed")
    base = f"file:{quote(path)}"
    if not has_log(path):
        return f"{base}?immutable=1"
    return f"{base}?mode=ro&readonly_shm=1" if os.path.exists(f"{path}-shm") else f"{base}?mode=ro"


@contextlib.contextmanager
def explained(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError) as error:
        raise ShardmemError(
            f"{what} {path} cannot be used: {error}; nothing of this step was written", hint=_hint(error, path)
        ) from error


def _hint(error: Exception, path: str) -> str:
    text = str(error)
    if _is_busy(error):
        return f"Another process has held its lock for too long; see who has {path} open: `fuser {path}`"
    if "full" in text or "disk I/O" in text:
        return f"Make room in {os.path.dirname(path)}, or set `state_dir` to another directory"
    return "Mend the file, or move it away and lose what it holds, or set `state_dir` to another directory"


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
