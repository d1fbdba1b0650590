"""Counting per key, 10,000 live keys, in what a handler can keep its counts in: CPU time of the worker."""

from __future__ import annotations

import collections
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import shardmem

LIVE = 10_000
FOLLOWING = 1_000_000  # events in one push


class Plain(shardmem.Handler):
    def open(self, context: Any) -> None:
        self.counts: dict[Any, int] = collections.defaultdict(int)

    def handle(self, batch: Any) -> None:
        counts = self.counts
        for key, _ in batch:
            counts[key] += 1


class Keyed(shardmem.Handler):
    counts = shardmem.KeyedState(int, default=0)

    def handle(self, batch: Any) -> None:
        counts = self.counts
        for key, _ in batch:
            counts[key] += 1


class Columns(shardmem.Handler):
    counts = shardmem.KeyedState(int, default=0)

    def handle(self, batch: Any) -> None:
        self.counts.add_many(batch)


class Snapshots(shardmem.Handler):
    """A dict for each slot, saved whole, by hand."""

    def open(self, context: Any) -> None:
        self.counts: dict[int, dict[Any, int]] = collections.defaultdict(lambda: collections.defaultdict(int))

    def handle(self, batch: Any) -> None:
        counts = self.counts
        for (key, _), slot in zip(batch, batch.slots.tolist()):
            counts[slot][key] += 1

    def snapshot(self, slot: int) -> bytes:
        return pickle.dumps(dict(self.counts[slot]))

    def restore(self, slot: int, state: bytes) -> None:
        self.counts[slot].update(pickle.loads(state))

    def drop(self, slot: int) -> None:
        self.counts.pop(slot, None)


def cpu_ns_of(pid: int) -> int:
    """All of its threads, as the scheduler counts it: /proc/PID/stat counts in steps of 10 ms."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def worker_of(engine: Any) -> int:
    pid: int = engine.status()["shards"][0]["pid"]
    return pid


def count(handler: type, events: int, asked: bool = False) -> float:
    """CPU ns of the worker for one event. asked: while another thread of ours asks for values all the time."""
    chance = random.Random(1)
    keys, payloads = [chance.randrange(LIVE) for _ in range(FOLLOWING)], [b"x" * 64] * FOLLOWING
    with shardmem.Engine(handler=handler, shards=1, lane_bytes=1 << 27) as engine, engine.producer() as producer:
        producer.push_many(keys[:100_000], payloads[:100_000])
        producer.flush()
        stop = threading.Event()
        asking = threading.Thread(target=_ask, args=(engine, keys, stop))
        if asked:
            asking.start()
        worker, pushed = worker_of(engine), 0
        before = cpu_ns_of(worker)
        while pushed < events:
            some = min(FOLLOWING, events - pushed)
            producer.push_many(keys[:some], payloads[:some])
            pushed += some
        producer.flush()
        took = cpu_ns_of(worker) - before
        stop.set()
        if asked:
            asking.join()
        return took / events


def _ask(engine: Any, keys: list[int], stop: threading.Event) -> None:
    for key in keys:
        engine.state("counts", key)
        if stop.wait(0.001):
            return


def asking(questions: int) -> list[float]:
    """Seconds that each question took, of another process, while events flow."""
    with shardmem.Engine(handler=Keyed, shards=1) as engine, engine.producer() as producer:
        producer.push_many(list(range(LIVE)), [b""] * LIVE)
        producer.flush()
        took = []
        for number in range(questions):
            producer.push(number % LIVE, b"")
            began = time.perf_counter()
            engine.state("counts", number * 7 % LIVE)
            took.append(time.perf_counter() - began)
        return took


def checkpoint_ms(handler: type, rounds: int) -> float:
    """CPU ms of the worker for one checkpoint after an event of each of the live keys, and what merging them costs."""
    keys, payloads = list(range(LIVE)), [b""] * LIVE
    with (
        tempfile.TemporaryDirectory() as directory,
        shardmem.Engine(handler=handler, shards=1, lane_bytes=1 << 22, state_dir=directory) as engine,
        engine.producer() as producer,
    ):
        return saving_ms(engine, producer, keys, payloads, rounds)


def saving_ms(engine: Any, producer: Any, keys: list[int], payloads: list[bytes], rounds: int) -> float:
    for _ in range(5):
        producer.push_many(keys, payloads)
        producer.flush()
    worker = worker_of(engine)
    before = cpu_ns_of(worker)
    for _ in range(rounds):
        producer.push_many(keys, payloads)
        producer.flush()
    return (cpu_ns_of(worker) - before) / rounds / 1e6


def rival(name: str, events: int) -> float | str:
    """CPU ns of its process for one event; or why there is none."""
    program = [sys.executable, str(Path(__file__).with_name("state_rivals.py")), name, str(events)]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed"])[-1][:120]
    return float(json.loads(done.stdout.splitlines()[-1]))
