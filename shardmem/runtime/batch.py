"""A batch: what the handler gets. Zero-copy views into the lane where the events lie, valid until it returns."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from shardmem.errors import BatchEscaped
from shardmem.memory.native import DECODE_KEYS, DECODE_PAYLOADS, borrow, by_key, decode, ffi, lib, pairs
from shardmem.runtime.encode import bytes_of, plain_key
from shardmem.runtime.origins import (
    Headers,
    More,
    came_with_of,
    described,
    headers_of,
    more_by_hand,
    origins_of,
    times_of,
)
from shardmem.schema import KEY_INT, KEY_NONE, Schema
from shardmem.state.many import source_of
from shardmem.text import reason_of

if TYPE_CHECKING:
    from shardmem.memory.native import Pairs, sm_batch
    from shardmem.memory.partition_table import Partitions

_INDEX = np.dtype([("key", "u8"), ("meta", "u4"), ("end", "u4")])  # sm_index in csrc/layout.h
INDEX_BYTES = _INDEX.itemsize
_LENGTH, _MISSING, _UNSIGNED = np.uint32((1 << 28) - 1), np.uint32(1 << 28), np.uint32(1 << 29)


class Columns(NamedTuple):
    """Events as columns. Payload i is `data[starts[i]:ends[i]]`; it is empty for a tombstone, see `Batch.missing`.

    keys: an array if every key is an int: int64, or uint64 if one exceeds that and none is negative. Else a list.
    data: uint8 array. starts, ends: int64 arrays.
    """

    keys: Any
    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Batch:
    """Events of one shard, in order per producer and key.

    All arrays are read-only. They, and every view made of them, end with the handler's return: one that is kept is
    found and raises BatchEscaped. `copy()` makes a batch that may be kept.
    """

    __slots__ = (
        "shard",
        "_schema",
        "_slots",
        "_c",
        "_address",
        "_length",
        "_over",
        "_roots",
        "_records",
        "_events",
        "_iterators",
        "_scratch",
        "_numbers",
        "_rejected",
        "_partitions",
        "_more",
        "_found",
        "__weakref__",
    )

    def __init__(
        self,
        schema: Schema,
        slots: int,
        shard: int,
        batch: sm_batch,
        scratch: Any = None,
        partitions: Partitions | None = None,
    ) -> None:
        self.shard: int = shard
        self._partitions = partitions
        self._more: More | None = None  # of a batch that owns its memory
        self._found: dict[str, Any] = {}
        self._schema, self._slots, self._c, self._scratch = schema, slots, batch, scratch
        self._address = int(ffi.cast("uintptr_t", batch))
        self._length: int = batch.rows
        self._over = False
        self._roots: list[weakref.ref[np.ndarray]] = []
        self._records: np.ndarray | None = None
        self._events: tuple[np.ndarray, np.ndarray] | None = None
        self._iterators: list[Pairs] = []
        self._numbers: tuple[np.ndarray, np.ndarray] | None = None
        self._rejected: dict[int, str] | None = None

    def _begin(self) -> None:
        """Of one that was made before its rows were chosen."""
        self._length = self._c.rows

    @classmethod
    def of_event(
        cls,
        schema: Schema,
        slots: int,
        shard: int,
        key: Any,
        payload: bytes | None,
        producer: int,
        sequence: int,
        slot: int,
        came_with: dict[str, Any],
    ) -> Batch:
        """A batch of one event that was in the quarantine, as it was in its lane. came_with: see the method of that
        name."""
        numbers = np.full(1, sequence, "u8"), np.full(1, producer, "u4")
        if schema.dtype is not None:
            return cls._owner_of(schema, slots, shard, numbers, np.frombuffer(payload or b"", schema.dtype).copy())
        made = cls._owner_of(schema, slots, shard, numbers, *_index_of([(key, payload)]))
        made._more = came_with_of(came_with, slot)
        return made

    @classmethod
    def of(
        cls,
        content: Any,
        *,
        key: str | None = None,
        shard: int = 0,
        slots: int = 1024,
        producer: int = 0,
        sequence: int = 0,
        origins: Any = None,
        timestamps: Any = None,
        headers: Sequence[Headers] | None = None,
        partitions: int | None = None,
    ) -> Batch:
        """A batch made by hand, to try a handler without an engine: `handle(Batch.of([("user-17", b"...")]))`.

        content: pairs of key and payload, as `push` takes them; or a structured array, of which `key` names the key
        field.
        slots: of the engine that it stands for. producer: the seat of all events. sequence: of the first. origins: of
        each event (topic, partition, offset), or None. timestamps: of each, ms since 1970. headers: of each, a list of
        (name, value). partitions: by how many of them the slots of the engine go; None: by as many as the origins show.
        It has memory of its own, so a view that the handler keeps is not found here. Raises what `push` and `Engine`
        raise for such keys, payloads and dtypes, and ValueError where there is not one of something for each event.
        """
        if slots < 1 or slots & (slots - 1):
            raise ValueError(f"slots={slots} is not a power of two")
        if isinstance(content, np.ndarray):
            schema, rows, data = Schema.of(content.dtype, key), np.array(content.reshape(-1)), None
        else:
            schema, (rows, data) = Schema.of(None, key), _index_of(content)
        count = len(rows)
        numbers = np.arange(sequence, sequence + count, dtype="u8"), np.full(count, producer, "u4")
        made = cls._owner_of(schema, slots, shard, numbers, rows, data)
        if origins is not None or timestamps is not None or headers is not None:
            made._check(records=False)
            made._more = more_by_hand(rows, slots, origins, timestamps, headers, partitions)
        return made

    def borrowed(self) -> Batch:
        """The same events as a worker hands them out: a view that is kept past `_end` is found. Of a batch that owns
        its memory."""
        made = Batch(self._schema, self._slots, self.shard, self._c, Scratch(), self._partitions)
        made._numbers, made._more = self._numbers, self._more
        return made

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"<Batch of {self._length} {'records' if self._schema.is_records else 'events'}, shard {self.shard}>"

    # ---- records -----------------------------------------------------------------------------------------------------

    @property
    def records(self) -> np.ndarray:
        """Read-only array of the engine's dtype, shape (len,). Records engines only."""
        if self._records is None:
            self._check(records=True)
            dtype = self._schema.dtype
            assert dtype is not None
            if self._c.spans == 1:
                memory = ffi.buffer(self._c.span[0].rows, self._length * dtype.itemsize)
            else:
                memory = self._gather(self._length * dtype.itemsize, dtype.itemsize)
            self._records = self._root(np.frombuffer(memoryview(memory).toreadonly(), dtype, self._length))
        return self._records

    # ---- events ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Over `(key, payload)` of an events engine (copies: int, str, bytes or None, and bytes), or over the rows. The
        payload of a tombstone is None."""
        if self._schema.is_records:
            return iter(self.records)
        self._check(records=False)
        iterator = pairs(self._address, self._scratch)
        self._iterators.append(iterator)
        return iterator

    @property
    def payloads(self) -> list[Any]:
        """The payloads, copied: bytes, or None for a tombstone. Events engines only."""
        self._check(records=False)
        return decode(self._address, DECODE_PAYLOADS)

    def columns(self) -> Columns:
        """The events as columns, without a Python object per event. Events engines only."""
        index, data = self._index_and_data()
        ends = index["end"].astype("i8")
        key_bytes = (index["meta"] & _LENGTH).astype("i8")
        starts = np.empty_like(ends)
        starts[:1] = self._first_byte()
        starts[1:] = ends[:-1]
        starts += key_bytes
        return Columns(self._int_keys(index), data, starts, ends)

    # ---- both --------------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> Any:
        """records: the key field, a view (None without a key). events: a list of int, str, bytes or None."""
        if self._schema.is_records:
            return self.records[self._schema.key] if self._schema.key is not None else None
        self._check(records=False)
        return decode(self._address, DECODE_KEYS)

    def by_key(self) -> list[tuple[Any, Any]]:
        """`(key, events)` for each key, its events in order: a list of payloads, or an array of rows. Copies."""
        if not self._schema.is_records:
            self._check(records=False)
            return by_key(self._address)
        if self._schema.key is None:
            return [(None, self.records.copy())] if self._length else []
        keys = np.ascontiguousarray(self.keys)
        order = np.argsort(keys, kind="stable")
        rows, keys = self.records[order], keys[order]
        first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])) if len(keys) else keys[:0])
        ends = [*first[1:].tolist(), len(keys)]
        return [(key, rows[a:b]) for key, a, b in zip(keys[first].tolist(), first.tolist(), ends)]

    @property
    def slots(self) -> np.ndarray:
        """uint32 array: the slot of each event, by its key, and by its partition if it has an origin. An event without
        both has none and counts as slot 0."""
        if self._more is not None and self._more.slots is not None:
            return self._more.slots
        slots = np.zeros(self._length, "u4")
        pointer = ffi.cast("uint32_t *", slots.ctypes.data)
        if self._schema.is_records:
            if self._schema.key is not None:
                keys = np.ascontiguousarray(self.keys)
                if keys.dtype.kind == "S":
                    for i, key in enumerate(keys.tolist()):
                        slots[i] = lib.sm_hash_bytes(key, len(key)) & (self._slots - 1)
                else:
                    wide = keys.astype("i8" if keys.dtype.kind == "i" else "u8").view("u8")
                    lib.sm_slots_of_ints(ffi.cast("uint64_t *", wide.ctypes.data), len(wide), self._slots, pointer)
            return slots
        self._check(records=False)
        if self._partitions is not None:
            return self._partitions.slots_of_batch(self._c, self._length)
        index, _ = self._index_and_data()
        keys = np.ascontiguousarray(index["key"])
        lib.sm_slots_of_ints(ffi.cast("uint64_t *", keys.ctypes.data), len(keys), self._slots, pointer)
        hashed = index["meta"] >> 30 != KEY_INT
        slots[hashed] = (keys[hashed] & np.uint64(self._slots - 1)).astype("u4")  # keyless: the key word is zero
        return slots

    @property
    def sequences(self) -> np.ndarray:
        """uint64 array: number of each event at its producer; rises with push order per producer and key."""
        return self._numbering()[0]

    @property
    def producers(self) -> np.ndarray:
        """uint32 array: the seat of each event's producer."""
        return self._numbering()[1]

    # ---- of events from a broker -------------------------------------------------------------------------------------

    @property
    def origins(self) -> np.ndarray | None:
        """Structured array: topic (a number, see `topics`), partition and offset of each event at the broker that it
        came from. partition is 2**32 - 1 for an event that came from elsewhere; None: all did."""
        found: np.ndarray | None = self._read("origins", lambda batch: origins_of(batch, self._partitions))
        return found

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of topics, by the numbers in `origins`."""
        if self._more is not None:
            return self._more.topics
        return () if self._partitions is None else self._partitions.topics

    @property
    def timestamps(self) -> np.ndarray | None:
        """int64 array: the time of each event at its broker, in ms since 1970; the least int64 for one without. None:
        no event has one."""
        found: np.ndarray | None = self._read("timestamps", times_of)
        return found

    @property
    def headers(self) -> list[Headers] | None:
        """The headers of each event, as (name, value). None: no event has any."""
        found: list[Headers] | None = self._read("headers", headers_of)
        return found

    @property
    def missing(self) -> np.ndarray | None:
        """bool array: which payloads are None (tombstones); None: of no event."""
        if self._schema.is_records:
            return None
        missing = (self._index_and_data()[0]["meta"] & _MISSING) != 0
        return missing if missing.any() else None

    def _read(self, what: str, read: Callable[[sm_batch], Any]) -> Any:
        if self._more is not None:
            return getattr(self._more, what)
        if what not in self._found:
            if self._over:
                self._check(records=self._schema.is_records)
            self._found[what] = None if self._schema.is_records else read(self._c)
        return self._found[what]

    def came_with(self, row: int) -> dict[str, Any]:
        """What came with one event, for the quarantine; empty: nothing."""
        if self._schema.is_records:
            return {}
        more, missing = More(self.origins, self.topics, self.timestamps, self.headers), self.missing
        return described(more, missing is not None and bool(missing[row]), row)

    def _all_of_it(self) -> More:
        """What came with the events, for a batch that outlives this one."""
        origins = self.origins
        slots = None if origins is None else self.slots
        return More(origins, self.topics if origins is not None else (), self.timestamps, self.headers, slots)

    def reject(self, rows: Any, reason: object = "") -> None:
        """These can never be handled: they are quarantined when the handler returns, and all others count as handled.
        If it raises, nothing is: the batch comes again.

        rows: a number from 0, several of them, or a boolean array as long as the batch. reason: kept with each. Raises
        IndexError for a row that is not there.
        """
        chosen = np.atleast_1d(np.asarray(rows if isinstance(rows, (int, np.ndarray, np.integer)) else list(rows)))
        if chosen.dtype == bool:
            if chosen.shape != (self._length,):
                raise IndexError(f"a boolean array of {chosen.size} rows for a batch of {self._length}")
            chosen = np.flatnonzero(chosen)
        elif chosen.size == 0:
            return
        elif chosen.dtype.kind not in "iu":
            raise TypeError(f"rows={rows!r} are neither numbers of rows nor a boolean array")
        numbers = [int(row) for row in chosen.reshape(-1).tolist()]
        for row in numbers:
            if not 0 <= row < self._length:
                raise IndexError(f"row {row} is not in a batch of {self._length}")
        text = reason_of(reason)
        if self._rejected is None:
            self._rejected = {}
        self._rejected.update(dict.fromkeys(numbers, text))

    @property
    def rejected(self) -> dict[int, str]:
        """What `reject` was told so far: the reason by row."""
        return dict(self._rejected or {})

    def copy(self) -> Batch:
        """The same batch in memory of its own: it, and every view made of it, may be kept after the handler has
        returned."""
        numbers = self._numbering()
        if self._schema.is_records:
            return self._owner_of(self._schema, self._slots, self.shard, numbers, self.records.copy())
        index, data = (part.copy() for part in self._index_and_data())
        first = self._first_byte()
        index["end"] -= first
        made = self._owner_of(self._schema, self._slots, self.shard, numbers, index, data[first:])
        made._more = self._all_of_it()
        return made

    @classmethod
    def _owner_of(
        cls,
        schema: Schema,
        slots: int,
        shard: int,
        numbers: tuple[np.ndarray, np.ndarray],
        rows: np.ndarray,
        data: np.ndarray | None = None,
    ) -> Batch:
        """A batch of these arrays: records, or an index and the bytes that it is of. Views are made of the arrays
        themselves and not of their addresses, so that they keep them alive: `batch.copy().records` outlives the
        batch."""
        span, batch = ffi.new("sm_span *"), ffi.new("sm_batch *")
        for part in (rows,) if data is None else (rows, data):
            part.flags.writeable = False
        span.rows, span.count, span.frame_rows = ffi.cast("uint8_t *", rows.ctypes.data), len(rows), len(rows)
        batch.rows, batch.spans, batch.span = len(rows), 1, span
        if data is not None:
            span.bytes, span.bytes_length = ffi.cast("uint8_t *", data.ctypes.data), len(data)
            batch.bytes = len(data)
        made = cls(schema, slots, shard, batch)
        made._numbers, made._scratch = numbers, (batch, span, rows, data)  # each points to the next
        made._records, made._events = (rows, None) if data is None else (None, (rows, data))
        return made

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The Arrow stream protocol: pl.DataFrame(batch), pa.table(batch), duckdb. Needs `shardmem[arrow]`.

        Columns are copied: rows are packed, so a column is strided and Arrow cannot borrow it.
        """
        from shardmem.runtime import arrow

        if self._schema.is_records:
            stream = arrow.records_stream(self.records)
        else:
            stream = arrow.events_stream(self._int_keys(self._index_and_data()[0]), self.payloads)
        return stream.__arrow_c_stream__(requested_schema)

    # ---- for those who remember what was handled ---------------------------------------------------------------------

    def key_words(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64 array: the same for the same key; bool array: of events without one). Events engines only."""
        index, _ = self._index_and_data()
        return index["key"].astype("i8"), index["meta"] >> 30 == KEY_NONE

    def safe(self) -> dict[tuple[str, int], int]:
        """Of each partition that this engine has by now: the offset before which nothing needs to be handled any
        more."""
        rows = [] if self._partitions is None else self._partitions.rows()
        return {(row.topic, row.number): row.safe for row in rows if row.epoch}

    # ---- for keyed state ---------------------------------------------------------------------------------------------

    def key_source(self) -> Any:
        """Where the key of each event is found without an object of it: see source_of in shardmem/state/many.py."""
        if self._schema.is_records:
            return source_of(self.records[self._schema.key] if self._schema.key else [None] * self._length)
        self._check(records=False)
        return self._address

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _check(self, *, records: bool) -> None:
        if self._over:
            self._refuse()
        if records != self._schema.is_records:
            raise TypeError(
                "this engine carries events: use iteration, payloads or columns()"
                if records
                else "this engine carries records: use batch.records"
            )

    def _refuse(self) -> NoReturn:
        raise BatchEscaped(
            f"this batch of shard {self.shard} ended when its handler returned; its memory is in use "
            f"again. Keep batch.copy() instead"
        )

    def _root(self, array: np.ndarray) -> np.ndarray:
        """Every view of ours hangs on one of these arrays, so a weak reference to it finds them all."""
        self._roots.append(weakref.ref(array))
        return array

    def _gather(self, need: int, row_bytes: int) -> memoryview:
        scratch = self._scratch.take(need)
        if lib.sm_gather(self._c, row_bytes, borrow("uint8_t[]", scratch), len(scratch)) != lib.SM_OK:
            raise BufferError(f"a frame in an inbox of shard {self.shard} changed while it was read")
        return memoryview(scratch)

    def _index_and_data(self) -> tuple[np.ndarray, np.ndarray]:
        if self._events is None:
            self._check(records=False)
            head = self._length * _INDEX.itemsize
            if self._c.spans == 1:
                span = self._c.span[0]
                index_memory = memoryview(ffi.buffer(span.rows, head)).toreadonly()
                data_memory = memoryview(ffi.buffer(span.bytes, span.bytes_length)).toreadonly()
            else:
                memory = self._gather(head + self._c.bytes, 0).toreadonly()
                index_memory, data_memory = memory[:head], memory[head:]
            index = np.frombuffer(index_memory, _INDEX, self._length)
            data = np.frombuffer(data_memory, "u1") if len(data_memory) else np.empty(0, "u1")
            self._events = self._root(index), self._root(data)
        return self._events

    def _first_byte(self) -> int:
        """Where the first event's bytes begin: a batch can start in the middle of a frame."""
        span = self._c.span[0]
        if self._c.spans > 1 or span.first == 0:
            return 0
        return ffi.cast("uint32_t *", span.rows)[-1]

    def _int_keys(self, index: np.ndarray) -> Any:
        """An array if all are integers, and of one sign where some are beyond int64; else a list."""
        meta, words = index["meta"], index["key"]
        if (meta >> 30 == KEY_INT).all():
            large = (meta & _UNSIGNED) != 0
            if not large.any():
                return words.view("i8")
            if (large | (words.view("i8") >= 0)).all():
                return words
        return decode(self._address, DECODE_KEYS)

    def _numbering(self) -> tuple[np.ndarray, np.ndarray]:
        if self._numbers is None:
            if self._over:
                self._check(records=self._schema.is_records)
            sequences, producers, at = np.empty(self._length, "u8"), np.empty(self._length, "u4"), 0
            for span in (self._c.span[i] for i in range(self._c.spans)):
                sequences[at : at + span.count] = np.arange(span.sequence, span.sequence + span.count, dtype="u8")
                producers[at : at + span.count] = span.seat
                at += span.count
            self._numbers = sequences, producers
        return self._numbers

    def _position(self) -> int | None:
        """Which event an iteration had reached, for error reports; None without an iteration."""
        if self._length == 1:
            return 0
        if not self._iterators:
            return None
        return self._iterators[-1].position()  # None if it has gone through to its end: it may have been any of them

    def _is_held(self) -> bool:
        """Whether something besides itself refers to its memory."""
        self._records = self._events = None
        if not any(root() is not None for root in self._roots):
            return False
        gc.collect()  # a view in a dead reference cycle is not kept, only not collected yet
        return any(root() is not None for root in self._roots)

    def _end(self) -> None:
        """The handler has returned. Raises BatchEscaped if something of the batch is still referred to."""
        self._over = True
        for iterator in self._iterators:
            iterator.close(self._refuse)
        self._iterators.clear()
        if self._is_held():
            raise BatchEscaped(
                f"the handler of shard {self.shard} returned but something still refers to the memory of "
                f"its batch (a slice, a field, a row or a memoryview of it); keep a copy instead: "
                f"batch.copy(), or .copy() of the array"
            )


