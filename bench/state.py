"""What keyed state and timers cost.

    python bench/state.py [--events 400000] [--repeat 5] [--quick] [--json FILE] [--against FILE]

Counting per key, 10,000 live keys: CPU time of the worker per event, with `KeyedState` and with a dict that nothing
saves, in turn. Asking for a value from another process. 50,000 timers that are due at once. A slot of 50,000 keys that
moves. Medians of the repetitions.
"""

from __future__ import annotations

import argparse
import collections
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import psutil  # noqa: E402

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402

LIVE, TIMERS = 10_000, 50_000


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help="of a round (400,000; 100,000 with --quick)")
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("state", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
