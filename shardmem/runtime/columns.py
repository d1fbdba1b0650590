"""Events as columns: keys and payloads as arrays of offsets into bytes, without a Python object for each event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.memory.native import borrow, ffi
from shardmem.runtime.encode import bytes_of
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_STR

KEY_UNSIGNED = 4  # of a column: an integer of 2**63 and more


@dataclass(frozen=True)
class Keys:
    """Keys of events, each of a kind of its own. kinds: KEY_NONE, KEY_INT, KEY_BYTES, KEY_STR or KEY_UNSIGNED, as "u1",
    or one for all. numbers: "u8", of integers. data, offsets: of bytes and text (UTF-8), as of payloads."""

    kinds: np.ndarray | int
    numbers: np.ndarray | None
    data: Any
    offsets: np.ndarray | None

    @property
    def plain(self) -> Any:
        """As Pusher takes bytes or text; of other keys, what it does not take."""
        one_kind = isinstance(self.kinds, int) and self.kinds in (KEY_BYTES, KEY_STR)
        return (self.data, self.offsets, bytes if self.kinds == KEY_BYTES else str) if one_kind else self

    def check(self, count: int) -> None:
        """Whether there is what C will read. Raises ValueError; what the offsets say is checked by C."""
        kinds = np.unique(self.kinds)
        lengths = [] if isinstance(self.kinds, int) else [len(self.kinds)]
        if np.isin(kinds, (KEY_INT, KEY_UNSIGNED)).any() or self.numbers is not None:
            lengths.append(-1 if self.numbers is None else len(self.numbers))
        if np.isin(kinds, (KEY_BYTES, KEY_STR)).any() or self.offsets is not None:
            lengths.append(-1 if self.offsets is None else _count(_wide(self.offsets, "offsets of keys")))
        if -1 in lengths:
            raise ValueError("keys are numbers without `numbers`, or bytes or text without `offsets`")
        if wrong := [length for length in lengths if length != count]:
            raise ValueError(f"keys have shape ({wrong[0]},), offsets say {count} events")

    def __getitem__(self, events: np.ndarray) -> Keys:
        offsets = None if self.offsets is None else spans_of(self.offsets)[events]
        kinds = self.kinds if isinstance(self.kinds, int) else self.kinds[events]
        return Keys(kinds, None if self.numbers is None else self.numbers[events], self.data, offsets)


class EventColumns:
    """What push_columns was given, checked as far as C does not check it."""

    def __init__(self, keys: Any, data: Any, offsets: np.ndarray) -> None:
        self.keys, self.data, self.offsets = keys, data, offsets
        self._held: list[Any] = []

    @classmethod
    def of(cls, keys: Any, data: Any, offsets: np.ndarray) -> EventColumns:
        """Raises TypeError, ValueError; what the offsets say is checked by C."""
        columns = cls(keys, bytes_of(data), _wide(offsets, "offsets"))
        if isinstance(keys, tuple):
            kinds: dict[object, int] = {bytes: KEY_BYTES, str: KEY_STR}
            if len(keys) not in (2, 3) or (kind := kinds.get((*keys, bytes)[2])) is None:
                raise TypeError("keys as a tuple are (data, offsets) of bytes, or (data, offsets, str)")
            columns.keys = keys = Keys(kind, None, *keys[:2])
        count = columns.count
        if isinstance(keys, Keys):
            keys.check(count)
        elif keys is not None:
            columns.keys = keys = np.asarray(keys)
            if keys.ndim != 1:
                raise ValueError(f"keys have shape {keys.shape}, offsets say {columns.count} events")
            count = len(keys)
        if count != columns.count:
            raise ValueError(f"keys have shape ({count},), offsets say {columns.count} events")
        return columns

    @property
    def count(self) -> int:
        return _count(self.offsets)

    def bounds(self, event: int) -> tuple[int, int]:
        first, last = spans_of(self.offsets)[event].tolist()
        return first, last

    def key_bytes(self, event: int) -> int:
        if isinstance(self.keys, Keys) and self.keys.offsets is not None:
            first, last = spans_of(np.asarray(self.keys.offsets))[event].tolist()
            return int(last - first)
        return 0

    def for_c(self) -> Any:
        """A sm_columns, whose memory this object keeps."""
        columns = ffi.new("sm_columns *")
        self._held = [columns]
        columns.offsets, columns.data = self._words(self.offsets), self._bytes(self.data)
        columns.n, columns.data_bytes, columns.spans = self.count, len(self.data), self.offsets.ndim - 1
        keys = self.keys
        if isinstance(keys, Keys):
            self._put_keys(columns, keys)
        elif keys is not None:
            kind = keys.dtype.kind
            if kind in "iu":
                columns.key_kind, columns.key_unsigned = KEY_INT, kind == "u"
                columns.keys = self._words(np.ascontiguousarray(keys, "i8" if kind == "i" else "u8"))
            elif kind == "S":
                offsets = np.concatenate([[0], np.cumsum(np.char.str_len(keys))])
                self._put_keys(columns, Keys(KEY_BYTES, None, b"".join(keys.tolist()), offsets))
            else:
                raise TypeError(f"keys have dtype {keys.dtype}; integers, bytes ('S'), (data, offsets), or None")
        return columns

    def _put_keys(self, columns: Any, keys: Keys) -> None:
        if isinstance(keys.kinds, int):
            columns.key_kind, columns.key_unsigned = (KEY_INT, 1) if keys.kinds == KEY_UNSIGNED else (keys.kinds, 0)
        else:
            columns.key_kinds = self._bytes(np.ascontiguousarray(keys.kinds, "u1"))
        if keys.numbers is not None:
            columns.keys = self._words(np.ascontiguousarray(keys.numbers).view("u8"))
        if keys.offsets is not None:
            offsets, data = _wide(keys.offsets, "offsets of keys"), bytes_of(keys.data)
            columns.key_offsets, columns.key_data = self._words(offsets), self._bytes(data)
            columns.key_bytes, columns.key_spans = len(data), offsets.ndim - 1

    def _words(self, array: np.ndarray) -> Any:
        self._held.append(borrow("uint64_t[]", array))
        return self._held[-1]

    def _bytes(self, data: Any) -> Any:
        self._held.append(borrow("uint8_t[]", data))
        return self._held[-1]

    def rest(self, events: np.ndarray) -> tuple[tuple[Any, Any, np.ndarray], int]:
        """((keys, data, offsets) of some of the events, how many)."""
        memory = memoryview(self.data)
        pieces = [memory[first:last] for first, last in spans_of(self.offsets)[events].tolist()]
        offsets = np.cumsum([0] + [len(piece) for piece in pieces]).astype("i8")
        return (None if self.keys is None else self.keys[events], b"".join(pieces), offsets), len(events)


def spans_of(offsets: np.ndarray) -> np.ndarray:
    """Offsets of either shape as starts and ends, of shape (n, 2)."""
    return offsets if offsets.ndim == 2 else np.stack([offsets[:-1], offsets[1:]], axis=1)


def _count(offsets: np.ndarray) -> int:
    return len(offsets) if offsets.ndim == 2 else len(offsets) - 1


def _wide(offsets: Any, what: str) -> np.ndarray:
    raw = np.asarray(offsets)
    flat = raw.ndim == 1 and len(raw)
    if raw.dtype.kind not in "iu" or not (flat or raw.ndim == 2 and raw.shape[1] == 2):
        raise TypeError(f"{what} must be an integer array of shape (n + 1,) or (n, 2)")
    return np.ascontiguousarray(raw, "u8")  # a negative one becomes a huge one, which is beyond the data
