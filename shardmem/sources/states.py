"""The state of the partitions of a source: restored before their events flow, and named by their commits.

What a commit says of state, in its metadata: the snapshot that it goes with, or, when there is no remote, the files of
which host it is in. With a remote, what is committed is how far the newest snapshot is: at most what was handled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from shardmem.remote.address import target_of
from shardmem.remote.snapshots import Snapshots
from shardmem.remote.uploads import Safe, Uploaded, Uploads
from shardmem.runtime.partition_count import count
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.state_files import shard_files
from shardmem.state.partitions import Layout
from shardmem.state_settings import RemoteSettings

HERE = "@"  # before the name of files


class Stateless:
    """Of a source whose engine keeps nothing by partition. Partitions are numbers; each has all topics that this host
    reads of it. Called on the thread of the source."""

    def take_up(self, number: int, metadata: Iterable[str], ours: bool) -> Future[None] | None:
        """metadata: of the last commits of its topics. ours: they are of this engine. None: its events may flow; else
        they may when that is done, unless it raises ShardmemError: then it is to be tried again."""
        return None

    def give_up(self, number: int, safe: Safe, timeout: float) -> None:
        """All before these offsets was handled; `place` says then what may be committed."""

    def lost(self, number: int) -> None:
        """Another may own it."""

    def step(self, safe: Mapping[int, Safe]) -> None:
        """Again and again: all before these offsets was handled."""

    def named(self, number: int) -> str | None:
        """The state that its events go into, as commits name it."""
        return None

    def place(self, number: int, topic: str, safe: int) -> tuple[int | None, str | None, bool]:
        """(offset, state) that may be committed, offset None: nothing yet; whether no commit has named that state."""
        return safe, None, False

    def committed(self, number: int) -> None:
        """What `place` said."""

    def describe(self) -> dict[str, Any] | None:
        """Of the remote, for status."""
        return None


class States(Stateless):
    """Of an engine that may keep state."""

    def __init__(
        self, files: StateFiles, layout: Layout, name: str, uploads: Uploads | None, log: logging.Logger
    ) -> None:
        """name: of the files, whichever engine has them."""
        self._files, self._layout, self._here = files, layout, HERE + name
        self._uploads, self._log = uploads, log
        self._ready: dict[int, Uploaded] = {}  # that may be committed
        self._named: dict[int, str | None] = {}  # by the last commit

    @classmethod
    def open(
        cls, files: StateFiles, layout: Layout, settings: RemoteSettings, told: bool, log: logging.Logger
    ) -> States:
        """told: the number of partitions may have changed. Raises ConfigError."""
        name = count(files.directory, layout.slots, layout.partitions, told).id
        uploads = None
        if settings.remote is not None:
            uploads = Uploads(Snapshots(target_of(settings.remote), files, layout), settings, log)
        return cls(files, layout, name, uploads, log)

    # ---- a partition comes and goes ----------------------------------------------------------------------------------

    def take_up(self, number: int, metadata: Iterable[str], ours: bool) -> Future[None] | None:
        named = newest(map(state_of, metadata))
        self._ready.pop(number, None)
        self._named[number] = named
        self._files.remove_taken_up()
        is_here = ours or named in (None, self._here)
        if self._uploads is None:
            if not is_here and shard_files(self._files.directory):
                self._log.warning(
                    "partition %d comes from another host, and there is no remote: its state begins empty; set "
                    "`remote` in [state] to take it along",
                    number,
                )
                self._files.clear(self._layout, number)
            return None
        snapshot = None if named is None or named.startswith(HERE) else named
        if is_here:
            self._uploads.go_on(number, snapshot)
            return None
        if snapshot is None:
            self._log.warning(
                "partition %d comes from a host that had no remote: its state stayed there, and begins empty", number
            )
        return self._uploads.restore(number, snapshot)

    def give_up(self, number: int, safe: Safe, timeout: float) -> None:
        if self._uploads is not None and (uploaded := self._uploads.give_up(number, safe, timeout)) is not None:
            self._ready[number] = uploaded

    def lost(self, number: int) -> None:
        self._ready.pop(number, None)
        self._named.pop(number, None)
        if self._uploads is not None:
            self._uploads.lost(number)

    # ---- as long as it is here ---------------------------------------------------------------------------------------

    def step(self, safe: Mapping[int, Safe]) -> None:
        if self._uploads is not None:
            self._ready.update((uploaded.number, uploaded) for uploaded in self._uploads.step(safe))

    def named(self, number: int) -> str | None:
        return self._here if self._uploads is None else self._named.get(number)

    def place(self, number: int, topic: str, safe: int) -> tuple[int | None, str | None, bool]:
        if self._uploads is None:
            return safe, self._here, False
        if (uploaded := self._ready.get(number)) is None:
            return None, None, False
        return uploaded.offsets.get(topic), uploaded.id, self._named.get(number) != uploaded.id

    def committed(self, number: int) -> None:
        uploaded = self._ready.get(number)
        if self._uploads is not None and uploaded is not None and self._named.get(number) != uploaded.id:
            self._named[number] = uploaded.id
            self._uploads.committed(uploaded)

    def describe(self) -> dict[str, Any] | None:
        return None if self._uploads is None else self._uploads.describe()


def metadata_of(engine: str, state: str | None) -> str:
    return json.dumps({"e": engine} if state is None else {"e": engine, "s": state})


def state_of(metadata: str) -> str | None:
    try:
        said = json.loads(metadata)
    except ValueError:
        return None
    return said.get("s") if isinstance(said, dict) and isinstance(said.get("s"), str) else None


def newest(named: Iterable[str | None]) -> str | None:
    """Of snapshots that commits of several topics name: one commit of two may not have come through."""

    def age(name: str) -> int:
        sequence = name.partition("-")[0]
        return int(sequence) if sequence.isdigit() else -1

    return max((name for name in named if name is not None), key=age, default=None)
