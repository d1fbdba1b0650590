"""A forked child of a worker is no worker.

A handler may fork. The child has no lease, so it may outlive the worker, and it may read the batch; but where it comes
back from the handler, by returning or by an exception, it would go on as a second worker of the shard: events would be
handled twice and out of order. So it ends there, and until then it can write to no segment of the worker's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from shardmem.memory.segment import Segment

log = logging.getLogger("shardmem.worker")

_worker = 0  # the pid; 0: this process is none
_segments: tuple[Segment, ...] = ()


def fence(*segments: Segment) -> None:
    """This process is a worker, and these are its segments."""
    global _worker, _segments
    _worker, _segments = os.getpid(), segments


def end_if_forked(error: BaseException | None = None) -> None:
    """The handler has come back. error: what it raised."""
    if _worker == 0 or os.getpid() == _worker:
        return
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
        log.error("a forked child of worker pid %d came back from the handler by an exception", _worker, exc_info=error)
    else:
        log.warning("a forked child of worker pid %d came back from the handler and is ended: it is no worker", _worker)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


def _protect() -> None:
    for segment in _segments:
        segment.make_read_only()


os.register_at_fork(after_in_child=_protect)
