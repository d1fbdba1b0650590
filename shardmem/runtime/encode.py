"""What the user pushes as C takes it: keys, payloads, columns; and what a call could not push, as the user gave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from shardmem.memory.native import ffi
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_NONE, KEY_STR

if TYPE_CHECKING:
    from shardmem.memory.native import sm_cursor

Key = int | str | bytes | None


def plain_key(key: object) -> tuple[int, int, bytes]:
    """(kind, number, bytes) of a key. Raises TypeError or ValueError."""
    if key is None:
        return KEY_NONE, 0, b""
    if isinstance(key, str):
        try:
            return KEY_STR, 0, key.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(
                f"key {key!r} has half of a surrogate pair, which no text in UTF-8 has; use its bytes"
            ) from None
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
            f"payload is a {type(payload).__name__}; it must be bytes-like, or None (encode text, for example "
            f"text.encode())"
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
) -> tuple[list[Key], list[bytes | None]]:
    """The same events as plain objects: int, str, bytes or None, and bytes or None. check: raises ValueError when a
    payload of so many bytes with a key of so many is too large. Raises TypeError, ValueError for the first that is
    wrong."""
    plain_keys: list[Key] = []
    plain_payloads: list[bytes | None] = []
    for i, (key, payload) in enumerate(zip(keys, payloads)):
        try:
            kind, number, key_bytes = plain_key(key)
            memory = None if payload is None else bytes(bytes_of(payload))
            check(0 if memory is None else len(memory), len(key_bytes))
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


def go_on(cursor: sm_cursor, state: tuple[int, int, int, bytes, int, int] | None) -> None:
    """From where a call of Pusher came; None: from the beginning."""
    _, chunk, ahead, left, _, accepted = state or (0, 0, 0, b"", 0, 0)
    cursor.chunk, cursor.next, cursor.accepted, cursor.pending_count = chunk, ahead, accepted, len(left) // 4
    ffi.memmove(cursor.pending, left, len(left))


def pending(cursor: sm_cursor) -> np.ndarray:
    return np.array(ffi.unpack(cursor.pending, cursor.pending_count), "i8")


def left_of(cursor: sm_cursor, offered: int) -> np.ndarray:
    """Numbers of the events of a call that are not accepted, in order."""
    return np.concatenate([int(cursor.chunk) + pending(cursor), np.arange(cursor.next, offered)]).astype("i8")


def rest_of(rows: np.ndarray, cursor: sm_cursor) -> tuple[np.ndarray, int]:
    rest = rows[left_of(cursor, len(rows))]
    return rest, len(rest)
