"""Whether size costs: one large engine, and one event at a time in tables of growing size.

    python bench/large.py [--shards 64] [--producers 64] [--repeat 5] [--quick] [--json FILE] [--against FILE]

A large engine is one of 64 shards, 512 seats and 16,384 slots with 64 producers, each of which has pushed to every
shard (with --quick 8 shards and 8 producers). Shown: shared memory, memory of the processes that is theirs alone, how
long `connect` and a status document take, and what the supervisor's ticks and an idle worker take of a core. Flat:
CPU time of `push` by the number of slots, and of choosing and committing one event by the number of lanes that have
some. What the large engine has once has one figure."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import psutil  # noqa: E402

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.cpu import cpu_ns, family  # noqa: E402
from bench.idle import SETTLED  # noqa: E402
from bench.instructions import engine  # noqa: E402
from bench.report import Row  # noqa: E402
from bench.spare import await_spare  # noqa: E402

SLOTS, SEATS, LANE, PAYLOAD = 16_384, 512, 1 << 16, b"x" * 64
SLOT_COUNTS, LANE_COUNTS = (64, 1024, 16_384, 65_536), (1, 8, 48)
MIB = 1 << 20
WARM = 8  # rounds that are not counted


def handle(batch: Any) -> None:
    pass


# ---- a large engine ------------------------------------------------------------------------------------------------


def own_memory(pids: list[int]) -> float:
    """MiB that would be free without these processes, shared memory aside."""
    total = 0
    for pid in pids:
        full = psutil.Process(pid).memory_full_info()
        total += full.uss
    return total / MIB


def shared_memory(name: str) -> float:
    return sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").iterdir() if name in path.name) / MIB


def seconds_of(call: Callable[[], object], times: int) -> list[float]:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return took


def large(shards: int, producers: int, repeat: int, seconds: float) -> list[Row]:
    name = f"large-{os.getpid()}"
    settings: dict[str, Any] = {"slots": SLOTS, "max_producers": SEATS, "lane_bytes": LANE}
    case = f"{shards} shards"
    started = time.perf_counter()
    with (
        contextlib.ExitStack() as open_ones,
        shardmem.Engine(name, handler=handle, shards=shards, **settings) as running,
    ):
        ready = time.perf_counter() - started
        opened = []

        def connect() -> None:
            opened.append(open_ones.enter_context(shardmem.connect(name)))

        connected = seconds_of(connect, producers)
        for producer in opened:
            for number in range(16 * shards):
                producer.push(number, PAYLOAD)
            producer.flush()
        status = seconds_of(running.status, repeat)
        await_spare(running)
        time.sleep(SETTLED)
        supervisor = running.status()["supervisor"]["pid"]
        pids = family(supervisor)
        memory, shared = own_memory(pids), shared_memory(name)
        before, began = {pid: cpu_ns(pid) for pid in pids}, time.perf_counter()
        time.sleep(seconds)
        whole = 1e6 * (time.perf_counter() - began)
        took = {pid: cpu_ns(pid) - before[pid] for pid in pids}

    def row(what: str, unit: str, values: list[float]) -> Row:
        return Row(case, what, what, unit, values)

    return [
        row("all workers ready", "s", [ready]),
        row(f"connect, of {producers}", "ms", [1000 * each for each in connected]),
        row("status", "ms", [1000 * each for each in status]),
        row("shared memory", "MiB", [shared]),
        row("memory of a process", "MiB", [memory / len(pids)]),
        row("supervisor, idle, CPU/s", "ms", [took[supervisor] / whole]),
        row("a worker, idle, CPU/s", "ms", [(sum(took.values()) - took[supervisor]) / (len(took) - 1) / whole]),
    ]


# ---- flat ----------------------------------------------------------------------------------------------------------


def ns_of_push(slots: int, rounds: int) -> float:
    from shardmem.memory.native import ffi, lib
    from shardmem.runtime.producer import Producer

    took = pushed = 0
    with engine(None, None, 1, 1 << 20, slots=slots) as (control, inboxes):
        with Producer(control.engine, backpressure="fail") as producer:
            reader = lib.sm_reader_new(control.address, control.geometry, inboxes[0].address, -1, 0, 4096)
            batch, push = ffi.new("sm_batch *"), producer.push
            for block in range(rounds):
                numbers = range(block * 4000, block * 4000 + 4000)
                started = time.thread_time_ns()
                for number in numbers:
                    push(number, PAYLOAD)
                took += time.thread_time_ns() - started
                pushed += len(numbers)
                while lib.sm_next(reader, 0, 0, batch) == lib.SM_OK and batch.rows:
                    lib.sm_commit(reader)
            lib.sm_reader_free(reader)
    return took / pushed


def ns_of_lanes(lanes: int, rounds: int) -> float:
    """Of one event, from choosing the batch to its commit, when each of so many lanes has as many events."""
    from shardmem.memory.native import ffi, lib
    from shardmem.runtime.producer import Producer

    took = handled = 0
    lane_bytes = max(1 << 14, (1 << 19) // lanes)
    lane_bytes = 1 << (lane_bytes - 1).bit_length()  # as much memory in all, and all of it is in use after some rounds
    with engine(None, None, 1, lane_bytes, max_producers=lanes) as (control, inboxes), contextlib.ExitStack() as opened:
        producers = [opened.enter_context(Producer(control.engine, backpressure="fail")) for _ in range(lanes)]
        reader = lib.sm_reader_new(control.address, control.geometry, inboxes[0].address, -1, 0, 4096)
        batch = ffi.new("sm_batch *")
        keys, payloads = list(range(64)), [PAYLOAD] * 64
        for round in range(-WARM, rounds):
            for turn in range(48):  # as many blocks in all, however many lanes there are
                producers[turn % lanes].push_many(keys, payloads)
            left = 48 * len(keys)
            started = time.thread_time_ns()
            while left:
                lib.sm_next(reader, 0, 0, batch)
                left -= batch.rows
                lib.sm_commit(reader)
            if round >= 0:
                took += time.thread_time_ns() - started
                handled += 48 * len(keys)
        lib.sm_reader_free(reader)
    return took / handled


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    rounds = 20 if chosen.quick else 200
    shards = chosen.shards or (8 if chosen.quick else 64)
    producers = chosen.producers or (8 if chosen.quick else 64)
    report.progress(f"an engine of {shards} shards")
    found(large(shards, producers, chosen.repeat, 3.0 if chosen.quick else 20.0))
    for case, counts, ns_of in (("push", SLOT_COUNTS, ns_of_push), ("handle", LANE_COUNTS, ns_of_lanes)):
        names = {n: f"{n:,} {'slots' if case == 'push' else 'lanes' if n > 1 else 'lane'}" for n in counts}
        figures: dict[int, list[float]] = {n: [] for n in counts}
        for repetition in range(chosen.repeat):
            for n in counts:
                report.progress(f"{case}, {names[n]} {repetition + 1}/{chosen.repeat}")
                figures[n].append(ns_of(n, rounds))
        found(
            [
                Row(
                    f"{case}, CPU",
                    names[n],
                    names[n],
                    "ns",
                    figures[n],
                    (names[counts[0]],),
                    target="1.1 x" * (case == "push" and n > 64),
                )
                for n in counts
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, metavar="N")
    parser.add_argument("--producers", type=int, metavar="N")
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("large", chosen, lambda rows: measure(chosen, rows))


if __name__ == "__main__":
    main()
