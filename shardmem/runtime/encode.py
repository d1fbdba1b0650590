"""What the user pushes as C takes it: keys, payloads, columns; and what a call could not push, as the user gave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from shardmem.memory.native import ffi
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_NONE, KEY_STR

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from shardmem.memory.native import Integers, sm_columns, sm_cursor

Key = int | str | bytes | None
Columns = tuple[np.ndarray | None, bytes, np.ndarray]


def plain_key(key: object) -> tuple[int, int, bytes]:
    """(kind, number, bytes) of a key. Raises TypeError or ValueError."""
    if key is None:
        return KEY_NONE, 0, b""
    if isinstance(key, str):
        return KEY_STR, 0, key.encode("utf-8", "surrogateescape")
    if isinstance(key, (bytes, bytearray, memoryview)):
        return KEY_BYTES, 0, bytes(key)
    if isinstance(key, (int, np.integer)):
        number = int(key)
        if -(1 << 63) <= number < 1 << 64:
            return KEY_INT, number, b""
        raise ValueError(f"key {number} is outside the range of a key, -2**63 to 2**64-1; use its text or bytes")
    raise TypeError(f"key {key!r} is a {type(key).__name__}; a key is int, str, bytes or None")


def bytes_of(payload: Any) -> bytes | memoryview:
    """The payload as contiguous bytes. Raises TypeError."""
    if isinstance(payload, bytes):
        return payload
    try:
        memory = memoryview(payload)
    except TypeError:
        raise TypeError(
            f"payload is a {type(payload).__name__}; it must be bytes-like (encode text, for example text.encode())"
        ) from None
    return memory.cast("B") if memory.c_contiguous else memory.tobytes()


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_lists(
    keys: list[Any], payloads: list[Any], check: Callable[[int, int], None]
) -> tuple[list[Key], list[bytes]]:
    """The same events as plain objects: int, str, bytes or None, and bytes. check: raises ValueError when a payload of so many
    bytes with a key of so many is too large. Raises TypeError, ValueError for the first that is wrong."""
    plain_keys: list[Key] = []
    plain_payloads: list[bytes] = []
    for i, (key, payload) in enumerate(zip(keys, payloads)):
        try:
            kind, number, key_bytes = plain_key(key)
            memory = bytes(bytes_of(payload))
            check(len(memory), len(key_bytes))
        except (TypeError, ValueError) as error:
            raise (TypeError if isinstance(error, TypeError) else ValueError)(f"event {i}: {error}") from None
        plain_keys.append(
            None
            if kind == KEY_NONE
            else number
            if kind == KEY_INT
            else key_bytes
            if kind == KEY_BYTES
            else key_bytes.decode("utf-8", "surrogateescape")
        )
        plain_payloads.append(memory)
    return plain_keys, plain_payloads


def columns_of(keys: np.ndarray | None, data: Buffer, offsets: np.ndarray) -> tuple[sm_columns, HeldColumns]:
    """The columns as C takes them. Raises TypeError, ValueError; what the offsets say is checked by C."""
    raw = np.asarray(offsets)
    if raw.ndim != 1 or raw.dtype.kind not in "iu" or not len(raw):
        raise TypeError("offsets must be an integer array of shape (n + 1,)")
    wide = np.ascontiguousarray(raw, "u8")  # a negative one becomes a huge one, which is beyond the data
    columns, memory = ffi.new("sm_columns *"), bytes_of(data)
    held = [ffi.from_buffer("uint64_t[]", wide.data), ffi.from_buffer("uint8_t[]", memory)]
    columns.offsets, columns.data = held
    columns.n, columns.data_bytes = len(wide) - 1, len(memory)
    if keys is not None:
        keys = np.asarray(keys)
        if keys.shape != (len(wide) - 1,):
            raise ValueError(f"keys have shape {keys.shape}, offsets say {len(wide) - 1} events")
        kind = keys.dtype.kind
        if kind in "iu":
            columns.key_kind, columns.key_unsigned = KEY_INT, kind == "u"
            held.append(ffi.from_buffer("uint64_t[]", np.ascontiguousarray(keys, "i8" if kind == "i" else "u8").data))
            columns.keys = held[2]
        elif kind == "S":
            key_offsets = np.concatenate([[0], np.cumsum(np.char.str_len(keys))]).astype("u8")
            key_data = b"".join(keys.tolist())
            columns.key_kind, columns.key_bytes = KEY_BYTES, len(key_data)
            held += [ffi.from_buffer("uint64_t[]", key_offsets.data), ffi.from_buffer("uint8_t[]", key_data)]
            columns.key_offsets, columns.key_data = held[2:]
        else:
            raise TypeError(f"keys have dtype {keys.dtype}; integers, bytes ('S'), or None")
    return columns, HeldColumns(keys, memory, wide, held)


class HeldColumns:
    """The columns of a call: what C points into, for as long as the call may be repeated."""

    def __init__(
        self, keys: np.ndarray | None, data: bytes | memoryview, offsets: np.ndarray, held: list[Integers]
    ) -> None:
        self.keys, self.data, self.offsets, self.held = keys, data, offsets, held

    def rest(self, events: np.ndarray) -> tuple[Columns, int]:
        """((keys, data, offsets) of some of the events, how many)."""
        memory, bounds = memoryview(self.data), self.offsets.tolist()
        pieces = [memory[bounds[i] : bounds[i + 1]] for i in events.tolist()]
        offsets = np.cumsum([0] + [len(piece) for piece in pieces]).astype("i8")
        return (None if self.keys is None else self.keys[events], b"".join(pieces), offsets), len(events)


def pending(cursor: sm_cursor) -> np.ndarray:
    return np.array(ffi.unpack(cursor.pending, cursor.pending_count), "i8")


def left_of(cursor: sm_cursor, offered: int) -> np.ndarray:
    """Numbers of the events of a call that are not accepted, in order."""
    return np.concatenate([int(cursor.chunk) + pending(cursor), np.arange(cursor.next, offered)]).astype("i8")


def rest_of(rows: np.ndarray, cursor: sm_cursor) -> tuple[np.ndarray, int]:
    rest = rows[left_of(cursor, len(rows))]
    return rest, len(rest)
