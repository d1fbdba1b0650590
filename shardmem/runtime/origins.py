"""What comes with the events of a batch from a broker: origins, times, headers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardmem.memory.native import borrow, ffi, lib
from shardmem.memory.partition_table import NO_PARTITION, Partitions
from shardmem.schema import KEY_INT, KEY_NONE

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch

ORIGIN = np.dtype([("topic", "u2"), ("partition", "u4"), ("offset", "u8")])
NO_TIME = -(1 << 63)  # of an event that came without one
Headers = list[tuple[str, "bytes | None"]]  # of one event


@dataclass(frozen=True)
class More:
    """Of a batch that owns its memory. slots: of its events; None: they follow from their keys."""

    origins: np.ndarray | None = None
    topics: tuple[str, ...] = ()
    timestamps: np.ndarray | None = None
    headers: list[Headers] | None = None
    slots: np.ndarray | None = None


def origins_of(batch: sm_batch, partitions: Partitions | None) -> np.ndarray | None:
    """Structured array of ORIGIN; None: no event has one."""
    rows, offsets = np.empty(batch.rows, "u4"), np.empty(batch.rows, "u8")
    if partitions is None or not lib.sm_batch_origins(
        batch, ffi.cast("uint32_t *", rows.ctypes.data), ffi.cast("uint64_t *", offsets.ctypes.data)
    ):
        return None
    origins = np.empty(len(rows), ORIGIN)
    origins["topic"], origins["partition"] = partitions.named(rows)
    origins["offset"] = offsets
    return origins


def times_of(batch: sm_batch) -> np.ndarray | None:
    """int64 array: ms since 1970, NO_TIME of an event without; None: no event has one."""
    times = np.empty(batch.rows, "i8")
    return times if lib.sm_batch_times(batch, ffi.cast("int64_t *", times.ctypes.data)) else None


def headers_of(batch: sm_batch) -> list[Headers] | None:
    """None: no event has any. Raises BufferError: a frame changed while it was read."""
    needed = lib.sm_batch_headers(batch, ffi.NULL, ffi.NULL, 0)
    if needed == 0:
        return None
    ends, data = np.empty(batch.rows, "u8"), bytearray(max(1, needed - 1))
    pointer = ffi.cast("uint64_t *", ends.ctypes.data)
    if needed < 0 or lib.sm_batch_headers(batch, pointer, borrow("uint8_t[]", data), len(data)) < 0:
        raise BufferError("the headers of a frame changed while they were read")
    memory, starts = bytes(data), [0, *ends.tolist()]
    return [unpack_headers(memory[first:last]) for first, last in zip(starts, starts[1:])]


# ---- headers as bytes --------------------------------------------------------------------------------------------
# how many; of each the length of its name, the name, the length of its value (-1: None), the value

_COUNT, _LENGTH = struct.Struct("<I"), struct.Struct("<i")


def pack_headers(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """Of one event. No headers are no bytes."""
    parts, count = [b""], 0
    for name, value in headers:
        text = name.encode()
        parts += [_COUNT.pack(len(text)), text, _LENGTH.pack(-1 if value is None else len(value)), value or b""]
        count += 1
    parts[0] = _COUNT.pack(count) if count else b""
    return b"".join(parts)


def unpack_headers(data: bytes) -> Headers:
    """Raises BufferError: they contradict themselves."""
    found: Headers = []
    if not data:
        return found
    try:
        at = 4
        for _ in range(_COUNT.unpack_from(data)[0]):
            (length,) = _COUNT.unpack_from(data, at)
            name, at = _piece(data, at + 4, length)
            (length,) = _LENGTH.unpack_from(data, at)
            value, at = (None, at + 4) if length < 0 else _piece(data, at + 4, length)
            found.append((name.decode(errors="replace"), value))
    except struct.error as error:
        raise BufferError(f"the headers of an event contradict themselves: {error}") from error
    return found


def _piece(data: bytes, start: int, length: int) -> tuple[bytes, int]:
    if start + length > len(data):
        raise BufferError(f"a header of an event ends at byte {start + length} of {len(data)}")
    return data[start : start + length], start + length


def columns_of_headers(headers: Sequence[Iterable[tuple[str, bytes | None]]]) -> tuple[bytes, np.ndarray]:
    """As `push_columns` takes them: of each event its headers."""
    pieces = [pack_headers(each) for each in headers]
    return b"".join(pieces), np.cumsum([0, *map(len, pieces)])


# ---- in the quarantine -----------------------------------------------------------------------------------------------


def described(more: More, tombstone: bool, row: int) -> dict[str, Any]:
    """What came with one event, as JSON has it: tombstone, topic, partition, offset, timestamp, headers; those that it
    has."""
    found: dict[str, Any] = {"tombstone": True} if tombstone else {}
    if more.origins is not None and more.origins[row]["partition"] != NO_PARTITION:
        topic, partition, offset = more.origins[row].tolist()
        found |= {"topic": more.topics[topic], "partition": partition, "offset": offset}
    if more.timestamps is not None and more.timestamps[row] != NO_TIME:
        found["timestamp"] = int(more.timestamps[row])
    if more.headers is not None and more.headers[row]:
        found["headers"] = [(name, None if value is None else value.hex()) for name, value in more.headers[row]]
    return found


def came_with_of(found: dict[str, Any], slot: int | None = None) -> More:
    """Of a batch of that one event. Raises ValueError, TypeError, KeyError, AttributeError: it is no such
    description."""
    origins, headers = None, found.get("headers")
    topics: tuple[str, ...] = ()
    if "topic" in found:
        origins, topics = origins_by_hand([(str(found["topic"]), int(found["partition"]), int(found["offset"]))], 1)
    return More(
        origins,
        topics,
        np.array([int(found["timestamp"])], "i8") if "timestamp" in found else None,
        headers and [[(str(name), None if value is None else bytes.fromhex(value)) for name, value in headers]],
        None if slot is None or origins is None else np.array([slot], "u4"),
    )


# ---- by hand ---------------------------------------------------------------------------------------------------------


def more_by_hand(
    index: np.ndarray, slots: int, origins: Any, timestamps: Any, headers: Any, partitions: int | None
) -> More:
    """index: of the events, as in a frame. slots: of the engine, which go by so many partitions; None: by as many as
    the origins show. Raises ValueError: there is not one for each event."""
    times = None if timestamps is None else np.asarray(timestamps, "i8").reshape(-1)
    for what, given in ("timestamps", times), ("headers", headers):
        if given is not None and len(given) != len(index):
            raise ValueError(f"{len(given)} {what} for {len(index)} events")
    told = None if headers is None else [list(each) for each in headers]
    if origins is None:
        return More(timestamps=times, headers=told)
    made, topics = origins_by_hand(origins, len(index))
    return More(made, topics, times, told, _slots_by_hand(made, index, slots, partitions))


def origins_by_hand(origins: Any, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """(ORIGIN array, names of topics) of triples of topic, partition and offset, or of such an array. None among them:
    an event without. Raises ValueError."""
    if isinstance(origins, np.ndarray):
        made, topics = (
            origins.astype(ORIGIN),
            tuple(f"topic-{n}" for n in range(int(origins["topic"].max(initial=0)) + 1)),
        )
    else:
        given = list(origins)
        topics = tuple(dict.fromkeys(each[0] for each in given if each is not None))
        made = np.array(
            [(0, NO_PARTITION, 0) if each is None else (topics.index(each[0]), *each[1:]) for each in given], ORIGIN
        )
    if len(made) != count:
        raise ValueError(f"{len(made)} origins for {count} events")
    return made, topics


def _slots_by_hand(origins: np.ndarray, index: np.ndarray, slots: int, partitions: int | None) -> np.ndarray:
    known, kinds = origins["partition"] != NO_PARTITION, index["meta"] >> 30
    hashes = index["key"].copy()  # of a key that is no integer it is the hash; without one it is 0
    for hashed, of in ((kinds == KEY_INT, hashes), ((kinds == KEY_NONE) & known, origins["offset"])):
        hashes[hashed] = [lib.sm_hash_int(number) for number in of[hashed].tolist()]
    count = partitions or int(origins["partition"][known].max(initial=0)) + 1
    each = max(1, slots >> (count - 1).bit_length())
    by_partition = origins["partition"].astype("u8") * np.uint64(each) + hashes % np.uint64(each)
    return (np.where(known, by_partition, hashes) % np.uint64(slots)).astype("u4")
