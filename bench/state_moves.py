"""Slots and partitions that move with their state, and timers that are due at once."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from typing import Any

import numpy as np

import shardmem
from bench.state_counting import LIVE, Keyed
from bench.state_large import VALUE, Timed
from shardmem.remote.address import target_of
from shardmem.remote.snapshots import Snapshots
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.state import StateStore
from shardmem.state.keys import prefix, store_key
from shardmem.state.partitions import Layout
from shardmem.state.store import Changes

TIMERS, PARTITION = 50_000, 1_000_000  # values of 100 bytes with their keys


def timers_and_move() -> tuple[float, float]:
    """(seconds from the moment when all are due until all have fired and are saved, seconds of a move of one slot)."""
    with shardmem.Engine(handler=Timed, shards=2, slots=2) as engine, engine.producer() as producer:
        slot = producer.ref(0).slot
        keys = [key for key in range(4 * TIMERS) if producer.ref(key).slot == slot][:TIMERS]
        due = time.time() + 5
        producer.push_many(keys, [b"%f" % due] * len(keys))
        producer.flush()
        assert time.time() < due, "this machine is too slow for these timers"
        time.sleep(max(0.0, due - time.time()))
        while engine.state("fired", keys[-1]) is None or not all(engine.state("fired", key) for key in keys[::997]):
            time.sleep(0.01)
        fired = time.time() - due
        began = time.perf_counter()
        engine.move([slot], to=1 - producer.ref(0).shard)
        return fired, time.perf_counter() - began


def move_of_10_000() -> float:
    """Seconds of a move of one slot, without load."""
    with shardmem.Engine(handler=Keyed, shards=2, slots=2) as engine, engine.producer() as producer:
        slot = producer.ref(0).slot
        keys = [key for key in range(4 * LIVE) if producer.ref(key).slot == slot][:LIVE]
        producer.push_many(keys, [b""] * len(keys))
        producer.flush()
        home = producer.ref(0).shard
        engine.move([slot], to=home)  # the first command of an engine waits for its control API to be imported
        began = time.perf_counter()
        engine.move([slot], to=1 - home)
        return time.perf_counter() - began


def push_tail(moving: bool, seconds: float) -> float:
    """us: the 99.9th percentile of a push, while a slot of 10,000 keys moves from shard to shard, or none does."""
    with shardmem.Engine(handler=Keyed, shards=2, slots=2) as engine, engine.producer() as producer:
        slot, home = producer.ref(0).slot, producer.ref(0).shard
        keys = [key for key in range(4 * LIVE) if producer.ref(key).slot == slot][:LIVE]
        producer.push_many(keys, [b""] * len(keys))
        producer.flush()
        stop = threading.Event()
        mover = threading.Thread(target=_move, args=(engine, slot, home, stop))
        if moving:
            mover.start()
        took, until = [], time.perf_counter() + seconds
        for key in itertools.cycle(keys):
            began = time.perf_counter_ns()
            producer.push(key, b"")
            took.append(time.perf_counter_ns() - began)
            if took[-1] + began > until * 1e9:
                break
            if len(took) % 10 == 0:
                time.sleep(0.0001)  # the mover is a thread of ours, and wants the interpreter too
        stop.set()
        if moving:
            mover.join()
        return float(np.percentile(took, 99.9)) / 1e3


def _move(engine: shardmem.Engine, slot: int, home: int, stop: threading.Event) -> None:
    for shard in itertools.cycle((1 - home, home)):
        engine.move([slot], to=shard)
        if stop.wait(0.02):
            return


# ---- a partition that goes to another host ---------------------------------------------------------------------------


def partition_moves(values: int) -> tuple[float, float, float]:
    """(seconds to take and upload, to fetch and put in place, until two workers have it in files of their own)."""
    layout, number = Layout(1024, 8), 3
    slots = layout.slots_of(number)
    with tempfile.TemporaryDirectory() as directory:
        hosts = []
        for engine in (1, 2):
            path = os.path.join(directory, f"{engine}.state")
            stores = [StateStore(path, shard, engine, layout.slots, keep=True) for shard in range(2)]
            for shard, store in enumerate(stores):
                store.begin_life(1, 1)
                if engine == 1:
                    store.claim(slots[shard * 64 : shard * 64 + 64])
            target = target_of(f"file://{directory}/remote")
            hosts.append((stores, Snapshots(target, StateFiles(path, engine), layout)))
        _fill(hosts[0][0], slots, values)
        began = time.perf_counter()
        id = hosts[0][1].take(number)
        taken = time.perf_counter()
        hosts[1][1].restore(number, id)
        restored = time.perf_counter()
        for store in (*hosts[0][0], *hosts[1][0]):
            store.leave()
        spawning = multiprocessing.get_context("spawn")  # workers are processes: threads would wait for each other
        together, took = spawning.Barrier(2), spawning.SimpleQueue()
        workers = [
            spawning.Process(target=_claim, args=(f"{directory}/2.state", shard, slots, together, took))
            for shard in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return taken - began, restored - taken, max(took.get() for _ in workers)


def _fill(stores: list[StateStore], slots: range, values: int) -> None:
    for shard, store in enumerate(stores):
        for first in range(shard * values // 2, (shard + 1) * values // 2, 20_000):
            keys = [f"user-{n:012d}" for n in range(first, min(first + 20_000, (shard + 1) * values // 2))]
            made = {
                prefix(slots[shard * 64 + n % 64]) + store_key(key, b"n", 1024)[2:]: (VALUE, 1, None)
                for n, key in enumerate(keys)
            }
            store.save([], Changes(dict(made)), b"", merge=True)


def _claim(path: str, shard: int, slots: range, together: Any, took: Any) -> None:
    store = StateStore(path, shard, 2, 1024, keep=True)
    store.begin_life(2, 1)
    together.wait()
    began = time.perf_counter()
    store.claim(slots[shard * 64 : shard * 64 + 64])
    took.put(time.perf_counter() - began)
    store.leave()
