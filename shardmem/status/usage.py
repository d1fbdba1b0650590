"""What worker processes use of the machine, as /proc says, for readers of status."""

from __future__ import annotations

import os

from shardmem.runtime.child import KINDS

WORKER = KINDS["worker"].module.encode()
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


class Usage:
    """Of one worker after another; whether a process is a worker is looked up once in each life."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[tuple[int, int], bool]] = {}

    def of(self, shard: int, incarnation: int, pid: int) -> tuple[float | None, int | None]:
        """(CPU seconds used so far, bytes of resident memory); None when the process cannot be seen from here."""
        life, is_worker = self._found.get(shard, (None, False))
        if life != (incarnation, pid):
            is_worker = _is_worker(pid)
            self._found[shard] = (incarnation, pid), is_worker
        return used_by(pid) if is_worker else (None, None)


def used_by(pid: int) -> tuple[float | None, int | None]:
    """The same, of any process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # proc(5): from the third field on
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None, None


def _is_worker(pid: int) -> bool:
    """A number from another pid namespace may be another process here."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return WORKER in file.read()
    except OSError:  # the number is what shared memory says
        return False
