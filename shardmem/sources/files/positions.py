"""How far each file has been handled, kept across runs. A file is known by its inode, its first bytes and those before
the place, whatever it is called."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from dataclasses import dataclass

from shardmem.errors import AlreadyRunning, ConfigError
from shardmem.private_files import open_private
from shardmem.sources.contract import Position, SourceError

PRINT = 256  # bytes that tell files apart
KEEP = 30 * 86400.0  # seconds


@dataclass
class Known:
    path: str
    device: int
    inode: int
    print: str  # of the first `printed` bytes
    printed: int
    offset: int
    metadata: str
    before: str = ""  # of the last bytes before the place, where the file is read as it is
    behind: int = 0  # the place in the file itself, a mark at its beginning counted
    at: float = 0.0  # when, in seconds since 1970


class Positions:
    """One file, held by one process at a time."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError, AlreadyRunning."""
        self.path = path
        self._known: dict[tuple[int, int], Known] = {}
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            self._lock = open_private(f"{path}.lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ConfigError(f"positions cannot be kept in {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning(f"another process reads with the positions of {path}") from None
        try:
            with open(path, encoding="utf-8", opener=open_private) as file:
                for each in json.load(file)["files"]:
                    known = Known(**each)
                    self._known[known.device, known.inode] = known
            self._forget_gone()
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise ConfigError(f"{path} does not hold positions: {error}; move it away to begin anew") from None

    def of(self, fd: int) -> Position | None:
        """Of the file that is open here; None: it was never read, or is not what was read then."""
        status = os.fstat(fd)
        known = self._known.get((status.st_dev, status.st_ino))
        if known is None or _print_of(fd, 0, known.printed) != (known.print, known.printed):
            return None
        if known.before and _print_before(fd, known.behind) != known.before:
            return None
        return Position(known.offset, known.metadata)

    def put(self, fd: int, path: str, position: Position, behind: int | None) -> None:
        """Written by `save`. behind: the place in the file itself, if there is one."""
        status = os.fstat(fd)
        found, printed = _print_of(fd, 0, PRINT)
        before = "" if behind is None else _print_before(fd, behind)
        self._known[status.st_dev, status.st_ino] = Known(
            path,
            status.st_dev,
            status.st_ino,
            found,
            printed,
            position.offset,
            position.metadata,
            before,
            behind or 0,
            time.time(),
        )

    def save(self, sync: bool) -> None:
        """The whole file is replaced: it is the old one or the new one. Raises SourceError."""
        fresh = f"{self.path}.new"
        try:
            with open(fresh, "w", encoding="utf-8", errors="surrogateescape", opener=open_private) as file:
                json.dump({"version": 1, "files": [vars(each) for each in self._known.values()]}, file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(fresh, self.path)
        except OSError as error:
            raise SourceError(f"positions cannot be kept in {self.path}: {error.strerror}") from None

    def _forget_gone(self) -> None:
        """Files that were not read for long, and that no path leads to any more. Not at once: a file system may be away
        for a while."""
        for place, known in list(self._known.items()):
            if time.time() - known.at > KEEP and not _is_near(known.path, place):
                del self._known[place]

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _is_near(path: str, place: tuple[int, int]) -> bool:
    """Whether a file of its directory is the one: it may have been renamed, as rotation does."""
    try:
        with os.scandir(os.path.dirname(path) or ".") as entries:
            return any(entry.inode() == place[1] for entry in entries)
    except OSError:
        return False


def _print_of(fd: int, at: int, size: int) -> tuple[str, int]:
    try:
        data = os.pread(fd, size, at)
    except OSError:
        data = b""
    return hashlib.sha256(data).hexdigest()[:32], len(data)


def _print_before(fd: int, place: int) -> str:
    size = min(place, PRINT)
    found, had = _print_of(fd, place - size, size)
    return found if had == size else "none"
