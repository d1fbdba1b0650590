"""What moving slots costs those who push, those who do not move, and a new worker.

    python bench/elastic.py [--seconds 4] [--repeat 5] [--quick] [--json FILE] [--against FILE]

Every figure comes with its counterpart from the same run: one `push` at a time and blocks of 256, without any handoff,
during continuous handoffs, and with the way that most systems do it (freeze the slots, drain, flip the table: producers
wait meanwhile), built here from the same parts. Then blocks of a producer that is served before all others on its core
(SCHED_FIFO, where that is allowed): what a push itself waits for, without the wait for a core that supervisor, mover
and workers use, who are five on two. Then the rate of keys whose slots stay, and the way of a new worker from the
command to its first event, split by phase. Medians of the repetitions.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

if __name__ == "__main__":
    import checkout

    checkout.use()

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402
from bench.spare import await_spare  # noqa: E402

SLOTS, KEYS, MOVED = 256, 4096, 64
ROW = np.dtype([("key", "u8"), ("number", "u8")])
spawn = multiprocessing.get_context("spawn")


class Look(shardmem.Handler):
    """Notes when its first event came, and how many events of keys that stay it handled."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, context: Any) -> None:
        self.path, self.first = os.path.join(self.directory, f"first-{context.shard}"), True

    def handle(self, batch: Any) -> None:
        if self.first:
            self.first = False
            with open(self.path, "w") as file:
                file.write(str(time.monotonic_ns()))
        batch.records["number"].sum()


def mover(engine: str, freeze: Any, stop: Any, done: Any, pause: float = 0.0) -> None:
    """Moves slots 0 to MOVED - 1 there and back; freeze: a flag that producers obey, or None; pause: seconds in
    between."""
    chance = random.Random(1)
    with shardmem.connect(engine) as producer, shardmem.Client(engine) as client:
        del producer
        while not stop.value:
            slots, target = chance.sample(range(MOVED), 16), chance.randrange(2)
            if freeze is not None:
                freeze.value = 1
                while client.status()["accounting"]["in_flight"]:
                    pass
            client.move(slots, target)
            done.value += 1
            if freeze is not None:
                freeze.value = 0
            time.sleep(pause)


def timed(engine: Any, kind: str, seconds: float, how: str) -> tuple[np.ndarray, float, int]:
    """(seconds of each call, events/s, handoff commands) of one producer; how: "none", "paced", "handoff" or
    "freeze"."""
    freeze, stop, done = (
        spawn.Value("b", 0, lock=False),
        spawn.Value("b", 0, lock=False),
        spawn.Value("q", 0, lock=False),
    )
    child = None
    if how != "none":
        child = spawn.Process(
            target=mover,
            args=(engine.name, freeze if how == "freeze" else None, stop, done, 0.02 if how == "paced" else 0.0),
        )
        child.start()
        while not done.value:
            time.sleep(0.001)
    rows = np.zeros(256 if kind == "send" else 1, ROW)
    chance = np.random.default_rng(2)
    blocks = []
    for _ in range(64):
        rows["key"] = chance.integers(0, KEYS, len(rows))
        blocks.append(rows.copy())
    took, clock = np.empty(4_000_000), time.perf_counter
    with engine.producer() as producer:
        send, n = producer.send, 0
        until = clock() + seconds
        started = clock()
        while (before := clock()) < until and n < len(took):
            while freeze.value:
                pass
            send(blocks[n & 63])
            took[n] = clock() - before
            n += 1
            if kind == "push" and n % 64 == 0:
                time.sleep(0.0005)  # below what the worker takes: what is timed is the push, not a full lane
            elif kind == "send":
                time.sleep(0.0002)
        rate = n * len(rows) / (clock() - started)
        producer.flush()
    if child is not None:
        stop.value = 1
        child.join()
    return took[:n], rate, done.value


@contextlib.contextmanager
def served_first() -> Iterator[None]:
    """Before all others on its core; what is started meanwhile is not. Raises PermissionError."""
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def may_be_first() -> bool:
    try:
        with served_first():
            return True
    except PermissionError:
        return False


def stall(seconds: float, kind: str, *, first: bool = False) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for how in HOW_FIRST if first else HOW:
        with (
            tempfile.TemporaryDirectory() as directory,
            shardmem.Engine(handler=Look(directory), dtype=ROW, key="key", shards=2, slots=SLOTS) as engine,
        ):
            timed(engine, kind, 0.2, "none")
            with served_first() if first else contextlib.nullcontext():
                took, rate, commands = timed(engine, kind, seconds, how)
        result[how] = {
            "p50": float(np.quantile(took, 0.5)),
            "p99.9": float(np.quantile(took, 0.999)),
            "worst": float(took.max()),
            "commands": commands,
        }
    return result


