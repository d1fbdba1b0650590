"""What an outage costs, and what one producer of bad events costs the others.

    python bench/outage.py [--seconds 60] [--repeat 3] [--only outage|bad|reject] [--quick] [--json FILE]
        [--against FILE]

outage: four producers push 250 events/s each into two shards whose sink is away for so many seconds; a worker and the
supervisor are killed meanwhile, and scale, move and reload are asked for. Shown: how long after the sink's return the
first event was handled, beside the longest wait between two tries; what was lost, repeated, quarantined or out of
order. bad: three producers, beside a fourth that pushes 1,000 events at which the handler raises; their throughput as
fast as they can, and the latency of their events at 1,000/s each, against the same without the fourth. reject: the same
where the handler rejects the bad rows itself. Medians of the repetitions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    import checkout

    checkout.use()

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402

PRODUCERS, KEYS, BAD = 4, 64, 1000
LONGEST_WAIT = 30.0
EVENT = struct.Struct("<QQQ")  # producer, number, when it was pushed; a bad one says so as its producer
IS_BAD = 1 << 32
spawn = multiprocessing.get_context("spawn")


class Sink(shardmem.Handler):
    """Writes (producer, number, when it was pushed, when it was handled) of each event. mode: what it does about a bad
    one: "raise" or "reject"."""

    def __init__(self, directory: str, mode: str) -> None:
        self.directory, self.mode = directory, mode
        self.away = os.path.join(directory, "away")

    def open(self, context: Any) -> None:
        self.file = open(os.path.join(self.directory, f"{context.shard}-{os.getpid()}.log"), "ab", buffering=0)
        self.calls = open(os.path.join(self.directory, f"{context.shard}-{os.getpid()}.bad"), "ab", buffering=0)

    def handle(self, batch: Any) -> None:
        if os.path.exists(self.away):
            raise ConnectionError("the sink is away")
        events = np.frombuffer(b"".join(batch.payloads), "u8").reshape(-1, 3)
        bad = np.flatnonzero(events[:, 0] == IS_BAD)
        if len(bad):
            self.calls.write(b"." * len(bad))
            if self.mode == "raise":
                raise ValueError("a bad event")
            batch.reject(bad.tolist(), "a bad event")
            events = np.delete(events, bad, 0)
        now = np.full((len(events), 1), time.monotonic_ns(), "u8")
        self.file.write(np.concatenate([events, now], 1).tobytes())


def produce(engine: str, producer: int, rate: float, until: Any, pushed: Any) -> None:
    """Numbered events under keys of its own. rate: a second; 0: as fast as it can, in blocks."""
    with shardmem.connect(engine, wait=30.0) as sender:
        number, began = 0, time.monotonic()
        while not until.value:
            block = 1 if rate else 256
            now = time.monotonic_ns()
            keys = [producer * KEYS + each % KEYS for each in range(number, number + block)]
            sender.push_many(keys, [EVENT.pack(producer, each, now) for each in range(number, number + block)])
            number += block
            pushed.value = number
            if rate and (left := began + number / rate - time.monotonic()) > 0:
                time.sleep(left)


def spoil(engine: str, seconds: float, is_there: Any) -> None:
    with shardmem.connect(engine, wait=30.0) as sender:
        is_there.value, began = 1, time.monotonic()
        for number in range(BAD):
            sender.push(-1 - number % KEYS, EVENT.pack(IS_BAD, number, 0))
            if (left := began + number * seconds / BAD - time.monotonic()) > 0:
                time.sleep(left)


def judged(engine: Any) -> None:
    """Until all bad events are in quarantine. The others go on meanwhile: where nothing succeeds beside them, it is not
    the events, and the shards wait longer and longer."""
    until = time.monotonic() + 120
    while engine.status()["accounting"]["quarantined"] < BAD:
        if time.monotonic() > until:
            raise SystemExit(f"outage.py: {BAD} bad events are not in quarantine after two minutes")
        time.sleep(0.05)


def handled(directory: str) -> np.ndarray:
    """In the order of each worker's writing, the workers in the order of their first event."""
    rows = [np.fromfile(path, "u8").reshape(-1, 4) for path in Path(directory).glob("*.log")]
    rows = sorted((each for each in rows if len(each)), key=lambda each: int(each[0, 3]))
    return np.concatenate(rows) if rows else np.zeros((0, 4), "u8")


class Crowd:
    """Producer processes, from `with` on."""

    def __init__(self, engine: str, count: int, rate: float) -> None:
        self.until = spawn.Value("b", 0, lock=False)
        self.pushed = [spawn.Value("q", 0, lock=False) for _ in range(count)]
        self._processes = [
            spawn.Process(target=produce, args=(engine, number, rate, self.until, self.pushed[number]))
            for number in range(count)
        ]

    def __enter__(self) -> Crowd:
        for process in self._processes:
            process.start()
        while not all(each.value for each in self.pushed):
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.until.value = 1
        for process in self._processes:
            process.join()


def timed(call: Any, *arguments: Any) -> float:
    began = time.monotonic()
    call(*arguments, timeout=5.0)
    return time.monotonic() - began


