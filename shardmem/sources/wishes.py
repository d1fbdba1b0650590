"""What people wish of a source: to pause, to go on elsewhere. A file beside its status, so that a wish holds whoever
lives, and for the next process too. Those who wish write it, one at a time; the source reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Pause:
    """Who reads no more, as people wish: all of a source, or some of its partitions."""

    every: bool = False
    some: frozenset[str] = frozenset()

    def __contains__(self, partition: str) -> bool:
        return self.every or partition in self.some


@dataclass
class Wishes:
    """paused: all of it; partitions: those of it that wait by themselves. seek: the number of the newest wish to go on
    elsewhere, which is the file and the place. to: "start", "end", or an offset."""

    paused: bool = False
    partitions: list[str] = field(default_factory=list)
    seek: int = 0
    file: str = ""
    to: str | int = "start"

    @property
    def pause(self) -> Pause:
        return Pause(self.paused, frozenset(self.partitions))


def wishes_in(path: str) -> Wishes:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return Wishes(**json.load(file))
    except (OSError, ValueError, TypeError):
        return Wishes()


@contextlib.contextmanager
def wishing(path: str) -> Iterator[Wishes]:
    """Change what it gives; it is written at the end. Raises OSError."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wishes = wishes_in(path)
        yield wishes
        fresh = f"{path}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(asdict(wishes), file)
        os.replace(fresh, path)
    finally:
        os.close(lock)
