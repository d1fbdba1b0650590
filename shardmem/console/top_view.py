"""One frame of `shardmem top`. Pure: status documents in, lines of at most 80 columns out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from shardmem.console.render import LEVEL_COLORS, accounting_line, count, found_lines, happened, microseconds
from shardmem.status.document import HandoffStatus, ShardStatus, Status
from shardmem.status.findings import VERDICTS
from shardmem.text import cleaned, plural

WIDTH = 80
BAR = 8
_RANKS: dict[str, Callable[[ShardStatus], float]] = {  # the highest first, equals by id
    "id": lambda shard: 0,
    "rate": lambda shard: shard["rate"],
    "fill": lambda shard: shard["fill_ratio"],
    "busy": lambda shard: shard["busy"],
}
SORTS = tuple(_RANKS)
HELP = """\
+ -   add or remove one shard (turns the policy off)
a     scale auto: the policy decides again
d     drain a shard: its slots go to the others, it is removed
s     sort shards by id, rate, fill, busy
p     pause this display; the engine keeps running
q     quit this display; the engine keeps running
?     this help, and back (Esc too)
fill: of its fullest lane. busy: share of time in the handler.
p50, p99: from push to handled, of events since the last refresh.
Shards with trouble come first. `shardmem status` shows everything."""
_COLORS = {
    "running": "green",
    "busy": "green",
    "idle": "green",
    "slow": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "restarting": "yellow",
    "provisioning": "yellow",
    "failed": "bold red",
    "stuck": "bold red",
    "dead": "bold red",
    "stopped": "red",
    "gone": "bold red",
}
_NORMAL = ("busy", "idle")
_FIRST = ("failed", "stuck", "dead", "restarting", "waiting")
_ASCII = str.maketrans({"█": "#", "░": ".", "·": "|"})


@dataclass(frozen=True)
class Screen:
    """How to show it. keys: whether there is a keyboard. prompt: a question or the outcome of a command, instead of
    the line of keys."""

    sort: str = "id"
    paused: bool = False
    help: bool = False
    ascii: bool = False
    gone: bool = False
    keys: bool = True
    prompt: str = ""
    rows: int = 24


@dataclass(frozen=True)
class Rates:
    """Events per second of the engine between two documents; None: there is no earlier one."""

    accepted: float | None = None
    handled: float | None = None

    @classmethod
    def between(cls, before: Status | None, after: Status, seconds: float) -> Rates:
        if before is None or seconds <= 0:
            return cls()
        was, now = before["accounting"], after["accounting"]
        return cls((now["accepted"] - was["accepted"]) / seconds, (now["handled"] - was["handled"]) / seconds)


def frame(document: Status, rates: Rates, view: Screen = Screen()) -> Text:
    """At most view.rows lines. Shards that do not fit are cut first, and counted."""
    document = cleaned(document)
    top = _head(document, rates, view)
    keys = f"+/- shards  d drain  a auto  s sort by {view.sort}  p pause  q quit  ? help"
    last = Text(view.prompt, "bold") if view.prompt else Text(f"{'PAUSED  ' if view.paused else ''}{keys}", "dim")
    if view.help:
        middle = [Text(), *(Text(line) for line in HELP.splitlines())]
    else:
        top += _found(document, max(2, view.rows // 3))
        below = [*_producers(document), *_handoffs(document), *_decisions(document), *_happened(document)]
        room, wanted = view.rows - len(top) - 1 - len(below), min(len(document["shards"]) + 1, 8)
        if room < wanted:  # a small window: shards matter more
            below = below[: max(0, len(below) + room - wanted)]
        middle = _shards(document, view.sort, max(4, view.rows - len(top) - 1 - len(below))) + below
    lines = [_clean(line, view.ascii) for line in [*top, *middle][: max(1, view.rows - 1)] + [last] * view.keys]
    return Text("\n", no_wrap=True, overflow="crop", end="").join(lines)


def _clean(line: Text, ascii: bool) -> Text:
    """What is typed moves no cursor either, and a terminal of ASCII gets no other character."""
    plain = line.plain.translate(_ASCII) if ascii else line.plain
    plain = "".join(each if each.isprintable() and (each.isascii() or not ascii) else "?" for each in plain)
    cleaned = Text(plain, line.style, spans=line.spans, no_wrap=True, overflow="crop")
    cleaned.truncate(WIDTH, overflow="crop")
    return cleaned


def _head(document: Status, rates: Rates, view: Screen) -> list[Text]:
    engine, supervisor = document["engine"], document["supervisor"]
    state = "gone" if view.gone else engine["state"]
    first = Text()
    first.append(f"{engine['name'][:28]}  ", "bold")
    first.append(state, _COLORS.get(state, ""))
    if supervisor["alive"]:
        first.append(f"  up {duration(supervisor['uptime_s'])}")
    following = "auto" if document["auto_scale"] else "manual" if document["elastic"] else "fixed"
    first.append(
        f"  {len(document['shards'])} of {plural(engine['max_shards'], 'shard')}, {following}  "
        f"in {_rate(rates.accepted)}  out {_rate(rates.handled)}"
    )
    lines = [first]
    if view.gone:
        lines.append(Text("its shared memory was removed; this is its last known state", "bold red"))
    return lines + [Text(line) for line in wrapped(accounting_line(document["accounting"]).split(" · "))]


def _found(document: Status, room: int) -> list[Text]:
    """What is wrong, the worst first, and what helps."""
    found = document["findings"]
    lines = [] if found else [Text(VERDICTS["info"], "green")]
    for number, each in enumerate(found):
        more = found_lines([each], most=2)
        left = len(found) - number
        if len(lines) + len(more) + (left > 1) > room and lines:
            rest = f"and {left} more: see `shardmem status`"
            return lines + [Text(rest, LEVEL_COLORS[each["level"]])]
        lines += more[:room]
    return lines


def _shards(document: Status, sort: str, room: int) -> list[Text]:
    lines = [
        Text(
            f"{'shard':>5} {'state':<12} {'slots':>5} {'rate/s':>7} {'fill':<12} {'busy':>4} {'p50':>6} {'p99':>6} "
            f"{'in flight':>9} {'died':>4}",
            "bold underline",
        )
    ]
    rank = _RANKS[sort]
    shards = sorted(document["shards"], key=lambda shard: (shard["condition"] not in _FIRST, -rank(shard), shard["id"]))
    said = {shard for each in document["findings"] for shard in each["shards"]}
    ill = [shard for shard in shards if shard["condition"] not in (*_NORMAL, "stopped") and shard["id"] not in said]
    reasons = [
        Text(line, "yellow")
        for shard in ill[:3]
        for line in _sentence(f"shard {shard['id']} {shard['condition']}: {shard['reason'] or shard['error']}", "  ")
    ]
    reasons = reasons[: max(0, room - 1 - len(shards))] if len(shards) <= 8 else reasons[: max(0, room - 9)]
    fitting = max(1, room - 1 - len(reasons))
    shown = shards if len(shards) <= fitting else shards[: max(1, fitting - 1)]
    for shard in shown:
        state = shard["state"] if shard["state"] in ("draining", "provisioning") else shard["condition"]
        line = Text(f"{shard['id']:>5} ")
        line.append(f"{state:<12.12}", _COLORS.get(state, ""))
        line.append(f" {shard['slots']:>5} {_number(shard['rate']):>7} ")
        full = min(BAR, max(0, round(shard["fill_ratio"] * BAR)))
        line.append("█" * full, "red" if shard["fill_ratio"] > 0.7 else "green")
        line.append("░" * (BAR - full), "dim")
        line.append(
            f"{min(9.99, shard['fill_ratio']):>4.0%} {shard['busy']:>4.0%} {microseconds(shard['recent_p50_us']):>6} "
            f"{microseconds(shard['recent_p99_us']):>6} {_number(shard['in_flight']):>9} {shard['crashes']:>4}"
        )
        lines.append(line)
    if len(shown) < len(shards):
        lines.append(
            Text(f"      and {len(shards) - len(shown)} more shards: a larger window shows them, 's' sorts", "dim")
        )
    return lines + reasons


def _producers(document: Status) -> list[Text]:
    alive = sorted(
        (each for each in document["producers"] if each["alive"]), key=lambda each: (-each["rate"], each["seat"])
    )
    parts = [
        f"{each['client'] or 'pid'} {each['pid']} {_rate(each['rate'])}"
        + (f" ({sum(each['refused'].values()):,} refused)" if any(each["refused"].values()) else "")
        for each in alive[:6]
    ]
    more = [f"and {len(alive) - 6} more"] if len(alive) > 6 else []
    return [Text(line) for line in wrapped([f"producers: {len(alive)}", *parts, *more])]


def _handoffs(document: Status) -> list[Text]:
    moving = document["handoffs"]
    if not moving:
        return []
    groups: dict[tuple[int, int, str], list[HandoffStatus]] = {}
    for each in moving:
        groups.setdefault((each["from"], each["to"], each["phase"]), []).append(each)
    lines = [Text(f"moving slots: {len(moving)}", "yellow")]
    oldest = {key: max(each["age_s"] for each in slots) for key, slots in groups.items()}
    for key in sorted(groups, key=lambda key: -oldest[key])[:3]:
        source, target, phase = key
        late = any(each["late"] for each in groups[key])
        lines.append(
            Text(
                f"  {len(groups[key])} from shard {source} to {target}, {phase} for {duration(oldest[key])}"
                + (", LATE" if late else ""),
                "bold red" if late else "",
            )
        )
    return lines


def _decisions(document: Status) -> list[Text]:
    lines: list[Text] = []
    for each in document["decisions"][-1:]:
        if not document["elastic"] and each["advice"] != "up":  # fixed: only that it is too few is worth a line
            continue
        what = "" if each["kind"] == "none" else f"{each['kind']} {each['count'] or ''}".strip() + ": "
        age = f", {duration(each['age_s'])} ago" if each["age_s"] >= 1 else ""
        again = f" (x{each['times']})" if each["times"] > 1 else ""
        lines += map(Text, _sentence(f"policy{age}: {what}{each['reason']}{again}", " " * 8))
    return lines


def _happened(document: Status) -> list[Text]:
    """The newest first: in a small window it is what is left."""
    return [
        Text(line, LEVEL_COLORS[each["level"]])
        for each in reversed(document["history"][-4:])
        for line in _sentence(happened(each), " " * 16)
    ]


def _sentence(text: str, indent: str) -> list[str]:
    """In two lines at most."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, max_lines=2, placeholder=" ...")


def wrapped(parts: list[str]) -> list[str]:
    """Parts with a dot between them, in lines; no part is torn."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= WIDTH:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours < 1:
        return f"{minutes}m{int(seconds % 60):02}s"
    return f"{hours}h{minutes % 60:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def _number(value: float) -> str:
    return count(value).replace(" ", "")


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{_number(value)}/s"
