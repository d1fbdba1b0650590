"""The producer: any process's end of an engine. Pushes events into shared memory, and waits only when it is full."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from shardmem.errors import ConfigError, NotRunning, ShardmemError, Superseded
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import Pusher, borrow, ffi, lib
from shardmem.memory.partition_table import PartitionTable
from shardmem.runtime.attachment import Attachment, Marks
from shardmem.runtime.call import DEFAULT, KEPT, MODES, Call, Mode
from shardmem.runtime.columns import NONE, EventColumns, Extras, Keys, Origin, extras_of
from shardmem.runtime.encode import (
    Key,
    bytes_of,
    go_on,
    is_encodable,
    left_of,
    pending,
    plain_key,
    plain_lists,
    rest_of,
)
from shardmem.runtime.ref import Ref
from shardmem.runtime.seat import Seat
from shardmem.runtime.waits import LaneWait, Steps, finish

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

    from shardmem.memory.native import sm_cursor


CLIENT_BYTES = lib.SM_CLIENT_BYTES


class ProducerOptions(TypedDict, total=False):
    """How a producer behaves.

    backpressure: what it does about a full lane: "block" until there is room, "fail" at once, "drop_newest",
        "drop_oldest", or "sample" (of what finds no room, every `sample_every`-th event waits, the others are dropped).
        None: as the engine says.
    spin_us: microseconds to spin before sleeping on a full lane; None: 50.
    wait: seconds to wait for an engine that does not exist yet.
    reconnect: attach again when the engine was stopped and is run again; until then calls do what `backpressure` says,
        as with a full lane. False: they raise NotRunning.
    seat: a name for its seat: the producer of that name after it gets the same lanes, as long as the engine runs.
    client: what it is called in `status`, `top` and the page, up to 32 bytes; several may be called the same. None: as
        its seat.
    """

    backpressure: Mode | None
    spin_us: int | None
    sample_every: int
    wait: float
    reconnect: bool
    seat: str | None
    client: str | None


def client_bytes(client: str) -> bytes:
    """Raises ConfigError: it is no name."""
    text = client.encode(errors="replace") if isinstance(client, str) else b""
    if not text or len(text) > CLIENT_BYTES or not client.isprintable():
        raise ConfigError(f"client={client!r} is not usable: 1 to {CLIENT_BYTES} bytes of printable text")
    return text


class Outcome(TypedDict):
    """What became of the events of a producer."""

    accepted: int
    handled: int
    quarantined: int
    skipped: int
    shed: int
    refused: dict[str, int]  # by reason


class Producer:
    """Pushes into one engine. Thread-safe; survives fork (the child takes a seat of its own at its next call), and the
    end of its engine (it attaches to the next one of that name).

    Use `shardmem.connect(name)` or `engine.producer()`. `timeout` of every call: None waits as long as a lane is full,
    0 does not wait, else seconds; left out, the engine's backpressure decides ("block": None, "fail": 0). After it
    Backpressure is raised, with what was not accepted. In the modes that drop, nothing is raised: the calls return how
    much was accepted, and what was dropped is counted by reason in `status`. An engine that is stopped is waited for in
    the same way; the error is Unavailable then, a Backpressure that is a NotRunning too.
    """

    seat: int  # the number of the seat that it has, or had last
    largest: int  # bytes of key and payload of the largest event

    def __init__(
        self,
        engine: str,
        *,
        backpressure: Mode | None = None,
        spin_us: int | None = None,
        sample_every: int = 10,
        wait: float = 0.0,
        reconnect: bool = True,
        seat: str | None = None,
        client: str | None = None,
    ) -> None:
        """backpressure, spin_us, sample_every, wait, reconnect, seat, client: see ProducerOptions; without a
        backpressure, the engine's.

        Raises ConfigError (an option is wrong), NotRunning (no such engine, or it is stopping), LayoutMismatch,
        SegmentCorrupt, SegmentError (another user's), AlreadyRunning (every seat is taken, or the one of that name is).
        """
        if seat == "":
            raise ConfigError("seat='' is no name")
        if backpressure is not None and backpressure not in MODES:
            raise ConfigError(f"backpressure={backpressure!r}; one of {', '.join(MODES)}")
        if sample_every < 1:
            raise ConfigError(f"sample_every={sample_every}; of every so many refused events one is kept, at least 1")
        self.engine, self.client = engine, client or seat
        self._client = client_bytes(client) if client is not None else (seat or "").encode()[:CLIENT_BYTES]
        self._chosen = backpressure
        self._spin_ns = 1000 * (50 if spin_us is None else spin_us)
        self._sample_every, self._sampled = sample_every, 0
        self._interrupted = False
        self._idle_cursors: list[sm_cursor] = []  # 16 KiB each: making one costs as much as pushing a hundred events
        self._fast = Pusher(self.push)  # what is not plain, and mistakes, which name `push` then
        self._attached = Attachment(engine, wait, reconnect, seat, self._sit, self._fast.detach)
        self.schema = self._attached.schema
        if not self.schema.is_records:
            self.push = self._fast.push  # type: ignore[method-assign]  # without a Python frame: see csrc/fastcall.c

    def __repr__(self) -> str:
        attached = self._attached
        where = "closed" if attached.closed else f"seat {self.seat}" if attached.seat else "away from its engine"
        client = f" {self.client!r}" if self.client else ""
        return f"<{type(self).__name__}{client} of engine {self.engine!r}, {where}>"

    # ---- events engines ----------------------------------------------------------------------------------------------

    def push(self, key: Key, payload: Buffer | None, timeout: float | None = DEFAULT) -> bool:
        """One event; True when it is accepted (False: dropped, in a mode that drops).

        key: int (-2**63 to 2**64-1), str, bytes, or None for no order. payload: bytes-like, or None for a tombstone.
        Raises Backpressure, NotRunning, HandlerError (its shard has failed), OutOfMemory, TypeError, ValueError.
        """
        return finish(self._push_steps(key, payload, timeout))

    def _push_steps(self, key: Any, payload: Any, timeout: float | None) -> Steps[bool]:
        kind, number, key_bytes = plain_key(key)
        self._expect(records=False)
        memory = b"" if payload is None else bytes_of(payload)
        self._check_size(len(memory), len(key_bytes))
        key_data = borrow("uint8_t[]", key_bytes)
        data = ffi.NULL if payload is None else borrow("uint8_t[]", memory or _EMPTY)
        shard, call = ffi.new("uint32_t *"), Call(self, timeout)
        while True:
            status = self._attached.call(
                lib.sm_push,
                kind,
                number & (1 << 64) - 1,
                int(number >> 63 == 1),
                key_data,
                len(key_bytes),
                data,
                len(memory),
                shard,
            )
            if status == lib.SM_OK:
                return call.done(1) == 1
            if status == lib.SM_TOO_LARGE:  # for the lanes of an engine that was run again
                raise ValueError(self._too_large(len(memory), len(key_bytes)))
            if (yield from call.mend(status, shard[0], lambda: ((key, payload), 1))):
                continue
            if not call.skips:
                return call.give_up(1, 1, (key, payload), shard[0]) == 1
            if call.sampled(1):
                return (yield from self._push_steps(key, payload, KEPT))
            call.dropped(1)
            return False

    def push_many(
        self, keys: Sequence[Key] | np.ndarray, payloads: Sequence[Buffer | None], timeout: float | None = DEFAULT
    ) -> int:
        """Many events: `payloads[i]` under `keys[i]`. Returns how many were accepted.

        Fastest with two lists of plain int, str, bytes or None and of bytes or None. Either all events are well-formed
        or none is accepted. Raises what `push` raises; `Backpressure.rest` is `(keys, payloads)` of what was not
        accepted.
        """
        return finish(self._push_many_steps(keys, payloads, timeout))

    def _push_many_steps(
        self, keys: Sequence[Key] | np.ndarray, payloads: Sequence[Buffer | None], timeout: float | None
    ) -> Steps[int]:
        if type(keys) is not list:
            keys = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
        if type(payloads) is not list:
            payloads = list(payloads)
        if len(keys) != len(payloads):
            raise ValueError(f"{len(keys)} keys and {len(payloads)} payloads; there must be one key for each payload")
        self._expect(records=False)
        offered, call = len(keys), None
        while True:
            state = self._fast.push_many(keys, payloads)
            if state is None:
                return offered if call is None else call.done(offered)
            if call is None:
                call = Call(self, timeout)
            status, chunk, ahead, pending, shard, _ = state
            if status == lib.SM_TOO_LARGE:  # something that is not plain; nothing was accepted
                keys, payloads = plain_lists(keys, payloads, self._check_size)
                if any(isinstance(key, str) and not is_encodable(key) for key in keys):
                    return (yield from self._push_each(call, keys, payloads, offered))
                continue
            left = np.frombuffer(pending, "u4").tolist()
            full = ([keys[chunk + i] for i in left], [payloads[chunk + i] for i in left])
            if left or ahead:
                keys, payloads = full[0] + keys[ahead:], full[1] + payloads[ahead:]
            if (yield from call.mend(status, shard, lambda: ((keys, payloads), len(keys)))):  # noqa: B023 - at once
                continue
            if not call.skips:
                return call.give_up(offered, len(keys), (keys, payloads), shard)
            kept = call.sampled(len(left))  # the others of the full shard are dropped; other shards may have room
            call.dropped(len(left) - len(kept))
            part = [full[0][i] for i in kept], [full[1][i] for i in kept]
            call.kept(len(kept), (yield from self._push_many_steps(*part, KEPT)))
            keys, payloads = keys[len(left) :], payloads[len(left) :]

    def _push_each(self, call: Call, keys: list[Any], payloads: list[Any], offered: int) -> Steps[int]:
        """Keys with surrogates (names of files that are not UTF-8) have no plain form in C."""
        for i, (key, payload) in enumerate(zip(keys, payloads)):
            try:
                call.kept(1, (yield from self._push_steps(key, payload, call.of_one())))
            except ShardmemError as error:
                raise call.explained(error, (keys[i:], payloads[i:]), offered - i, already=1) from None
        return call.done(offered)

    def push_columns(
        self,
        keys: np.ndarray | tuple[Buffer, np.ndarray] | tuple[Buffer, np.ndarray, type[str]] | Keys | None,
        data: Buffer,
        offsets: np.ndarray,
        timeout: float | None = DEFAULT,
        *,
        origin: Origin | None = None,
        timestamps: np.ndarray | None = None,
        headers: tuple[Buffer, np.ndarray] | None = None,
        missing: np.ndarray | None = None,
    ) -> int:
        """Events as columns, without a Python object for each; returns how many were accepted.

        keys: integer array of shape (n,), `(data, offsets)` of keys of bytes, `(data, offsets, str)` of text in UTF-8,
        bytes array ('S', whose items lose NULs at their end in numpy already), `Keys`, or None for no keys.
        data: one bytes-like. offsets: integer array of shape (n + 1,), payload i is `data[offsets[i]:offsets[i + 1]]`;
        or of shape (n, 2), a start and an end for each: then there may be bytes between them that are nobody's. So too
        of keys. Raises what `push` raises; `Backpressure.rest` is `(keys, data, offsets)` of what was not accepted, and
        `.left` says which events those are; with an origin `.rest` is None, and they do not count as refused.

        origin: the partition that they come from; their slots go by it, and workers pass over them when it is
        another's. Of one partition one thread at a time pushes, and what is accepted is always all before some offset.
        Raises Superseded when its epoch is over. timestamps: of each, ms since 1970. headers: of each, as bytes that
        `origins.pack_headers` makes. missing: bool array, which payloads are None.
        """
        extras = extras_of(origin, timestamps, headers, missing)
        return finish(self._columns_steps(keys, data, offsets, timeout, extras))

    def _columns_steps(
        self, keys: Any, data: Any, offsets: np.ndarray, timeout: float | None, extras: Extras
    ) -> Steps[int]:
        self._expect(records=False)
        state = self._fast.push_columns(
            keys.plain if type(keys) is Keys else keys, data, offsets, *(() if extras is NONE else extras.plain)
        )
        if isinstance(state, int):
            return state
        return (yield from self._push_columns_steps(EventColumns.of(keys, data, offsets, extras), timeout, state))

    def _push_columns_steps(
        self, given: EventColumns, timeout: float | None, state: tuple[int, int, int, bytes, int, int] | None = None
    ) -> Steps[int]:
        cursor = self._idle_cursors.pop() if self._idle_cursors else ffi.new("sm_cursor *")
        go_on(cursor, state)
        try:
            return (yield from self._push_columns(given, timeout, cursor))
        except ShardmemError as error:
            raise _with_left(error, cursor, given.count)  # noqa: B904

    def _push_columns(self, given: EventColumns, timeout: float | None, cursor: sm_cursor) -> Steps[int]:
        columns, offered, call = given.for_c(), given.count, None
        while True:
            status = self._attached.call(lib.sm_push_columns, columns, cursor)
            if status == lib.SM_OK:
                self._idle_cursors.append(cursor)
                return offered if call is None else call.done(offered)
            if status == lib.SM_TOO_LARGE:
                raise ValueError(self._bad_columns(given, int(cursor.next)))
            if status == lib.SM_SUPERSEDED:
                raise _superseded(given.extras.origin)
            if call is None:
                call = Call(self, timeout, keeps=given.extras.origin is not None)
            if (yield from call.mend(status, cursor.shard, lambda: given.rest(left_of(cursor, offered)))):
                continue
            if not call.skips:
                left = left_of(cursor, offered)
                rest = None if call.keeps else given.rest(left)[0]
                return call.give_up(offered, len(left), rest, cursor.shard)
            full = int(cursor.chunk) + pending(cursor)
            kept = call.sampled(len(full))
            call.dropped(len(full) - len(kept))
            call.kept(len(kept), (yield from self._push_columns_steps(given[full[kept]], KEPT)))
            cursor.pending_count = 0

    # ---- records engines ---------------------------------------------------------------------------------------------

    def send(self, records: np.ndarray, timeout: float | None = DEFAULT) -> int:
        """A structured array of the engine's dtype, routed row by row; returns how many were accepted.

        Fastest in blocks of some thousand rows. Raises what `push` raises; `Backpressure.rest` is the array of the rows
        that were not accepted.
        """
        return finish(self._send_steps(records, timeout))

    def _send_steps(self, records: np.ndarray, timeout: float | None) -> Steps[int]:
        self._expect(records=True)
        rows = self._rows(records)
        cursor = ffi.new("sm_cursor *")
        try:
            return (yield from self._send(rows, timeout, cursor))
        except ShardmemError as error:
            raise _with_left(error, cursor, len(rows))  # noqa: B904

    def _send(self, rows: np.ndarray, timeout: float | None, cursor: sm_cursor) -> Steps[int]:
        pointer = ffi.cast("void *", rows.ctypes.data)
        call = Call(self, timeout)
        while True:
            status = self._attached.call(lib.sm_send, pointer, len(rows), cursor)
            if status == lib.SM_OK:
                return call.done(len(rows))
            if (yield from call.mend(status, cursor.shard, lambda: rest_of(rows, cursor))):
                continue
            if not call.skips:
                rest, left = rest_of(rows, cursor)
                return call.give_up(len(rows), left, rest, cursor.shard)
            full = rows[int(cursor.chunk) + pending(cursor)]
            kept = call.sampled(len(full))
            call.dropped(len(full) - len(kept))
            call.kept(len(kept), (yield from self._send_steps(full[kept], KEPT)))
            cursor.pending_count = 0

    # ---- how far it has come -----------------------------------------------------------------------------------------

    def ref(self, key: int | str | bytes) -> Ref:
        """Somebody to tell something: `producer.ref("cart-17").tell(b"...")`; `slot` and `shard` say where it goes."""
        return Ref(self, key)

    def partition_table(self) -> PartitionTable:
        """Of the engine, for a source: only the holder of its seat writes it. Raises NotRunning: the engine is away."""
        return PartitionTable(self._control())

    def _control(self) -> ControlSegment:
        """Raises NotRunning: the engine is away."""
        return self._own_seat().control

    def _own_seat(self) -> Seat:
        if (seat := self._attached.own_seat()) is None:
            raise NotRunning(f"engine {self.engine!r} is not running")
        return seat

    def position(self) -> Marks:
        """Where the lanes end now: `handled` says later whether all that was pushed before has been handled."""
        return self._attached.position()

    def handled(self, position: Marks) -> bool:
        """Whether all that was pushed before `position` was taken has been handled, quarantined or shed."""
        return self._attached.has_come_to(position)

    def outcome(self) -> Outcome:
        """What became of the events that were pushed through this producer; of those pushed into engines that ended,
        by then."""
        counts = self._attached.counts()
        return {
            "accepted": counts.accepted,
            "handled": counts.handled,
            "quarantined": counts.quarantined,
            "skipped": counts.skipped,
            "shed": counts.shed,
            "refused": counts.refused,
        }

    def interrupt(self) -> None:
        """A call that waits for room raises Interrupted, and so does every later one that would wait. From a signal
        handler or another thread."""
        self._interrupted = True

    # ---- both --------------------------------------------------------------------------------------------------------

    def recover(self, table: PartitionTable) -> dict[int, np.ndarray]:
        """What a source that was killed had pushed beyond what the table says: row -> offsets, rising. Its successor,
        on the same named seat, asks before it pushes anything: it goes on at `table.pushed(row)`, without these
        offsets. When all before the last of them is pushed, it says so with `table.set_pushed(row, last + 1)`; until
        then it pushes little else.

        Raises NotRunning: the engine is away.
        """
        seat, found = self._own_seat(), dict[int, list[np.ndarray]]()
        for row, epoch, offsets in seat.last_call():
            view = table.view(row)
            if view is not None and view.epoch == epoch and (offsets >= view.pushed).any():
                found.setdefault(row, []).append(offsets[offsets >= view.pushed])
        known = {row: np.unique(np.concatenate(parts)) for row, parts in found.items()}
        for row, offsets in known.items():
            seat.resume_call(row, table.resume(row), int(offsets[-1]) + 1)
        return known

    def flush(self, timeout: float | None = None, slots: Iterable[int] | None = None) -> None:
        """Wait until everything that this producer pushed before has been handled; slots: only in the lanes of the
        shards that own these, or owned them when it was pushed.

        Raises TimeoutError after `timeout` seconds, HandlerError when a shard has failed, NotRunning when the engine
        ended before it had handled everything.
        """
        finish(self._flush_steps(timeout, slots))

    def _flush_steps(self, timeout: float | None, slots: Iterable[int] | None = None) -> Steps[None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        attached = self._attached
        attached.expect_open()
        seat = attached.own_seat()
        for shard in [] if seat is None else seat.shards_of(slots):
            assert seat is not None
            at = seat.position(shard)
            while at is not None and not seat.has_come_to(shard, at[0]):
                left = None if deadline is None else deadline - time.monotonic()
                yield LaneWait(seat, shard, at[0], self._spin_ns, left)
                if seat.has_come_to(shard, at[0]):
                    break
                attached.expect_open(" by another thread")
                attached.expect_progress(seat, shard)
                attached.expect_engine(seat)
                if deadline is not None and time.monotonic() >= deadline:
                    tail, head = seat.position(shard) or (0, 0)
                    why = seat.control.shard_error(shard)
                    raise TimeoutError(
                        f"after {timeout:.3g} s shard {shard} has not handled everything that was pushed: "
                        f"{min(at[0], tail) - head:,} bytes of its lane are left" + (f"; it says: {why}" if why else "")
                    )
        attached.expect_none_lost()

    def close(self) -> None:
        """Give up the seat. What was pushed is in shared memory and will be handled; flush first to wait for it.

        Another thread may be inside a call: it gets NotRunning, and the memory is unmapped when it has left it.
        """
        self._attached.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sit(self, seat: Seat) -> None:
        seat.control.call_seat(seat.number, self._client)
        self.seat, self.largest, self._lane_bytes = seat.number, seat.largest, seat.control.lane_bytes
        self.backpressure = self._chosen or seat.control.backpressure
        self._timeout: float | None = 0.0 if self.backpressure == "fail" else None
        if not seat.control.schema.is_records:
            self._fast.attach(int(ffi.cast("uintptr_t", seat.sender)), seat)

    def _end_with_engine(self) -> None:
        """Whoever ran the engine has ended it, and nobody is expected to run it again: calls do not wait for that."""
        self._attached.is_awaited = False

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _expect(self, *, records: bool) -> None:
        self._attached.expect_open()
        if records != self.schema.is_records:
            raise TypeError(
                f"engine {self.engine!r} carries "
                f"{'records: use send' if self.schema.is_records else 'events: use push, push_many or push_columns'}"
            )

    def _check_size(self, payload: int, key: int) -> None:
        if payload + key > self.largest:
            raise ValueError(self._too_large(payload, key))

    def _too_large(self, payload: int, key: int) -> str:
        return (
            f"an event of {payload:,} bytes with a key of {key:,} does not fit: half a lane holds at most "
            f"{self.largest:,} (lane_bytes={self._lane_bytes:,}); raise lane_bytes"
        )

    def _rows(self, records: np.ndarray) -> np.ndarray:
        if not isinstance(records, np.ndarray) or records.dtype != self.schema.dtype:
            raise TypeError(
                f"send takes an array of dtype {self.schema.dtype}, not "
                f"{records.dtype if isinstance(records, np.ndarray) else type(records).__name__}; "
                f"use .astype(...)"
            )
        if type(records) is not np.ndarray and isinstance(records, np.ma.MaskedArray):
            if b"\1" in np.ma.getmaskarray(records).tobytes():
                raise TypeError("send takes no masked values, because an event has all its fields: use .filled(...)")
        return np.ascontiguousarray(records).reshape(-1)

    def _bad_columns(self, columns: EventColumns, event: int) -> str:
        first, last = columns.bounds(event)
        if first <= last <= len(columns.data):
            return f"event {event}: {self._too_large(last - first, columns.key_bytes(event))}"
        return f"offsets must rise from 0 to at most len(data) = {len(columns.data)}; they do not at {event}"


_EMPTY = b"\0"  # what an empty payload points to: without memory it would be none


def _superseded(origin: Origin | None) -> Superseded:
    assert origin is not None
    return Superseded(
        f"partition row {origin.partition} is not in epoch {origin.epoch} any more; nothing more of it is accepted"
    )


def _with_left(error: ShardmemError, cursor: sm_cursor, offered: int) -> ShardmemError:
    """The error of a call, which says the numbers of the events that were not accepted."""
    error.left = left_of(cursor, offered)
    return error


def connect(engine: str, **options: Unpack[ProducerOptions]) -> Producer:
    """A producer of the engine of that name, which some other process runs (`shardmem run`, or `Engine(name)`).

    Takes what Producer takes: backpressure, spin_us, sample_every, wait, reconnect, seat, client. Raises NotRunning,
    LayoutMismatch, SegmentError, AlreadyRunning (every seat is taken, or the one of that name is), OutOfMemory.
    """
    return Producer(engine, **options)
