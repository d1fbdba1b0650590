"""The log of an engine, read from the file that it keeps: its end, and what comes while one looks."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from shardmem.config import default_directory, log_file
from shardmem.errors import NotRunning, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.private_files import acting_as, open_private, owner_of
from shardmem.runtime.log_file import before, newest_first

Record = dict[str, Any]
Wanted = Callable[[Record], bool]
LOOK_S = 0.2  # between two looks for more
LEVELS = ("debug", "info", "warning", "error", "critical")


def place(engine: str, directory: str | None = None) -> tuple[str, int, Callable[[], bool]]:
    """(file, uid of its owner, whether the engine has ended) of an engine that runs or has left its memory; directory:
    where its files are, if it has not. Raises SegmentError, LayoutMismatch."""
    try:
        control = ControlSegment.attach(engine)
    except NotRunning:
        path = log_file(directory or default_directory(), engine)
        return path, owner_of(path), lambda: True
    owner = control.segment.owner
    return (
        log_file(directory or control.state_dir, engine),
        owner,
        lambda: control.state == "stopped" or not control.segment.is_current(),
    )


def wanted(shard: int | None = None, level: str = "debug") -> Wanted:
    """Records of a shard, or of all and the supervisor, from this level on."""
    least = LEVELS.index(level)

    def is_wanted(record: Record) -> bool:
        at = str(record.get("level"))
        return (shard is None or record.get("shard") == shard) and (at not in LEVELS or LEVELS.index(at) >= least)

    return is_wanted


class Log:
    """`last`, and then `follow`, which goes on where that ended."""

    def __init__(self, path: str, owner: int) -> None:
        self._path, self._owner = path, owner
        self._file: BinaryIO | None = None
        self._rest = b""

    def last(self, count: int, is_wanted: Wanted) -> list[Record]:
        """The last so many, oldest first. Raises ShardmemError: there is no log, or it cannot be read."""
        self.close()
        self._file, older = self._opened(self._path), self._opened(before(self._path))
        if self._file is None and older is None:
            raise ShardmemError(
                f"there is no log at {self._path}",
                hint="If the engine has ended and had a state_dir: --state-dir DIRECTORY",
            )
        end = self._file.seek(0, os.SEEK_END) if self._file else 0
        found: list[Record] = []
        for line in chain(*(newest_first(each) for each in (self._file, older) if each is not None)):
            if len(found) == count:
                break
            if (record := _record(line)) is not None and is_wanted(record):
                found.append(record)
        if self._file is not None:
            self._file.seek(end)
        if older is not None:
            older.close()
        return found[::-1]

    def follow(self, is_wanted: Wanted, is_over: Callable[[], bool]) -> Iterator[Record]:
        """What is written from there on, until `is_over`. Another file may take the place of this one meanwhile."""
        while True:
            ended, replaced = is_over(), self._is_replaced()
            if self._file is not None:  # to its end, which it has come to if another has its place
                *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
                yield from (each for each in map(_record, lines) if each is not None and is_wanted(each))
            if replaced:
                with contextlib.suppress(OSError):
                    fresh = self._open(self._path)
                    self.close()
                    self._file = fresh
            elif ended:
                return
            else:
                time.sleep(LOOK_S)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""

    def _opened(self, path: str) -> BinaryIO | None:
        """None: there is none."""
        try:
            return self._open(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ShardmemError(f"{path} cannot be read: {error.strerror}") from None

    def _open(self, path: str) -> BinaryIO:
        with acting_as(self._owner):
            return os.fdopen(open_private(path, os.O_RDONLY), "rb", buffering=0)

    def _is_replaced(self) -> bool:
        try:
            now = os.lstat(self._path)
        except OSError:
            return False
        return self._file is None or now.st_ino != os.fstat(self._file.fileno()).st_ino


def _record(line: bytes) -> Record | None:
    """None: a process was killed while it wrote it, or it is no record."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
