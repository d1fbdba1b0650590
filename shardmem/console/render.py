"""A status document as text for people. Pure: a document in, lines out."""

from __future__ import annotations

import textwrap
import time
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shardmem.client.engines import EngineLine, oldest_s
from shardmem.status.document import (
    OUTBOX,
    Accounting,
    Finding,
    HandoffStatus,
    HistoryEntry,
    Level,
    ProducerStatus,
    ShardStatus,
    SourceStatus,
    Status,
    feeding,
)
from shardmem.status.findings import VERDICTS
from shardmem.text import cleaned, plural, printable, size

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
    for least, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= least:
            scale = 1e3 if unit == "k" else least
            return f"{number / scale:.3g} {unit}" if number / scale < 1000 else f"{number / scale:,.0f} {unit}"
    return f"{number:,.0f}"


def microseconds(value: float | None) -> str:
    """At most 6 columns."""
    if value is None:
        return "-"
    divisor, unit = (1.0, "us") if value < 999.5 else (1e3, "ms") if value < 999_500 else (1e6, "s")
    return f"{value / divisor:.1f}{unit}" if divisor > 1 and value / divisor < 99.5 else f"{value / divisor:.0f}{unit}"


def accounting_line(accounting: Accounting) -> str:
    """offered = accepted + refused; accepted = handled + quarantined + skipped + shed + in flight."""
    parts = [f"offered {accounting['offered']:,}", f"accepted {accounting['accepted']:,}"]
    parts += [f"refused ({reason}) {n:,}" for reason, n in sorted(accounting["refused"].items())] or ["refused 0"]
    parts.append(f"handled {accounting['handled']:,}")
    if accounting["quarantined"]:
        parts.append(f"quarantined {accounting['quarantined']:,}")
    if accounting["skipped"]:
        parts.append(f"skipped {accounting['skipped']:,}")
    parts += [f"shed ({reason}) {n:,}" for reason, n in sorted(accounting["shed"].items())]
    parts.append(f"in flight {accounting['in_flight']:,}")
    return " · ".join(parts)


def _folded(figures: str, columns: int = 80) -> str:
    """In lines that end between two figures, not within one."""
    lines: list[str] = []
    for figure in figures.split(" · "):
        if lines and len(lines[-1]) + len(figure) + 3 <= columns:
            lines[-1] += f" · {figure}"
        else:
            lines.append(figure)
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def status(document: Status) -> Group:
    """The whole document, legible in 80 columns."""
    document = cleaned(document)
    engine = document["engine"]
    parts: list[RenderableType] = [
        _head(document),
        *found_lines(document["findings"]),
        _shard_table(document["shards"]),
    ]
    parts += [Text(f"http: {engine['http']}")] if engine.get("http") else []
    parts += _slots_moving(document["handoffs"])
    alive = [producer for producer in document["producers"] if producer["alive"]]
    pids = ", ".join(who(producer) for producer in alive[:8]) + (", ..." if len(alive) > 8 else "")
    parts.append(Text(f"producers: {len(alive)} connected" + (f" (pid {pids})" if alive else "")))
    parts += [Text(source_line(source), "red" if source["error"] else "") for source in document["sources"]]
    oldest = oldest_s(document)
    parts.append(
        Text(
            _folded(
                accounting_line(document["accounting"])
                + (f", the oldest for {milliseconds(oldest)}" if oldest is not None and oldest >= 1 else "")
            )
        )
    )
    parts += [
        Text(line, LEVEL_COLORS[each["level"]])
        for each in document["history"][-5:]
        for line in textwrap.wrap(happened(each), 80, subsequent_indent=" " * 16, max_lines=3, placeholder=" ...")
    ]
    return Group(*parts)


def who(producer: ProducerStatus) -> str:
    """4711, or web 4711."""
    return f"{producer['client']} {producer['pid']}" if producer["client"] else str(producer["pid"])


