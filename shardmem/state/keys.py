"""Keys of state: int, str or bytes, and never one for the other: 17, "17" and b"17" are three keys.

In the store a key is bytes that sort: slot, name, a zero, a letter for the type, the key (`csrc/store_keys.c`).
"""

from __future__ import annotations

import numpy as np

from shardmem.memory.native import slots_of_keys, store_keys

Key = int | str | bytes


def plain_key(key: object) -> Key:
    """The key as exactly int, str or bytes. Raises TypeError or ValueError for what cannot be one."""
    if isinstance(key, (int, np.integer)):
        number = int(key)
        if not -(1 << 63) <= number < 1 << 64:
            raise ValueError(f"key {number} is outside the range of a key, -2**63 to 2**64-1; use its text or bytes")
        return number
    if isinstance(key, str):
        return str.__str__(key) if type(key) is not str else key
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    if key is None:
        raise TypeError("an event without a key has no state of a key; give every event a key")
    raise TypeError(f"key {key!r} is a {type(key).__name__}; a key of state is int, str or bytes")


def slot_of(key: Key, slots: int) -> int:
    return int.from_bytes(slots_of_keys([key], slots), "little")


def slots_of(keys: list[Key], slots: int) -> np.ndarray:
    return np.frombuffer(slots_of_keys(keys, slots), "u4")


def store_key(key: Key, name: bytes, slots: int) -> bytes:
    return store_keys([key], name, slots)[0]


def prefix(slot: int, name: bytes | None = None) -> bytes:
    """What the store keys of a slot, or of one name in it, begin with."""
    return slot.to_bytes(2, "big") + (b"" if name is None else name + b"\0")


def after(prefix: bytes) -> bytes:
    """The least bytes that are above all that begin with the prefix. Of the last slot there is none; its keys are
    shorter than this."""
    number = int.from_bytes(prefix, "big") + 1
    return number.to_bytes(len(prefix), "big") if number < 1 << 8 * len(prefix) else prefix + b"\xff" * 64


def read_store_key(stored: bytes) -> tuple[int, bytes, Key]:
    """(slot, name, key). Raises ValueError when it is not of that form."""
    slot, (name, zero, rest) = int.from_bytes(stored[:2], "big"), stored[2:].partition(b"\0")
    tag, text = rest[:1], rest[1:]
    if zero and tag == b"i" and len(text) == 8:
        return slot, name, int.from_bytes(text, "big") - (1 << 63)
    if zero and tag == b"u" and len(text) == 8:
        return slot, name, int.from_bytes(text, "big")
    if zero and tag == b"s":
        return slot, name, text.decode("utf-8", "surrogateescape")
    if zero and tag == b"b":
        return slot, name, text
    raise ValueError(f"{stored[:80]!r} is not a key of a state store")
