"""Snapshots of the partitions of one engine: taken and kept, found again and put in place.

A snapshot is nothing until a commit of the source names it: the broker takes commits from the owner of a partition
alone, so what a host uploads that is owner no more is never read by anybody. Old ones are deleted when two newer are
committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

from shardmem.errors import StateError
from shardmem.private_files import make_directory
from shardmem.remote.targets import RemoteError, Target
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.state_files import SCRATCH, STANDBY
from shardmem.state.partitions import Layout

KEPT = 2  # committed snapshots of each partition
_NAME = re.compile(r"partition-([0-9]{5})/([0-9]{12})-([0-9a-f]{16})\.sqlite")
_ID = re.compile(r"([0-9]{1,12})-([0-9a-f]{16})")


def name_of(number: int, id: str) -> str:
    """Raises StateError."""
    if not (match := _ID.fullmatch(id)):
        raise StateError(f"{id[:80]!r}, which the last commit of partition {number} names, is not a snapshot")
    return f"partition-{number:05d}/{int(match[1]):012d}-{match[2]}.sqlite"


class Snapshots:
    """files: of the engine. Every method may take its time, and may be called by several threads, by one for each
    partition."""

    def __init__(self, target: Target, files: StateFiles, layout: Layout) -> None:
        self.target, self._files, self._layout = target, files, layout
        self._committed: dict[int, list[int]] = {}  # the numbers in the names of those that commits name
        self._last: dict[int, int] = {}
        shutil.rmtree(os.path.join(files.directory, SCRATCH), ignore_errors=True)  # of one that was killed
        self._ahead = os.path.join(files.directory, STANDBY)

    def take(self, number: int) -> str:
        """Uploads the state of a partition; what a commit has to name. All that was handled before the call is in it.
        Raises ShardmemError."""
        with self._scratch() as path:
            self._files.export(self._layout, number, path)
            sequence = self._last.get(number, 0) + 1
            id = f"{sequence}-{_digest(path)}"
            self.target.put(name_of(number, id), path)
        self._last[number] = sequence
        return id

    def go_on(self, number: int, id: str | None) -> None:
        """The last commit names this one, and the state of the partition is here."""
        self._last[number] = 0
        if id is not None:
            name_of(number, id)
            self.committed(number, id)

    def restore(self, number: int, id: str | None) -> None:
        """The state of a partition is that of this snapshot; None: it has none. Raises ShardmemError: then nothing has
        changed."""
        if id is None:
            self._files.clear(self._layout, number)
        else:
            name = name_of(number, id)
            with self._scratch() as path:
                self._fetch(name, path)
                if _digest(path) != id.rpartition("-")[2]:
                    raise StateError(f"{self.target.url}: {name} is damaged: its check sum is wrong")
                self._files.install(path, self._layout, number)
        self.go_on(number, id)

    def committed(self, number: int, id: str) -> None:
        """A commit names it. Deletes what is not needed any more. Raises RemoteError; it is tried again with the
        next."""
        sequence = int(id.partition("-")[0])
        self._last[number] = max(sequence, self._last.get(number, 0))
        kept = self._committed[number] = sorted({sequence, *self._committed.get(number, ())})[-KEPT:]
        if len(kept) == KEPT:
            found = self.target.names(f"partition-{number:05d}/")
            self.target.delete(name for name in found if (match := _NAME.fullmatch(name)) and int(match[2]) < kept[0])

    # ---- for a host that may take over ---------------------------------------------------------------------------

    def look_ahead(self, owned: set[int]) -> None:
        """Fetch the newest snapshots of partitions that others own, so that one to be restored is here. Raises
        RemoteError."""
        newest: dict[int, list[str]] = {}
        for name in sorted(self.target.names("partition-")):
            if (match := _NAME.fullmatch(name)) and (number := int(match[1])) not in owned:
                newest[number] = [*newest.get(number, ()), name][-KEPT:]
        wanted = {name.replace("/", "-"): name for names in newest.values() for name in names}
        make_directory(self._ahead)
        have = set(os.listdir(self._ahead))
        for old in have - wanted.keys():
            os.unlink(os.path.join(self._ahead, old))
        for local in sorted(wanted.keys() - have):
            with self._scratch() as path, contextlib.suppress(RemoteError):  # it may be deleted by now
                self.target.get(wanted[local], path)
                os.replace(path, os.path.join(self._ahead, local))

    def _fetch(self, name: str, path: str) -> None:
        with contextlib.suppress(OSError):
            os.replace(os.path.join(self._ahead, name.replace("/", "-")), path)
            return
        self.target.get(name, path)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        """A path in the file system of the state files."""
        scratch = os.path.join(self._files.directory, SCRATCH)
        make_directory(scratch)
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            yield os.path.join(directory, "state.sqlite")


def _digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
