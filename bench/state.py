"""What keyed state and timers cost.

    python bench/state.py [--events 400000] [--repeat 5] [--quick] [--json FILE] [--against FILE]

Counting per key, 10,000 live keys: CPU time of the worker per event, with `KeyedState` and with a dict that nothing
saves, in turn. Asking for a value from another process. 50,000 timers that are due at once. Slots of 10,000 and 50,000
keys that move. The state of a partition, 100 MB in a million values, as it goes from host to host. 10,000,000 keys
(400,000 with --quick), of which the memory takes a part. 1,000,000 timers that are not due. Medians of the repetitions.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import numpy as np  # noqa: E402
import psutil  # noqa: E402

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402
from shardmem.remote.address import target_of  # noqa: E402
from shardmem.remote.snapshots import Snapshots  # noqa: E402
from shardmem.runtime.partition_state import StateFiles  # noqa: E402
from shardmem.runtime.state import StateStore  # noqa: E402
from shardmem.state.keys import prefix, store_key  # noqa: E402
from shardmem.state.partitions import Layout  # noqa: E402
from shardmem.state.store import Changes  # noqa: E402

LIVE, TIMERS = 10_000, 50_000
VALUE, PARTITION = b"x" * 64, 1_000_000  # of the state of one partition: values of 100 bytes with their keys


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


class Timed(shardmem.Handler):
    """The payload is when the timer is due. What has fired is counted under one key of each shard."""

    fired = shardmem.KeyedState(int, default=0)

    def handle(self, batch: Any) -> None:
        for key, due in batch:
            self.timers.set(key, "bench", at=float(due))

    def on_timer(self, key: Any, name: str) -> None:
        self.fired[key] = 1


def cpu_ns(handler: type, events: int) -> tuple[float, list[float]]:
    """(CPU time of the worker for one event, seconds that each of some questions took)."""
    chance = random.Random(1)
    keys, payloads = [chance.randrange(LIVE) for _ in range(events)], [b"x" * 64] * events
    with shardmem.Engine(handler=handler, shards=1, lane_bytes=1 << 27) as engine, engine.producer() as producer:
        producer.push_many(keys, payloads)
        producer.flush()
        worker = psutil.Process(engine.status()["shards"][0]["pid"])
        before = sum(worker.cpu_times()[:2])
        producer.push_many(keys, payloads)
        producer.flush()
        took = sum(worker.cpu_times()[:2]) - before
        asked = []
        for key in keys[:500] if handler is Keyed else ():
            began = time.perf_counter()
            engine.state("counts", key)
            asked.append(time.perf_counter() - began)
    return took / events * 1e9, asked


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
        began = time.perf_counter()
        engine.move([slot], to=1 - producer.ref(0).shard)
        return time.perf_counter() - began


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


# ---- more than memory takes ------------------------------------------------------------------------------------------


class Large(shardmem.Handler):
    kept = shardmem.KeyedState(bytes, default=b"")

    def handle(self, batch: Any) -> None:
        kept = self.kept
        for key, payload in batch:
            if not kept[key] or key % 2:
                kept[key] = payload


def large(keys: int, events: int, cache: str) -> tuple[float, float]:
    """(events a second, keys drawn by Zipf(1.1); resident memory of the worker, MB)."""
    draws = np.random.default_rng(1).zipf(1.1, 4 * events) - 1
    drawn = draws[draws < keys][:events].astype("i8") * 2654435761 % keys
    settings = {"shards": 1, "lane_bytes": 1 << 27, "state_cache_bytes": cache}
    with shardmem.Engine(handler=Large, **settings) as engine, engine.producer() as producer:
        for first in range(0, keys, 100_000):
            some = np.arange(first, min(first + 100_000, keys))
            producer.push_columns(some, VALUE * len(some), np.arange(len(some) + 1) * len(VALUE))
        producer.flush()
        began = time.perf_counter()
        producer.push_columns(drawn, VALUE * len(drawn), np.arange(len(drawn) + 1) * len(VALUE))
        producer.flush()
        took = time.perf_counter() - began
        worker = psutil.Process(engine.status()["shards"][0]["pid"])
        return len(drawn) / took, worker.memory_info().rss / 1e6


def idle_timers(timers: int) -> float:
    """Share of a core that a worker takes with so many timers, of which none is due."""
    with shardmem.Engine(handler=Timed, shards=1, lane_bytes=1 << 27) as engine, engine.producer() as producer:
        due = b"%f" % (time.time() + 3600)
        for first in range(0, timers, 50_000):
            some = np.arange(first, first + 50_000)
            producer.push_columns(some, due * len(some), np.arange(len(some) + 1) * len(due))
        producer.flush()
        worker = psutil.Process(engine.status()["shards"][0]["pid"])
        time.sleep(2)  # until the last checkpoint is behind it
        before, began = sum(worker.cpu_times()[:2]), time.perf_counter()
        time.sleep(5)
        return (sum(worker.cpu_times()[:2]) - before) / (time.perf_counter() - began)


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    events = chosen.events or (100_000 if chosen.quick else 400_000)
    pairs = []
    for repetition in range(chosen.repeat):
        report.progress(f"state {repetition + 1}/{chosen.repeat}: counting")
        pairs.append((cpu_ns(Plain, events)[0], *cpu_ns(Keyed, events)))
    reference = ("dict",)
    found(
        [
            Row(
                "count per key, CPU", "dict", "a dict that nothing saves", "ns", [each[0] for each in pairs], reference
            ),
            Row(
                "count per key, CPU",
                "KeyedState",
                "KeyedState",
                "ns",
                [each[1] for each in pairs],
                reference,
                target="1.25 x",
            ),
            Row(
                "ask for a value",
                "p50",
                "p50",
                "us",
                [statistics.median(each[2]) * 1e6 for each in pairs],
                target="200 us",
            ),
        ]
    )
    others = []
    for repetition in range(chosen.repeat):
        report.progress(f"state {repetition + 1}/{chosen.repeat}: timers, a move")
        others.append(timers_and_move())
    found(
        [
            Row("timers", "50,000", "50,000 due at once, all saved", "s", [fired for fired, _ in others], target="1 s"),
            Row("a slot moves", "50,000 keys", "50,000 keys", "ms", [moved * 1e3 for _, moved in others]),
        ]
    )
    report.progress("state: a slot of 10,000 keys moves")
    moves = [move_of_10_000() * 1e3 for _ in range(chosen.repeat)]
    found([Row("a slot moves", "10,000 keys", "10,000 keys", "ms", moves, target="50 ms")])
    values = PARTITION // 10 if chosen.quick else PARTITION
    report.progress(f"state: a partition of {values:,} values goes to another host")
    gone = [partition_moves(values) for _ in range(min(3, chosen.repeat))]
    case = f"a partition of {values // 10_000:,} MB"
    found(
        [
            Row(case, "taken", "taken and uploaded, a directory", "s", [each[0] for each in gone]),
            Row(case, "restored", "fetched, checked, in place", "s", [each[1] for each in gone]),
            Row(case, "claimed", "in the files of two workers", "s", [each[2] for each in gone]),
            Row(case, "restore", "both together", "s", [each[1] + each[2] for each in gone], target="1 s"),
        ]
    )
    keys = 400_000 if chosen.quick else 10_000_000
    report.progress(f"state: {keys:,} keys")
    small = [large(keys // 20, events, "4GiB")]
    much = [large(keys, events, "16MiB" if chosen.quick else "256MiB")]
    case = f"{keys:,} keys, Zipf(1.1)"
    found(
        [
            Row(case, "memory", "a twentieth of them, all in memory", "events/s", [each[0] for each in small]),
            Row(
                case,
                "file",
                "most of them in the file",
                "events/s",
                [each[0] for each in much],
                ("memory",),
                target="0.5 x",
            ),
            Row(case, "rss", "resident memory of the worker", "MB", [each[1] for each in much], target="600 MB"),
        ]
    )
    timers = 100_000 if chosen.quick else 1_000_000
    report.progress(f"state: {timers:,} timers that are not due")
    found([Row("timers", "idle", f"{timers:,} not due", "share", [idle_timers(timers)], target="0.05")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help="of a round (400,000; 100,000 with --quick)")
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("state", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
