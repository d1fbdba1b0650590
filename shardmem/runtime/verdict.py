"""Whether an engine is well, from its status document: what is not, and what to do about it. Status, top and page show this."""
from __future__ import annotations

from typing import Any, Iterator

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
LEVELS = (PROBLEM, WARNING, NOTE)
STALE = 10.0  # seconds without a turn of the supervisor's loop, which turns four times a second; a large plan takes one
FULL = 0.9    # of a lane: its producer waits, or is about to


def findings(document: dict[str, Any]) -> list[dict[str, str]]:
    """{"level", "text", "remedy"}, the worst first. Nothing worse than a note: the engine is well."""
    found = [dict(zip(("level", "text", "remedy"), each)) for look in (_engine, _shards, _lanes, _handoffs, _events)
             for each in look(document)]
    return sorted(found, key=lambda each: LEVELS.index(each["level"]))


def is_well(found: list[dict[str, str]]) -> bool:
    return all(each["level"] == NOTE for each in found)


Found = Iterator[tuple[str, str, str]]


def _engine(document: dict[str, Any]) -> Found:
    engine, supervisor, waiting = document["engine"], document["supervisor"], document["accounting"]["in_flight"]
    again = f"run it again ('shardmem run' with the settings of {engine['name']})"
    if not supervisor["alive"]:
        if any(shard["alive"] for shard in document["shards"]):
            yield (PROBLEM, "it has no supervisor: workers and producers go on, but what dies is not replaced and nothing scales "
                   "or moves", f"{again}: the new one takes over")
        else:
            yield (PROBLEM if waiting else WARNING, f"nothing of it runs; {waiting:,} events wait in shared memory",
                   f"{again}" + (": it handles them" if waiting else f", or remove it: shardmem gc {engine['name']}"))
    elif (age := supervisor["heartbeat_age_s"]) is not None and age > STALE:
        yield (PROBLEM, f"the supervisor's loop has not gone round for {age:.3g} s",
               f"kill -9 {supervisor['pid']} and {again}: workers and producers go on meanwhile")
    elif engine["state"] == "draining":
        yield NOTE, f"it drains: {waiting:,} events are still to be handled", "'shardmem stop --now' leaves them for the next run"


def _shards(document: dict[str, Any]) -> Found:
    supervised = document["supervisor"]["alive"]
    for shard in document["shards"]:
        name, condition = f"shard {shard['id']}", shard["condition"]
        if condition == "failed":
            yield PROBLEM, f"{name} failed: {shard['error'] or shard['reason']}", "mend the cause, then 'shardmem reload'"
        elif condition == "stuck":
            yield PROBLEM, f"{name} is stuck: {shard['reason']}", "its stacks are in the engine's log; it is killed and replaced"
        elif condition in ("dead", "restarting") and supervised:
            last = f"; the last one: {shard['last_exit']}" if shard["last_exit"] else ""
            yield WARNING, f"{name} has no worker: {shard['reason']}{last}", "if it goes on: the engine's log"
        elif condition == "slow":
            yield (WARNING, f"{name} is slow: {shard['reason']}",
                   "more shards ('shardmem scale'), or a handler that does less per event")
        if shard["broken_lanes"]:
            seats = ", ".join(map(str, shard["broken_lanes"]))
            yield (PROBLEM, f"{name} reads the lane of producer {seats} no more: its memory is damaged",
                   "find what wrote there; a new producer in that seat, or a new run, begins with a fresh look")


def _lanes(document: dict[str, Any]) -> Found:
    full = [shard for shard in document["shards"] if shard["fill_ratio"] >= FULL and shard["condition"] != "failed"]
    if full:
        share = max(shard["fill_ratio"] for shard in full)
        yield (WARNING, f"lanes of shard {', '.join(str(shard['id']) for shard in full)} are {share:.0%} full: producers wait, or "
               f"are refused", "more shards, a faster handler, or a larger lane_bytes for short peaks")


def _handoffs(document: dict[str, Any]) -> Found:
    late = [each for each in document["handoffs"] if each["late"]]
    if late:
        worst = max(late, key=lambda each: each["age_s"])
        yield (WARNING, f"{len(late)} slots are late on their way, slot {worst['slot']} from shard {worst['from']} to "
               f"{worst['to']} in phase {worst['phase']} for {worst['age_s']:.3g} s",
               "it goes on when the shard it waits for does; see that shard")


def _events(document: dict[str, Any]) -> Found:
    accounting = document["accounting"]
    refused = {reason: number for reason, number in accounting["refused"].items() if reason != "sampled" and number}
    if refused:
        by = ", ".join(f"{reason} {number:,}" for reason, number in sorted(refused.items()))
        yield NOTE, f"events were refused since it began: {by}", "producers were told which; see `producers` for whose"
    if accounting["quarantined"]:
        aside = accounting["quarantined"]
        yield (NOTE, f"{aside:,} event{'s were' if aside > 1 else ' was'} set aside since it began, for failing again and again",
               "'shardmem quarantine list', mend the handler, 'shardmem reload', 'shardmem quarantine replay --all'")
