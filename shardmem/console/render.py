"""A status document as text for people. Pure: a document in, lines out."""

from __future__ import annotations

import textwrap
import time
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from shardmem.status.findings import VERDICTS
from shardmem.text import plural as some
from shardmem.text import size

_COLORS = {
    "running": "green",
    "active": "green",
    "failed": "bold red",
    "stopped": "red",
    "draining": "yellow",
    "starting": "yellow",
    "provisioning": "yellow",
}

LEVEL_COLORS = {"info": "", "warning": "yellow", "error": "red"}
_MARKS = {"info": "note", "warning": "!", "error": "x"}


def count(number: float) -> str:
    """1234567 -> 1.23 M; exact below ten thousand."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scale = 1e3 if unit == "k" else size
            return f"{number / scale:.3g} {unit}" if number / scale < 1000 else f"{number / scale:,.0f} {unit}"
    return f"{number:,.0f}"


def microseconds(value: float | None) -> str:
    """At most 6 columns."""
    if value is None:
        return "-"
    for limit, divisor, unit in ((999.5, 1, "us"), (999_500, 1e3, "ms"), (float("inf"), 1e6, "s")):
        if value < limit:
            break
    return f"{value / divisor:.1f}{unit}" if divisor > 1 and value / divisor < 99.5 else f"{value / divisor:.0f}{unit}"


def accounting_line(accounting: dict[str, Any]) -> str:
    """offered = accepted + refused; accepted = handled + quarantined + shed + in flight."""
    parts = [f"offered {accounting['offered']:,}", f"accepted {accounting['accepted']:,}"]
    parts += [f"refused ({reason}) {n:,}" for reason, n in sorted(accounting["refused"].items())] or ["refused 0"]
    parts.append(f"handled {accounting['handled']:,}")
    if accounting["quarantined"]:
        parts.append(f"quarantined {accounting['quarantined']:,}")
    parts += [f"shed ({reason}) {n:,}" for reason, n in sorted(accounting["shed"].items())]
    parts.append(f"in flight {accounting['in_flight']:,}")
    return " · ".join(parts)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def answer(engine: str, command: str, done: dict[str, Any]) -> str:
    """What a command did, in a few lines, and how long each phase took in which there was something to do."""
    moved, seconds = done["moved"], done["seconds"]
    lines = []
    if command == "scale" and done["auto_scale"]:
        return (
            f"engine {engine}: the policy decides from now on how many shards run; now {some(len(done['shards']), 'shard')}: "
            f"{', '.join(map(str, done['shards']))}"
        )
    if command == "scale":
        lines.append(
            f"engine {engine} runs {some(len(done['shards']), 'shard')}: {', '.join(map(str, done['shards']))}"
            + (f"; added {', '.join(map(str, done['added']))}" if done["added"] else "")
            + (f"; removed {', '.join(map(str, done['removed']))}" if done["removed"] else "")
        )
    elif command == "drain":
        lines.append(f"engine {engine}: shard {done['drained']} is drained and removed")
    elif command == "reload":
        lines.append(
            f"engine {engine}: "
            + ", ".join(f"shard {each['from']} is replaced by shard {each['to']}" for each in done["reloaded"])
        )
        lines += [f"  {name} cannot change while the engine runs, and stays as it is" for name in done["not_applied"]]
    to: dict[tuple[int, int], int] = {}
    for each in moved:
        to[each["from"], each["to"]] = to.get((each["from"], each["to"]), 0) + 1
    lines += [
        f"  {some(number, 'slot')} from shard {source} to shard {target}"
        for (source, target), number in sorted(to.items())
    ]
    if not moved and command != "reload":
        lines.append("  no slot had to move")
    took = {phase: value for phase, value in seconds.items() if value or phase == "total"}
    lines.append("  " + ", ".join(f"{phase} {milliseconds(value)}" for phase, value in took.items()))
    lines += [f"  late: {text}" for text in done["late"]]
    return "\n".join(lines)


def status(document: dict[str, Any]) -> Group:
    """The whole document, legible in 80 columns."""
    engine, supervisor = document["engine"], document["supervisor"]
    head = Text()
    head.append(engine["name"], "bold")
    head.append("  ")
    head.append(engine["state"], _COLORS.get(engine["state"], ""))
    schema = engine["schema"]
    head.append(
        f"  {schema['kind']}" + (f" by {schema['key']}" if schema.get("key") else "") + f", {engine['slots']} slots"
    )
    if supervisor["alive"]:
        head.append(f", supervisor pid {supervisor['pid']}")
    else:
        head.append(", no supervisor: read from shared memory", "bold red")
    head.append(f": {verdict(document['findings'])}", LEVEL_COLORS[worst(document["findings"])] or "green")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name, justify in (
        ("shard", "right"),
        ("state", "left"),
        ("pid", "right"),
        ("slots", "right"),
        ("handled", "right"),
        ("in flight", "right"),
        ("fill", "right"),
        ("busy", "right"),
        ("p50", "right"),
        ("p99", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)
    for shard in document["shards"]:
        table.add_row(
            str(shard["id"]),
            _state(shard),
            str(shard["pid"]) if shard["alive"] else "-",
            str(shard["slots"]),
            count(shard["handled"]),
            count(shard["in_flight"]),
            f"{shard['fill_ratio']:.0%}",
            f"{shard['busy']:.0%}",
            microseconds(shard["latency_p50_us"]),
            microseconds(shard["latency_p99_us"]),
        )
    parts: list[Any] = [head, *found_lines(document["findings"]), table]
    parts += [Text(f"http: {engine['http']}")] if engine.get("http") else []
    moving = document["handoffs"]
    if moving:
        slow = [
            f"slot {each['slot']} from {each['from']} to {each['to']}, {each['phase']} for {each['age_s']:.1f} s"
            for each in moving
            if each["late"]
        ]
        parts.append(
            Text(
                f"slots in motion: {len(moving)}" + (f"; late: {'; '.join(slow[:3])}" if slow else ""),
                "bold red" if slow else "yellow",
            )
        )
    alive = [producer for producer in document["producers"] if producer["alive"]]
    pids = ", ".join(str(producer["pid"]) for producer in alive[:8]) + (", ..." if len(alive) > 8 else "")
    parts.append(Text(f"producers: {len(alive)} connected" + (f" (pid {pids})" if alive else "")))
    parts.append(Text(accounting_line(document["accounting"])))
    parts += [
        Text(line, LEVEL_COLORS[each["level"]])
        for each in document["events"][-5:]
        for line in textwrap.wrap(happened(each), 80, subsequent_indent=" " * 16, max_lines=3, placeholder=" ...")
    ]
    return Group(*parts)


def _state(shard: dict[str, Any]) -> Text:
    """With how it is doing, where the state alone says that all is well."""
    state, condition = shard["state"], shard["condition"]
    if state not in ("active", "draining") or condition in ("idle", "busy"):
        return Text(state, _COLORS.get(state, ""))
    return Text(f"{state}, {condition}", "bold red" if condition in ("dead", "stuck") else "yellow")


def worst(found: list[dict[str, Any]]) -> str:
    """The level of the verdict; what is only worth a note leaves an engine well."""
    return found[0]["level"] if found else "info"


def verdict(found: list[dict[str, Any]]) -> str:
    return VERDICTS[worst(found)]


def found_lines(found: list[dict[str, Any]], most: int | None = None, columns: int = 80) -> list[Text]:
    """Each finding, and below it what helps. most: lines of each text; then a command stands for the advice."""
    lines = []
    for each in found:
        indent = " " * (len(_MARKS[each["level"]]) + 1)
        text = printable(f"{_MARKS[each['level']]} {each['text']}")
        lines += [
            Text(line, LEVEL_COLORS[each["level"]])
            for line in textwrap.wrap(
                text, columns, subsequent_indent=indent, **({"max_lines": most, "placeholder": " ..."} if most else {})
            )
        ]
        advice = [each["advice"]] if each["advice"] and not (most and each["command"]) else []
        helps = " ".join([*advice, *([f"-> {each['command']}"] if each["command"] else [])])
        lines += [
            Text(line)
            for line in textwrap.wrap(
                helps,
                columns,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
                **({"max_lines": 1, "placeholder": " ..."} if most else {}),
            )
        ]
    return lines


def printable(text: str) -> str:
    """In one line, with nothing that a terminal takes for an order: keys and errors are other people's texts."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def happened(each: dict[str, Any]) -> str:
    """An entry of `events`, with the time of day here."""
    where = f"shard {each['shard']}: " if each["shard"] is not None else ""
    return f"{time.strftime('%m-%d %H:%M:%S', time.localtime(each['at']))}  {where}{printable(each['text'])}"


