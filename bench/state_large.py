"""More keys than memory takes, more timers than fire, and a worker that is killed with a million keys."""

from __future__ import annotations

import io
import itertools
import os
import signal
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import psutil

import shardmem
from bench.spare import await_spare
from bench.state_counting import LIVE, cpu_ns_of, saving_ms, worker_of
from shardmem.runtime.state_export import MAGIC, import_state
from shardmem.state.keys import slots_of, store_key
from shardmem.state.timers import USER

SLOTS, VALUE = 1024, b"x" * 64
MIXED = 2654435761  # so that the keys that are drawn often are not neighbours


class Large(shardmem.Handler):
    """Reads each value, and writes every second key."""

    kept = shardmem.KeyedState(bytes, default=b"")

    def handle(self, batch: Any) -> None:
        kept = self.kept
        for key, payload in batch:
            if not kept[key] or key % 2:
                kept[key] = payload


class Timed(shardmem.Handler):
    """The payload is when the timer is due. What has fired is counted under one key of each shard."""

    fired = shardmem.KeyedState(int, default=0)

    def handle(self, batch: Any) -> None:
        for key, due in batch:
            self.timers.set(key, "bench", at=float(due))

    def on_timer(self, key: Any, name: str) -> None:
        self.fired[key] = 1


class Stateless(shardmem.Handler):
    """Notes when each batch was done."""

    def open(self, context: Any) -> None:
        path = f"{os.environ['BENCH_TIMES']}-{context.incarnation}"
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handle(self, batch: Any) -> None:
        os.write(self.file, struct.pack("<q", time.monotonic_ns()))


class Stateful(Stateless):
    kept = shardmem.KeyedState(bytes, default=b"")

    def handle(self, batch: Any) -> None:
        for key, payload in batch:
            self.kept[key] = payload
        super().handle(batch)


def exported(keys: int, name: str, timers_due_ms: int | None = None) -> Iterator[bytes]:
    """As `shardmem state export --compact` would give it: a value of each key, or a timer."""
    yield MAGIC + struct.pack("<II", SLOTS, 0)
    value = msgspec.msgpack.encode(VALUE)
    slots = np.concatenate(
        [slots_of(list(range(first, min(first + 100_000, keys))), SLOTS) for first in range(0, keys, 100_000)]
    )
    order = np.argsort(slots, kind="stable")
    bounds = np.searchsorted(slots[order], np.arange(SLOTS + 1)).tolist()
    for slot, (first, last) in enumerate(itertools.pairwise(bounds)):
        stored = [store_key(key, name.encode(), SLOTS) for key in order[first:last].tolist()]
        rows = [] if timers_due_ms else [(each, value, 1, None) for each in stored]
        timers = [(each, timers_due_ms) for each in stored] if timers_due_ms else []
        packed = msgspec.msgpack.encode([slot, rows, timers])
        yield struct.pack("<II", len(packed), zlib.crc32(packed)) + packed


class _Stream(io.RawIOBase):
    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        if not self._rest:
            self._rest = next(self._parts, b"")
        taken = self._rest[: len(memory)]
        self._rest = self._rest[len(taken) :]
        memory[: len(taken)] = taken
        return len(taken)


def preload(directory: str, engine: str, keys: int, name: str, timers_due_ms: int | None = None) -> None:
    """By the import that ships: a worker that is given so many values one by one takes minutes for what is not
    measured."""
    with io.BufferedReader(_Stream(exported(keys, name, timers_due_ms)), 1 << 20) as source:
        import_state(source, os.path.join(directory, f"{engine}.state"))


def large(keys: int, events: int, cache: str) -> dict[str, float]:
    """events/s with keys drawn by Zipf(1.1), once memory has what is drawn most; resident memory of the worker, MB; CPU
    ms of a checkpoint of 10,000 keys."""
    draws = np.random.default_rng(1).zipf(1.1, 8 * events) - 1
    drawn = draws[draws < keys][: 2 * events].astype("i8") * MIXED % keys
    settings: dict[str, Any] = {"shards": 1, "slots": SLOTS, "lane_bytes": 1 << 27, "state_cache_bytes": cache}
    with tempfile.TemporaryDirectory() as directory:
        name = f"bench-{os.getpid()}-{keys}"
        preload(directory, name, keys, "kept")
        with (
            shardmem.Engine(name, handler=Large, state_dir=directory, **settings) as engine,
            engine.producer() as producer,
        ):

            def push(some: np.ndarray) -> float:
                began = time.perf_counter()
                for part in np.array_split(some, max(1, len(some) // 500_000)):
                    producer.push_columns(part, VALUE * len(part), np.arange(len(part) + 1) * len(VALUE))
                producer.flush()
                return time.perf_counter() - began

            push(drawn[:events])
            worker = worker_of(engine)
            before = cpu_ns_of(worker)
            took = push(drawn[events:])
            spent = cpu_ns_of(worker) - before
            rss = psutil.Process(worker).memory_info().rss / 1e6
            hot = (np.arange(LIVE) * 2 + 1) * MIXED % keys | 1
            saving = saving_ms(engine, producer, hot.tolist(), [b"%064d" % n for n in range(LIVE)], 20)
            return {"rate": events / took, "cpu": spent / events, "rss": rss, "saving": saving}


def idle_timers(timers: int) -> float:
    """Share of a core that a worker takes with so many timers, of which none is due."""
    with tempfile.TemporaryDirectory() as directory:
        name = f"bench-{os.getpid()}-timers"
        preload(directory, name, timers, f"{USER}bench", int((time.time() + 3600) * 1000))
        with (
            shardmem.Engine(name, handler=Timed, shards=1, slots=SLOTS, state_dir=directory) as engine,
            engine.producer() as producer,
        ):
            producer.push(1, b"%f" % (time.time() + 3600))
            producer.flush()
            worker = worker_of(engine)
            time.sleep(2)  # until the last checkpoint is behind it
            before, began = cpu_ns_of(worker), time.perf_counter()
            time.sleep(10)
            return (cpu_ns_of(worker) - before) / 1e9 / (time.perf_counter() - began)


def killed(handler: type, keys: int) -> float:
    """ms from SIGKILL of the worker to the first event that its successor has handled."""
    with tempfile.TemporaryDirectory() as directory:
        name, times = f"bench-{os.getpid()}-killed", os.path.join(directory, "times")
        os.environ["BENCH_TIMES"] = times
        if keys:
            preload(directory, name, keys, "kept")
        with shardmem.Engine(name, handler=handler, shards=1, slots=SLOTS, state_dir=directory) as engine:
            stop = threading.Event()
            feeding = threading.Thread(target=_feed, args=(name, max(keys, LIVE), stop))
            feeding.start()
            while not os.path.exists(f"{times}-1"):
                time.sleep(0.01)
            await_spare(engine)
            time.sleep(2)  # checkpoints are under way
            worker, killed_at = worker_of(engine), time.monotonic_ns()
            os.kill(worker, signal.SIGKILL)
            while not (os.path.exists(f"{times}-2") and os.path.getsize(f"{times}-2")):
                time.sleep(0.01)
            stop.set()
            feeding.join()
            with open(f"{times}-2", "rb") as file:
                return float(struct.unpack("<q", file.read(8))[0] - killed_at) / 1e6


def _feed(engine: str, keys: int, stop: threading.Event) -> None:
    with shardmem.connect(engine) as producer:
        for number in itertools.count():
            producer.push(number * MIXED % keys, VALUE)
            if stop.wait(0.001):
                return
