"""docs/results.md, from the JSON of the suite: `python bench/suite.py --page FILE.json > docs/results.md`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from bench import report
from bench.report import Row

ORDER = ("case", "contender", "min", "median", "max", "beside", "target")
SAYS = {  # what each benchmark is about, and what its figures mean for those who use shardmem
    "run": (
        "Throughput and latency beside others",
        "Events of 64 and 1,024 bytes from producer to handler, and the time from `push` to the handler. "
        "`records` is `send` of 4,096 rows, `lists` is `push_many` of 256 Python objects, `columns` is "
        "`push_columns` of 256, `push` is one call for each event. The C floor is a ring without keys, order "
        "between lanes, recovery or Python: what the machine can do. More than 1 x a rival is faster than it; for"
        " times, less.",
    ),
    "handler": (
        "A handler's side",
        "CPU time for one event by the way that a handler takes it, beside a loop over Python objects that exist "
        "already. Take `columns` or records where thousands of events arrive together, iteration where each is a "
        "decision.",
    ),
    "start": (
        "Start",
        "From `Engine(...)` to two workers that are ready, and `shardmem status` as a whole. A program that "
        "starts an engine pays the first once; an operator pays the second at each command.",
    ),
    "idle": ("Idle", "CPU time that an engine takes while nothing happens: 2 ms in each second are 0.2 % of one core."),
    "large": (
        "Large tables",
        "An engine with many shards, seats and slots, and what one event costs as tables grow. Where the ratio is"
        " 1, size is free: take as many slots and producers as you need.",
    ),
    "model": (
        "More cores than this machine has",
        "A model, not a measurement: what producers and workers cost here, and what follows for as many cores as "
        "there are processes. `bench/model.py` states what it assumes. How far it is right on this machine is the"
        " ratio of *model* to *measured*.",
    ),
    "elastic": (
        "Moving slots",
        "What a push takes while slots move, beside a push while none do, and what `freeze, drain, flip` would "
        "cost instead. *Slots that stay*: the rate of keys that are not moved. *Scale up*: from the command to "
        "the first event of the new worker.",
    ),
    "recovery": (
        "A killed worker",
        "From the kill to the successor's first event, what other shards lose meanwhile, and what checkpoints cost.",
    ),
    "kills": ("A worker that is killed every 0.3 s", "How much of the time the shard was served; nothing is lost."),
    "outage": ("A sink that is away", "What waits, and how soon it is handled when the sink is back."),
    "state": (
        "Keyed state and timers",
        "What a value costs beside a dict that nothing saves, and state that is large.",
    ),
    "ingest": ("Files", "Megabytes and events for each second, and for each second of CPU time, by format."),
    "kafka": ("Kafka", "From a broker on the same machine to the handler."),
}
HEAD = """# Results

Written by `python bench/suite.py --page FILE.json` from one run of each of the benchmarks below: do not edit. Absolute
figures belong to the machine and the day; a ratio is between the medians of one run, in which the contenders take
turns. How to read and repeat them: [Tuning](tuning.md#measured). What others offer besides speed:
[How it compares](comparison.md).
"""


def page(document: dict[str, Any]) -> str:
    found = {name: each for name, each in document["benchmarks"].items() if each["rows"]}
    return "\n".join([HEAD, *_machine(found), *(line for name in found for line in _section(name, found[name]))])


def _machine(found: dict[str, Any]) -> Iterator[str]:
    hosts = [each["machine"] for each in found.values()]
    days = sorted(_day(each["ended"]) for each in found.values())
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    yield f"Measured {span} on {hosts[0]['cores']} cores of {hosts[0]['cpu']}, Linux {hosts[0]['kernel']}, Python "
    yield f"{hosts[0]['python']}, {hosts[0]['gcc']}. Load average at the starts: {_listed(h['load'] for h in hosts)}.\n"


def _section(name: str, found: dict[str, Any]) -> Iterator[str]:
    title, meaning = SAYS.get(name, (name, ""))
    rows = [Row(**row) for row in found["rows"]]
    notes = sorted({note for row in rows if (note := row.note)})
    quick = (
        " Quick: short and few rounds, which prove and do not measure."
        if found["settings"].get("quick") == "True"
        else ""
    )
    yield f"## {title}\n"
    yield f"{meaning} `bench/{name}.py`, {_day(found['ended'])}, repeated {found['settings']['repeat']} times.{quick}\n"
    yield f"| {' | '.join(ORDER)} |"
    yield f"|---|---|{'---:|' * 3}---|---|"
    case = ""
    for row in rows:
        yield _line(row, row.case if row.case != case else "")
        case = row.case
    yield ""
    for note in notes:
        yield f"- {note}"
    if notes:
        yield ""


def _line(row: Row, case: str) -> str:
    figures = ["", "", ""]
    if row.values:
        figures = [report.human(of(row.values), row.unit) for of in (min, statistics.median, max)]
    beside = ", ".join(f"{report.times(ratio)} {name}" for name, ratio in (row.ratios or {}).items())
    if row.failures:
        beside = "; ".join(filter(None, [beside, f"failed {len(row.failures)} times: {row.failures[0]}"]))
    return "| " + " | ".join(map(_cell, [case, row.label, *figures, row.absent or beside, row.target])) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _listed(values: Iterator[float]) -> str:
    return ", ".join(str(each) for each in values)