def _index_of(events: Iterable[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The index and the bytes of (key, payload) pairs, as a producer writes them into a frame."""
    entries, data = [], bytearray()
    for key, payload in events:
        kind, number, text = plain_key(key)
        hashed = (
            number & (1 << 64) - 1 if kind == KEY_INT else lib.sm_hash_bytes(text, len(text)) if kind != KEY_NONE else 0
        )
        data += text if payload is None else text + bytes(bytes_of(payload))
        flags = int(_UNSIGNED) * (number >> 63 == 1) | int(_MISSING) * (payload is None)
        entries.append((hashed, kind << 30 | flags | len(text), len(data)))
    return np.array(entries, _INDEX), np.frombuffer(bytes(data), "u1").copy()


def slot_of(key: int | str | bytes, slots: int) -> int:
    """The slot of one key, as producers and workers compute it."""
    if isinstance(key, (int, np.integer)):
        return lib.sm_hash_int(int(key) & (1 << 64) - 1) & (slots - 1)
    encoded = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else bytes(key)
    return lib.sm_hash_bytes(encoded, len(encoded)) & (slots - 1)


class Scratch:
    """Memory for gathering, kept between batches of one worker."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def take(self, need: int) -> memoryview:
        if len(self._memory) < need:
            self._memory = bytearray(max(need, 2 * len(self._memory)))
        return memoryview(self._memory)[:need]