def outage(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        away = Path(directory, "away")
        with shardmem.Engine(
            handler=Sink(directory, "raise"), min_shards=2, max_shards=3, auto_scale=False, log_level="error",
            retry_max_wait=LONGEST_WAIT, lane_bytes=8 << 20,
        ) as engine:  # fmt: skip
            with Crowd(engine.name, PRODUCERS, 250) as crowd:
                time.sleep(1)
                away.touch()
                began = time.monotonic()
                time.sleep(seconds / 4)
                answers = {
                    "scale": timed(engine.scale_to, 3), "move": timed(engine.move, [1, 2], 2),
                    "reload": timed(engine.reload),
                }  # fmt: skip
                os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
                time.sleep(seconds / 4)
                os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                quarantined_meanwhile = engine.status()["accounting"]["quarantined"]
                away.unlink()
                back = time.monotonic_ns()
                time.sleep(2)
            with engine.producer() as producer:
                del producer
            while engine.status()["accounting"]["in_flight"]:
                time.sleep(0.05)
            accounting = engine.status()["accounting"]
        rows = handled(directory)
        pushed = sum(each.value for each in crowd.pushed)
    after = rows[rows[:, 3] > back, 3]
    unordered = 0
    for producer in range(PRODUCERS):
        mine = rows[rows[:, 0] == producer]
        mine = mine[np.argsort(mine[:, 3], kind="stable")]
        for key in range(KEYS):
            numbers = mine[mine[:, 1] % KEYS == key, 1].astype("i8")
            unordered += int((np.diff(numbers) < 0).sum())
    unique = len(np.unique(rows[:, 0] * (1 << 40) + rows[:, 1]))
    return {
        "first_after_return_s": round((int(after.min()) - back) / 1e9, 3),
        "pushed": pushed,
        "lost": pushed - unique,
        "repeated": len(rows) - unique,
        "out_of_order": unordered,
        "quarantined_meanwhile": quarantined_meanwhile,
        "quarantined": accounting["quarantined"],
        **{f"{name}_answered_s": round(value, 3) for name, value in answers.items()},
    }


def beside_bad(mode: str, seconds: float, rate: float, bad: bool) -> dict[str, Any]:
    """Three healthy producers, with or without a fourth that sends bad events all the while."""
    with tempfile.TemporaryDirectory() as directory:
        with shardmem.Engine(handler=Sink(directory, mode), shards=2, log_level="error") as engine:
            with Crowd(engine.name, PRODUCERS - 1, rate):
                time.sleep(0.5)
                is_there = spawn.Value("b", 0, lock=False)
                fourth = spawn.Process(target=spoil, args=(engine.name, seconds, is_there)) if bad else None
                if fourth is not None:
                    fourth.start()
                    while not is_there.value:  # what its start costs is no matter of its events
                        time.sleep(0.001)
                began = time.monotonic_ns()
                time.sleep(seconds)
                ended = time.monotonic_ns()
                if fourth is not None:
                    fourth.join()
                    judged(engine)
            while engine.status()["accounting"]["in_flight"]:
                time.sleep(0.05)
            status = engine.status()
        rows = handled(directory)
        calls = sum(path.stat().st_size for path in Path(directory).glob("*.bad"))
    rows = rows[(rows[:, 3] > began) & (rows[:, 3] <= ended)]
    late = (rows[:, 3] - rows[:, 2]).astype("f8") / 1e6
    return {
        "events_per_s": len(rows) / seconds,
        "p99_ms": float(np.percentile(late, 99)) if len(late) else None,
        "quarantined": status["accounting"]["quarantined"],
        "bad_events_seen": calls,
        "failed_shards": sum(shard["state"] == "failed" for shard in status["shards"]),
    }


def compared(case: str, mode: str, share: str, seconds: float, repeat: int) -> list[Row]:
    """Throughput without a limit, and how late events are at a steady rate: with and without the bad ones."""
    runs = []
    for repetition in range(repeat):
        report.progress(f"{case} {repetition + 1}/{repeat}")
        runs.append([beside_bad(mode, seconds, rate, bad) for rate in (0.0, 1000.0) for bad in (False, True)])
    rates = [[run[place]["events_per_s"] for run in runs] for place in (0, 1)]
    late = [[run[place]["p99_ms"] for run in runs] for place in (2, 3)]
    alone, beside = "without", "beside them"
    bad_runs = [each for run in runs for each in (run[1], run[3])]
    rows = [
        Row(f"{case}, rate", alone, alone, "events/s", rates[0], (alone,)),
        Row(f"{case}, rate", beside, beside, "events/s", rates[1], (alone,), target=share),
        Row(f"{case}, p99", alone, alone, "ms", late[0]),
        Row(f"{case}, p99", beside, beside, "ms", late[1], target="100 ms"),
    ]
    for name, target in (("quarantined", "1,000"), ("bad_events_seen", ""), ("failed_shards", "0")):
        rows.append(Row(case, name, name, "count", [float(each[name]) for each in bad_runs], target=target))
    return rows


UNITS = {"_s": "s", "_ms": "ms"}


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    seconds = chosen.seconds or (12.0 if chosen.quick else 60.0)
    if chosen.only in (None, "outage"):
        report.progress(f"outage of {seconds:g} s")
        figures = outage(seconds)
        targets = dict.fromkeys(("lost", "repeated", "out_of_order", "quarantined_meanwhile", "quarantined"), "0")
        found(
            [
                Row("outage", name, name, unit_of(name), [float(value)], target=targets.get(name, ""))
                for name, value in figures.items()
            ]
        )
    for case, mode, share in (("bad events", "raise", "0.80 x"), ("rejected rows", "reject", "0.95 x")):
        if chosen.only in (None, "bad" if mode == "raise" else mode):
            found(compared(case, mode, share, seconds / 6, chosen.repeat))


def unit_of(name: str) -> str:
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, help="of the outage (60; 12 with --quick), a sixth of it of the others"
    )
    parser.add_argument("--only", choices=["outage", "bad", "reject"])
    report.options(parser, repeat=3)
    chosen = parser.parse_args()
    report.run("outage", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
