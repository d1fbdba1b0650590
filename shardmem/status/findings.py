"""Whether an engine is well, and if not, what is wrong and what helps: one judgement for the page, `top` and `status`.

Pure: a status document in, findings out, the worst first. A finding is {level, kind, shard, text, advice, command,
order}: `command` is for a shell, `order` the same for the control API; both are None where only the user's own program
can help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shardmem.settings import some

LEVELS = ("error", "warning", "info")
STALE = 10.0  # seconds without a turn of the supervisor's loop, which turns four times a second; a large plan takes one
FULL = 0.8  # of a lane
FILLING = 0.5  # of a lane
WAITING = 0.25  # part of its time that a producer waits for room
WAITS = 0.02  # the same, where anything that can be felt counts
LOOP = 3  # crashes within RECENT
RECENT = 60.0
HANGS = 10.0  # seconds that one batch may be in hand: it is worth a look, or a batch_deadline
NAMED = 4

Finding = dict[str, Any]


@dataclass(frozen=True)
class Lately:
    """What became more within the last `seconds`. Nothing: there was no earlier look."""

    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    shed: int = 0


def findings(document: dict[str, Any], lately: Lately = Lately()) -> list[Finding]:
    shards, pressure = [*_shards(document)], [*_pressure(document, lately)]
    found = [
        *_engine(document),
        *_supervisor(document),
        *shards,
        *_unowned(document, {each["shard"] for each in shards}),
        *pressure,
        *_handoffs(document),
        *_quarantine(document),
        *_advice(document, {each["kind"] for each in pressure}),
    ]
    if not document["supervisor"]["alive"]:
        found = [
            each
            if each["order"] is None
            else {
                **each,
                "advice": "Commands are not taken until there is a supervisor again.",
                "command": None,
                "order": None,
            }
            for each in found
        ]
    return sorted(found, key=lambda each: LEVELS.index(each["level"]))


def finding(
    level: str,
    kind: str,
    text: str,
    advice: str = "",
    command: str | None = None,
    order: dict[str, Any] | None = None,
    shard: int | None = None,
) -> Finding:
    return {
        "level": level,
        "kind": kind,
        "shard": shard,
        "text": text,
        "advice": advice,
        "command": command,
        "order": order,
    }


def _order(name: str, **body: Any) -> dict[str, Any]:
    return {"name": name, "body": body}


def _named(what: str, numbers: list[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:NAMED]))}{more}"


def _engine(document: dict[str, Any]) -> Iterator[Finding]:
    engine, left = document["engine"], document["accounting"]["in_flight"]
    name = engine["name"]
    if engine["state"] == "starting":
        yield finding("info", "starting", "The engine is starting.", "Producers are let in when all workers are ready.")
    elif engine["state"] == "draining":
        yield finding(
            "warning",
            "draining",
            f"The engine is being stopped: producers are refused, {some(left, 'event')} left.",
            "It ends when they are handled. To leave them in shared memory for the next run instead:",
            f"shardmem stop {name} --now",
            _order("stop", now=True),
        )
    elif engine["state"] == "stopped":
        yield finding(
            "error",
            "stopped",
            f"The engine has stopped, with {some(left, 'event')} in shared memory.",
            "The next run of the engine with the same settings handles them.",
        )


def _supervisor(document: dict[str, Any]) -> Iterator[Finding]:
    supervisor, state = document["supervisor"], document["engine"]["state"]
    age = supervisor["heartbeat_age_s"]
    if not supervisor["alive"]:
        if state != "stopped" and not _goes_on(document):
            left, name = document["accounting"]["in_flight"], document["engine"]["name"]
            yield finding(
                "error" if left else "warning",
                "nothing_runs",
                f"Nothing of it runs, with {some(left, 'event')} in shared memory.",
                "'shardmem run' with the same settings goes on with it." + ("" if left else " Or remove what is left:"),
                None if left else f"shardmem gc {name}",
            )
        elif state != "stopped":
            yield finding(
                "error",
                "no_supervisor",
                "There is no supervisor: workers go on, but nobody replaces one that dies, and commands are not taken.",
                "'shardmem run' with the same settings takes the engine up as it is; an embedded Engine does it "
                "itself at its next command.",
            )
    elif age is not None and age > STALE:
        yield finding(
            "error",
            "supervisor_hangs",
            f"The supervisor's loop has not gone round for {age:.0f} s.",
            "Kill it and run the engine again: live workers are adopted, nothing is lost.",
            f"kill -9 {supervisor['pid']}",
        )


def _goes_on(document: dict[str, Any]) -> bool:
    return any(shard["alive"] for shard in document["shards"])


def _shards(document: dict[str, Any]) -> Iterator[Finding]:
    reload, supervised = f"shardmem reload --engine {document['engine']['name']}", document["supervisor"]["alive"]
    waits = document["engine"]["state"] != "stopped" and _goes_on(document)
    for shard in document["shards"]:
        number, reason, condition = (
            shard["id"],
            shard["reason"] or shard["error"] or "no reason is known",
            shard["condition"],
        )
        exit = f" Last exit: {shard['last_exit']}." if shard["last_exit"] else ""
        if condition == "failed":
            yield finding(
                "error",
                "failed",
                f"Shard {number} has failed, and {some(shard['slots'], 'slot')} wait with it: {reason}",
                "Mend the cause, then start it again with fresh workers:",
                reload,
                _order("reload"),
                number,
            )
        elif supervised and shard["recent_crashes"] >= LOOP:
            memory = " If memory ran out, the kernel's log says so." if "out of memory" in exit else ""
            yield finding(
                "error",
                "crash_loop",
                f"Shard {number} crashes again and again, {shard['recent_crashes']} times in the last "
                f"{RECENT:.0f} s.{exit}",
                f"The log says where.{memory} When the handler is mended:",
                reload,
                _order("reload"),
                number,
            )
        elif condition == "stuck":
            yield finding(
                "error",
                "stuck",
                f"The worker of shard {number} is stuck: {reason}",
                *(
                    ("Its stacks go to its log; then it is killed and another takes over.",)
                    if supervised
                    else (
                        "Nobody ends it until there is a supervisor again. Its stacks go to the log with:",
                        f"kill -USR2 {shard['pid']}",
                    )
                ),
                shard=number,
            )
        elif _hangs(shard):
            yield finding(
                "warning",
                "slow",
                f"The worker of shard {number} has had one batch in hand for {shard['in_hand_s']:.0f} s; "
                f"{some(shard['in_flight'], 'event')} wait, its fullest lane is {shard['fill_ratio']:.0%} full.",
                "Its handler may hang, and with batch_deadline set it would be replaced. See where it is; its stacks "
                "go to "
                "the log:",
                f"kill -USR2 {shard['pid']}",
                shard=number,
            )
        elif (
            condition in ("dead", "restarting")
            and not shard["slots"]
            and not shard["in_flight"]
            and shard["state"] != "active"
        ):
            pass  # it comes or goes: nothing waits for it
        elif condition in ("dead", "restarting") and supervised:
            yield finding(
                "warning",
                "no_worker",
                f"Shard {number} has no worker, and {some(shard['slots'], 'slot')} wait: {reason}."
                # until the supervisor has seen this death, the last exit is that of another one
                + (exit if condition == "restarting" else ""),
                "Its events wait; the supervisor starts another one.",
                shard=number,
            )
        elif condition in ("dead", "restarting") and waits:
            yield finding(
                "error",
                "no_worker",
                f"Shard {number} has no worker, and {some(shard['slots'], 'slot')} wait.",
                "Nobody starts another one until there is a supervisor again.",
                shard=number,
            )
        if shard["broken_lanes"]:
            yield finding(
                "error",
                "broken_lane",
                f"Shard {number} found lanes corrupt and reads them no more: seat "
                f"{', '.join(map(str, shard['broken_lanes']))}.",
                "Some process wrote where it should not. End the producers of these seats; what their lanes hold is "
                "counted as in flight.",
                shard=number,
            )


def _hangs(shard: dict[str, Any]) -> bool:
    return shard["condition"] == "slow" and (shard["in_hand_s"] or 0.0) > HANGS


def _gets_nowhere(shard: dict[str, Any]) -> bool:
    """More shards do not help it: its slots cannot leave, or their events come behind what it has in hand."""
    return shard["condition"] in ("failed", "stuck") or _hangs(shard)


def _unowned(document: dict[str, Any], said: set[int]) -> Iterator[Finding]:
    """said: shards of which it is said already that their slots wait."""
    engine = document["engine"]
    without = [
        shard["id"]
        for shard in document["shards"]
        if shard["slots"]
        and not (shard["alive"] and shard["phase"] == "ready" and shard["state"] in ("active", "draining"))
    ]
    gone = not document["supervisor"]["alive"] and not _goes_on(document)
    if (
        engine["slots_unowned"]
        and engine["state"] == "running"
        and not gone
        and not (without and said.issuperset(without))
    ):
        yield finding(
            "warning",
            "unowned",
            f"{engine['slots_unowned']:,} of {engine['slots']:,} slots have no worker that is "
            f"ready: their events wait." + (f" They belong to {_named('shard', without)}." if without else ""),
            "Producers are not refused until the lanes are full.",
        )


def _pressure(document: dict[str, Any], lately: Lately) -> Iterator[Finding]:
    idle = [shard["id"] for shard in document["shards"] if _gets_nowhere(shard)]  # it is said of each already
    full = [
        shard
        for shard in document["shards"]
        if shard["fill_ratio"] >= FULL and shard["alive"] and shard["id"] not in idle
    ]
    waiting = sorted(
        (each for each in document["producers"] if each["alive"] and each["blocked"] >= WAITING),
        key=lambda each: -each["blocked"],
    )
    if full:
        most = max(shard["fill_ratio"] for shard in full)
        one = len(full) == 1
        text = (
            f"{_named('Shard', [shard['id'] for shard in full])} cannot keep up: {'its' if one else 'the'} fullest "
            "lane is "
            f"{most:.0%} full, so producers wait or are refused."
        )
        yield finding(
            "warning",
            "backpressure",
            text,
            *_relief(document, [shard["id"] for shard in full]),
            shard=full[0]["id"] if one else None,
        )
    elif waiting:
        why = f"{_named('Shard', idle)} may be what they wait for: see there.", None, None
        yield finding(
            "warning",
            "blocked",
            f"{_named('Producer', [each['pid'] for each in waiting])} waited for room "
            f"{waiting[0]['blocked']:.0%} of the time.",
            *(why if idle else _relief(document, [])),
        )
    if refused := {reason: count for reason, count in lately.refused.items() if count > 0}:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items()))
        yield finding(
            "warning",
            "refused",
            f"{some(sum(refused.values()), 'event')} refused in the last {lately.seconds:.0f} s ({reasons}).",
            "Whoever pushed them was told so. The table of producers says who it is.",
        )
    if lately.shed > 0:
        yield finding(
            "warning",
            "shed",
            f"{some(lately.shed, 'accepted event')} dropped in the last {lately.seconds:.0f} s, as drop_oldest asks.",
            "Full lanes are the reason: more shards, a faster handler, or larger lane_bytes.",
        )


def _relief(document: dict[str, Any], shards: list[int]) -> tuple[str, str | None, dict[str, Any] | None]:
    """(advice, command, order) for an engine that is too slow."""
    alone = [each["slot"] for each in document["hot_slots"] if each["alone"] and each["shard"] in shards]
    if alone:
        return (
            f"{_named('Slot', alone)} alone is the load; no slot can be split: spread its events over more keys.",
            None,
            None,
        )
    engine, count = document["engine"], shard_count(document)
    if len(document["shards"]) >= engine["max_shards"]:
        return (
            f"There are as many shards as max_shards={engine['max_shards']} allows: make the handler faster, or raise "
            "it and run "
            f"the engine again.",
            None,
            None,
        )
    policy = (
        "The policy adds shards when it lasts; at once:"
        if document["auto_scale"]
        else "One shard more takes a part of it:"
    )
    return policy, f"shardmem scale {count + 1} --engine {engine['name']}", _order("scale", shards=count + 1)


def shard_count(document: dict[str, Any]) -> int:
    """What `scale` is told and counts from: one that failed is still one of them. orders.js of the page says the
    same."""
    return sum(shard["state"] in ("active", "failed") for shard in document["shards"])


def _handoffs(document: dict[str, Any]) -> Iterator[Finding]:
    if not document["supervisor"]["alive"]:
        if (moving := len(document["handoffs"])) and _goes_on(document):
            yield finding(
                "error",
                "frozen",
                f"{some(moving, 'slot')} {'is' if moving == 1 else 'are'} on the way from shard to "
                f"shard and not handled until a supervisor takes over.",
                "Nothing is lost: the events wait. Start one as above.",
            )
        return
    late = sorted((each for each in document["handoffs"] if each["late"]), key=lambda each: -each["age_s"])
    if late:
        worst = late[0]
        on = worst["from"] if worst["phase"] == "draining" else worst["to"]
        yield finding(
            "warning",
            "late",
            f"{some(len(late), 'slot')} late on the way: slot {worst['slot']} from shard "
            f"{worst['from']} to {worst['to']}, {worst['phase']} for {worst['age_s']:.0f} s.",
            f"Shard {on} is behind it: a long batch, or a worker that does not get on. Nothing is lost meanwhile.",
        )


def _quarantine(document: dict[str, Any]) -> Iterator[Finding]:
    engine = document["engine"]
    if held := engine["quarantine_held"]:
        yield finding(
            "warning",
            "quarantine",
            f"The quarantine holds {some(held, 'event')} that the handler kept failing on.",
            "See why, mend the handler and reload it, then replay or purge them:",
            f"shardmem quarantine list --engine {engine['name']}",
        )


def _advice(document: dict[str, Any], said: set[str]) -> Iterator[Finding]:
    name, pressed = document["engine"]["name"], said & {"backpressure", "blocked"}
    ill = any(_gets_nowhere(shard) for shard in document["shards"])
    last = document["decisions"][-1] if document["decisions"] and document["supervisor"]["alive"] else None
    if last is not None and last["cause"] == "manual" and not document["auto_scale"]:
        yield finding(
            "info",
            "by_hand",
            f"{last['reason'][:1].upper()}{last['reason'][1:]}.",
            "To let it:",
            f"shardmem scale auto --engine {name}",
            _order("scale", shards="auto"),
        )
    elif last is not None and last["cause"] == "auto_scale_off" and last["advice"] == "up" and not pressed and not ill:
        yield finding(
            "info", "auto_scale_off", f"The policy would add shards: {last['reason']}.", *_relief(document, [])
        )
    elif last is not None and last["cause"] == "at_max_shards" and not pressed:
        felt = any(shard["fill_ratio"] >= FILLING for shard in document["shards"]) or any(
            each["alive"] and each["blocked"] >= WAITS for each in document["producers"]
        )
        yield finding(
            "warning" if felt else "info",
            "at_max_shards",
            f"The policy would add shards and may not: {last['reason']}.",
            "Raise max_shards and run the engine again, or make the handler faster.",
        )
    if hot := document["hot_slots"]:
        hottest = max(hot, key=lambda each: each["share"])
        yield finding(
            "info",
            "hot_slot",
            f"Slot {hottest['slot']} on shard {hottest['shard']} has {hottest['share']:.0%} of all load"
            + (f", and {len(hot) - 1} more are hot." if len(hot) > 1 else "."),
            "No slot can be split. If its shard cannot keep up, spread its events over more keys.",
        )
