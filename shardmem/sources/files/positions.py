"""How far each file has been handled, kept across runs. A file is known by its inode and its first bytes, whatever it
is called."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass

from shardmem.errors import AlreadyRunning, ConfigError
from shardmem.sources.contract import Position

PRINT = 256  # bytes that tell files apart


@dataclass
class Known:
    path: str
    device: int
    inode: int
    print: str  # of the first `printed` bytes
    printed: int
    offset: int
    metadata: str


class Positions:
    """One file, held by one process at a time."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError, AlreadyRunning."""
        self.path = path
        self._known: dict[tuple[int, int], Known] = {}
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"positions cannot be kept in {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning(f"another process reads with the positions of {path}") from None
        try:
            with open(path, encoding="utf-8") as file:
                for each in json.load(file)["files"]:
                    known = Known(**each)
                    self._known[known.device, known.inode] = known
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise ConfigError(f"{path} does not hold positions: {error}; move it away to begin anew") from None

    def of(self, fd: int) -> Position | None:
        """Of the file that is open here; None: it was never read."""
        status = os.fstat(fd)
        known = self._known.get((status.st_dev, status.st_ino))
        if known is not None and _print_of(fd, known.printed) == (known.print, known.printed):
            return Position(known.offset, known.metadata)
        return None

    def put(self, fd: int, path: str, position: Position) -> None:
        """Written by `save`."""
        status = os.fstat(fd)
        found, printed = _print_of(fd, PRINT)
        self._known[status.st_dev, status.st_ino] = Known(
            path, status.st_dev, status.st_ino, found, printed, position.offset, position.metadata
        )

    def save(self, sync: bool) -> None:
        """The whole file is replaced: it is the old one or the new one."""
        fresh = f"{self.path}.new"
        with open(fresh, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump({"version": 1, "files": [vars(each) for each in self._known.values()]}, file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(fresh, self.path)

    def forget_gone(self) -> None:
        """Files that no path leads to any more."""
        for place, known in list(self._known.items()):
            try:
                status = os.stat(known.path)
            except OSError:
                del self._known[place]
                continue
            if (status.st_dev, status.st_ino) != place and not _is_near(known.path, place):
                del self._known[place]

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _is_near(path: str, place: tuple[int, int]) -> bool:
    """Whether a file of the directory is the one: it was renamed, as rotation does."""
    try:
        with os.scandir(os.path.dirname(path) or ".") as entries:
            return any(entry.inode() == place[1] for entry in entries)
    except OSError:
        return False


def _print_of(fd: int, size: int) -> tuple[str, int]:
    try:
        head = os.pread(fd, size, 0)
    except OSError:
        head = b""
    return hashlib.sha256(head).hexdigest()[:32], len(head)
