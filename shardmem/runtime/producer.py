"""The producer: any process's end of an engine. Pushes events into shared memory, and waits only when it is full."""
from __future__ import annotations

import os
import time
import weakref
from typing import Any, Sequence

import numpy as np

from shardmem.errors import (AlreadyRunning, Backpressure, ConfigError, HandlerError, NotRunning, SegmentCorrupt,
                             ShardmemError)
from shardmem.memory import lease
from shardmem.memory.control import Control, Inbox
from shardmem.memory.native import REASONS, Pusher, ffi, lib
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_NONE, KEY_STR

BACKPRESSURE = ("block", "fail", "drop_newest", "drop_oldest", "sample")
SLICE = 0.1  # the longest single wait, so that signals, a stop and a failed shard are noticed
DEFAULT: Any = type("default", (), {"__repr__": lambda self: "the engine's backpressure"})()
PROBE: Any = type("probe", (), {"__repr__": lambda self: "one try that is not counted as refused"})()

_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


class Producer:
    """Pushes into one engine. Thread-safe; survives fork (the child takes a seat of its own at its next call).

    Use `shardmem.connect(name)` or `engine.producer()`. `timeout` of every call: None waits as long as a lane is full,
    0 does not wait, else seconds; left out, the engine's backpressure decides ("block": None, "fail": 0). After it
    Backpressure is raised, with what was not accepted. In the modes that drop, nothing is raised: the calls return how
    much was accepted, and what was dropped is counted by reason in `status`.
    """

    def __init__(self, engine: str, *, backpressure: str | None = None, spin_us: int | None = None,
                 sample_every: int = 10, wait: float = 0.0) -> None:
        """wait: seconds to wait for the engine to exist. spin_us: spin budget before sleeping on a full lane."""
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
        self._sender: Any = ffi.NULL
        self._attach()
        _producers.add(self)

    def _attach(self) -> None:
        self._control = Control.attach(self.engine, self._wait)
        state = self._control.state
        if state in ("draining", "stopped"):
            self._control.close()
            raise NotRunning(f"engine {self.engine!r} is {state}; it accepts nothing any more")
        self.schema = self._control.schema
        self.backpressure = self._chosen or "block"
        self._timeout = 0.0 if self.backpressure == "fail" else None
        self._inboxes: dict[int, Inbox] = {}
        self._lease = self._take_seat()
        lib.sm_seat_enter(self._control.address, self.seat, os.getpid(), lib.sm_now_ns())
        self._sender = lib.sm_sender_new(self._control.address, self.seat)
        if self._sender == ffi.NULL:
            raise MemoryError("no memory for a sender")
        self._fast = Pusher(int(ffi.cast("uintptr_t", self._sender)), self._push_slow)
        if not self.schema.is_records and self.backpressure in ("block", "fail"):
            # the same call without a Python frame: see csrc/fastcall.c
            self.push = self._fast.push  # type: ignore[method-assign]

    def _take_seat(self) -> lease.Lease:
        for seat in range(self._control.max_producers):
            held = lease.Lease.take(self._control.segment, lease.seat_byte(seat))
            if held is not None:
                self.seat = seat
                return held
        raise AlreadyRunning(f"engine {self.engine!r} has {self._control.max_producers} producers, all alive; close one or "
                             f"raise max_producers")

    # ---- events engines ---------------------------------------------------------------------------------------------------

    def push(self, key: int | str | bytes | None, payload: bytes, timeout: float | None = DEFAULT) -> bool:
        """One event; True when it is accepted (False: dropped, in a mode that drops).

        key: int (-2**63 to 2**64-1), str, bytes, or None for no order. payload: bytes-like.
        Raises Backpressure, NotRunning, HandlerError (its shard has given up), OutOfMemory, TypeError, ValueError.
        """
        return self._push_slow(key, payload, timeout)

    def _push_slow(self, key: Any, payload: Any, timeout: float | None = DEFAULT) -> bool:
        kind, number, key_bytes = _plain_key(key)
        self._usable(records=False)
        memory = _bytes_of(payload)
        if len(memory) + len(key_bytes) > lib.sm_max_payload(self._sender, 0):
            raise ValueError(self._too_large(len(memory), len(key_bytes)))
        data, key_data = ffi.from_buffer(memory), ffi.from_buffer(key_bytes)
        shard, call = ffi.new("uint32_t *"), _Call(self, timeout)
        while True:
            status = lib.sm_push(self._sender, kind, number & (1 << 64) - 1, int(number >> 63 == 1), key_data,
                                 len(key_bytes), data, len(memory), shard)
            if status == lib.SM_OK:
                return call.done(1) == 1
            if not call.mend(status, shard[0]):
                if call.sampled(1):
                    return self._push_slow(key, payload, None)
                return call.give_up(1, 0, (key, payload), shard[0]) == 1

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
        state = self._fast.push_many(keys, payloads)
        if state is None:
            return len(keys)
        offered, call = len(keys), _Call(self, timeout)
        while state is not None:
            status, chunk, ahead, pending, shard, _ = state
            if status == lib.SM_TOO_LARGE:
                keys, payloads = self._plain_lists(keys, payloads)
            else:
                left = np.frombuffer(pending, "u4").tolist()
                if left or ahead:
                    keys = [keys[chunk + i] for i in left] + keys[ahead:]
                    payloads = [payloads[chunk + i] for i in left] + payloads[ahead:]
                if not call.mend(status, shard):
                    kept = call.sampled(len(keys))
                    if kept:
                        self.push_many([keys[i] for i in kept], [payloads[i] for i in kept], timeout=None)
                    return call.give_up(offered, offered - len(keys) + len(kept), (keys, payloads), shard)
            state = self._fast.push_many(keys, payloads)
        return call.done(offered)

    def push_columns(self, keys: np.ndarray | None, data: Any, offsets: np.ndarray,
                     timeout: float | None = DEFAULT) -> int:
        """Events as columns, without a Python object for each; returns how many were accepted.

        keys: integer array of shape (n,), bytes array ('S'), or None for no keys. data: one bytes-like.
        offsets: integer array of shape (n + 1,); payload i is `data[offsets[i]:offsets[i + 1]]`.
        Raises what `push` raises; `Backpressure.rest` is `(keys, data, offsets)` of what was not accepted.
        """
        self._usable(records=False)
        columns, keep = self._columns(keys, data, offsets)
        bad = ffi.new("uint64_t *")
        status = lib.sm_check_columns(self._sender, columns, len(keep.data), len(keep.key_data), bad)
        if status == lib.SM_TOO_LARGE:
            first, last = keep.offsets[bad[0]:bad[0] + 2].tolist()
            raise ValueError(f"event {bad[0]}: {self._too_large(last - first, 0)}")
        if status != lib.SM_OK:
            raise ValueError(f"offsets must rise from 0 to at most len(data) = {len(keep.data)}; they do not at {bad[0]}")
        offered, call, cursor = int(columns.n), _Call(self, timeout), ffi.new("sm_cursor *")
        while True:
            status = lib.sm_push_columns(self._sender, columns, cursor)
            if status == lib.SM_OK:
                return call.done(offered)
            if not call.mend(status, cursor.shard):
                return self._leave_columns(call, cursor, keep, offered)

    # ---- records engines --------------------------------------------------------------------------------------------------

    def send(self, records: np.ndarray, timeout: float | None = DEFAULT) -> int:
        """A structured array of the engine's dtype, routed row by row; returns how many were accepted.

        Fastest in blocks of some thousand rows. Raises what `push` raises; `Backpressure.rest` is the array of the rows
        that were not accepted.
        """
        self._usable(records=True)
        rows = self._rows(records)
        pointer = ffi.cast("void *", rows.ctypes.data)
        call, cursor = _Call(self, timeout), ffi.new("sm_cursor *")
        while True:
            status = lib.sm_send(self._sender, pointer, len(rows), cursor)
            if status == lib.SM_OK:
                return call.done(len(rows))
            if not call.mend(status, cursor.shard):
                break
        rest = np.concatenate([rows[cursor.chunk + _pending(cursor)], rows[cursor.next:]])
        kept = call.sampled(len(rest))
        if kept:
            self.send(rest[kept], timeout=None)
        return call.give_up(len(rows), int(cursor.accepted) + len(kept), rest, cursor.shard)

    # ---- both ---------------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that this producer pushed before has been handled.

        Raises TimeoutError after `timeout` seconds, HandlerError when a shard has given up.
        """
        self._usable()
        deadline = None if timeout is None else time.monotonic() + timeout
        tail, head = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        for shard in list(self._inboxes):
            if lib.sm_sender_position(self._sender, shard, tail, head) != lib.SM_OK:
                continue
            target = tail[0]
            while True:
                left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
                status = lib.sm_wait_handled(self._sender, shard, target, self._spin_ns, max(0, int(left * 1e9)))
                if status == lib.SM_OK:
                    break
                self._still_handled(shard)
                if deadline is not None and time.monotonic() >= deadline:
                    lib.sm_sender_position(self._sender, shard, tail, head)
                    raise TimeoutError(f"after {timeout:.3g} s shard {shard} has not handled everything that was pushed: "
                                       f"{target - head[0]:,} bytes of its lane are left")

    def close(self) -> None:
        """Give up the seat. What was pushed is in shared memory and will be handled; flush first to wait for it."""
        if self._closed:
            return
        self._closed = True
        self._detach()
        if not self._lease_lost():
            lib.sm_seat_leave(self._control.address, self.seat)
        self._lease.release()
        self._free()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The seat is given up, the mapping is kept: another thread's last call may still be inside it.
        held = getattr(self, "_lease", None)
        if held is not None:
            held.release()

    # ---- inside -----------------------------------------------------------------------------------------------------------------

    def _usable(self, records: bool | None = None) -> None:
        if self._closed:
            raise NotRunning("this producer is closed")
        if self._lease_lost():
            self._reattach()
        if records is not None and records != self.schema.is_records:
            raise TypeError(f"engine {self.engine!r} carries {'records: use send' if self.schema.is_records else 'events: use push, push_many or push_columns'}")

    def _lease_lost(self) -> bool:
        return self._lease._descriptor < 0

    def _detach(self) -> None:
        self._fast.detach()
        self.__dict__.pop("push", None)

    def _free(self) -> None:
        sender, self._sender = self._sender, ffi.NULL
        if sender != ffi.NULL:
            lib.sm_sender_close(sender)
            lib.sm_sender_free(sender)
        for inbox in self._inboxes.values():
            inbox.close()
        self._inboxes = {}
        self._control.close()

    def _reattach(self) -> None:
        """In a forked child: the parent keeps its seat, this process takes its own. The old sender is left as it is: its
        mutex may have been held by a thread that does not exist here."""
        self._detach()
        self._attach()

    def _open_lane(self, shard: int) -> None:
        generation = lib.sm_sender_generation(self._sender, shard)
        inbox = self._control.open_inbox(shard, generation)
        inbox.reserve_lane(self.seat)
        if lib.sm_sender_link(self._sender, shard, generation, inbox.address) != lib.SM_OK:
            raise SegmentCorrupt(f"the lane of producer {self.seat} to shard {shard} contradicts itself: its head and tail "
                                 f"are further apart than the lane is long; choose another seat or remove the inbox")
        self._inboxes[shard] = inbox

    def _still_handled(self, shard: int) -> None:
        """Raises when nobody will ever make room in this lane."""
        if self._control.shard_state(shard) == "failed":
            raise HandlerError(f"shard {shard} of engine {self.engine!r} has given up: "
                               f"{self._control.shard_error(shard) or 'no reason recorded'}")
        if self._control.state == "stopped":
            raise NotRunning(f"engine {self.engine!r} was stopped; what it had accepted but not handled is in shared memory")

    def _too_large(self, payload: int, key: int) -> str:
        return (f"an event of {payload:,} bytes with a key of {key:,} does not fit: half a lane holds at most "
                f"{lib.sm_max_payload(self._sender, 0):,} (lane_bytes={self._control.lane_bytes:,}); raise lane_bytes")

    def _rows(self, records: np.ndarray) -> np.ndarray:
        if not isinstance(records, np.ndarray) or records.dtype != self.schema.dtype:
            raise TypeError(f"send takes an array of dtype {self.schema.dtype}, not "
                            f"{records.dtype if isinstance(records, np.ndarray) else type(records).__name__}; "
                            f"use .astype(...)")
        return np.ascontiguousarray(records).reshape(-1)

    def _plain_lists(self, keys: list, payloads: list) -> tuple[list, list]:
        """The same events as plain objects. Raises for the first that cannot be one, before any is accepted."""
        plain_keys, plain_payloads = [], []
        for i, (key, payload) in enumerate(zip(keys, payloads)):
            try:
                kind, number, key_bytes = _plain_key(key)
                memory = bytes(_bytes_of(payload))
            except (TypeError, ValueError) as error:
                raise type(error)(f"event {i}: {error}") from None
            if len(memory) + len(key_bytes) > lib.sm_max_payload(self._sender, 0):
                raise ValueError(f"event {i}: {self._too_large(len(memory), len(key_bytes))}")
            plain_keys.append({KEY_NONE: None, KEY_INT: number, KEY_BYTES: key_bytes, KEY_STR: key}[kind])
            plain_payloads.append(memory)
        return plain_keys, plain_payloads

    def _columns(self, keys: np.ndarray | None, data: Any, offsets: np.ndarray) -> tuple[Any, _Keep]:
        raw = np.asarray(offsets)
        if raw.ndim != 1 or raw.dtype.kind not in "iu" or not len(raw):
            raise TypeError("offsets must be an integer array of shape (n + 1,)")
        if raw.dtype.kind == "i" and len(raw) and raw.min() < 0:
            raise ValueError("offsets must not be negative")
        wide = np.ascontiguousarray(raw, "u8")
        count = len(wide) - 1
        columns = ffi.new("sm_columns *")
        columns.n = count
        memory = _bytes_of(data)
        key_data, key_offsets, numbers = b"", np.zeros(1, "u8"), np.zeros(0, "u8")
        if keys is not None:
            keys = np.asarray(keys)
            if keys.shape != (count,):
                raise ValueError(f"keys have shape {keys.shape}, offsets say {count} events")
            if keys.dtype.kind == "S":
                columns.key_kind = KEY_BYTES
                lengths = np.char.str_len(keys)
                key_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("u8")
                key_data = b"".join(keys.tolist())
            elif keys.dtype.kind in "iu":
                columns.key_kind = KEY_INT
                columns.key_unsigned = int(keys.dtype.kind == "u")
                numbers = np.ascontiguousarray(keys.astype("i8" if keys.dtype.kind == "i" else "u8")).view("u8")
            else:
                raise TypeError(f"keys have dtype {keys.dtype}; integers, bytes ('S'), or None")
        columns.keys = ffi.cast("uint64_t *", numbers.ctypes.data)
        columns.key_offsets = ffi.cast("uint64_t *", key_offsets.ctypes.data)
        columns.offsets = ffi.cast("uint64_t *", wide.ctypes.data)
        held, key_held = ffi.from_buffer("uint8_t[]", memory), ffi.from_buffer("uint8_t[]", key_data)
        columns.data, columns.key_data = held, key_held
        return columns, _Keep(keys, memory, wide, key_data, (held, key_held, key_offsets), numbers)

    def _leave_columns(self, call: _Call, cursor: Any, keep: _Keep, offered: int) -> int:
        left = np.concatenate([int(cursor.chunk) + _pending(cursor), np.arange(cursor.next, offered)]).astype("i8")
        lengths = np.diff(keep.offsets.astype("i8"))[left]
        memory = memoryview(keep.data)
        data = b"".join(memory[keep.offsets[i]:keep.offsets[i + 1]] for i in left.tolist())
        rest = (None if keep.columns is None else keep.columns[left], data,
                np.concatenate([[0], np.cumsum(lengths)]).astype("i8"))
        kept = call.sampled(len(left))
        if kept:
            pieces = [memory[keep.offsets[i]:keep.offsets[i + 1]] for i in left[kept].tolist()]
            self.push_columns(None if keep.columns is None else keep.columns[left[kept]], b"".join(pieces),
                              np.cumsum([0] + [len(piece) for piece in pieces]), timeout=None)
        return call.give_up(offered, int(cursor.accepted) + len(kept), rest, cursor.shard)


class _Keep:
    """What a C call points into, for as long as it may be repeated."""

    def __init__(self, columns: Any, data: Any, offsets: Any, key_data: Any, held: Any, numbers: Any) -> None:
        self.columns, self.data, self.offsets = columns, data, offsets
        self.key_data, self.held, self.numbers = key_data, held, numbers


class _Call:
    """One call of a producer that could not be finished at once: what to do about it, and for how long."""

    def __init__(self, producer: Producer, timeout: float | None) -> None:
        self._producer = producer
        self._mode = producer.backpressure if timeout is DEFAULT else "block"
        self._probe = timeout is PROBE
        timeout = producer._timeout if timeout is DEFAULT else 0.0 if self._probe else timeout
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r}; None, or seconds from 0 on")
        self._timeout = timeout
        self._started = time.monotonic()
        self._blocked = False

    def mend(self, status: int, shard: int) -> bool:
        """Remove the obstacle, waiting if need be. True: call again. False: the time is over."""
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
            if self._left() <= 0:
                return False
            time.sleep(0.005)
        elif status == lib.SM_CORRUPT:
            raise SegmentCorrupt(f"the lane of producer {producer.seat} to shard {shard} contradicts itself (its head is "
                                 f"beyond its tail); nothing more is pushed into it")
        else:
            raise ShardmemError(f"unexpected status {status} of the lane to shard {shard}")
        return True

    def _make_room(self, shard: int) -> bool:
        producer, left = self._producer, self._left()
        if self._mode in ("drop_newest", "sample"):
            return False
        if self._mode == "drop_oldest":
            lib.sm_evict(producer._sender, shard)
        elif left <= 0:
            return False
        self._blocked = True
        lib.sm_wait_room(producer._sender, shard, producer._spin_ns, int(min(SLICE, max(left, 0.001)) * 1e9))
        producer._still_handled(shard)
        return True

    def _left(self) -> float:
        return float("inf") if self._timeout is None else self._timeout - (time.monotonic() - self._started)

    def sampled(self, refused: int) -> list[int]:
        """In mode "sample": which of so many refused events are kept all the same, every n-th over all calls."""
        if self._mode != "sample":
            return []
        producer = self._producer
        start = -producer._sampled % producer._sample_every
        producer._sampled += refused
        return list(range(start, refused, producer._sample_every))

    def done(self, offered: int) -> int:
        self._count_blocked()
        return offered

    def give_up(self, offered: int, accepted: int, rest: Any, shard: int) -> int:
        """Count what is refused; raise, or in a mode that drops say how much was accepted."""
        self._count_blocked()
        refused, waited = offered - accepted, time.monotonic() - self._started
        dropped = self._mode in ("drop_newest", "sample")
        reason = "sampled" if self._mode == "sample" else "full" if dropped or not self._timeout else "timeout"
        if not self._probe:
            lib.sm_count_refused(self._producer._sender, REASONS.index(reason), refused)
        if dropped:
            return accepted
        raise Backpressure(rest, accepted, refused, shard, waited)

    def _count_blocked(self) -> None:
        if self._blocked:
            lib.sm_count_blocked(self._producer._sender, int((time.monotonic() - self._started) * 1e9))


def _plain_key(key: Any) -> tuple[int, int, bytes]:
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


def _bytes_of(payload: Any) -> Any:
    """The payload as contiguous bytes. Raises TypeError."""
    if isinstance(payload, bytes):
        return payload
    try:
        memory = memoryview(payload)
    except TypeError:
        raise TypeError(f"payload is a {type(payload).__name__}; it must be bytes-like (encode text, for example "
                        f"text.encode())") from None
    return memory.cast("B") if memory.c_contiguous else memory.tobytes()


def _pending(cursor: Any) -> np.ndarray:
    return np.array(ffi.unpack(cursor.pending, cursor.pending_count), "i8")


def connect(engine: str, **options: Any) -> Producer:
    """A producer of the engine of that name, which some other process runs (`shardmem run`, or `Engine(name)`).

    Takes what Producer takes: backpressure, spin_us, sample_every, wait. Raises NotRunning, LayoutMismatch,
    SegmentError, AlreadyRunning (every seat is taken), OutOfMemory.
    """
    return Producer(engine, **options)
