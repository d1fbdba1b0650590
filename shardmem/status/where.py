"""Where the events of a key go, read from shared memory: needs no supervisor, and asks nobody."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardmem.errors import ConfigError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.words import now_ns
from shardmem.runtime.batch import slot_of
from shardmem.schema import Schema
from shardmem.status.document import Where


def where(control: ControlSegment, key: int | str | bytes) -> Where:
    """Raises ConfigError: this engine has no such keys."""
    slot = slot_of(checked_key(control.schema, key), control.slots)
    move = control.move(slot)
    is_moving = move.phase != "none"
    owner = move.source if is_moving else int(control.slot_table()[0][slot])
    shard = owner if owner < control.room else None
    view = control.view_shard(shard) if shard is not None else None
    alive = shard is not None and control.worker_alive(shard)
    came = move.number > 0 and not is_moving and move.target == owner
    return {
        "key": key.decode(errors="backslashreplace") if isinstance(key, bytes) else key,
        "slot": slot,
        "shard": shard,
        "pid": view.pid if view is not None and alive else None,
        "incarnation": view.incarnation if view is not None else None,
        "owner_since": max(0, now_ns() - move.since_ns) / 1e9 if came else None,
        "moving_to": move.target if is_moving else None,
    }


def checked_key(schema: Schema, key: Any) -> int | bytes | str:
    """As producers of this engine hash it."""
    if isinstance(key, (bool, float)) or not isinstance(key, (int, np.integer, str, bytes)):
        raise ConfigError(f"key={key!r} is not a key: int, str or bytes (events without a key go to any shard)")
    if schema.dtype is None:
        return int(key) if isinstance(key, np.integer) else key
    if schema.key is None:
        raise ConfigError("the records of this engine have no key field: they go to any shard")
    field = schema.dtype[schema.key]
    if field.kind == "S":
        return _bytes_key(schema.key, key, field.itemsize)
    if isinstance(key, (str, bytes)):
        raise ConfigError(f"key={key!r} is not an integer: field {schema.key!r} of this engine's records is {field}")
    limits = np.iinfo(field)
    if not limits.min <= key <= limits.max:
        raise ConfigError(f"key={key} is outside {limits.min} to {limits.max}: field {schema.key!r} is {field}")
    return int(key)


def _bytes_key(name: str, key: int | np.integer | str | bytes, limit: int) -> bytes:
    if isinstance(key, (int, np.integer)):
        raise ConfigError(f"key={key} is not bytes: field {name!r} of this engine's records holds {limit} bytes")
    encoded = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
    if len(encoded) > limit:
        raise ConfigError(f"key={key!r} has {len(encoded)} bytes: field {name!r} holds {limit}")
    return encoded.rstrip(b"\0")  # a field is filled up with them


def key_of_text(schema: Schema, text: str, *, as_int: bool) -> int | str:
    """As it is written in a shell: a number where the engine's keys are numbers. as_int: of events, whose keys may be
    either."""
    field = schema.dtype[schema.key] if schema.dtype is not None and schema.key is not None else None
    if not as_int and (field is None or field.kind == "S"):
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"key={text!r} is not an integer") from None
