"""The log of an engine, kept in a file beside its state: what `shardmem logs` shows, wherever standard error goes.

Supervisor, workers and sources all append to it, a line of JSON for each record. It is opened for each record: a
handler may close every descriptor of its process, and what is opened next under that number would be written into. The
supervisor alone begins a new file when the old one is large (upkeep.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import BinaryIO

from shardmem.private_files import open_private
from shardmem.runtime import logs

LARGEST = 4 << 20  # bytes; the one before is kept too
LONGEST = 64 << 10  # bytes of a record


def keep_in(path: str) -> None:
    """All logging of this process from here on. After logs.set_up."""
    handler = _LogFile(path)
    handler.setFormatter(logs.json_formatter())
    logging.getLogger().addHandler(handler)


class _LogFile(logging.Handler):
    """What cannot be written is lost: a full disk is no reason to fail, and standard error has it too."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self.addFilter(logs.Repeats())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="backslashreplace")
            if len(line) > LONGEST:
                short = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None})
                short.msg, short.args = record.getMessage()[: LONGEST // 8], None
                line = self.format(short).encode(errors="backslashreplace")[:LONGEST]
            descriptor = open_private(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(descriptor, line + b"\n")
            finally:
                os.close(descriptor)
        except Exception:  # OSError, or what a record's arguments raise when they are asked
            return


def turn(path: str) -> None:
    """Begin a new file if this one is large. Raises OSError."""
    try:
        if os.lstat(path).st_size > LARGEST:
            os.replace(path, before(path))
    except FileNotFoundError:
        return


def before(path: str) -> str:
    """The file before this one."""
    return f"{path}.1"


def remove(path: str) -> None:
    for each in (path, before(path)):
        try:
            os.unlink(each)
        except OSError:
            continue


def newest_first(file: BinaryIO, size: int = 1 << 16) -> Iterator[bytes]:
    """The lines of a file from its end backwards."""
    at, rest = file.seek(0, os.SEEK_END), b""
    while at > 0:
        step = min(size, at)
        at -= step
        file.seek(at)
        rest, *lines = (file.read(step) + rest).split(b"\n")
        yield from (line for line in reversed(lines) if line)
    if rest:
        yield rest
