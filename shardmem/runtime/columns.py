"""Events as columns: keys and payloads as arrays of offsets into bytes, without a Python object for each event; and
what comes with them from a broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.memory.native import borrow, ffi
from shardmem.runtime.encode import bytes_of
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_STR

KEY_UNSIGNED = 4  # of a column: an integer of 2**63 and more


@dataclass(frozen=True)
class Origin:
    """Where events come from: one partition. partition: its row of the partition table. epoch: what `begin` or `resume`
    of it said. offsets: of the events at the broker, rising."""

    partition: int
    epoch: int
    offsets: np.ndarray

    def check(self, count: int) -> np.ndarray:
        """The offsets as C takes them. Raises TypeError, ValueError."""
        offsets = np.asarray(self.offsets)
        if offsets.dtype.kind not in "iu" or offsets.ndim != 1:
            raise TypeError("offsets of an origin must be an integer array of shape (n,)")
        if len(offsets) != count:
            raise ValueError(f"{len(offsets)} offsets of an origin for {count} events")
        wide = np.ascontiguousarray(offsets, "u8")
        if count and (int(offsets[0]) < 0 or not (wide[1:] > wide[:-1]).all()):
            raise ValueError("offsets of an origin must rise from 0 on: each is larger than the one before it")
        return wide


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


@dataclass(frozen=True)
class Extras:
    """What comes with events, or None. headers: bytes and n + 1 offsets (see origins.py); missing: bool array, which
    payloads are None."""

    origin: Origin | None = None
    timestamps: np.ndarray | None = None
    headers: tuple[Any, np.ndarray] | None = None
    missing: np.ndarray | None = None

    @property
    def plain(self) -> tuple[Any, ...]:
        """As Pusher takes them; of headers, what it does not take."""
        origin = self.origin
        where = (None, 0, 0) if origin is None else (origin.offsets, origin.partition, origin.epoch)
        missing = self.missing if self.headers is None else NONE
        return *where, self.timestamps, missing

    def checked(self, count: int) -> Extras:
        """As C takes it. Raises TypeError, ValueError."""
        origin, times, headers, missing = self.origin, self.timestamps, self.headers, self.missing
        if origin is not None:
            origin = Origin(origin.partition, origin.epoch, origin.check(count))
        if times is not None:
            times = np.ascontiguousarray(times, "i8")
            _expect("timestamps", times, count)
        if headers is not None:
            data, ends = bytes_of(headers[0]), _wide(headers[1], "offsets of headers")
            _expect("offsets of headers", ends[1:], count)
            if not (ends[1:] >= ends[:-1]).all() or int(ends[-1]) > len(data):
                raise ValueError(f"offsets of headers must rise from 0 to at most len(data) = {len(data)}")
            headers = data, ends
        if missing is not None:
            missing = np.ascontiguousarray(missing, bool)
            _expect("missing", missing, count)
        return Extras(origin, times, headers, missing)

    def __getitem__(self, events: np.ndarray) -> Extras:
        origin, headers = self.origin, self.headers
        if origin is not None:
            origin = Origin(origin.partition, origin.epoch, origin.offsets[events])
        if headers is not None:
            headers = _pieces(headers[0], spans_of(headers[1])[events])
        return Extras(
            origin,
            None if self.timestamps is None else self.timestamps[events],
            headers,
            None if self.missing is None else self.missing[events],
        )


NONE = Extras()


def extras_of(
    origin: Origin | None,
    timestamps: np.ndarray | None,
    headers: tuple[Any, np.ndarray] | None,
    missing: np.ndarray | None,
) -> Extras:
    """NONE itself when nothing comes with the events: their way is the shortest."""
    if origin is None and timestamps is None and headers is None and missing is None:
        return NONE
    return Extras(origin, timestamps, headers, missing)


def _expect(what: str, array: np.ndarray, count: int) -> None:
    if array.shape != (count,):
        raise ValueError(f"{what} have shape {array.shape}, offsets say {count} events")


def _pieces(data: Any, spans: np.ndarray) -> tuple[bytes, np.ndarray]:
    memory = memoryview(data)
    pieces = [memory[first:last] for first, last in spans.tolist()]
    return b"".join(pieces), np.cumsum([0] + [len(piece) for piece in pieces]).astype("i8")


class EventColumns:
    """What push_columns was given, checked as far as C does not check it."""

    def __init__(self, keys: Any, data: Any, offsets: np.ndarray, extras: Extras) -> None:
        self.keys, self.data, self.offsets, self.extras = keys, data, offsets, extras
        self._held: list[Any] = []

    @classmethod
    def of(cls, keys: Any, data: Any, offsets: np.ndarray, extras: Extras) -> EventColumns:
        """Raises TypeError, ValueError; what the offsets say is checked by C."""
        columns = cls(keys, bytes_of(data), _wide(offsets, "offsets"), extras)
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
        columns.extras = extras.checked(count)
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
        self._put_extras(columns, self.extras)
        return columns

    def _put_extras(self, columns: Any, extras: Extras) -> None:
        if (origin := extras.origin) is not None:
            columns.origins, columns.partition, columns.epoch = (
                self._words(origin.offsets),
                origin.partition,
                origin.epoch,
            )
        if extras.timestamps is not None:
            columns.times = ffi.cast("int64_t *", self._words(extras.timestamps.view("u8")))
        if extras.headers is not None:
            data, offsets = extras.headers
            columns.header_offsets, columns.header_data = self._words(offsets), self._bytes(data)
            columns.header_bytes = len(data)
        if extras.missing is not None:
            columns.missing = self._bytes(extras.missing.view("u1"))

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

    def __getitem__(self, events: np.ndarray) -> EventColumns:
        """Some of them, in memory of their own."""
        data, offsets = _pieces(self.data, spans_of(self.offsets)[events])
        return EventColumns(
            None if self.keys is None else self.keys[events], data, offsets.astype("u8"), self.extras[events]
        )

    def rest(self, events: np.ndarray) -> tuple[tuple[Any, Any, np.ndarray], int]:
        """((keys, data, offsets) of some of the events, how many)."""
        part = self[events]
        return (part.keys, part.data, part.offsets.astype("i8")), len(events)


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
