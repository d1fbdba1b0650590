"""Whom a command waits for that is not done at its deadline: shards with their workers, producers, the strategy."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from shardmem.policy import HandoffState, Late
from shardmem.settings import some
from shardmem.supervisor.fleet import Fleet


def waiting_for(fleet: Fleet, shards: Collection[int], slots: Collection[int] | None) -> list[dict[str, Any]]:
    """What keeps these shards or slots; with neither, everything that waits. Never empty."""
    found: list[dict[str, Any]] = []
    for each in _all_of(fleet, shards, slots):
        if not any(each["text"] == other["text"] for other in found):
            found.append(each)
    return found or [_entry("the supervisor, which has not come to it yet", os.getpid())]


def for_the_sink(fleet: Fleet, waiting: Collection[Mapping[str, Any]]) -> dict[int, int] | None:
    """When all of these are shards that wait for what is downstream, what each has handled: as long as that stays the
    same, nobody here can say how long it takes. One that a service slows down goes on a little at a time."""
    shards = {*fleet.planner.waiting(), *filter(fleet.workers.waits_to_open, fleet.shards.booting)}
    found = {each.get("shard") for each in waiting}
    return {shard: fleet.control.view_shard(shard).rows for shard in shards & found} if found <= shards else None


def late_slots(fleet: Fleet) -> list[str]:
    """Handoffs under way, and whom each waits for."""
    return [each["text"] for each in _handoffs(fleet, fleet.planner.waits(time.monotonic()))]


def _all_of(fleet: Fleet, shards: Collection[int], slots: Collection[int] | None) -> Iterator[dict[str, Any]]:
    planner, now = fleet.planner, time.monotonic()
    everything = not shards and slots is None
    yield from _handoffs(fleet, planner.waits(now, slots, shards))
    for shard in fleet.shards.booting:
        if everything or shard in shards:
            yield _of_shard(fleet, shard, f"shard {shard} (worker pid {{pid}}) to get ready{_opening(fleet, shard)}")
    if planner.table.undecided is not None:
        yield _entry(f"the strategy: {planner.table.undecided}", os.getpid())
    if not planner.table.open_shards:
        for shard in shards:
            if planner.table.resting_slots_of(shard):
                yield _entry(f"a shard to take the slots of shard {shard}: all others are cordoned", 0, shard=shard)
    if planner.runner.held_back:
        for seat in planner.stopped_seats:
            yield _of_seat(fleet, seat)
    owners = {planner.table.shard_for(slot) for slot in slots or ()}
    for shard in sorted(planner.blocked()):
        if everything or shard in shards or shard in owners:
            text = f"shard {shard} (worker pid {{pid}}) has one batch in hand for long, and hands over nothing before"
            yield _of_shard(fleet, shard, text)
    for shard, left in fleet.shards.leaving().items():
        if (everything or shard in shards) and shard not in planner.blocked():
            what = f"to handle the {some(left, 'event')} in its lanes" if left else "to hand over what it has, and end"
            waits = planner.waiting().get(shard)
            why = "" if waits is None else f"; it waits and tries again: {waits}"
            yield _of_shard(fleet, shard, f"shard {shard} (worker pid {{pid}}) {what}{why}")


def _handoffs(fleet: Fleet, waits: list[Late]) -> Iterator[dict[str, Any]]:
    for each in waits:
        if each.state is HandoffState.REROUTING:
            for seat in each.seats:
                yield {**_of_seat(fleet, seat), "slots": list(each.slots)}
        elif each.shard is not None:
            text = f"{each.waiting_for} (worker pid {{pid}}), for {each.seconds:.1f} s"
            yield {**_of_shard(fleet, each.shard, text), "slots": list(each.slots)}


def _opening(fleet: Fleet, shard: int) -> str:
    return f"; its open() waits and tries again: {reason}" if (reason := fleet.workers.waits_to_open(shard)) else ""


def _of_shard(fleet: Fleet, shard: int, text: str) -> dict[str, Any]:
    pid = fleet.control.view_shard(shard).pid
    return _entry(text.replace("{pid}", str(pid)), pid, shard=shard)


def _of_seat(fleet: Fleet, seat: int) -> dict[str, Any]:
    pid = fleet.control.view_seat(seat).pid
    text = f"producer pid {pid} (seat {seat}) is in the middle of a push: it is stopped, or starved"
    return _entry(text, pid, seat=seat)


def _entry(text: str, pid: int, **of: int) -> dict[str, Any]:
    return {**of, "pid": pid, "slots": [], "text": text}