def collected(findings: list[dict[str, Any]], dry_run: bool) -> str:
    """What `gc` found, one line for each thing, then what is left to do by hand."""
    lines, remedies = [], []
    for each in findings:
        verb = "removed" if each["done"] else {"remove": "would go", "keep": "kept", "skip": "skipped"}[each["action"]]
        name = each["name"] if each["kind"] == "entry" else f"{each['kind']} {each['name']}"
        lines.append(f"{verb:8} {name}  {size(each['bytes'])}  {each['reason']}")
        if each["remedy"]:
            remedies.append(f"         {each['name']}: {each['remedy']}")
    freed = sum(each["bytes"] for each in findings if each["action"] == "remove")
    lost = sum(each["events"] for each in findings if each["action"] == "remove")
    total = f"{'would free' if dry_run else 'freed'} {size(freed)} ({freed:,} bytes)" if freed else "nothing to free"
    if lost:
        total += f"; {some(lost, 'event')} {'would be ' if dry_run else ''}lost"
    return "\n".join([*lines, *remedies, total])


def checks(found: list[dict[str, Any]]) -> str:
    """What `doctor` found: level, name and finding, and below it what to do."""
    lines = []
    for each in found:
        lines += textwrap.wrap(f"{each['level']:8} {each['name']}: {each['found']}", 80, subsequent_indent=" " * 9)
        if each["remedy"]:
            lines += textwrap.wrap(f"remedy: {each['remedy']}", 80, initial_indent=" " * 9, subsequent_indent=" " * 17)
    return "\n".join(lines)
