"""What commands say to people: what was done, who is waited for, where a key is. Pure: an answer in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from shardmem.console.render import milliseconds
from shardmem.slot_ranges import slot_ranges
from shardmem.text import plural

PLACED = ("cordon", "uncordon", "unpin", "moves")  # answer with what stands, and move nothing


def answer(engine: str, command: str, done: dict[str, Any]) -> str:
    """What a command did, in a few lines, and how long each phase took in which there was something to do."""
    if command in PLACED:
        return f"engine {engine}: {_placement(done)}"
    moved, seconds = done["moved"], done["seconds"]
    if command == "scale" and done["auto_scale"]:
        return f"engine {engine}: the policy now decides the number of shards; running: {_shard_list(done['shards'])}"
    lines = _what_was_done(engine, command, done)
    to: dict[tuple[int, int], int] = {}
    for each in moved:
        to[each["from"], each["to"]] = to.get((each["from"], each["to"]), 0) + 1
    lines += [
        f"  {plural(number, 'slot')} from shard {source} to shard {target}"
        for (source, target), number in sorted(to.items())
    ]
    if not moved and command != "reload":
        lines.append("  no slot had to move")
    took = {phase: value for phase, value in seconds.items() if value or phase == "total"}
    lines.append("  " + ", ".join(f"{phase} {milliseconds(value)}" for phase, value in took.items()))
    lines += [f"  late: {text}" for text in done["late"]]
    return "\n".join(lines)


def _shard_list(ids: list[int]) -> str:
    return f"{plural(len(ids), 'shard')}: {', '.join(map(str, ids))}"


def _what_was_done(engine: str, command: str, done: dict[str, Any]) -> list[str]:
    if command == "scale":
        return [
            f"engine {engine} runs {_shard_list(done['shards'])}"
            + (f"; added {', '.join(map(str, done['added']))}" if done["added"] else "")
            + (f"; removed {', '.join(map(str, done['removed']))}" if done["removed"] else "")
        ]
    if command == "drain":
        return [f"engine {engine}: shard {done['drained']} is drained and removed"]
    if command == "reload":
        return [
            f"engine {engine}: "
            + ", ".join(
                f"shard {each['from']} has a new worker"
                if each["from"] == each["to"]
                else f"shard {each['from']} is replaced by shard {each['to']}"
                for each in done["reloaded"]
            ),
            *(f"  {name} cannot change while the engine runs; it keeps its value" for name in done["not_applied"]),
        ]
    if command == "pin":
        return [f"engine {engine}: {_placement(done)}"]
    return []


def _placement(done: Mapping[str, Any]) -> str:
    cordoned, pins = done["cordoned"], done["pins"]
    parts = [f"cordoned: {', '.join(map(str, cordoned))}"] if cordoned else ["no shard is cordoned"]
    parts += [f"pinned to shard {each['shard']}: {each['slots']}" for each in pins] or ["no slot is pinned"]
    parts.append("moves are suspended" if done["suspended"] else "the strategy may move slots")
    return "; ".join(parts)


def late(command: str, done: Mapping[str, Any]) -> str:
    """It is not done in time: who is waited for."""
    lines = [f"{command} is not done yet; it goes on in the background"]
    for each in done["waiting_for"]:
        slots = f"; slots {slot_ranges(each['slots'])}" if each["slots"] else ""
        lines.append(f"  waiting for {each['text'].removeprefix('waiting for ')}{slots}")
    return "\n".join(lines)


def waiting(document: Mapping[str, Any]) -> str:
    """What a command may be waiting for at this moment, in one line; empty: nothing is to be seen."""
    ways = Counter((each["from"], each["to"], each["phase"]) for each in document["handoffs"])
    parts = [
        f"{plural(count, 'slot')} from shard {source} to {target} ({phase})"
        for (source, target, phase), count in ways.most_common(3)
    ]
    if len(ways) > 3:
        parts.append("others")
    coming = [str(each["id"]) for each in document["shards"] if each["state"] == "provisioning"]
    going = [str(each["id"]) for each in document["shards"] if each["state"] in ("draining", "stopped")]
    parts += [f"start of shard {', '.join(coming)}"] if coming else []
    parts += [f"end of shard {', '.join(going)}"] if going else []
    parts += [document["moves"]["held_back"]] if document["moves"]["wished"] and not ways else []
    return "; ".join(filter(None, parts))


def stopping(document: Mapping[str, Any]) -> str:
    """What a stop waits for at this moment."""
    holders = [each for each in document["shards"] if each["in_flight"]]
    parts = []
    for each in holders[:3]:
        part = f"{plural(each['in_flight'], 'event')} of shard {each['id']}"
        if (hand := each["in_hand_s"]) is not None and hand > 1:
            part += f" (worker pid {each['pid']}, one batch in hand for {hand:.0f} s)"
        parts.append(part + (f" ({each['condition']})" if each["condition"] in ("failed", "waiting", "stuck") else ""))
    parts += ["others"] if len(holders) > 3 else []
    living = [str(each["id"]) for each in document["shards"] if each["alive"]]
    return "; ".join(parts) or (f"workers of shard {', '.join(living)} to end" if living else "the supervisor to end")


def place(found: Mapping[str, Any]) -> str:
    """Where a key is."""
    if found["shard"] is None:
        return f"slot {found['slot']}: no shard has it yet"
    since = found["owner_since"]
    worker = f"pid {found['pid']}, incarnation {found['incarnation']}" if found["pid"] else "no live worker"
    text = f"slot {found['slot']}: shard {found['shard']} ({worker})"
    text += f", moving to shard {found['moving_to']}" if found["moving_to"] is not None else ""
    return text + (f", for {since:,.0f} s" if since is not None else "")