def engines(found: list[EngineLine]) -> str:
    """A line for each engine, and below it what is wrong with it."""
    heads = ("engine", "state", "shards", "rate/s", "in flight", "verdict")
    rows, notes = [], []
    for each in cleaned(found):
        figures = [
            "-" if value is None else count(value) for value in (each["shards"], each["rate"], each["in_flight"])
        ]
        rows.append([each["name"], each["state"], *figures, each["verdict"]])
        notes.append([each["error"]] if each["error"] else each["findings"])
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = []
    for row, below in zip([list(heads), *rows], [[], *notes]):
        cells = [
            cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
        lines += [
            line
            for note in below
            for line in textwrap.wrap(note, 78, initial_indent="    ", subsequent_indent="      ")
        ]
    return "\n".join(lines)


def source_line(source: SourceStatus) -> str:
    """source file: running, 3 events, 1 record skipped, committed 0.5 s ago."""
    what = "message" if source["kind"] == OUTBOX else "event"
    parts = [f"source {source['name']}: {source['state']}", plural(source["events"], what)]
    parts += [f"{plural(source['skipped'], 'record')} skipped"] if source["skipped"] else []
    parts += [f"{source['lag_bytes']:,} bytes behind"] if source["lag_bytes"] else []
    parts += [f"{plural(source['lag_events'], what)} behind"] if source["lag_events"] else []
    age = source["last_commit_age_s"]
    parts += [f"committed {age:.3g} s ago"] if age is not None else []
    parts += [f"waits: {printable(source['waits_for'])}"] if source["waits_for"] else []
    parts += [printable(source["error"])] if source["error"] else []
    return ", ".join(parts)


def source_lines(sources: list[SourceStatus]) -> list[str]:
    """Of each: what it does, why records were left out, and how far it is in each file."""
    found = []
    for source in sources:
        found.append(source_line(source))
        found += [f"  {plural(number, 'record')} skipped: {reason}" for reason, number in source["reasons"].items()]
        for name, place in source["partitions"].items():
            parts = [f"{'byte' if source['group'] is None else 'offset'} {place['offset']:,}"]
            parts += [place["at"]] if place["at"] else []
            if source["group"] is not None:
                committed = "nothing" if place["committed"] is None else f"{place['committed']:,}"
                parts += [f"committed {committed}", place["state"]]
            elif place["state"] == "paused":
                parts += ["paused"]
            found.append(f"  {printable(name)}: " + ", ".join(parts))
    return found


def lag_lines(sources: list[SourceStatus]) -> list[str]:
    found = []
    for source in feeding(sources):
        what, total = ("bytes", source["lag_bytes"]) if source["group"] is None else ("events", source["lag_events"])
        behind = "not known" if total is None else f"{total:,} {what}"
        age = source["last_commit_age_s"]
        found.append(f"source {source['name']}: {behind}" + (f", committed {age:.3g} s ago" if age is not None else ""))
        for name, place in source["partitions"].items():
            unread = "not known" if place["lag"] is None else f"{place['lag']:,} {what}"
            found.append(f"  {printable(name)}: {unread}")
    return found


def _head(document: Status) -> Text:
    engine, supervisor, schema = document["engine"], document["supervisor"], document["engine"]["schema"]
    head = Text()
    head.append(engine["name"], "bold")
    head.append("  ")
    head.append(engine["state"], _COLORS.get(engine["state"], ""))
    head.append(
        f"  {schema['kind']}" + (f" by {schema['key']}" if schema.get("key") else "") + f", {engine['slots']} slots"
    )
    if supervisor["alive"]:
        head.append(f", supervisor pid {supervisor['pid']}")
    else:
        head.append(", no supervisor", "bold red")
    head.append(f": {verdict(document['findings'])}", LEVEL_COLORS[worst(document["findings"])] or "green")
    return head


def _shard_table(shards: list[ShardStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name in ("shard", "state", "pid", "slots", "handled", "in flight", "fill", "busy", "p50", "p99"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for shard in shards:
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
    return table


def _slots_moving(moving: list[HandoffStatus]) -> list[Text]:
    if not moving:
        return []
    slow = [
        f"slot {each['slot']} from {each['from']} to {each['to']}, {each['phase']} for {each['age_s']:.1f} s"
        for each in moving
        if each["late"]
    ]
    text = f"moving slots: {len(moving)}" + (f"; late: {'; '.join(slow[:3])}" if slow else "")
    return [Text(text, "bold red" if slow else "yellow")]


def _state(shard: ShardStatus) -> Text:
    """With its condition, unless that is a normal one of a shard in this state."""
    state, condition = shard["state"], shard["condition"]
    if state not in ("active", "draining") or condition in ("idle", "busy"):
        return Text(state, _COLORS.get(state, ""))
    return Text(f"{state}, {condition}", "bold red" if condition in ("dead", "stuck") else "yellow")


def worst(found: list[Finding]) -> Level:
    """The level of the verdict; an engine with nothing but notes is healthy."""
    return found[0]["level"] if found else "info"


def verdict(found: list[Finding]) -> str:
    return VERDICTS[worst(found)]


def found_lines(found: list[Finding], most: int | None = None, columns: int = 80) -> list[Text]:
    """Each finding, and below it what helps. most: lines of each text; then a command stands for the advice."""
    lines = []
    for each in found:
        indent = " " * (len(_MARKS[each["level"]]) + 1)
        text = f"{_MARKS[each['level']]} {each['text']}"
        wrap = textwrap.TextWrapper(columns, subsequent_indent=indent, max_lines=most, placeholder=" ...")
        lines += [Text(line, LEVEL_COLORS[each["level"]]) for line in wrap.wrap(text)]
        advice = [each["advice"]] if each["advice"] and not (most and each["command"]) else []
        helps = " ".join([*advice, *([f"-> {each['command']}"] if each["command"] else [])])
        wrap = textwrap.TextWrapper(
            columns,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            max_lines=1 if most else None,
            placeholder=" ...",
        )
        lines += map(Text, wrap.wrap(helps))
    return lines


def happened(each: HistoryEntry) -> str:
    """An entry of `history`, with the time of day here."""
    where = f"shard {each['shard']}: " if each["shard"] is not None else ""
    return f"{time.strftime('%m-%d %H:%M:%S', time.localtime(each['at']))}  {where}{each['text']}"


def log_line(record: dict[str, Any]) -> str:
    """A record of the log, with the time of day here; what it brings with it is indented, as in the log itself."""
    try:
        at = datetime.fromisoformat(str(record.get("ts"))).astimezone().strftime("%m-%d %H:%M:%S.%f")[:-3]
    except ValueError:
        at = "?"
    shard, life = record.get("shard"), record.get("incarnation")
    who = "supervisor" if shard is None else f"shard {shard}"
    text = "\n".join(str(record[key]) for key in ("message", "exception") if record.get(key)).replace("\n", "\n    ")
    return f"{at} {who}{'' if life is None else f'/{life}'} {str(record.get('level')).upper()} {text}"


def collected(findings: list[dict[str, Any]], dry_run: bool) -> str:
    """What `gc` found, one line each, then what is left to do by hand."""
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
        total += f"; {plural(lost, 'event')} {'would be ' if dry_run else ''}lost"
    return "\n".join([*lines, *remedies, total])


def checks(found: list[dict[str, Any]]) -> str:
    """What `doctor` found: level, name and finding, and below it what to do."""
    lines = []
    for each in found:
        lines += textwrap.wrap(f"{each['level']:8} {each['name']}: {each['found']}", 80, subsequent_indent=" " * 9)
        if each["remedy"]:
            lines += textwrap.wrap(f"remedy: {each['remedy']}", 80, initial_indent=" " * 9, subsequent_indent=" " * 17)
    return "\n".join(lines)
