"""The benchmark: one table of ratios against named rivals, all measured in this one run.

    python bench/run.py [--quick] [--only NAME...] [--seconds S] [--repeat N] [--json FILE] [--against FILE]

What a figure means is written in `harness.py`, what the floor is in `floor.c`. A ratio is between the
medians of this run: absolute figures belong to the machine in the first line and to nothing else. For
events/s more is better, for us less. --only takes names of cases and of contenders; the references of a
case always run with it. Each row is printed when its case is done, and progress goes to standard error. --against
compares the ratios with those of an earlier --json. Ends with 1 if a contender failed, or shardmem could not run.

Look at min and max of the C floor before believing a ratio to it: on a virtual machine the cost of
moving a cache line between two cpus can change fivefold within minutes, when the host moves them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

if __name__ == "__main__":  # one name per module, whether this file is run or a worker process imports its handler
    import checkout

    checkout.use()

from bench import floor, report, rivals  # noqa: E402
from bench.harness import DEADLINE, Contender, Failed, Trial  # noqa: E402
from bench.report import Row, progress  # noqa: E402

Place = tuple[str, int]  # where a contender is found: its module, and which of its CONTENDERS


@dataclass(frozen=True)
class Case:
    """One question, asked of every contender that has a form for its kind."""

    name: str
    kind: str
    size: int
    references: tuple[str, ...]
    processes: int  # producers, and as many consumers


QUEUE, PIPE = "multiprocessing.Queue", "multiprocessing.Pipe"
QUESTIONS = (
    ("records-64", "records", 64, ("C floor",)),
    ("records-1024", "records", 1024, ("C floor",)),
    # What carries events one by one today, and at best.
    ("lists-64", "lists", 64, (QUEUE,)),
    ("lists-1024", "lists", 1024, (QUEUE,)),
    # Against the same lists, and against the cheapest thing that carries a column: joined bytes.
    ("columns-64", "columns", 64, (QUEUE, PIPE)),
    ("push-64", "push", 64, (QUEUE, "hyperq")),
    ("push-1024", "push", 1024, (QUEUE, "hyperq")),
    ("latency", "latency", 64, ("C floor",)),
)
LENGTHS = {False: (1.0, 0.2), True: (3.0, 1.0)}  # seconds of a round: latency or not, in full or quick
CASES = [Case(*q, 1) for q in QUESTIONS] + [Case(f"{q[0]}-2x2", *q[1:], 2) for q in QUESTIONS]


def attempt(contender: Place, trial: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own, which becomes the parent of all others."""
    with tempfile.TemporaryDirectory(prefix="smb") as scratch:
        text = json.dumps({"contender": contender, "trial": {**trial, "scratch": scratch}})
        command = [sys.executable, __file__, "--trial", text]
        # A session of its own: whatever it leaves behind when it is stuck dies with it.
        host = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = host.communicate(timeout=6 * DEADLINE)
        except BaseException as error:  # Ctrl-C too: it does not reach another session
            os.killpg(host.pid, signal.SIGKILL)
            host.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {"failed": f"stuck for {6 * DEADLINE:.0f} s"}
    try:
        return json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        last = err.strip().splitlines()[-1:] or [f"ended with {host.returncode}"]
        return {"failed": last[0]}


def one_trial(text: str) -> None:
    """What the process of `attempt` does."""
    order = json.loads(text)
    module, number = order["contender"]
    try:
        result = rivals.load(module)[number].measure(Trial(**order["trial"]))
    except Failed as error:
        result = {"failed": str(error)}
    except Exception as error:
        result = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    print("\n" + json.dumps(result), flush=True)


