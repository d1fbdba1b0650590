"""What is wrong with single shards, and what helps."""

from __future__ import annotations

from collections.abc import Iterator

from shardmem.status.document import Finding, ShardStatus, Status
from shardmem.status.findings.finding import RECENT_S, finding, goes_on, order
from shardmem.text import listed, plural

LOOP_CRASHES = 3  # within RECENT_S
BATCH_HANGS_S = 10.0  # one batch in hand for so long is worth a look, or a batch_deadline


def of_shards(document: Status) -> Iterator[Finding]:
    for shard in document["shards"]:
        yield from _shard(document, shard)
        if shard["memory"]:
            yield finding(
                "error",
                "memory_lost",
                f"{shard['memory']}: it is the inbox of shard {shard['id']}.",
                "The supervisor gives the shard new memory. Its worker, if it lives and can, hands over what it has "
                "first; else the events there are lost.",
                shard=shard["id"],
            )
        if shard["broken_lanes"]:
            yield finding(
                "error",
                "broken_lane",
                f"Shard {shard['id']} found corrupt lanes and no longer reads them: seat "
                f"{listed(shard['broken_lanes'])}.",
                "A process wrote where it must not. End the producers of these seats; what their lanes hold is "
                "counted as in flight.",
                shard=shard["id"],
            )


def _shard(document: Status, shard: ShardStatus) -> Iterator[Finding]:
    supervised, condition = document["supervisor"]["alive"], shard["condition"]
    if condition == "failed" or (supervised and shard["recent_crashes"] >= LOOP_CRASHES):
        yield _failing(document, shard)
    elif condition == "waiting":
        yield _waits(shard)
    elif condition == "stuck":
        yield _stuck(document, shard)
    elif _hangs(shard):
        yield finding(
            "warning",
            "slow",
            f"The worker of shard {shard['id']} (pid {shard['pid']}) has had one batch in hand for "
            f"{shard['in_hand_s']:.0f} s; "
            f"{plural(shard['in_flight'], 'event')} waiting, its fullest lane is {shard['fill_ratio']:.0%} full.",
            "Its handler may hang; with batch_deadline set, the worker would be replaced. To see where it is:",
            f"shardmem stacks {document['engine']['name']} {shard['id']}",
            shard=shard["id"],
        )
    elif condition in ("dead", "restarting"):
        yield from _without_worker(document, shard)


def _failing(document: Status, shard: ShardStatus) -> Finding:
    number, reload = shard["id"], f"shardmem reload {document['engine']['name']}"
    if shard["condition"] == "failed":
        reason = shard["reason"] or shard["error"] or "the reason is not known"
        return finding(
            "error",
            "failed",
            f"Shard {number} has failed; {_waiting_slots(shard)}: {reason}",
            "Fix the cause; it is then started again by itself, or at once with:"
            if shard["restarting_in_s"] is not None
            else "Fix the cause, then start the shard again with new workers:",
            reload,
            order("reload"),
            number,
        )
    exit = _last_exit(shard)
    memory = " If memory ran out, the kernel's log says so." if "out of memory" in exit else ""
    return finding(
        "error",
        "crash_loop",
        f"Shard {number} keeps crashing: {shard['recent_crashes']} times in the last {RECENT_S:.0f} s.{exit}",
        f"The log says where.{memory} It is started again by itself, after 30 s at the latest; or at once with:",
        reload,
        order("reload"),
        number,
    )


def _waits(shard: ShardStatus) -> Finding:
    return finding(
        "warning",
        "waiting",
        f"Shard {shard['id']} waits: {shard['reason']}. {plural(shard['in_flight'], 'event')} in flight.",
        "Nothing is lost and nothing is quarantined: it goes on by itself when its handler succeeds.",
        shard=shard["id"],
    )


def _stuck(document: Status, shard: ShardStatus) -> Finding:
    supervised = document["supervisor"]["alive"]
    advice = "The supervisor writes its stacks to the log, kills it and starts another worker."
    if shard["state"] == "stopped":
        advice = (
            "A thread that is no daemon, close() or an exit handler of its handler holds it. The supervisor writes its "
            "stacks to the log and ends it; nothing is lost with it."
        )
    if not supervised:
        advice = "No supervisor is running to replace it. To see where it is:"
    return finding(
        "error",
        "stuck",
        f"The worker of shard {shard['id']} (pid {shard['pid']}) is stuck: {shard['reason']}",
        advice,
        None if supervised else f"shardmem stacks {document['engine']['name']} {shard['id']}",
        shard=shard["id"],
    )


def _without_worker(document: Status, shard: ShardStatus) -> Iterator[Finding]:
    number = shard["id"]
    if not shard["slots"] and not shard["in_flight"] and shard["state"] != "active":
        return  # it comes or goes: nothing waits for it
    if document["supervisor"]["alive"]:
        # until the supervisor has seen this death, the last exit is that of another one
        exit = _last_exit(shard) if shard["condition"] == "restarting" else ""
        reason = shard["reason"] or shard["error"] or "the reason is not known"
        yield finding(
            "warning",
            "no_worker",
            f"Shard {number} has no worker; {_waiting_slots(shard)}: {reason}.{exit}",
            "Its events wait; the supervisor starts another worker.",
            shard=number,
        )
    elif document["engine"]["state"] != "stopped" and goes_on(document):
        yield finding(
            "error",
            "no_worker",
            f"Shard {number} has no worker; {_waiting_slots(shard)}.",
            "A supervisor is needed to start another worker.",
            shard=number,
        )


def _waiting_slots(shard: ShardStatus) -> str:
    return f"{plural(shard['slots'], 'slot')} {'is' if shard['slots'] == 1 else 'are'} waiting"


def _last_exit(shard: ShardStatus) -> str:
    return f" Last exit: {shard['last_exit']}." if shard["last_exit"] else ""


def _hangs(shard: ShardStatus) -> bool:
    return shard["condition"] == "slow" and (shard["in_hand_s"] or 0.0) > BATCH_HANGS_S


def gets_nowhere(shard: ShardStatus) -> bool:
    """More shards do not help it: its slots cannot leave, or their events come behind what it has in hand."""
    return shard["condition"] in ("failed", "stuck", "waiting") or _hangs(shard)
