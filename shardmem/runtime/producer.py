"""The producer: any process's end of an engine. Pushes events into shared memory, and waits only when it is full."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from shardmem.errors import AlreadyRunning, ConfigError, HandlerError, NotRunning, SegmentCorrupt, ShardmemError
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import Pusher, borrow, ffi, lib
from shardmem.memory.words import refused_by_reason
from shardmem.runtime.call import DEFAULT, MODES, SLICE, Call, Mode
from shardmem.runtime.columns import EventColumns, Keys
from shardmem.runtime.encode import Key, bytes_of, is_encodable, left_of, pending, plain_key, plain_lists, rest_of

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

    from shardmem.memory.native import sm_cursor, sm_sender


class ProducerOptions(TypedDict, total=False):
    """How a producer behaves.

    backpressure: what it does about a full lane: "block" until there is room, "fail" at once, "drop_newest",
        "drop_oldest", or "sample" (of what finds no room, every `sample_every`-th event waits, the others are dropped).
        None: as the engine says.
    spin_us: microseconds to spin before sleeping on a full lane; None: 50.
    wait: seconds to wait for an engine that does not exist yet.
    """

    backpressure: Mode | None
    spin_us: int | None
    sample_every: int
    wait: float


class Outcome(TypedDict):
    """What became of the events of a producer."""

    accepted: int
    handled: int
    quarantined: int
    shed: int
    refused: dict[str, int]  # by reason


Marks = dict[int, tuple[int, int]]  # shard -> generation of its inbox, tail of this producer's lane in it

_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


class Producer:
    """Pushes into one engine. Thread-safe; survives fork (the child takes a seat of its own at its next call).

    Use `shardmem.connect(name)` or `engine.producer()`. `timeout` of every call: None waits as long as a lane is full,
    0 does not wait, else seconds; left out, the engine's backpressure decides ("block": None, "fail": 0). After it
    Backpressure is raised, with what was not accepted. In the modes that drop, nothing is raised: the calls return how
    much was accepted, and what was dropped is counted by reason in `status`.
    """

    def __init__(
        self,
        engine: str,
        *,
        backpressure: Mode | None = None,
        spin_us: int | None = None,
        sample_every: int = 10,
        wait: float = 0.0,
    ) -> None:
        """backpressure, spin_us, sample_every, wait: see ProducerOptions; without a backpressure, the engine's.

        Raises ConfigError (an option is wrong), NotRunning (no such engine, or it is stopping), LayoutMismatch,
        SegmentCorrupt, SegmentError (another user's), AlreadyRunning (every seat is taken).
        """
        if backpressure is not None and backpressure not in MODES:
            raise ConfigError(f"backpressure={backpressure!r}; one of {', '.join(MODES)}")
        if sample_every < 1:
            raise ConfigError(f"sample_every={sample_every}; of every so many refused events one is kept, at least 1")
        self.engine = engine
        self._chosen = backpressure
        self._spin_ns = 1000 * (50 if spin_us is None else spin_us)
        self._sample_every, self._sampled = sample_every, 0
        self._wait = wait
        self._closed = False
        self._retired: list[InboxSegment | ControlSegment] = []
        self._idle_cursors: list[sm_cursor] = []  # 16 KiB each: making one costs as much as pushing a hundred events
        self._mending = threading.RLock()
        self._attach()
        _producers.add(self)

    def _attach(self) -> None:
        """Take a seat. The lease is stored last: whoever finds it held finds the rest of it too."""
        control = ControlSegment.attach(self.engine, self._wait)
        try:
            state = control.state
            if state in ("draining", "stopped"):
                raise NotRunning(f"engine {self.engine!r} is {state}; it accepts nothing any more")
            seat, held = _take_seat(control)
        except BaseException:
            control.close()
            raise
        control.enter_seat(seat)
        sender = lib.sm_sender_new(control.address, control.geometry, seat)
        if sender == ffi.NULL:
            held.release()
            control.close()
            raise MemoryError("no memory for a sender")
        self._control, self.seat, self.schema = control, seat, control.schema
        self._sender: sm_sender = sender
        self.backpressure = self._chosen or control.backpressure
        self._timeout: float | None = 0.0 if self.backpressure == "fail" else None
        self._inboxes: dict[int, InboxSegment] = {}
        self._interrupted = False
        self._lanes: list[tuple[InboxSegment, tuple[int, ...]]] = []  # every lane of this seat, and its counts before
        self._refused_before = refused_by_reason(control.view_seat(seat))
        self._fast = Pusher(int(ffi.cast("uintptr_t", sender)), self._push_slow)
        if not self.schema.is_records and self.backpressure in ("block", "fail"):
            # the same call without a Python frame: see csrc/fastcall.c
            self.push = self._fast.push  # type: ignore[method-assign]
        self._lease = held

    # ---- events engines ----------------------------------------------------------------------------------------------

    def push(self, key: Key, payload: Buffer, timeout: float | None = DEFAULT) -> bool:
        """One event; True when it is accepted (False: dropped, in a mode that drops).

        key: int (-2**63 to 2**64-1), str, bytes, or None for no order. payload: bytes-like.
        Raises Backpressure, NotRunning, HandlerError (its shard has given up), OutOfMemory, TypeError, ValueError.
        """
        return self._push_slow(key, payload, timeout)

    def _push_slow(self, key: Any, payload: Any, timeout: float | None = DEFAULT) -> bool:
        kind, number, key_bytes = plain_key(key)
        self._usable(records=False)
        memory = bytes_of(payload)
        self._check_size(len(memory), len(key_bytes))
        data, key_data = borrow("uint8_t[]", memory), borrow("uint8_t[]", key_bytes)
        shard, call = ffi.new("uint32_t *"), Call(self, timeout)
        while True:
            status = lib.sm_push(
                self._sender,
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
            if call.mend(status, shard[0], lambda: ((key, payload), 1)):
                continue
            if not call.drops:
                return call.give_up(1, 0, (key, payload), shard[0]) == 1
            if call.sampled(1):
                return self._push_slow(key, payload, None)
            call.dropped(1)
            return False

    def push_many(
        self, keys: Sequence[Key] | np.ndarray, payloads: Sequence[Buffer], timeout: float | None = DEFAULT
    ) -> int:
        """Many events: `payloads[i]` under `keys[i]`. Returns how many were accepted.

        Fastest with two lists of plain int, str, bytes or None and of bytes. Either all events are well-formed or none
        is accepted. Raises what `push` raises; `Backpressure.rest` is `(keys, payloads)` of what was not accepted.
        """
        if type(keys) is not list:
            keys = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
        if type(payloads) is not list:
            payloads = list(payloads)
        if len(keys) != len(payloads):
            raise ValueError(f"{len(keys)} keys and {len(payloads)} payloads; there must be one key for each payload")
        self._usable(records=False)
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
                    return self._push_each(call, keys, payloads, offered)
                continue
            left = np.frombuffer(pending, "u4").tolist()
            full = ([keys[chunk + i] for i in left], [payloads[chunk + i] for i in left])
            if left or ahead:
                keys, payloads = full[0] + keys[ahead:], full[1] + payloads[ahead:]
            if call.mend(status, shard, lambda: ((keys, payloads), len(keys))):  # noqa: B023 - called at once
                continue
            if not call.drops:
                return call.give_up(offered, offered - len(keys), (keys, payloads), shard)
            kept = call.sampled(len(left))  # the others of the full shard are dropped; other shards may have room
            call.dropped(len(left) - len(kept))
            self.push_many([full[0][i] for i in kept], [full[1][i] for i in kept], timeout=None)
            keys, payloads = keys[len(left) :], payloads[len(left) :]

    def _push_each(self, call: Call, keys: list[Any], payloads: list[Any], offered: int) -> int:
        """Keys with surrogates (names of files that are not UTF-8) have no plain form in C."""
        for i, (key, payload) in enumerate(zip(keys, payloads)):
            try:
                self._push_slow(key, payload, DEFAULT if call.drops else call.left())
            except ShardmemError as error:
                raise call.explained(error, (keys[i:], payloads[i:]), offered - i, already=1) from None
        return call.done(offered)

    def push_columns(
        self,
        keys: np.ndarray | tuple[Buffer, np.ndarray] | Keys | None,
        data: Buffer,
        offsets: np.ndarray,
        timeout: float | None = DEFAULT,
    ) -> int:
        """Events as columns, without a Python object for each; returns how many were accepted.

        keys: integer array of shape (n,), bytes array ('S'), `(data, offsets)` of keys of bytes, `Keys`, or None for no
        keys.
        data: one bytes-like. offsets: integer array of shape (n + 1,), payload i is `data[offsets[i]:offsets[i + 1]]`;
        or of shape (n, 2), a start and an end for each: then there may be bytes between them that are nobody's. So too
        of keys. Raises what `push` raises; `Backpressure.rest` is `(keys, data, offsets)` of what was not accepted.
        """
        self._usable(records=False)
        given = EventColumns.of(keys, data, offsets)
        cursor = self._idle_cursors.pop() if self._idle_cursors else ffi.new("sm_cursor *")
        cursor.chunk = cursor.next = cursor.accepted = cursor.pending_count = 0
        try:
            return self._push_columns(given, timeout, cursor)
        except ShardmemError as error:
            raise _with_left(error, cursor, given.count)  # noqa: B904

    def _push_columns(self, given: EventColumns, timeout: float | None, cursor: sm_cursor) -> int:
        columns, offered, call = given.for_c(), given.count, None
        while True:
            status = lib.sm_push_columns(self._sender, columns, cursor)
            if status == lib.SM_OK:
                self._idle_cursors.append(cursor)
                return offered if call is None else call.done(offered)
            if status == lib.SM_TOO_LARGE:
                raise ValueError(self._bad_columns(given, int(cursor.next)))
            if call is None:
                call = Call(self, timeout)
            if call.mend(status, cursor.shard, lambda: given.rest(left_of(cursor, offered))):
                continue
            if not call.drops:
                rest, _ = given.rest(left_of(cursor, offered))
                return call.give_up(offered, int(cursor.accepted), rest, cursor.shard)
            full = int(cursor.chunk) + pending(cursor)
            kept = call.sampled(len(full))
            call.dropped(len(full) - len(kept))
            self.push_columns(*given.rest(full[kept])[0], None)
            cursor.pending_count = 0

    # ---- records engines ---------------------------------------------------------------------------------------------

    def send(self, records: np.ndarray, timeout: float | None = DEFAULT) -> int:
        """A structured array of the engine's dtype, routed row by row; returns how many were accepted.

        Fastest in blocks of some thousand rows. Raises what `push` raises; `Backpressure.rest` is the array of the rows
        that were not accepted.
        """
        self._usable(records=True)
        rows = self._rows(records)
        cursor = ffi.new("sm_cursor *")
        try:
            return self._send(rows, timeout, cursor)
        except ShardmemError as error:
            raise _with_left(error, cursor, len(rows))  # noqa: B904

    def _send(self, rows: np.ndarray, timeout: float | None, cursor: sm_cursor) -> int:
        pointer = ffi.cast("void *", rows.ctypes.data)
        call = Call(self, timeout)
        while True:
            status = lib.sm_send(self._sender, pointer, len(rows), cursor)
            if status == lib.SM_OK:
                return call.done(len(rows))
            if call.mend(status, cursor.shard, lambda: rest_of(rows, cursor)):
                continue
            if not call.drops:
                rest, count = rest_of(rows, cursor)
                return call.give_up(len(rows), len(rows) - count, rest, cursor.shard)
            full = rows[int(cursor.chunk) + pending(cursor)]
            kept = call.sampled(len(full))
            call.dropped(len(full) - len(kept))
            self.send(full[kept], timeout=None)
            cursor.pending_count = 0

    # ---- how far it has come -----------------------------------------------------------------------------------------

    def position(self) -> Marks:
        """Where the lanes end now: `handled` says later whether all that was pushed before has been handled."""
        tail, head = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        return {
            shard: (inbox.generation, tail[0])
            for shard, inbox in list(self._inboxes.items())
            if lib.sm_sender_position(self._sender, shard, tail, head) == lib.SM_OK
        }

    def handled(self, position: Marks) -> bool:
        """Whether all that was pushed before `position` was taken has been handled, quarantined or shed."""
        tail, head = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        for shard, (generation, target) in position.items():
            inbox = self._inboxes.get(shard)
            if inbox is None or inbox.generation != generation:
                continue  # the shard ended since, which it does with empty lanes
            if lib.sm_sender_position(self._sender, shard, tail, head) == lib.SM_OK and head[0] < target:
                return False
        return True

    def outcome(self) -> Outcome:
        """What became of the events that were pushed through this producer."""
        lanes = [(inbox.counts(self.seat), before) for inbox, before in list(self._lanes)]
        accepted, handled, quarantined, shed = (sum(now[i] - before[i] for now, before in lanes) for i in range(4))
        refused = refused_by_reason(self._control.view_seat(self.seat))
        new = {reason: count - self._refused_before.get(reason, 0) for reason, count in refused.items()}
        return {
            "accepted": accepted,
            "handled": handled,
            "quarantined": quarantined,
            "shed": shed,
            "refused": {reason: count for reason, count in new.items() if count},
        }

    @property
    def largest(self) -> int:
        """Bytes of key and payload of the largest event."""
        return lib.sm_max_payload(self._sender, 0)

    def interrupt(self) -> None:
        """A call that waits for room raises Interrupted, and so does every later one that would wait. From a signal
        handler or another thread."""
        self._interrupted = True

    # ---- both --------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that this producer pushed before has been handled.

        Raises TimeoutError after `timeout` seconds, HandlerError when a shard has given up.
        """
        self._usable()
        sender = self._sender
        deadline = None if timeout is None else time.monotonic() + timeout
        tail, head = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        for shard in list(self._inboxes):
            if lib.sm_sender_position(sender, shard, tail, head) != lib.SM_OK:
                continue
            target = tail[0]
            while True:
                left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
                status = lib.sm_wait_handled(sender, shard, target, self._spin_ns, max(0, int(left * 1e9)))
                if status == lib.SM_OK:
                    break
                if self._closed:
                    raise NotRunning("this producer was closed by another thread")
                self._still_handled(shard)
                if deadline is not None and time.monotonic() >= deadline:
                    lib.sm_sender_position(sender, shard, tail, head)
                    raise TimeoutError(
                        f"after {timeout:.3g} s shard {shard} has not handled everything that was pushed: "
                        f"{target - head[0]:,} bytes of its lane are left"
                    )

    def close(self) -> None:
        """Give up the seat. What was pushed is in shared memory and will be handled; flush first to wait for it.

        Another thread may be inside a call: it gets NotRunning. The memory is unmapped when the last reference to the
        producer is gone, because only then is nobody inside it.
        """
        with self._mending:
            if self._closed:
                return
            self._closed = True
            self._detach()
            lib.sm_sender_close(self._sender)
            if self._lease.held:  # last: the next holder of the seat must find nobody writing
                self._control.leave_seat(self.seat)
                self._lease.release()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lease", None) is None or lib is None:
            return
        try:
            if not self._closed:
                lib.sm_sender_close(self._sender)
            self._lease.release()
            lib.sm_sender_free(self._sender)
            for inbox in [*self._inboxes.values(), *self._retired]:
                inbox.close()
            self._control.close()
        except (TypeError, AttributeError):
            pass  # at the interpreter's end, when modules are being taken apart

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _usable(self, records: bool | None = None) -> None:
        if self._closed:
            raise NotRunning("this producer is closed")
        if not self._lease.held:
            self._reattach()
        if records is not None and records != self.schema.is_records:
            raise TypeError(
                f"engine {self.engine!r} carries "
                f"{'records: use send' if self.schema.is_records else 'events: use push, push_many or push_columns'}"
            )

    def _detach(self) -> None:
        self._fast.detach()
        self.__dict__.pop("push", None)

    def _reattach(self) -> None:
        """In a forked child: the parent keeps its seat, this process takes its own. What was the parent's is kept
        mapped and never locked or freed: a thread that does not exist here may have been in the middle of it."""
        with self._mending:
            if not self._closed and not self._lease.held:
                self._detach()
                self._retired += [*self._inboxes.values(), self._control]
                self._attach()

    def _open_lane(self, shard: int) -> None:
        with self._mending:  # one thread at a time: the loser of a race would unmap what the winner has linked
            generation = lib.sm_sender_generation(self._sender, shard)
            known = self._inboxes.get(shard)
            if known is not None and known.generation == generation:
                return
            inbox = self._control.open_inbox(shard, generation)
            try:
                inbox.reserve_lane(self.seat)
                before = inbox.counts(self.seat)
                status = lib.sm_sender_link(self._sender, shard, generation, inbox.address)
            except BaseException:
                inbox.close()
                raise
            if status == lib.SM_CORRUPT:
                inbox.close()
                raise SegmentCorrupt(
                    f"the lane of producer {self.seat} to shard {shard} contradicts itself: its head and "
                    f"tail are further apart than the lane is long; connect again to get another seat"
                )
            if known is not None:
                self._retired.append(known)  # a thread may still wait in it
            self._inboxes[shard] = inbox
            self._lanes.append((inbox, before))

    def _still_handled(self, shard: int) -> None:
        """Raises when nobody will ever make room in this lane."""
        if self._control.shard_state(shard) == "failed":
            raise HandlerError(
                f"shard {shard} of engine {self.engine!r} has given up: "
                f"{self._control.shard_error(shard) or 'no reason recorded'}"
            )
        if lib.sm_sender_broken(self._sender, shard):
            raise SegmentCorrupt(
                f"the worker of shard {shard} found the lane of producer {self.seat} (this one) corrupt and "
                f"reads it no more; what it had accepted is lost to that worker: close, connect again, and "
                f"look for a program that writes into memory that is not its own"
            )
        if self._control.state == "stopped":
            raise NotRunning(
                f"engine {self.engine!r} was stopped; what it had accepted but not handled is in shared memory"
            )

    def _check_size(self, payload: int, key: int) -> None:
        if payload + key > lib.sm_max_payload(self._sender, 0):
            raise ValueError(self._too_large(payload, key))

    def _too_large(self, payload: int, key: int) -> str:
        return (
            f"an event of {payload:,} bytes with a key of {key:,} does not fit: half a lane holds at most "
            f"{lib.sm_max_payload(self._sender, 0):,} (lane_bytes={self._control.lane_bytes:,}); raise lane_bytes"
        )

    def _rows(self, records: np.ndarray) -> np.ndarray:
        if not isinstance(records, np.ndarray) or records.dtype != self.schema.dtype:
            raise TypeError(
                f"send takes an array of dtype {self.schema.dtype}, not "
                f"{records.dtype if isinstance(records, np.ndarray) else type(records).__name__}; "
                f"use .astype(...)"
            )
        return np.ascontiguousarray(records).reshape(-1)

    def _bad_columns(self, columns: EventColumns, event: int) -> str:
        first, last = columns.bounds(event)
        if first <= last <= len(columns.data):
            return f"event {event}: {self._too_large(last - first, columns.key_bytes(event))}"
        return f"offsets must rise from 0 to at most len(data) = {len(columns.data)}; they do not at {event}"


def _with_left(error: ShardmemError, cursor: sm_cursor, offered: int) -> ShardmemError:
    """The error of a call, which says the numbers of the events that were not accepted."""
    error.left = left_of(cursor, offered)
    return error


def _take_seat(control: ControlSegment) -> tuple[int, lease.Lease]:
    for seat in range(control.max_producers):
        held = lease.Lease.take(control.segment, lease.seat_byte(seat))
        if held is not None:
            return seat, held
    raise AlreadyRunning(
        f"engine {control.engine!r} has {control.max_producers} producers, all alive; close one or raise max_producers"
    )


def _new_locks() -> None:
    for producer in list(_producers):
        producer._mending = threading.RLock()  # a thread that does not exist here may have held it


os.register_at_fork(after_in_child=_new_locks)


def connect(engine: str, **options: Unpack[ProducerOptions]) -> Producer:
    """A producer of the engine of that name, which some other process runs (`shardmem run`, or `Engine(name)`).

    Takes what Producer takes: backpressure, spin_us, sample_every, wait. Raises NotRunning, LayoutMismatch,
    SegmentError, AlreadyRunning (every seat is taken), OutOfMemory.
    """
    return Producer(engine, **options)
