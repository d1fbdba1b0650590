"""What a killed worker costs, and what it costs to be ready for it.

    python bench/recovery.py [--seconds 3] [--repeat 7] [--quick] [--json FILE] [--against FILE]

Recovery: from the SIGKILL of a worker to the first event that its successor has handled, and what the other shard
handled meanwhile, against its rate just before, in the same run. Checkpoints: events/s of a stateful handler with
10,000 live keys per shard at the default interval, against the same handler without snapshot and restore, in turn.
Medians of the repetitions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

if __name__ == "__main__":
    import checkout

    checkout.use()

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402
from bench.spare import await_spare  # noqa: E402
from shardmem.runtime.batch import slot_of  # noqa: E402

SLOTS, LIVE = 1024, 10_000
ROW = np.dtype([("key", "u8"), ("value", "u8")])
spawn = multiprocessing.get_context("spawn")


class Clocked(shardmem.Handler):
    """Notes when each batch was done and how many events it had."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, context: Any) -> None:
        path = os.path.join(self.directory, f"{context.shard}-{context.incarnation}")
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handle(self, batch: Any) -> None:
        batch.records["value"].sum()
        os.write(self.file, np.array([time.monotonic_ns(), len(batch)], "i8").tobytes())


class Counting(shardmem.Handler):
    """Sums per key, in an array: as fast as a handler of keyed state gets in Python."""

    def open(self, context: Any) -> None:
        self.sums = np.zeros(2 * LIVE, "u8")
        slots = np.array([context.slot(key) for key in range(2 * LIVE)])
        order = np.argsort(slots, kind="stable")
        self.of_slot = np.split(order, np.searchsorted(slots[order], np.arange(1, context.slots)))

    def handle(self, batch: Any) -> None:
        records = batch.records
        self.sums += np.bincount(records["key"].astype("i8"), records["value"], 2 * LIVE).astype("u8")


class CountingSafely(Counting):
    def snapshot(self, slot: int) -> bytes:
        return self.sums[self.of_slot[slot]].tobytes()

    def restore(self, slot: int, state: bytes) -> None:
        self.sums[self.of_slot[slot]] = np.frombuffer(state, "u8")

    def drop(self, slot: int) -> None:
        self.sums[self.of_slot[slot]] = 0


def feed(engine: str, shard: int, stop: Any, pause: float) -> None:
    """Blocks of 1024 events of one shard until told to stop."""
    rows = np.zeros(1024, ROW)
    rows["key"] = [key for key in range(8192) if slot_of(key, SLOTS) % 2 == shard][:1024]
    with shardmem.connect(engine) as producer:
        while not stop.value:
            producer.send(rows)
            if pause:
                time.sleep(pause)


def batches(directory: str, shard: int) -> list[np.ndarray]:
    """Of each life of the shard: rows of (when, how many)."""
    lives = sorted(
        (name for name in os.listdir(directory) if name.startswith(f"{shard}-")), key=lambda name: int(name[2:])
    )
    return [np.fromfile(os.path.join(directory, name), "i8").reshape(-1, 2) for name in lives]


def rate_between(done: np.ndarray, start: int, end: int) -> float:
    inside = (done[:, 0] >= start) & (done[:, 0] < end)
    return done[inside, 1].sum() / (end - start) * 1e9


def recovery(pause: float) -> dict[str, float]:
    """pause: between the blocks of the other shard's producer; 0: as fast as it can."""
    with (
        tempfile.TemporaryDirectory() as directory,
        shardmem.Engine(handler=Clocked(directory), dtype=ROW, key="key", shards=2, slots=SLOTS) as engine,
    ):
        stop = spawn.Value("b", 0, lock=False)
        feeders = [
            spawn.Process(target=feed, args=(engine.name, shard, stop, 0.001 if shard == 0 else pause))
            for shard in (0, 1)
        ]
        for feeder in feeders:
            feeder.start()
        while not all(shard["handled"] for shard in engine.status()["shards"]):
            time.sleep(0.01)
        await_spare(engine)
        killed = time.monotonic_ns()
        os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
        while len(lives := batches(directory, 0)) < 2 or not len(lives[1]):
            time.sleep(0.02)
        time.sleep(0.2)
        stop.value = 1
        for feeder in feeders:
            feeder.join()
        back, other = int(batches(directory, 0)[1][0, 0]), batches(directory, 1)[0]
        return {
            "recovery": (back - killed) / 1e9,
            "others": rate_between(other, killed, back) / rate_between(other, killed - 1_000_000_000, killed),
        }


def throughput(handler: Any, seconds: float) -> float:
    """Events/s of one producer and one shard; lanes large enough for the interval between checkpoints."""
    chance, blocks = np.random.default_rng(1), np.zeros((32, 4096), ROW)
    blocks["key"], blocks["value"] = chance.integers(0, LIVE, blocks.shape), 1
    with (
        tempfile.TemporaryDirectory() as directory,
        shardmem.Engine(
            handler=handler, dtype=ROW, key="key", shards=1, slots=SLOTS, lane_bytes=1 << 29, state_dir=directory
        ) as engine,
        engine.producer() as producer,
    ):
        producer.send(blocks[0])
        producer.flush()
        started, n = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            producer.send(blocks[n & 31])
            n += 1
        producer.flush()
        return n * blocks.shape[1] / (time.perf_counter() - started)


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> list[dict[str, Any]]:
    seconds = chosen.seconds or (1.0 if chosen.quick else 3.0)
    raw: dict[str, list[Any]] = {"busy": [], "calm": [], "checkpoints": []}
    for repetition in range(chosen.repeat):
        report.progress(f"recovery {repetition + 1}/{chosen.repeat}")
        raw["busy"].append(recovery(0.0))
        raw["calm"].append(recovery(0.001))
        handlers = (("without", Counting), ("with", CountingSafely))
        raw["checkpoints"].append({name: throughput(handler(), seconds) for name, handler in handlers})
    for name, text in (("calm", "other producer at a steady rate"), ("busy", "other producer as fast as it can")):
        found(
            [
                Row("recovery", text, text, "ms", [each["recovery"] * 1000 for each in raw[name]], target="50 ms"),
                Row("the other shard meanwhile", text, text, "share", [each["others"] for each in raw[name]]),
            ]
        )
    case, reference = f"checkpoints, {LIVE:,} live keys", ("without",)
    found(
        [
            Row(case, name, name, "events/s", [each[name] for each in raw["checkpoints"]], reference, target=aim)
            for name, aim in (("without", ""), ("with", "0.97 x"))
        ]
    )
    return [{"case": kind, "repetition": n, **each} for kind, all_ in raw.items() for n, each in enumerate(all_)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of a round (3; 1 with --quick)")
    report.options(parser, repeat=7)
    chosen = parser.parse_args()
    report.run("recovery", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
