"""What two and three producers and workers would do on as many cores as they are: a model, from what they cost here.

    python bench/model.py [--seconds 2] [--repeat 5] [--quick] [--json FILE] [--against FILE]

n producers and n workers run on the cores of this machine. P is the CPU time of the producers for one event, W that
of the workers; both count what is executed, and not who waits for a core. With two cores for each pair, who takes
longer decides: n / max(P, W) events/s. On c cores it is the smallest of n / P, n / W and c / (P + W).

Assumed: a cache line takes as long from core to core there as between the cores of this machine; memory is not the
limit (64 bytes are written once and read once); nobody shares a core, also not as its second thread; waiting is
sleeping (spin_us = 0 here, so that CPU time is work). What the model says of this machine stands beside what was
measured on it: by as much as they differ, believe the rest. The C floor, one pair of cores, times n is what is
compared with."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import numpy as np  # noqa: E402

import shardmem  # noqa: E402
from bench import floor, report  # noqa: E402
from bench.cpu import cpu_ns  # noqa: E402
from bench.harness import Trial  # noqa: E402
from bench.report import Row  # noqa: E402

SIZE, BLOCK, LIST = 64, 4096, 256
ROW = np.dtype([("key", "<u8"), ("rest", f"V{SIZE - 8}")])
WARM = 0.5  # seconds until lanes, caches and branches have seen all of it
FLOOR = "C floor x n"
spawn = multiprocessing.get_context("spawn")


class Touch(shardmem.Handler):
    """Reads the first word of each event, as the consumers of `run.py` do."""

    def handle(self, batch: Any) -> None:
        if batch._schema.is_records:
            int(batch.records["key"].sum())
            return
        total = 0
        for payload in batch.payloads:
            total += payload[0]


def feed(engine: str, kind: str, seed: int, stop: Any) -> None:
    random = np.random.default_rng(seed)
    rows = np.zeros(BLOCK, ROW)
    rows["key"] = random.integers(0, 1 << 32, BLOCK)
    keys, payloads = rows["key"][:LIST].tolist(), [bytes(SIZE)] * LIST
    with shardmem.connect(engine, spin_us=0) as producer:
        while not stop.value:
            if kind == "records":
                producer.send(rows)
            else:
                producer.push_many(keys, payloads)


def costs(kind: str, n: int, seconds: float) -> tuple[float, float, float]:
    """(ns of the producers for an event, ns of the workers, events/s)."""
    settings: dict[str, Any] = {"dtype": ROW, "key": "key"} if kind == "records" else {}
    stop = spawn.Value("b", 0, lock=False)
    with shardmem.Engine(handler=Touch, shards=n, spin_us=0, spares=0, **settings) as engine:
        feeders = [spawn.Process(target=feed, args=(engine.name, kind, seed, stop)) for seed in range(n)]
        for feeder in feeders:
            feeder.start()
        while not all(shard["handled"] for shard in engine.status()["shards"]):
            time.sleep(0.05)
        time.sleep(WARM)
        ends = [feeder.pid for feeder in feeders], [shard["pid"] for shard in engine.status()["shards"]]

        def now() -> tuple[list[int], int, float]:
            handled = engine.status()["accounting"]["handled"]
            return [sum(cpu_ns(pid) for pid in some if pid) for some in ends], handled, time.perf_counter()

        before, handled, started = now()
        time.sleep(seconds)
        after, then, ended = now()
        stop.value = 1
        for feeder in feeders:
            feeder.join()
    events = then - handled
    return (after[0] - before[0]) / events, (after[1] - before[1]) / events, events / (ended - started)


def floor_rate(seconds: float) -> float:
    """Events/s of one pair that reads all bytes."""
    with tempfile.TemporaryDirectory(prefix="smb") as directory:
        os.environ[floor.DIRECTORY] = directory
        ring = {"ring": 1 << 20, "publish": 256}
        cpus = sorted(os.sched_getaffinity(0))
        trial = Trial("model", "records", "", SIZE, 1, 1, seconds, directory, cpus, floor=ring)
        rate: float = floor.Floor("all").measure(trial)["value"]
    return rate


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> list[dict[str, Any]]:
    seconds, cores = chosen.seconds or (0.5 if chosen.quick else 2.0), len(os.sched_getaffinity(0))
    raw: list[dict[str, Any]] = []
    for kind in ("records", "lists"):
        for n in (1, 2, 3):
            measured, here, there, pairs = list[float](), list[float](), list[float](), list[float]()
            sides: tuple[list[float], list[float]] = [], []
            for repetition in range(chosen.repeat):
                report.progress(f"model {kind} {n}x{n} {repetition + 1}/{chosen.repeat}")
                p, w, rate = costs(kind, n, seconds)
                raw.append({"kind": kind, "n": n, "producer_ns": p, "worker_ns": w, "rate": rate})
                sides[0].append(p)
                sides[1].append(w)
                measured.append(rate)
                here.append(1e9 * min(n / p, n / w, cores / (p + w)))
                there.append(1e9 * n / max(p, w))
                if kind == "records":
                    pairs.append(n * floor_rate(seconds))
            case, ideal = f"{kind} {n}x{n}", f"model, {2 * n} cores"
            found(
                [
                    Row(case, "producers, CPU", "producers, CPU", "ns", sides[0]),
                    Row(case, "workers, CPU", "workers, CPU", "ns", sides[1]),
                    Row(case, "measured", f"measured, {cores} cores", "events/s", measured),
                    Row(case, "model here", f"model, {cores} cores", "events/s", here, ("measured",)),
                    Row(
                        case,
                        ideal,
                        ideal,
                        "events/s",
                        there,
                        (FLOOR,) if pairs else (),
                        target="0.85 x" if pairs else "",
                    ),
                    *([Row(case, FLOOR, FLOOR, "events/s", pairs)] if pairs else []),
                ]
            )
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of a measurement (2; 0.5 with --quick)")
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("model", chosen, lambda rows: measure(chosen, rows))


if __name__ == "__main__":
    main()