def staying(seconds: float) -> dict[str, float]:
    """Events/s of keys whose slots never move, as fast as one producer can, without and during handoffs of other slots.

    Some forty commands of 16 slots a second: without a pause the mover, a process like others, takes its share of two
    cores.
    """
    from shardmem.runtime.batch import slot_of

    stay = np.array([key for key in range(KEYS) if slot_of(key, SLOTS) >= MOVED], "u8")
    rates = {}
    for how in ("none", "handoff"):
        with (
            tempfile.TemporaryDirectory() as directory,
            shardmem.Engine(handler=Look(directory), dtype=ROW, key="key", shards=2, slots=SLOTS) as engine,
        ):
            stop, done = spawn.Value("b", 0, lock=False), spawn.Value("q", 0, lock=False)
            child = (
                spawn.Process(target=mover, args=(engine.name, None, stop, done, 0.02)) if how == "handoff" else None
            )
            if child is not None:
                child.start()
                while not done.value:
                    time.sleep(0.001)
            rows = np.zeros(4096, ROW)
            rows["key"] = np.resize(stay, 4096)
            with engine.producer() as producer:
                for _ in range(20):
                    producer.send(rows)
                producer.flush()
                started, n = time.perf_counter(), 0
                while time.perf_counter() - started < seconds:
                    producer.send(rows)
                    n += len(rows)
                producer.flush()
                rates[how] = n / (time.perf_counter() - started)
            if child is not None:
                stop.value = 1
                child.join()
    return rates


def scale_up() -> dict[str, float]:
    """Seconds from the command to the first event in the new worker, by phase."""
    with (
        tempfile.TemporaryDirectory() as directory,
        shardmem.Engine(handler=Look(directory), dtype=ROW, key="key", shards=1, max_shards=2, slots=SLOTS) as engine,
        engine.producer() as producer,
    ):
        rows = np.zeros(256, ROW)
        rows["key"] = np.arange(256)
        stop = spawn.Value("b", 0, lock=False)
        child = spawn.Process(target=trickle, args=(engine.name, stop))
        child.start()
        producer.send(rows)
        producer.flush()
        await_spare(engine)
        started = time.monotonic_ns()
        answer = engine.scale_to(2)
        path = os.path.join(directory, "first-1")
        while not os.path.exists(path) or not os.path.getsize(path):
            time.sleep(0.0005)
        with open(path) as file:
            total = (int(file.read()) - started) / 1e9
        stop.value = 1
        child.join()
        assert len(answer["moved"]) <= -(-SLOTS // 2)
        return {**answer["seconds"], "first event": total}


def trickle(engine: str, stop: Any) -> None:
    rows = np.zeros(256, ROW)
    rows["key"] = np.arange(256)
    with shardmem.connect(engine) as producer:
        while not stop.value:
            producer.send(rows)
            time.sleep(0.001)


HOW = {
    "none": "no handoff",
    "paced": "40 handoffs/s",
    "handoff": "one after the other",
    "freeze": "freeze, drain, flip",
}
HOW_FIRST = ("none", "paced", "handoff")  # who spins before all others until the frozen slots are free waits for ever


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> list[dict[str, Any]]:
    seconds = chosen.seconds or (1.0 if chosen.quick else 4.0)
    raw: dict[str, list[Any]] = {"push": [], "send": [], "first": [], "staying": [], "scale up": []}
    for repetition in range(chosen.repeat):
        report.progress(f"elastic {repetition + 1}/{chosen.repeat}")
        raw["push"].append(stall(seconds, "push"))
        raw["send"].append(stall(seconds, "send"))
        if may_be_first():
            raw["first"].append(stall(seconds, "send", first=True))
        raw["staying"].append(staying(seconds))
        raw["scale up"].append(scale_up())
    targets = {"40 handoffs/s": "1.5 x", "one after the other": "2 x"}
    kinds = {"push": "one row", "send": "block of 256", "first": "block of 256, served first"}
    for kind, text in kinds.items():
        hows = HOW_FIRST if kind == "first" else tuple(HOW)
        for quantile in ("p50", "p99.9", "worst"):
            found(
                [
                    Row(
                        f"{text} {quantile}",
                        HOW[how],
                        HOW[how],
                        "us",
                        [each[how][quantile] * 1e6 for each in raw[kind]],
                        ("no handoff",),
                        target=targets.get(HOW[how], "") if quantile == "p99.9" else "",
                        absent=None if raw[kind] else "this user may not ask for it",
                    )
                    for how in hows
                ]
            )
    reference = ("undisturbed",)
    found(
        [
            Row(
                "slots that stay", name, name, "events/s", [each[how] for each in raw["staying"]], reference, target=aim
            )
            for how, name, aim in (("none", *reference, ""), ("handoff", "during handoffs of others", "0.95 x"))
        ]
    )
    phases = raw["scale up"][0]
    found([Row("scale up", phase, phase, "ms", [each[phase] * 1000 for each in raw["scale up"]]) for phase in phases])
    return [{"case": kind, "repetition": n, **each} for kind, all_ in raw.items() for n, each in enumerate(all_)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of a round (4; 1 with --quick)")
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("elastic", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
