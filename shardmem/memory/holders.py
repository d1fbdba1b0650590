"""The process that a word in shared memory names, if it is that one.

Whoever owns the memory can write any number into it, and a stray store can too: root's `stop` ended a process of root's
that had nothing to do with the engine. So a process is only taken for one of an engine's when the kernel says that it
has the engine's memory mapped, and that it is of the user whose memory it is.
"""

from __future__ import annotations

import os

from shardmem.memory.segment import PREFIX, SHM_DIRECTORY, Segment


def mapped_by(pid: int) -> set[int]:
    """The inodes of the segments that a process has mapped."""
    mark = os.fsencode(os.path.join(SHM_DIRECTORY, PREFIX))
    try:
        with open(f"/proc/{pid}/maps", "rb") as lines:
            return {int(line.split(None, 5)[4]) for line in lines if mark in line}
    except OSError:
        return set()


def open_holder(pid: int, segment: Segment) -> int | None:
    """A pidfd; None: it is gone, it is another process, or it cannot be seen from here."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    # It was opened before the look: so its number is not another's by now, or the signal reaches nobody.
    if os.fstat(segment.descriptor).st_ino in mapped_by(pid) and _real_uid(pid) == segment.owner:
        return pidfd
    os.close(pidfd)
    return None


def _real_uid(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith(b"Uid:")), None)
    except OSError:
        return None
