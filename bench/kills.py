"""What is left of a shard whose worker somebody kills again and again.

    python bench/kills.py [--seconds 180] [--every 0.3] [--shards 2] [--quick] [--json FILE] [--against FILE]

A producer pushes an event each millisecond to every shard; the worker of shard 0 is killed every 0.3 s. A shard is dark
from a kill until its successor has handled an event. Shown: availability (the share of the time in which shard 0 was
not dark), the longest darkness, kills, whether the shard ever counted as failed, and what was lost or came twice.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

if __name__ == "__main__":
    import checkout

    checkout.use()

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402

SLOTS = 64


class Clocked(shardmem.Handler):
    """Notes the number of each event, and when it was handled."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, context: Any) -> None:
        path = os.path.join(self.directory, str(context.shard))
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handle(self, batch: Any) -> None:
        numbers = [int(payload) for _, payload in batch]
        now = time.monotonic_ns()
        os.write(self.file, np.array([(now, number) for number in numbers], "i8").tobytes())


def kill_worker(pid: int) -> float | None:
    """When; None: it was dead already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return time.monotonic()


def measured(directory: str, seconds: float, every: float, shards: int) -> dict[str, Any]:
    handler = Clocked(directory)
    kills, pushed, failed = [], 0, 0
    with shardmem.Engine(handler=handler, shards=shards, slots=SLOTS, log_level="error") as engine:
        with engine.producer() as producer:
            began = time.monotonic()
            due = began + 2 * every
            while (now := time.monotonic()) < began + seconds:
                for key in range(SLOTS // 2):
                    producer.push(key, b"%d" % pushed)
                    pushed += 1
                if now >= due:
                    due += every
                    shard = engine.status()["shards"][0]
                    failed += shard["state"] == "failed"
                    if (at := kill_worker(shard["pid"])) is not None:
                        kills.append(at)
                time.sleep(max(0.0, now + 0.002 - time.monotonic()))
            ended = time.monotonic()
            producer.flush(120)
        crashes = engine.status()["shards"][0]["crashes"]
        accounting = engine.status()["accounting"]
    lines = [np.fromfile(os.path.join(directory, str(shard)), "i8").reshape(-1, 2) for shard in range(shards)]
    at = np.unique(lines[0][:, 0]) / 1e9
    dark = []
    for kill, following in zip(kills, [*kills[1:], ended]):
        after = at[np.searchsorted(at, kill) :]
        dark.append(min(following, after[0] if len(after) else following) - kill)
    times = Counter(np.concatenate([each[:, 1] for each in lines]).tolist())
    return {
        "seconds": round(ended - began, 1),
        "kills": len(kills),
        "availability": round(1 - sum(dark) / (ended - kills[0]), 4),
        "dark_ms_median": round(1e3 * statistics.median(dark), 1),
        "dark_ms_longest": round(1e3 * max(dark), 1),
        "seen_failed": failed,
        "crashes": crashes,
        "pushed": pushed,
        "lost": pushed - len(times) - accounting["quarantined"],
        "quarantined": accounting["quarantined"],
        "came_again": sum(times.values()) - len(times),
    }


UNITS = {"seconds": "s", "availability": "share", "dark_ms_median": "ms", "dark_ms_longest": "ms"}


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    runs = []
    for _ in range(chosen.repeat):
        with tempfile.TemporaryDirectory() as directory:
            seconds = chosen.seconds or (20.0 if chosen.quick else 180.0)
            runs.append(measured(directory, seconds, chosen.every, chosen.shards))
    targets = {"availability": "0.90", "lost": "0", "quarantined": "0"}
    case = f"a kill every {chosen.every:g} s"
    found(
        [
            Row(case, name, name, UNITS.get(name, "count"), [each[name] for each in runs], target=targets.get(name, ""))
            for name in runs[0]
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of a run (180; 20 with --quick)")
    parser.add_argument("--every", type=float, default=0.3)
    parser.add_argument("--shards", type=int, default=2)
    report.options(parser, repeat=1)
    chosen = parser.parse_args()
    report.run("kills", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
