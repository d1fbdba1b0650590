"""What an engine takes of the machine: shared memory, and the files of its state; and what the machine has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TypedDict

from shardmem.config import state_directory
from shardmem.memory.segment import SHM_DIRECTORY, path_of
from shardmem.status.document import MachineStatus


class Footprint(TypedDict):
    shm_bytes: int
    shm_free_bytes: int | None
    shm_size_bytes: int | None
    state_bytes: int | None
    state_age_s: float | None


def machine() -> MachineStatus:
    """The machine that all share, as it is now: memory that is free could be had without swapping."""
    memory: dict[str, int] = {}
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                memory[name] = int(rest.split()[0]) * 1024
        load: float | None = os.getloadavg()[0]
    except (OSError, ValueError, IndexError):
        load = None
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_1m": load,
        "memory_free_bytes": memory.get("MemAvailable"),
        "memory_size_bytes": memory.get("MemTotal"),
    }


def footprint(segments: Iterable[str], directory: str, engine: str) -> Footprint:
    """segments: names of the engine's. What cannot be seen is None."""
    free, whole = _room()
    size, age = _state(state_directory(directory, engine)) if directory else (None, None)
    return {
        "shm_bytes": sum(_blocks(path_of(name)) for name in segments),
        "shm_free_bytes": free,
        "shm_size_bytes": whole,
        "state_bytes": size,
        "state_age_s": age,
    }


def _room() -> tuple[int | None, int | None]:
    try:
        found = os.statvfs(SHM_DIRECTORY)
    except OSError:
        return None, None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _blocks(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0  # it goes at this moment


def _state(directory: str) -> tuple[int | None, float | None]:
    size, newest = 0, None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                size += found.st_size
                newest = max(newest or 0.0, found.st_mtime)
    except OSError:
        return None, None
    return (size, max(0.0, time.time() - newest)) if newest is not None else (None, None)
