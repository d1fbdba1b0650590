"""State as a stream: JSON lines for people and other programs, or compact frames, one for each slot.

Both begin with how many slots there are, and how many partitions they are shared out among. Compact: MAGIC, then
frames of length, CRC-32 and MessagePack: `[slot, [[key, value, version, expires], ...], [[key, due], ...]]`, keys as
the store writes them, and `[topic, number, offsets]`: how far a partition is in its slots. The state of one partition
is also to be had as a file of its own: partition_state.py.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Container, Iterable, Iterator
from typing import IO, Any

import msgspec
import numpy as np

from shardmem.errors import ConfigError, ShardmemError, StateError
from shardmem.runtime.partition_count import count
from shardmem.runtime.partition_state import SQLITE, StateFiles, layout_of
from shardmem.runtime.state import StateStore
from shardmem.runtime.state_files import shard_files
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import Key, prefix, slot_of, store_key
from shardmem.state.partitions import AppliedRow, Layout
from shardmem.state.store import Changes, Row
from shardmem.state.timers import USER

MAGIC = b"shardmem state 2\n"
_HEAD = _FRAME = struct.Struct("<II")
_IMPORTER = 0  # the shard whose file takes what is imported
TOGETHER = 10_000  # rows of one transaction

Slots = Container[int] | None
Entry = tuple[bytes, Row | None, int | None]


# ---- export ----------------------------------------------------------------------------------------------------------


def export_lines(reader: StateReader, slots: Slots = None) -> Iterator[str]:
    layout = Layout(reader.slots, reader.partitions)

    def place(slot: int) -> dict[str, int]:
        return {"partition": slot // layout.width} if layout.partitions else {}

    yield _line(slots=reader.slots, **({"partitions": layout.partitions} if layout.partitions else {}))
    for row in reader.applied(slots):
        yield _line(applied=row.topic, partition=row.number, offsets=row.array.tolist())
    for slot, state in reader.snapshots().items():
        if slots is None or slot in slots:
            yield _line(slot=slot, snapshot=_base64(state))
    for slot, name, key, (value, version, expires) in reader.rows():
        if slots is None or slot in slots:
            yield _line(
                state=name,
                key=_key_out(key),
                **place(slot),
                **_value_out(value),
                **({"version": version} if version != 1 else {}),
                **({"expires": expires} if expires is not None else {}),
            )
    for slot, name, key, due in reader.timers():
        if slots is None or slot in slots:
            yield _line(
                **{"timer" if name[:1] == USER else "expiry": name[1:]}, key=_key_out(key), due=due, **place(slot)
            )


def export_compact(reader: StateReader, slots: Slots = None) -> Iterator[bytes]:
    yield MAGIC + _HEAD.pack(reader.slots, reader.partitions)
    for row in reader.applied(slots):
        yield _framed(row)
    for slot in reader.owners():
        if slots is None or slot in slots:
            yield _framed([slot, *reader.slot(slot)])


def _framed(content: Any) -> bytes:
    packed = msgspec.msgpack.encode(content)
    return _FRAME.pack(len(packed), zlib.crc32(packed)) + packed


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


def import_state(source: IO[bytes], directory: str, partitions: int | None = None, slots: int | None = None) -> int:
    """How many values, timers and snapshots were taken; of the state of one partition, 1. The engine must not exist:
    files have one writer. partitions, slots: lay it out for so many, which JSON lines can be. Raises ShardmemError when
    the source is not an export, or the files are of another number of slots; what was taken before the fault stays."""
    head = source.readline(1 << 20)
    if head.startswith(SQLITE):
        if slots is not None or partitions is not None:
            raise ConfigError("this is the state of one partition, which cannot be laid out anew")
        return _import_partition(head, source, directory)
    if head == MAGIC:
        had, exported = _HEAD.unpack(_exactly(source, _HEAD.size))
    else:
        try:
            members = json.loads(head)
            had, exported = int(members["slots"]), int(members.get("partitions", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ShardmemError("this is not an export of state: it does not begin as one") from None
    if not 0 < had <= 65536 or had & (had - 1) or not 0 <= exported <= had:
        raise ShardmemError(f"this is not an export of state: it says slots={had} and partitions={exported}")
    slots = had if slots is None else slots
    if slots != had and (head == MAGIC or slots & (slots - 1) or not exported <= slots <= 65536):
        raise ConfigError(
            f"slots={slots}: only lines of JSON can be laid out anew, for a power of two up to 65,536",
            hint="Export it without --compact",
        )
    if partitions not in (None, exported) and (head == MAGIC or not exported):
        raise ConfigError(
            f"partitions={partitions}: only lines of JSON of a state with partitions can be laid out anew",
            hint="Export it without --compact",
        )
    layout = Layout(slots, partitions or exported)
    if layout.partitions:
        count(directory, slots, layout.partitions, told=False)
    entries = _compact_entries(source) if head == MAGIC else _line_entries(source, layout, Layout(had, exported))
    store = _store(directory, slots)
    try:
        return _take(store, layout, entries)
    finally:
        store.leave()


def _import_partition(head: bytes, source: IO[bytes], directory: str) -> int:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as partial:
        try:
            partial.write(head)
            shutil.copyfileobj(source, partial)
            partial.flush()
            layout, number = layout_of(partial.name)
            count(directory, layout.slots, layout.partitions, told=False)
            StateFiles(directory, None).install(partial.name, layout, number)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial.name)
    return 1


def _store(directory: str, slots: int) -> StateStore:
    path = shard_files(directory).get(_IMPORTER)
    store = StateStore(directory, _IMPORTER, 0, slots, keep=True)
    incarnation = store.last_incarnation() + 1 if path else 1
    store.begin_life(incarnation, 1)
    return store


def _take(store: StateStore, layout: Layout, entries: Iterable[Entry | AppliedRow]) -> int:
    taken, changes, claimed, applied = 0, Changes(), set[int](), list[AppliedRow]()

    def claim(slots: set[int]) -> None:
        if fresh := slots - claimed:
            store.claim(claimed | fresh)
            claimed.update(fresh)

    def save() -> None:
        claim({int.from_bytes(key[:2], "big") for key in (*changes.rows, *changes.timers)})
        store.save([], changes, b"")

    for entry in entries:
        if isinstance(entry, AppliedRow):
            applied.append(entry)
            continue
        key, row, due = entry
        if row is not None:
            changes.rows[key] = row
        if due is not None:
            changes.timers[key] = due
        taken += 1
        if taken % TOGETHER == 0:
            save()
            changes = Changes()
    save()
    claim({slot for row in applied for slot in layout.slots_of(row.number)})
    store.save([], Changes(), b"", applied=applied)
    return taken


def _line_entries(source: IO[bytes], layout: Layout, exported: Layout) -> Iterator[Entry | AppliedRow]:
    for number, line in enumerate(source, 2):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if "applied" not in found:
                if "snapshot" in found and layout.slots != exported.slots:
                    raise ValueError("a handler with `snapshot` made it, of all keys of a slot together")
                yield _entry(found, layout)
            elif exported == layout:  # else there is no telling: see docs/state.md
                offsets = np.array(found["offsets"], "<i8")
                if len(offsets) != layout.width:
                    raise ValueError(f"{len(offsets)} offsets for {layout.width} slots")
                yield AppliedRow(str(found["applied"]), int(found["partition"]), offsets.tobytes())
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"line {number} is not of an export of state: {type(error).__name__}: {error}") from None


def _entry(found: dict[str, Any], layout: Layout) -> Entry:
    if "snapshot" in found:
        if not 0 <= found["slot"] < layout.slots:
            raise ValueError(f"slot {found['slot']} is not one of {layout.slots}")
        return prefix(found["slot"], b""), (base64.b64decode(found["snapshot"]), 0, None), None
    key = base64.b64decode(found["key"]["base64"]) if isinstance(found["key"], dict) else found["key"]
    if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
        raise TypeError(f"{key!r} is not a key")

    def stored(name: bytes) -> bytes:
        whole = store_key(key, name, layout.slots)
        if "partition" not in found:
            return whole
        slots = layout.slots_of(int(found["partition"]))
        return prefix(slots[slot_of(key, layout.width)]) + whole[2:]

    for kind, mark in (("timer", USER), ("expiry", "=")):
        if kind in found:
            return stored((mark + found[kind]).encode("utf-8", "surrogateescape")), None, int(found["due"])
    row = _value_in(found), int(found.get("version", 1)), found.get("expires")
    return stored(found["state"].encode()), row, None


def _value_in(found: dict[str, Any]) -> bytes:
    return base64.b64decode(found["encoded"]) if "encoded" in found else msgspec.msgpack.encode(found["value"])


def _compact_entries(source: IO[bytes]) -> Iterator[Entry | AppliedRow]:
    number = 0
    while head := source.read(_FRAME.size):
        number += 1
        if len(head) < _FRAME.size:
            raise StateError(f"frame {number} of this export is cut off")
        length, total = _FRAME.unpack(head)
        packed = _exactly(source, length)
        if zlib.crc32(packed) != total:
            raise StateError(f"frame {number} of this export is damaged: its check sum is wrong")
        first, rows, timers = msgspec.msgpack.decode(packed)
        if isinstance(first, str):
            yield AppliedRow(first, rows, timers)
            continue
        for key, value, version, expires in rows:
            yield key, (value, version, expires), None
        for key, due in timers:
            yield key, None, due


def _exactly(source: IO[bytes], length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise StateError("this export is cut off")
    return data