def chosen(names: list[str], contenders: dict[Place, Contender]) -> Iterator[tuple[Case, list[Place]]]:
    """The cases and their contenders. Names are patterns for either; references always run."""
    cases = [case for case in CASES if any(fnmatchcase(case.name, name) for name in names)]
    wanted = {i for i, c in contenders.items() if any(fnmatchcase(c.name, name) for name in names)}
    known = dict.fromkeys(named.name for named in [*CASES, *contenders.values()])
    for name in names:
        if not any(fnmatchcase(one, name) for one in known):
            raise SystemExit(f"run.py: --only {name}: no such case or contender; there are: {', '.join(known)}")
    for case in cases or CASES:
        able = [i for i, c in contenders.items() if case.kind in c.forms and (c.most or case.size) >= case.size]
        if wanted:
            able = [i for i in able if i in wanted or contenders[i].name in case.references]
        yield case, able


def measure(options: argparse.Namespace, found: Callable[[list[Row]], None]) -> list[dict[str, Any]]:
    contenders = {(module, i): c for module in rivals.MODULES for i, c in enumerate(rivals.load(module))}
    absent = {i: why for i, c in contenders.items() if (why := c.missing())}
    cpus = sorted(os.sched_getaffinity(0))
    raw: list[dict[str, Any]] = []
    for case, able in chosen(options.only, contenders):
        seconds = LENGTHS[case.kind == "latency"][options.quick]
        if options.seconds and case.kind != "latency":
            seconds = options.seconds
        orders: dict[Place, dict[str, Any]] = {}
        figures: dict[Place, list[dict[str, Any]]] = {}
        for i in able:
            orders[i] = {
                "case": case.name,
                "kind": case.kind,
                "form": contenders[i].forms[case.kind],
                "size": case.size,
                "producers": case.processes,
                "consumers": case.processes,
                "seconds": seconds,
                "cpus": cpus,
                "floor": {"ring": options.floor_ring, "publish": options.floor_publish},
            }
            figures[i] = []
        for repetition in range(options.repeat):
            for i in able:
                if i in absent:
                    continue
                progress(f"{case.name} {repetition + 1}/{options.repeat}: {contenders[i].name}")
                got = attempt(i, orders[i])
                figures[i].append(got)
                label = contenders[i].label(case.kind)
                raw.append({"case": case.name, "contender": label, "repetition": repetition, **got})
        found_rows: list[Row] = []
        parts = (("p50", "us"), ("p99", "us")) if case.kind == "latency" else (("value", "events/s"),)
        for key, unit in parts:
            for i in able:
                pinning = Trial(scratch="", **orders[i]).pinning
                good = [f[key] for f in figures[i] if key in f]
                bad = [f["failed"] for f in figures[i] if "failed" in f]
                name = f"{case.name} {key}" if unit == "us" else case.name
                label, contender = contenders[i].label(case.kind), contenders[i]
                row = Row(name, contender.name, label, unit, good, case.references, pinning, bad, note=contender.note)
                if i in absent:
                    hint = f" (pip install {contender.pip})" if contender.pip else ""
                    row.absent = f"not installed{hint}"
                    if not (hint and absent[i].startswith("ModuleNotFoundError")):  # there, but broken
                        row.absent += f": {absent[i]}"
                found_rows.append(row)
        found(found_rows)
    return raw


def main() -> int:
    parser = argparse.ArgumentParser(description="Ratios of shardmem to named rivals, in one run on one machine.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases and contenders, * allowed")
    parser.add_argument("--seconds", type=float, help="of a round that is not of latencies (1; 0.2 with --quick)")
    parser.add_argument("--floor-ring", type=int, default=1 << 20, metavar="BYTES", help="ring of the C floor (1 MiB)")
    parser.add_argument("--floor-publish", type=int, default=256, metavar="N", help="its publishing period (256)")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    report.options(parser, repeat=5, quick=2)
    options = parser.parse_args()
    if options.trial:
        one_trial(options.trial)
        return 0
    with tempfile.TemporaryDirectory(prefix="smb") as directory:
        os.environ[floor.DIRECTORY] = directory
        rows = report.run("run", options, lambda found: measure(options, found))
    # Figures may be low; a contender that lost events is news that a script must notice.
    ours = [row for row in rows if row.contender == "shardmem"]
    return 1 if any(row.failures for row in rows) or not ours or any(row.absent for row in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
