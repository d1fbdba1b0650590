"""What can be done with the events in quarantine: look at them, give them back, throw them away. For the control API
and the command line alike, which opens the file itself and needs no supervisor.

All of it waits: for the file, which workers write to, and for room in lanes. The supervisor does it in a thread.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardmem.errors import ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.runtime.producer import Producer, connect
from shardmem.runtime.quarantine import NoSuchEvent, Quarantine, Quarantined, QuarantineReader, is_there
from shardmem.schema import Schema

NEWEST = 100  # events that the API shows at once
LONGEST = 1000  # characters of a key, where many are listed
FILE = 5.0  # seconds for which whoever asks the supervisor waits for the file


@dataclass
class Replay:
    """What became of a replay. left: not given back, still in quarantine; why: what the first of them met with."""

    replayed: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    why: str | None = None


class QuarantineAccess:
    """The quarantine of one engine, as the API has it. Every method opens the file anew: it comes with its first event,
    and may be removed. Raises ShardmemError. limit: quarantine_limit as it is now."""

    def __init__(self, engine: str, path: str, limit: Callable[[], int]) -> None:
        self._engine, self._path, self._limit = engine, path, limit

    def look(self) -> dict[str, Any]:
        count, events = 0, []
        if is_there(self._path):
            with QuarantineReader(self._path) as found:
                count, events = found.count(), found.events(newest=NEWEST, payloads=False)
        return {
            "file": self._path,
            "count": count,
            "limit": self._limit(),
            "events": [describe(each) for each in events],
        }

    def show(self, number: int) -> dict[str, Any]:
        self._expect_any()
        with QuarantineReader(self._path) as found:
            (event,) = found.events([number])
        return describe(event, whole=True)

    def replay(self, numbers: Iterable[int] | None, seconds: float) -> Replay:
        if numbers is None and not is_there(self._path):
            return Replay()
        self._expect_any()
        with Quarantine(self._path, patience=FILE) as found:
            return replay(self._engine, found, numbers, seconds)

    def purge(self, numbers: Iterable[int] | None) -> int:
        if numbers is None and not is_there(self._path):
            return 0
        self._expect_any()
        with Quarantine(self._path, patience=FILE) as found:
            return found.purge(numbers)

    def _expect_any(self) -> None:
        if not is_there(self._path):
            raise NoSuchEvent(f"nothing was ever quarantined ({self._path} does not exist)")


def replay(engine: str, found: Quarantine, numbers: Iterable[int] | None, seconds: float | None = None) -> Replay:
    """Push events into the running engine again, as new ones: these, or all that were not replayed yet. Stops at the
    first that cannot be pushed within so many seconds for all of them: those behind it may have its key. Raises
    ShardmemError when there is no such event, or no engine.
    """
    wanted = found.numbers(numbers)
    deadline = None if seconds is None else time.monotonic() + seconds
    given, by_partition = Replay(left=wanted), _keeps_state_by_partition(engine)
    with connect(engine, reconnect=False) as producer:
        while given.left:
            number = given.left[0]
            try:
                (event,) = found.events([number])
                if by_partition and "partition" in event.came_with:
                    raise ShardmemError(
                        f"event {number} came from partition {event.came_with['partition']} of "
                        f"{event.came_with.get('topic')}, and here it would be counted in the state of another one; "
                        "send it to the topic again"
                    )
                _push(event, producer, None if deadline is None else max(0.0, deadline - time.monotonic()))
                found.replayed(
                    number
                )  # after it was accepted: killed in between, it is there twice rather than nowhere
            except (ShardmemError, ValueError, TypeError) as error:
                given.why = str(error)
                break
            given.replayed.append(given.left.pop(0))
    return given


def _keeps_state_by_partition(engine: str) -> bool:
    control = ControlSegment.attach(engine)
    try:
        return control.partitions.count > 0 and any(map(control.has_saved_state, control.known_shards()))
    finally:
        control.close()


def _push(event: Quarantined, producer: Producer, timeout: float | None) -> None:
    """With a timeout, be it None, the engine's mode is not asked: what that drops would be marked as replayed."""
    if json.loads(json.dumps(event.schema)) != json.loads(producer.schema.to_json()):
        raise ShardmemError(
            f"event {event.id} was quarantined by an engine of {event.schema['kind']} with another schema; engine "
            f"{producer.engine} carries {producer.schema.to_json()}"
        )
    if producer.schema.is_records:
        producer.send(_rows(event), timeout)
    else:
        producer.push(event.key, event.payload, timeout)


def describe(event: Quarantined, *, whole: bool = False) -> dict[str, Any]:
    """An event as JSON. Keys and payloads that are not text are base64, and say so."""
    key = event.key if whole or not isinstance(event.key, (str, bytes)) else event.key[:LONGEST]
    described = {
        "id": event.id,
        "at": event.at,
        "shard": event.shard,
        "slot": event.slot,
        "producer": event.seat,
        "sequence": event.sequence,
        "kind": event.kind,
        "reason": event.reason,
        "attempts": event.attempts,
        "key": plain(key),
        "bytes": event.size,
        "replayed_at": event.replayed_at,
    }
    if whole:
        described |= {"traceback": event.traceback, "payload": plain(event.payload), **_origin_of(event)}
        if event.schema["kind"] == "records":
            row = _rows(event)[0]
            described["record"] = {name: plain(row[name]) for name in row.dtype.names}
    return described


def _origin_of(event: Quarantined) -> dict[str, Any]:
    """Where it came from, and when, if it came from a broker."""
    names = ("topic", "partition", "offset", "timestamp")
    return {name: event.came_with[name] for name in names if name in event.came_with}


def plain(value: Any) -> Any:
    """As JSON has it. Numbers that JSON has not are text: a browser would read nothing of the whole document."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _rows(event: Quarantined) -> np.ndarray:
    try:
        return np.frombuffer(event.payload or b"", Schema.from_json(json.dumps(event.schema)).dtype)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ShardmemError(
            f"event {event.id} in quarantine is damaged: its bytes are not a row of its schema: {error}",
            hint=f"Delete it: `shardmem quarantine purge {event.id}`",
        ) from error
