"""What an engine costs while nothing happens.

    python bench/idle.py [--seconds 30] [--shards 4] [--repeat 3] [--quick] [--json FILE] [--against FILE]

CPU time in one second (2 ms are 0.2 % of a core) of the supervisor, of a worker and of the spare, of an engine that has
been ready for some seconds and gets no events.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.cpu import cpu_ns, family  # noqa: E402
from bench.report import Row  # noqa: E402
from bench.spare import await_spare  # noqa: E402

SETTLED = 5.0  # seconds after the spare has imported all: its start is not idling, and then the engine is at rest


def handle(batch: Any) -> None:
    pass


def cpu_ms(shards: int, seconds: float) -> dict[str, float]:
    """In each second."""
    with shardmem.Engine(handler=handle, shards=shards) as engine:
        await_spare(engine)
        time.sleep(SETTLED)
        status = engine.status()
        supervisor, workers = status["supervisor"]["pid"], {shard["pid"] for shard in status["shards"]}
        everybody = family(supervisor)
        before, started = {pid: cpu_ns(pid) for pid in everybody}, time.perf_counter()
        time.sleep(seconds)
        took = {pid: cpu_ns(pid) - before[pid] for pid in everybody}
        whole = 1e6 * (time.perf_counter() - started)
    return {
        "all": sum(took.values()) / whole,
        "supervisor": took[supervisor] / whole,
        "each worker": sum(took[pid] for pid in workers) / len(workers) / whole,
        "spare": sum(ns for pid, ns in took.items() if pid != supervisor and pid not in workers) / whole,
    }


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    seconds = chosen.seconds or (5.0 if chosen.quick else 30.0)
    figures = []
    for repetition in range(chosen.repeat):
        report.progress(f"idle {repetition + 1}/{chosen.repeat}")
        figures.append(cpu_ms(chosen.shards, seconds))
    targets = {"all": "2 ms"}
    case = f"CPU/s, {chosen.shards} shards"
    found(
        [
            Row(case, name, name, "ms", [each[name] for each in figures], target=targets.get(name, ""))
            for name in figures[0]
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of a repetition (30; 5 with --quick)")
    parser.add_argument("--shards", type=int, default=4, metavar="N")
    report.options(parser, repeat=3)
    chosen = parser.parse_args()
    report.run("idle", chosen, lambda rows: measure(chosen, rows))


if __name__ == "__main__":
    main()
