"""What sources say of themselves: a file each, beside the engine's state, that can be read with the supervisor and the
source dead.

That a source lives is the kernel's word: it holds the lock of its file.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from shardmem.memory import lease
from shardmem.private_files import acting_as, open_private
from shardmem.status.document import SourceStatus

_BYTE = 0


def file_of(directory: str, engine: str, name: str, what: str) -> str:
    """what: "status", "lock", "positions" or "wishes"."""
    return os.path.join(directory, f"{engine}.source-{name}.{what}")


class SourceFile:
    """The source's end. Raises OSError."""

    def __init__(self, directory: str, engine: str, name: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._path = file_of(directory, engine, name, "status")
        self._lock = open_private(file_of(directory, engine, name, "lock"), os.O_RDWR | os.O_CREAT)
        self.name = name
        self.incarnation = 0
        self.error: str | None = None  # of the life before

    def take(self) -> bool:
        """False: another process is this source. Begins a new incarnation."""
        if not lease.lock(self._lock, _BYTE):
            return False
        said = _read(self._path) or {}
        self.incarnation, self.error = int(said.get("incarnation", 0)) + 1, said.get("error")
        return True

    def write(self, **what: Any) -> None:
        fresh = f"{self._path}.new"
        with open(fresh, "w", encoding="utf-8", errors="surrogateescape", opener=open_private) as file:
            json.dump(
                {"name": self.name, "pid": os.getpid(), "incarnation": self.incarnation, "at": time.time(), **what},
                file,
            )
        os.replace(fresh, self._path)

    def close(self) -> None:
        os.close(self._lock)


def is_alive(directory: str, engine: str, name: str) -> bool:
    try:
        descriptor = open_private(file_of(directory, engine, name, "lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        return lease.is_locked(descriptor, _BYTE)
    finally:
        os.close(descriptor)


def source_status(directory: str, engine: str, name: str) -> SourceStatus | None:
    """What it said last, and whether it lives; None if there never was such a source."""
    said = _read(file_of(directory, engine, name, "status"))
    if said is None:
        return None
    try:
        return _status_of(name, said, is_alive(directory, engine, name))
    except (ValueError, TypeError, AttributeError, OverflowError):
        path = file_of(directory, engine, name, "status")
        return _status_of(name, {"state": "failed", "error": f"{path} is damaged; its source writes it anew"}, False)


def _status_of(name: str, said: Mapping[str, Any], alive: bool) -> SourceStatus:
    """Raises ValueError and the like: the file may be damaged."""
    commit, state, seat, remote = (said.get(key) for key in ("last_commit", "state", "seat", "remote"))
    remote = remote or {}
    state = "starting" if state is None else str(state)
    paused, waits_for = bool(said.get("paused")), said.get("waits_for")
    if not alive and state not in ("failed", "misconfigured", "ended"):
        state = "died"
    elif said.get("waits_for") and state in ("starting", "running"):
        state = "waiting"
    elif paused and state == "running":
        state = "paused"
    return {
        "name": name,
        "kind": str(said.get("kind", "")),
        "pid": int(said.get("pid", 0)),
        "alive": alive,
        "incarnation": int(said.get("incarnation", 0)),
        "state": state,
        "paused": paused,
        "error": _text(said, "error"),
        "seat": None if seat is None else int(seat),
        "events": int(said.get("events", 0)),
        "bytes": int(said.get("bytes", 0)),
        "skipped": int(said.get("skipped", 0)),
        "reasons": {str(why): int(count) for why, count in said.get("reasons", {}).items()},
        "lag_bytes": _number(said, "lag_bytes"),
        "lag_events": _number(said, "lag_events"),
        "group": _text(said, "group"),
        "epoch": _number(said, "epoch"),
        "apart": [str(each) for each in said.get("apart") or ()],
        "waits_for": None if waits_for is None or not alive else str(waits_for),
        "remote": _text(remote, "url"),
        "remote_error": _text(remote, "error"),
        "remote_error_age_s": _age(remote.get("since")),
        "uploaded_age_s": _age(remote.get("uploaded")),
        "partitions": {
            str(which): {
                "offset": int(each["offset"]),
                "at": str(each["at"]),
                "committed": _number(each, "committed"),
                "lag": _number(each, "lag"),
                "state": str(each.get("state", "")),
            }
            for which, each in said.get("partitions", {}).items()
        },
        "last_commit_age_s": _age(commit),
    }


def _age(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, time.time() - moment)


def _text(said: Mapping[str, Any], name: str) -> str | None:
    return None if said.get(name) is None else str(said[name])


def _number(said: Mapping[str, Any], name: str) -> int | None:
    return None if said.get(name) is None else int(said[name])


def sought(directory: str, engine: str, name: str) -> tuple[int, str | None, int]:
    """The number of the newest seek, why it could not be carried out, and the place that it led to."""
    said = _read(file_of(directory, engine, name, "status")) or {}
    number, error, place = said.get("sought") or (0, None, 0)
    return int(number), error, int(place)


def mark_of(table: Mapping[str, Any]) -> str:
    """Tells tables apart, and does not tell what is in them: there may be passwords."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()


def given_to(directory: str, engine: str, name: str) -> object:
    """The mark of the table that the process of a source was started with."""
    return (_read(file_of(directory, engine, name, "status")) or {}).get("given")


def forget(directory: str, engine: str, name: str) -> None:
    """Of a source that is none any more; how far it came is kept."""
    with contextlib.suppress(OSError):
        os.unlink(file_of(directory, engine, name, "status"))


def sources_of(directory: str, engine: str, owner: int) -> list[SourceStatus]:
    """owner: the uid whose files they are."""
    if not directory:
        return []
    prefix, suffix = f"{engine}.source-", ".status"
    with acting_as(owner):
        paths = sorted(glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(engine)}.source-*{suffix}")))
        names = [os.path.basename(path)[len(prefix) : -len(suffix)] for path in paths]
        return [said for name in names if (said := source_status(directory, engine, name)) is not None]


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", opener=open_private) as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
