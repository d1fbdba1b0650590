"""State as a stream: JSON lines for people and other programs, or compact frames, one for each slot.

Both begin with how many slots there are. Compact: MAGIC, then frames of length, CRC-32 and MessagePack
`[slot, [[key, value, version, expires], ...], [[key, due], ...]]`, keys as the store writes them.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Container, Iterable, Iterator
from typing import IO, Any

import msgspec

from shardmem.errors import ShardmemError, StateError
from shardmem.runtime.state import StateStore, shard_files
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import Key, prefix, store_key
from shardmem.state.store import Changes, Row
from shardmem.state.timers import USER

MAGIC = b"shardmem state 1\n"
_FRAME = struct.Struct("<II")
_IMPORTER = 0  # the shard whose file takes what is imported
TOGETHER = 10_000  # rows of one transaction

Slots = Container[int] | None


# ---- export ----------------------------------------------------------------------------------------------------------


def export_lines(reader: StateReader, slots: Slots = None) -> Iterator[str]:
    yield _line(slots=reader.slots)
    for slot, state in reader.snapshots().items():
        if slots is None or slot in slots:
            yield _line(slot=slot, snapshot=_base64(state))
    for slot, name, key, (value, version, expires) in reader.rows():
        if slots is None or slot in slots:
            yield _line(
                state=name,
                key=_key_out(key),
                **_value_out(value),
                **({"version": version} if version != 1 else {}),
                **({"expires": expires} if expires is not None else {}),
            )
    for slot, name, key, due in reader.timers():
        if slots is None or slot in slots:
            yield _line(**{"timer" if name[:1] == USER else "expiry": name[1:]}, key=_key_out(key), due=due)


def export_compact(reader: StateReader, slots: Slots = None) -> Iterator[bytes]:
    yield MAGIC + struct.pack("<I", reader.slots)
    for slot in reader.owners():
        if slots is None or slot in slots:
            packed = msgspec.msgpack.encode([slot, *reader.slot(slot)])
            yield _FRAME.pack(len(packed), zlib.crc32(packed)) + packed


def _line(**members: Any) -> str:
    return json.dumps(members, separators=(",", ":"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _key_out(key: Key) -> Any:
    return {"base64": _base64(key)} if isinstance(key, bytes) else key


def _value_out(data: bytes) -> dict[str, Any]:
    """As JSON if that says all there is; else the bytes themselves."""
    try:
        value = msgspec.msgpack.decode(data)
        if _value_in({"value": json.loads(json.dumps(value, allow_nan=False))}) == data:
            return {"value": value}
    except (msgspec.DecodeError, TypeError, ValueError):
        pass
    return {"encoded": _base64(data)}


# ---- import ----------------------------------------------------------------------------------------------------------


def import_state(source: IO[bytes], directory: str) -> int:
    """How many values, timers and snapshots were taken. The engine must not exist: files have one writer. Raises
    ShardmemError when the source is not an export, or the files are of another number of slots; what was taken before
    the fault stays."""
    head = source.readline(1 << 20)
    if head == MAGIC:
        slots, entries = struct.unpack("<I", _exactly(source, 4))[0], _compact_entries(source)
    else:
        try:
            slots = int(json.loads(head)["slots"])
        except (ValueError, KeyError, TypeError):
            raise ShardmemError("this is not an export of state: it does not begin as one") from None
        entries = _line_entries(source, slots)
    if not 0 < slots <= 65536 or slots & (slots - 1):
        raise ShardmemError(f"this is not an export of state: it says slots={slots}")
    store = _store(directory, slots)
    try:
        return _take(store, entries)
    finally:
        store.leave()


def _store(directory: str, slots: int) -> StateStore:
    path = shard_files(directory).get(_IMPORTER)
    store = StateStore(directory, _IMPORTER, 0, slots, keep=True)
    incarnation = store.last_incarnation() + 1 if path else 1
    store.begin_life(incarnation, 1)
    return store


def _take(store: StateStore, entries: Iterable[tuple[bytes, Row | None, int | None]]) -> int:
    taken, changes, claimed = 0, Changes(), set[int]()

    def save() -> None:
        fresh = {int.from_bytes(key[:2], "big") for key in (*changes.rows, *changes.timers)} - claimed
        store.claim(claimed | fresh)
        claimed.update(fresh)
        store.save([], changes, b"")

    for key, row, due in entries:
        if row is not None:
            changes.rows[key] = row
        if due is not None:
            changes.timers[key] = due
        taken += 1
        if taken % TOGETHER == 0:
            save()
            changes = Changes()
    save()
    return taken


def _line_entries(source: IO[bytes], slots: int) -> Iterator[tuple[bytes, Row | None, int | None]]:
    for number, line in enumerate(source, 2):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            yield _entry(found, slots)
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"line {number} is not of an export of state: {type(error).__name__}: {error}") from None


def _entry(found: dict[str, Any], slots: int) -> tuple[bytes, Row | None, int | None]:
    if "snapshot" in found:
        if not 0 <= found["slot"] < slots:
            raise ValueError(f"slot {found['slot']} is not one of {slots}")
        return prefix(found["slot"], b""), (base64.b64decode(found["snapshot"]), 0, None), None
    key = base64.b64decode(found["key"]["base64"]) if isinstance(found["key"], dict) else found["key"]
    if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
        raise TypeError(f"{key!r} is not a key")
    for kind, mark in (("timer", USER), ("expiry", "=")):
        if kind in found:
            return (
                store_key(key, (mark + found[kind]).encode("utf-8", "surrogateescape"), slots),
                None,
                int(found["due"]),
            )
    row = _value_in(found), int(found.get("version", 1)), found.get("expires")
    return store_key(key, found["state"].encode(), slots), row, None


def _value_in(found: dict[str, Any]) -> bytes:
    return base64.b64decode(found["encoded"]) if "encoded" in found else msgspec.msgpack.encode(found["value"])


def _compact_entries(source: IO[bytes]) -> Iterator[tuple[bytes, Row | None, int | None]]:
    number = 0
    while head := source.read(_FRAME.size):
        number += 1
        if len(head) < _FRAME.size:
            raise StateError(f"frame {number} of this export is cut off")
        length, total = _FRAME.unpack(head)
        packed = _exactly(source, length)
        if zlib.crc32(packed) != total:
            raise StateError(f"frame {number} of this export is damaged: its check sum is wrong")
        _, rows, timers = msgspec.msgpack.decode(packed)
        for key, value, version, expires in rows:
            yield key, (value, version, expires), None
        for key, due in timers:
            yield key, None, due


def _exactly(source: IO[bytes], length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise StateError("this export is cut off")
    return data
