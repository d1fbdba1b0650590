"""Slots on their way for too long, and why others stay where they are."""

from __future__ import annotations

from collections.abc import Iterator

from shardmem.status.document import Finding, HandoffStatus, Order, Status
from shardmem.status.findings.finding import finding, goes_on, order
from shardmem.text import listed, plural


def of_handoffs(document: Status) -> Iterator[Finding]:
    if not document["supervisor"]["alive"]:
        if (moving := len(document["handoffs"])) and goes_on(document):
            yield finding(
                "error",
                "frozen",
                f"{plural(moving, 'slot')} {'is' if moving == 1 else 'are'} on the way from shard to "
                f"shard; their events wait until a supervisor takes over.",
                "Nothing is lost. Start a supervisor as above.",
            )
        return
    late = sorted((each for each in document["handoffs"] if each["late"]), key=lambda each: -each["age_s"])
    if late:
        worst = late[0]
        yield finding(
            "warning",
            "late",
            f"{plural(len(late), 'slot')} moving for too long: slot {worst['slot']} from shard "
            f"{worst['from']} to {worst['to']}, {worst['phase']} for {worst['age_s']:.0f} s.",
            *_whom_it_waits_for(document, worst),
        )


def _of_producers(document: Status) -> str:
    """Those that are inside of a push at this moment."""
    pushing = [each for each in document["producers"] if each["alive"] and each["in_push"]]
    who = [f"{each['client'] or ''} pid {each['pid']} (seat {each['seat']})".lstrip() for each in pushing]
    return f"of producer {listed(who, 4)}" if who else "of a producer"


def _whom_it_waits_for(document: Status, late: HandoffStatus) -> tuple[str, str | None, Order | None]:
    """(advice, command, order)"""
    if late["phase"] == "rerouting":
        return (
            f"Waiting for a push in progress {_of_producers(document)}: a process that is stopped, or gets no "
            "processor. Let it continue, or end it. Nothing is lost.",
            None,
            None,
        )
    number = late["from"] if late["phase"] == "draining" else late["to"]
    shard = next((each for each in document["shards"] if each["id"] == number), None)
    name = document["engine"]["name"]
    if shard is None:
        return f"Waiting for shard {number}, which is not there. Nothing is lost.", None, None
    if shard["condition"] == "failed":
        return (
            f"Waiting for shard {number}, which has failed. Nothing is lost. When the cause is fixed:",
            f"shardmem reload {name}",
            order("reload"),
        )
    if not shard["alive"]:
        return f"Waiting for shard {number}, whose worker is being started again. Nothing is lost.", None, None
    if shard["condition"] == "waiting":
        return f"Waiting for shard {number}, which waits itself: {shard['reason']}. Nothing is lost.", None, None
    return (
        f"Waiting for shard {number} (worker pid {shard['pid']}): {shard['reason'] or 'it makes no progress'}. "
        "Nothing is lost. To see where it is:",
        f"shardmem stacks {name} {number}",
        None,
    )


def of_moves(document: Status) -> Iterator[Finding]:
    """Why slots stay where they are. Nothing of an engine whose slots never move by themselves: it was started so."""
    moves, name = document["moves"], document["engine"]["name"]
    if not document["supervisor"]["alive"]:
        return
    if complaints := moves["complaints"]:
        is_slow = complaints[0].endswith(" for a plan")
        yield finding(
            "warning",
            "strategy",
            f"{complaints[0][:1].upper()}{complaints[0][1:]}",
            "Nothing waits for it, but its plans come late, for slots as they were when it was asked. Make it faster."
            if is_slow
            else "Its plan is not carried out, and slots stay where they are; draining shards still give theirs away. "
            "Fix the strategy, and start the engine again.",
        )
    if moves["suspended"]:
        planned = f"; {plural(moves['planned'], 'slot')} would move" if moves["planned"] else ""
        yield finding(
            "info",
            "suspended",
            f"Slots do not move by themselves: moves are suspended{planned}.",
            "Moves by hand, drains and pins go on. To let slots follow the load again:",
            f"shardmem moves {name} resume",
            order("moves", suspended=False),
        )
    elif moves["automatic"] and moves["held_back"]:
        yield finding(
            "warning",
            "held_back",
            f"No slot can move: {moves['held_back']}.",
            f"Every handoff waits for pushes in progress, here {_of_producers(document)}. Let it continue, or end it.",
        )
