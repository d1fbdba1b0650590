"""State asked for from outside: the last committed values, read from the files, whoever is alive. No worker notices."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from shardmem.config import state_directory
from shardmem.errors import ConfigError
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import Key, plain_key
from shardmem.state.store import Row


@dataclass(frozen=True, eq=False)
class StateValue:
    """A value as it was last saved. It equals its value.

    age: seconds since the last checkpoint of its shard. Without a declared type, objects are dicts and lists.
    """

    value: Any
    age: float
    shard: int
    slot: int

    def __eq__(self, other: object) -> bool:
        return bool(self.value == (other.value if isinstance(other, StateValue) else other))

    __hash__ = None  # type: ignore[assignment]


class StateAccess:
    """Raises ShardmemError for a file that cannot be read, StateError for a value that is damaged."""

    def __init__(self, directory: str, engine: str) -> None:
        self.directory = state_directory(directory, engine)
        self._reader = StateReader(self.directory)

    def get(self, name: str, key: object, type: Any = Any) -> StateValue | None:
        """None: there is none, or it has expired."""
        plain = plain_key(key)
        found = self._reader.get(name, plain)
        now = time.time()
        if found is None or _has_expired(found.row, now):
            return None
        age = max(0.0, now - found.saved_ms / 1000)
        return StateValue(value_of(found.row, type), age, found.shard, found.slot)

    def items(self, name: str) -> Iterator[tuple[Key, Any]]:
        """Key and value of each, by slot."""
        now = time.time()
        for _, _, key, row in self._reader.rows(name):
            if not _has_expired(row, now):
                yield key, value_of(row)

    def has(self, name: str) -> bool:
        """Whether anything is saved under this name."""
        return next(self._reader.rows(name), None) is not None

    def some_names(self) -> list[str]:
        """Of states, as the first thousands of values know them: all, unless one has next to none."""
        return sorted({name for _, name, _, _ in islice(self._reader.rows(), 10_000)})

    def count(self) -> dict[str, int]:
        """How many values each keyed state has."""
        now = time.time()
        return dict(
            sorted(Counter(name for _, name, _, row in self._reader.rows() if not _has_expired(row, now)).items())
        )

    def close(self) -> None:
        self._reader.close()


def _has_expired(row: Row, now: float) -> bool:
    return row[2] is not None and row[2] <= now * 1000


def value_of(row: Row, type: Any = Any) -> Any:
    """What was saved by pickle stays bytes: to unpickle runs what it says."""
    try:
        return msgspec.msgpack.decode(row[0], type=type)
    except msgspec.DecodeError:
        if type is not Any:
            raise
        return row[0]


def json_of(value: Any) -> Any:
    """As JSON has it: bytes are base64, keys of objects are text."""
    return msgspec.to_builtins(value, str_keys=True)


def key_as_json(key: Key) -> Any:
    return {"base64": base64.b64encode(key).decode()} if isinstance(key, bytes) else key


def find_text(access: StateAccess, name: str, text: str, kind: str | None) -> tuple[Key, StateValue] | None:
    """Of a key as it is written in a shell or an address. kind: "int", "str" or "bytes"; None: the first of these, text
    first, that has a value. Raises ConfigError: it is not of that kind."""
    keys: list[Key] = []
    if kind in (None, "str"):
        keys.append(text)
    if kind in (None, "int"):
        try:
            keys.append(plain_key(int(text)))
        except ValueError as error:
            if kind:
                raise ConfigError(f"key={text!r} is not an integer of a key: {error}") from None
    if kind in (None, "bytes"):
        keys.append(text.encode("utf-8", "surrogateescape"))
    found = ((key, access.get(name, key)) for key in keys)
    return next(((key, value) for key, value in found if value is not None), None)


def describe(name: str, key: Key, found: StateValue) -> dict[str, Any]:
    return {
        "state": name,
        "key": key_as_json(key),
        "value": json_of(found.value),
        "age": round(found.age, 3),
        "shard": found.shard,
        "slot": found.slot,
    }
