"""The standard streams of a process of ours: always there, and never a reason to fail.

Whoever starts us may have closed some of them (`2>&-`, a daemon), and the other end of one may go while we run: a
terminal that is closed, a reader that ends. A handler's `print` would raise then for every event, and good events would
be taken for bad ones. As under nohup, what is written from then on is lost.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_GONE = (errno.EIO, errno.EPIPE, errno.ENXIO)  # nobody will ever read what is written there
_FULL = (errno.ENOSPC, errno.EDQUOT)  # there may be room again


class _Lasting(io.FileIO):
    """What cannot be written is lost."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in _GONE:
                open_null(self.fileno())
            elif error.errno not in _FULL:
                raise
            return memoryview(data).nbytes


def settle() -> None:
    """Called by every process of ours that lives long, before it opens anything."""
    for descriptor in _closed():
        open_null(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)


@contextlib.contextmanager
def occupied() -> Iterator[None]:
    """For the block, closed standard streams are /dev/null: a pipe that is made inside is none of them."""
    filled = _closed()
    for descriptor in filled:
        open_null(descriptor)
    try:
        yield
    finally:
        for descriptor in filled:
            os.close(descriptor)


class Terminal:
    """The terminal that this process was started from, if it was."""

    def __init__(self) -> None:
        self._had_one = _has_terminal()

    @property
    def is_gone(self) -> bool:
        """It was closed: what the kernel or the shell says with SIGHUP then is no order to reload."""
        return self._had_one and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # then it is not known
    return True


def _closed() -> list[int]:
    found = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            found.append(descriptor)
    return found


def open_null(descriptor: int) -> None:
    """It is /dev/null from here on, and inherited."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """The same stream on the same descriptor. One that somebody has replaced, a test for one, is left as it is."""
    real = sys.__stdout__ if descriptor == 1 else sys.__stderr__
    if stream is not real or not (stream is None or isinstance(stream, io.TextIOWrapper)):
        assert stream is not None
        return stream
    raw = _Lasting(descriptor, "w", closefd=False)
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if isinstance(stream.buffer, io.BufferedWriter) else raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
