"""What can be asked of the sources of an engine. Their status is read and their wishes are written beside the engine's
state, so that neither supervisor nor source need be alive."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from shardmem.errors import ConfigError, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.sources.wishes import Pause, Wishes, wishing
from shardmem.status.document import SourceStatus, feeding
from shardmem.status.sources import file_of, sought, source_status, sources_of

LOOK = 0.05  # seconds between two looks at whether it was done
PATIENCE = 30.0  # seconds for it to be done


class SourcesOf:
    def __init__(self, engine: str, directory: str, owner: int) -> None:
        """directory: where the engine keeps its state. owner: the uid whose engine it is."""
        self._engine, self._directory, self._owner = engine, directory, owner

    @classmethod
    def engine(cls, name: str | None) -> SourcesOf:
        """name: None: the only engine. Raises NotRunning."""
        if name is None:
            from shardmem.client.client import only_engine

            name = only_engine()
        control = ControlSegment.attach(name)
        try:
            return cls(name, control.state_dir, control.segment.owner)
        finally:
            control.close()

    def status(self) -> list[SourceStatus]:
        return sources_of(self._directory, self._engine, self._owner)

    def pause(
        self, source: str | None, paused: bool, timeout: float = PATIENCE, partitions: Sequence[str] = ()
    ) -> dict[str, Any]:
        """When its process reads no more, or goes on; alive: whether there is one. partitions: only these; without them
        all, and to go on means with those, too, that were paused by name. Raises ConfigError, ShardmemError."""
        now = self._one(source)
        name, chosen = now["name"], [_partition(now, each) for each in partitions]
        with self._wishing(name) as wishes:
            if chosen:
                others = set(wishes.partitions).difference(chosen)
                wishes.partitions = sorted(others.union(chosen) if paused else others)
            else:
                wishes.paused, wishes.partitions = paused, wishes.partitions if paused else []
            wanted = wishes.pause
        deadline = time.monotonic() + timeout
        while (now := self._status(name))["alive"] and not _has_noticed(now, wanted):
            self._wait(deadline, f"source {name} has not noticed yet: it waits for room in a lane, or is starting")
        return {"source": name, "paused": paused, "partitions": chosen, "alive": now["alive"]}

    def seek(self, source: str | None, partition: str, to: str | int, timeout: float = PATIENCE) -> dict[str, Any]:
        """When its process goes on there. Raises ConfigError, ShardmemError: then it goes on as before."""
        now = self._one(source)
        name, partition = now["name"], _partition(now, partition)
        if not now["alive"] or now["state"] not in ("running", "paused"):
            raise ConfigError(f"source {name} is not reading: it is {now['state']}")
        with self._wishing(name) as wishes:
            wishes.seek, wishes.file, wishes.to = wishes.seek + 1, partition, to
        number, deadline = wishes.seek, time.monotonic() + timeout
        while (done := sought(self._directory, self._engine, name))[0] < number:
            self._wait(deadline, f"source {name} has not gone there yet: it waits for room in a lane")
        _, error, place = done
        if error is not None:
            raise ConfigError(error)
        return {"source": name, "partition": partition, "offset": place}

    def _one(self, source: str | None) -> SourceStatus:
        found = self.status()
        fed = feeding(found)
        if source is None and len(fed) == 1:
            return fed[0]
        names = ", ".join(each["name"] for each in (fed if source is None else found))
        if source is None:
            raise ConfigError(
                f"engine {self._engine} has several sources: {names}; say which, --source NAME"
                if fed
                else f"engine {self._engine} has no source"
            )
        for each in found:
            if each["name"] == source:
                return each
        raise ConfigError(f"engine {self._engine} has no source {source!r}" + (f"; it has {names}" if names else ""))

    def _status(self, name: str) -> SourceStatus:
        found = source_status(self._directory, self._engine, name)
        if found is None:
            raise ShardmemError(f"source {name} is none of engine {self._engine} any more")
        return found

    @contextlib.contextmanager
    def _wishing(self, name: str) -> Iterator[Wishes]:
        try:
            with wishing(file_of(self._directory, self._engine, name, "wishes")) as wishes:
                yield wishes
        except OSError as error:
            raise ShardmemError(f"cannot write to {self._directory}: {error.strerror}") from None

    def _wait(self, deadline: float, late: str) -> None:
        if time.monotonic() >= deadline:
            raise ShardmemError(f"{late}; it will as soon as it can")
        time.sleep(LOOK)


def _has_noticed(source: SourceStatus, wanted: Pause) -> bool:
    """What is being given up, or taken up, is neither."""
    return source["paused"] == wanted.every and all(
        (each["state"] == "paused") == (name in wanted)
        for name, each in source["partitions"].items()
        if each["state"] in ("paused", "owned", "full")
    )


def _partition(source: SourceStatus, file: str) -> str:
    """The name by which the source knows a file. Raises ConfigError."""
    names = list(source["partitions"])
    if file in names:
        return file
    same = [name for name in names if _is_same(name, file)]
    # the source may have been started in another directory
    same = same or [name for name in names if name.endswith(f"/{file}") or file.endswith(f"/{name}")]
    if len(same) == 1:
        return same[0]
    raise ConfigError(f"source {source['name']} does not read {file}; it reads {', '.join(names[:10]) or 'no file'}")


def _is_same(name: str, file: str) -> bool:
    try:
        return os.path.samefile(name, file)
    except OSError:
        return False
