"""The producer: any process's end of an engine. Pushes events into shared memory, and waits only when it is full."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shardmem.errors import (
    AlreadyRunning,
    Backpressure,
    ConfigError,
    HandlerError,
    Interrupted,
    NotRunning,
    OutOfMemory,
    SegmentCorrupt,
    ShardmemError,
)
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment, InboxSegment
from shardmem.memory.native import REASONS, Pusher, ffi, lib
from shardmem.runtime.columns import EventColumns, Keys, bytes_of
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_NONE, KEY_STR

BACKPRESSURE = ("block", "fail", "drop_newest", "drop_oldest", "sample")
SLICE = 0.1  # the longest single wait, so that signals, a stop and a failed shard are noticed
DEFAULT: Any = type("default", (), {"__repr__": lambda self: "the engine's backpressure"})()
PROBE: Any = type("probe", (), {"__repr__": lambda self: "one try that is not counted as refused"})()

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
        backpressure: str | None = None,
        spin_us: int | None = None,
        sample_every: int = 10,
        wait: float = 0.0,
    ) -> None:
        """backpressure: the engine's if not given. wait: seconds to wait for the engine to exist. spin_us: spin budget before
        sleeping on a full lane."""
        if backpressure is not None and backpressure not in BACKPRESSURE:
            raise ConfigError(f"backpressure={backpressure!r}; one of {', '.join(BACKPRESSURE)}")
        if sample_every < 1:
            raise ConfigError(f"sample_every={sample_every}; of every so many refused events one is kept, at least 1")
        self.engine = engine
        self._chosen = backpressure
        self._spin_ns = 1000 * (50 if spin_us is None else spin_us)
        self._sample_every, self._sampled = sample_every, 0
        self._wait = wait
        self._closed = False
        self._retired: list[Any] = []
        self._idle_cursors: list[Any] = []  # 16 KiB each: making one costs as much as pushing a hundred events
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
        lib.sm_seat_enter(control.address, seat, os.getpid(), lib.sm_now_ns())
        sender = lib.sm_sender_new(control.address, control.geometry, seat)
        if sender == ffi.NULL:
            held.release()
            control.close()
            raise MemoryError("no memory for a sender")
        self._control, self.seat, self._sender, self.schema = control, seat, sender, control.schema
        self.backpressure = self._chosen or control.backpressure
        self._timeout = 0.0 if self.backpressure == "fail" else None
        self._inboxes: dict[int, InboxSegment] = {}
        self._interrupted = False
        self._lanes: list[tuple[InboxSegment, tuple[int, int, int, int]]] = []  # every lane of this seat so far, and its counts before
        view = ffi.new("sm_seat_view *")
        lib.sm_view_seat(control.address, seat, view)
        self._refused_before = [int(count) for count in view.refused]
        self._fast = Pusher(int(ffi.cast("uintptr_t", sender)), self._push_slow)
        if not self.schema.is_records and self.backpressure in ("block", "fail"):
            # the same call without a Python frame: see csrc/fastcall.c
            self.push = self._fast.push  # type: ignore[method-assign]
        self._lease = held

    # ---- events engines ---------------------------------------------------------------------------------------------------

    def push(self, key: int | str | bytes | None, payload: bytes, timeout: float | None = DEFAULT) -> bool:
        """One event; True when it is accepted (False: dropped, in a mode that drops).

        key: int (-2**63 to 2**64-1), str, bytes, or None for no order. payload: bytes-like.
        Raises Backpressure, NotRunning, HandlerError (its shard has given up), OutOfMemory, TypeError, ValueError.
        """
        return self._push_slow(key, payload, timeout)

    def _push_slow(self, key: Any, payload: Any, timeout: float | None = DEFAULT) -> bool:
        kind, number, key_bytes = plain_key(key)
        self._usable(records=False)
        memory = bytes_of(payload)
        if len(memory) + len(key_bytes) > lib.sm_max_payload(self._sender, 0):
            raise ValueError(self._too_large(len(memory), len(key_bytes)))
        data, key_data = ffi.from_buffer(memory), ffi.from_buffer(key_bytes)
        shard, call = ffi.new("uint32_t *"), _Call(self, timeout)
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

    def push_many(self, keys: Sequence[Any], payloads: Sequence[Any], timeout: float | None = DEFAULT) -> int:
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
                call = _Call(self, timeout)
            status, chunk, ahead, pending, shard, _ = state
            if status == lib.SM_TOO_LARGE:  # something that is not plain; nothing was accepted
                keys, payloads = self._plain_lists(keys, payloads)
                if any(isinstance(key, str) and not _encodable(key) for key in keys):
                    return self._push_each(call, keys, payloads, offered)
                continue
            left = np.frombuffer(pending, "u4").tolist()
            full = ([keys[chunk + i] for i in left], [payloads[chunk + i] for i in left])
            if left or ahead:
                keys, payloads = full[0] + keys[ahead:], full[1] + payloads[ahead:]
            if call.mend(status, shard, lambda: ((keys, payloads), len(keys))):
                continue
            if not call.drops:
                return call.give_up(offered, offered - len(keys), (keys, payloads), shard)
            kept = call.sampled(len(left))  # the others of the full shard are dropped; other shards may have room
            call.dropped(len(left) - len(kept))
            self.push_many([full[0][i] for i in kept], [full[1][i] for i in kept], timeout=None)
            keys, payloads = keys[len(left) :], payloads[len(left) :]

    def _push_each(self, call: _Call, keys: list, payloads: list, offered: int) -> int:
        """Keys with surrogates (names of files that are not UTF-8) have no plain form in C."""
        for i, (key, payload) in enumerate(zip(keys, payloads)):
            try:
                self._push_slow(key, payload, DEFAULT if call.drops else call.left())
            except ShardmemError as error:
                raise call.explained(error, (keys[i:], payloads[i:]), offered - i, already=1) from None
        return call.done(offered)

    def push_columns(
        self, keys: np.ndarray | Keys | None, data: Any, offsets: np.ndarray, timeout: float | None = DEFAULT
    ) -> int:
        """Events as columns, without a Python object for each; returns how many were accepted.

        keys: integer array of shape (n,), bytes array ('S'), `(data, offsets)` of keys of bytes, `Keys`, or None for no keys.
        data: one bytes-like. offsets: integer array of shape (n + 1,), payload i is `data[offsets[i]:offsets[i + 1]]`; or of
        shape (n, 2), a start and an end for each: then there may be bytes between them that are nobody's. So too of keys.
        Raises what `push` raises; `Backpressure.rest` is `(keys, data, offsets)` of what was not accepted.
        """
        self._usable(records=False)
        given = EventColumns.of(keys, data, offsets)
        cursor = self._idle_cursors.pop() if self._idle_cursors else ffi.new("sm_cursor *")
        cursor.chunk = cursor.next = cursor.accepted = cursor.pending_count = 0
        try:
            return self._push_columns(given, timeout, cursor)
        except ShardmemError as error:
            raise _with_left(error, cursor, given.count)

    def _push_columns(self, given: EventColumns, timeout: float | None, cursor: Any) -> int:
        columns, offered, call = given.for_c(), given.count, None
        while True:
            status = lib.sm_push_columns(self._sender, columns, cursor)
            if status == lib.SM_OK:
                self._idle_cursors.append(cursor)
                return offered if call is None else call.done(offered)
            if status == lib.SM_TOO_LARGE:
                raise ValueError(self._bad_columns(given, int(cursor.next)))
            if call is None:
                call = _Call(self, timeout)
            if call.mend(status, cursor.shard, lambda: given.rest(_left(cursor, offered))):
                continue
            if not call.drops:
                rest, _ = given.rest(_left(cursor, offered))
                return call.give_up(offered, int(cursor.accepted), rest, cursor.shard)
            full = int(cursor.chunk) + _pending(cursor)
            kept = call.sampled(len(full))
            call.dropped(len(full) - len(kept))
            self.push_columns(*given.rest(full[kept])[0], timeout=None)
            cursor.pending_count = 0

    # ---- records engines --------------------------------------------------------------------------------------------------

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
            raise _with_left(error, cursor, len(rows))

    def _send(self, rows: np.ndarray, timeout: float | None, cursor: Any) -> int:
        pointer = ffi.cast("void *", rows.ctypes.data)
        call = _Call(self, timeout)
        while True:
            status = lib.sm_send(self._sender, pointer, len(rows), cursor)
            if status == lib.SM_OK:
                return call.done(len(rows))
            if call.mend(status, cursor.shard, lambda: _rest_of(rows, cursor)):
                continue
            if not call.drops:
                rest, count = _rest_of(rows, cursor)
                return call.give_up(len(rows), len(rows) - count, rest, cursor.shard)
            full = rows[int(cursor.chunk) + _pending(cursor)]
            kept = call.sampled(len(full))
            call.dropped(len(full) - len(kept))
            self.send(full[kept], timeout=None)
            cursor.pending_count = 0

    # ---- how far it has come ------------------------------------------------------------------------------------------------

    def position(self) -> Marks:
        """Where the lanes end now: `handled` says later whether all that was pushed before has been handled."""
        tail, head = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        return {
            shard: (inbox.generation, int(tail[0]))
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

    def outcome(self) -> dict[str, Any]:
        """What became of the events of this producer: accepted, handled, quarantined, shed, and refused by reason."""
        counts = dict.fromkeys(("accepted", "handled", "quarantined", "shed"), 0)
        for inbox, before in list(self._lanes):
            lane = _lane_counts(inbox, self.seat)
            for name, now, then in zip(counts, lane, before):
                counts[name] += now - then
        seat = ffi.new("sm_seat_view *")
        lib.sm_view_seat(self._control.address, self.seat, seat)
        refused = {
            reason: int(seat.refused[i]) - self._refused_before[i]
            for i, reason in enumerate(REASONS)
            if seat.refused[i] != self._refused_before[i]
        }
        return {**counts, "refused": refused}

    def interrupt(self) -> None:
        """A call that waits for room, and every later one that would, raises Interrupted; from a signal handler or another
        thread."""
        self._interrupted = True

    # ---- both ---------------------------------------------------------------------------------------------------------------

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
                lib.sm_seat_leave(self._control.address, self.seat)
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

    # ---- inside -----------------------------------------------------------------------------------------------------------------

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
        """In a forked child: the parent keeps its seat, this process takes its own. What was the parent's is kept mapped
        and never locked or freed: a thread that does not exist here may have been in the middle of it."""
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
                before = _lane_counts(inbox, self.seat)
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

    def _plain_lists(self, keys: list, payloads: list) -> tuple[list, list]:
        """The same events as plain objects. Raises for the first that cannot be one, before any is accepted."""
        plain_keys, plain_payloads = [], []
        for i, (key, payload) in enumerate(zip(keys, payloads)):
            try:
                kind, number, key_bytes = plain_key(key)
                memory = bytes(bytes_of(payload))
            except (TypeError, ValueError) as error:
                raise (TypeError if isinstance(error, TypeError) else ValueError)(f"event {i}: {error}") from None
            if len(memory) + len(key_bytes) > lib.sm_max_payload(self._sender, 0):
                raise ValueError(f"event {i}: {self._too_large(len(memory), len(key_bytes))}")
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

    def _bad_columns(self, columns: EventColumns, event: int) -> str:
        first, last = columns.bounds(event)
        if first <= last <= len(columns.data):
            return f"event {event}: {self._too_large(last - first, columns.key_bytes(event))}"
        return f"offsets must rise from 0 to at most len(data) = {len(columns.data)}; they do not at {event}"


class _Call:
    """One call of a producer that could not be finished at once: what to do about it, and for how long."""

    def __init__(self, producer: Producer, timeout: float | None) -> None:
        self._producer = producer
        self._mode = producer.backpressure if timeout is DEFAULT else "block"
        self._probe = timeout is PROBE
        self._lost = 0
        timeout = producer._timeout if timeout is DEFAULT else 0.0 if self._probe else timeout
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r}; None, or seconds from 0 on")
        self._timeout = timeout
        self._started = time.monotonic()
        self._blocked = False

    @property
    def drops(self) -> bool:
        """Whether what finds no room is dropped and counted instead of waited for."""
        return self._mode in ("drop_newest", "sample")

    def mend(self, status: int, shard: int, rest: Callable[[], tuple[Any, int]]) -> bool:
        """Remove the obstacle, waiting if need be. True: call again. False: the time is over.

        rest: what is not accepted yet and how much that is; an error that ends the call carries it as `.rest`.
        """
        try:
            return self._mend(status, shard)
        except ShardmemError as error:
            left, count = rest()
            raise self.explained(error, left, count)

    def explained(self, error: ShardmemError, rest: Any, count: int, already: int = 0) -> ShardmemError:
        """The error of a call that ends early, with what was not accepted, which counts as refused."""
        error.rest = rest  # type: ignore[attr-defined]
        reason = "full" if isinstance(error, OutOfMemory) else "stopped"
        lib.sm_count_refused(self._producer._sender, REASONS.index(reason), count - already)
        return error

    def _mend(self, status: int, shard: int) -> bool:
        producer = self._producer
        if status == lib.SM_NEED_LANE:
            producer._open_lane(shard)
        elif status == lib.SM_FULL:
            return self._make_room(shard)
        elif status == lib.SM_FORKED:
            producer._reattach()
        elif status == lib.SM_CLOSED:
            producer._usable()
            raise NotRunning("this producer is closed")
        elif status == lib.SM_STOPPED and producer._control.state != "starting":
            raise NotRunning(f"engine {producer.engine!r} is {producer._control.state}; it accepts nothing any more")
        elif status in (lib.SM_STOPPED, lib.SM_UNROUTED):  # about to start: no shard, or no slot table yet
            if self.left() == 0:
                return False
            time.sleep(0.005)
        elif status == lib.SM_CORRUPT:
            raise SegmentCorrupt(
                f"the lane of producer {producer.seat} to shard {shard} contradicts itself (its head is "
                f"beyond its tail); nothing more is pushed into it"
            )
        else:
            raise ShardmemError(f"unexpected status {status} of the lane to shard {shard}")
        return True

    def _make_room(self, shard: int) -> bool:
        producer, left = self._producer, self.left()
        if self.drops:
            return False
        if self._mode == "drop_oldest":
            lib.sm_evict(producer._sender, shard)
        elif left == 0:
            return False
        self._blocked = True
        slice_ns = int(1e9 * (SLICE if left is None else min(SLICE, left)))
        lib.sm_wait_room(producer._sender, shard, producer._spin_ns, slice_ns)
        if producer._closed:
            raise NotRunning("this producer was closed by another thread")
        if producer._interrupted:
            raise Interrupted("interrupted while a lane was full")
        producer._still_handled(shard)
        return True

    def left(self) -> float | None:
        """Seconds; None without a limit."""
        return None if self._timeout is None else max(0.0, self._timeout - (time.monotonic() - self._started))

    def sampled(self, refused: int) -> list[int]:
        """In mode "sample": which of so many refused events are kept all the same, every n-th over all calls."""
        if self._mode != "sample":
            return []
        producer = self._producer
        start = -producer._sampled % producer._sample_every
        producer._sampled += refused
        return list(range(start, refused, producer._sample_every))

    def dropped(self, count: int) -> None:
        self._lost += count
        lib.sm_count_refused(
            self._producer._sender, REASONS.index("sampled" if self._mode == "sample" else "full"), count
        )

    def done(self, offered: int) -> int:
        """How many were accepted."""
        if self._blocked:
            lib.sm_count_blocked(self._producer._sender, int((time.monotonic() - self._started) * 1e9))
        return offered - self._lost

    def give_up(self, offered: int, accepted: int, rest: Any, shard: int) -> int:
        """The time is over: count what is refused, and raise."""
        self.done(offered)
        refused = offered - accepted
        if not self._probe:
            lib.sm_count_refused(self._producer._sender, REASONS.index("timeout" if self._timeout else "full"), refused)
        raise Backpressure(rest, accepted, refused, shard, time.monotonic() - self._started)


def _lane_counts(inbox: InboxSegment, seat: int) -> tuple[int, int, int, int]:
    view = ffi.new("sm_lane_view *")
    lib.sm_view_lane(inbox.address, inbox.control.geometry, seat, view)
    return int(view.accepted), int(view.handled), int(view.quarantined), int(view.shed)


def _take_seat(control: ControlSegment) -> tuple[int, lease.Lease]:
    for seat in range(control.max_producers):
        held = lease.Lease.take(control.segment, lease.seat_byte(seat))
        if held is not None:
            return seat, held
    raise AlreadyRunning(
        f"engine {control.engine!r} has {control.max_producers} producers, all alive; close one or raise max_producers"
    )


def plain_key(key: Any) -> tuple[int, int, bytes]:
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


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pending(cursor: Any) -> np.ndarray:
    return np.array(ffi.unpack(cursor.pending, cursor.pending_count), "i8")


def _left(cursor: Any, offered: int) -> np.ndarray:
    """Numbers of the events of a call that are not accepted, in order."""
    return np.concatenate([int(cursor.chunk) + _pending(cursor), np.arange(cursor.next, offered)]).astype("i8")


def _with_left(error: ShardmemError, cursor: Any, offered: int) -> ShardmemError:
    error.left = _left(cursor, offered)  # type: ignore[attr-defined]
    return error


def _rest_of(rows: np.ndarray, cursor: Any) -> tuple[np.ndarray, int]:
    rest = rows[_left(cursor, len(rows))]
    return rest, len(rest)


def _new_locks() -> None:
    for producer in list(_producers):
        producer._mending = threading.RLock()  # a thread that does not exist here may have held it


os.register_at_fork(after_in_child=_new_locks)


def connect(engine: str, **options: Any) -> Producer:
    """A producer of the engine of that name, which some other process runs (`shardmem run`, or `Engine(name)`).

    Takes what Producer takes: backpressure, spin_us, sample_every, wait. Raises NotRunning, LayoutMismatch,
    SegmentError, AlreadyRunning (every seat is taken), OutOfMemory.
    """
    return Producer(engine, **options)
