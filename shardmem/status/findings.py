"""Whether an engine is healthy, and if not, what is wrong and what helps: one judgement for page, `top` and `status`.

Pure: a status document in, findings out, the worst first. A finding is {level, kind, shard, shards, text, advice,
command, order}: `shards` are all that it is about, `shard` the first of them, `command` is for a shell, `order` the
same for the control API; both are None where only the user's own program can help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shardmem.status.document import (
    LEVELS,
    Finding,
    HandoffStatus,
    Level,
    Order,
    ProducerStatus,
    ShardStatus,
    SourceStatus,
    Status,
)
from shardmem.text import listed, named, plural, size

VERDICTS: dict[Level, str] = {"info": "healthy", "warning": "needs attention", "error": "failing"}
STALE_S = (
    10.0  # without a turn of the supervisor's loop, which turns every two seconds at least; a large plan takes one
)
LANE_FULL_WARN_SHARE = 0.8  # a shard cannot keep up
LANE_FULL_NOTE_SHARE = 0.5  # more shards would be felt
BLOCKED_WARN_SHARE = 0.25  # part of its time that a producer waits for room
BLOCKED_NOTE_SHARE = 0.02
LOOP_CRASHES = 3  # within RECENT_S
RECENT_S = 60.0
STILL_S = 60.0  # commits of a broker stand still: most intervals are of a second, most batches too
BATCH_HANGS_S = 10.0  # one batch in hand for so long is worth a look, or a batch_deadline


@dataclass(frozen=True)
class Lately:
    """What became more within the last `seconds`. Nothing: there was no earlier look."""

    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    shed: int = 0


def findings(document: Status, lately: Lately = Lately()) -> list[Finding]:
    shards, pressure = [*_shards(document)], [*_pressure(document, lately)]
    found = [
        *_engine(document),
        *_supervisor(document),
        *shards,
        *_unowned(document, {each["shard"] for each in shards}),
        *pressure,
        *_handoffs(document),
        *_moves(document),
        *_memory(document),
        *_quarantine(document),
        *_sources(document),
        *_advice(document, {each["kind"] for each in pressure}),
    ]
    if not document["supervisor"]["alive"]:
        found = [
            each
            if each["order"] is None
            else {
                **each,
                "advice": "Commands are refused until a supervisor is running again.",
                "command": None,
                "order": None,
            }
            for each in found
        ]
    return sorted(_together(found), key=lambda each: LEVELS.index(each["level"]))


def _together(found: list[Finding]) -> list[Finding]:
    """What is true of several shards is said once, of the first of them, with the numbers of the others."""
    first: dict[tuple[str, str], Finding] = {}
    kept = []
    for each in found:
        if each["shard"] is None:
            kept.append(each)
            continue
        told = first.get((each["level"], each["kind"]))
        if told is None:
            first[each["level"], each["kind"]] = each
            kept.append(each)
        else:
            told["shards"].append(each["shard"])
    for each in kept:
        if others := each["shards"][1:]:
            each["text"] = f"{each['text'].rstrip('.')}. The same of {named('shard', others)}."
    return kept


def finding(
    level: Level,
    kind: str,
    text: str,
    advice: str = "",
    command: str | None = None,
    order: Order | None = None,
    shard: int | None = None,
) -> Finding:
    return {
        "level": level,
        "kind": kind,
        "shard": shard,
        "shards": [] if shard is None else [shard],
        "text": text,
        "advice": advice,
        "command": command,
        "order": order,
    }


def _order(name: str, **body: Any) -> Order:
    return {"name": name, "body": body}


def _engine(document: Status) -> Iterator[Finding]:
    engine, left = document["engine"], document["accounting"]["in_flight"]
    name = engine["name"]
    if engine["state"] == "starting":
        yield finding(
            "info", "starting", "The engine is starting.", "Producers are accepted once all workers are ready."
        )
    elif engine["state"] == "draining":
        yield finding(
            "warning",
            "draining",
            f"The engine is stopping: new events are refused, {plural(left, 'event')} left.",
            "It stops when they are handled. To leave them in shared memory for the next run instead:",
            f"shardmem stop {name} --now",
            _order("stop", now=True),
        )
    if engine["memory"]:
        yield finding(
            "error",
            "memory_lost",
            f"{engine['memory']}: no process can join the engine any more, and nobody finds it.",
            "The supervisor ends it when what it holds is handled. Run it again, and look for what removes files of "
            "/dev/shm: a cleaning script, RemoveIPC= of systemd, a container that shares it.",
        )
    if engine["state"] == "stopped":
        yield finding(
            "error",
            "stopped",
            f"The engine has stopped, with {plural(left, 'event')} in shared memory.",
            "The next run of the engine with the same settings handles them.",
        )


def _supervisor(document: Status) -> Iterator[Finding]:
    supervisor, state = document["supervisor"], document["engine"]["state"]
    age = supervisor["heartbeat_age_s"]
    if not supervisor["alive"]:
        if state != "stopped" and not _goes_on(document):
            left, name = document["accounting"]["in_flight"], document["engine"]["name"]
            yield finding(
                "error" if left else "warning",
                "nothing_runs",
                f"No process of this engine is running; {plural(left, 'event')} in shared memory.",
                "To continue, use 'shardmem run' with the same settings."
                + ("" if left else " To remove the shared memory instead:"),
                None if left else f"shardmem gc {name}",
            )
        elif state != "stopped":
            yield finding(
                "error",
                "no_supervisor",
                "No supervisor is running: workers go on, but one that dies is not replaced, and commands are refused.",
                "'shardmem run' with the same settings takes the engine over as it is; an embedded Engine does so "
                "at its next command.",
            )
    elif age is not None and age > STALE_S:
        yield finding(
            "error",
            "supervisor_hangs",
            f"The supervisor has not responded for {age:.0f} s.",
            "Kill it and run the engine again: the new supervisor adopts live workers, and nothing is lost.",
            f"kill -9 {supervisor['pid']}",
        )


def _goes_on(document: Status) -> bool:
    return any(shard["alive"] for shard in document["shards"])


def _shards(document: Status) -> Iterator[Finding]:
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
            _order("reload"),
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
        _order("reload"),
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
    elif document["engine"]["state"] != "stopped" and _goes_on(document):
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


def _gets_nowhere(shard: ShardStatus) -> bool:
    """More shards do not help it: its slots cannot leave, or their events come behind what it has in hand."""
    return shard["condition"] in ("failed", "stuck", "waiting") or _hangs(shard)


def _unowned(document: Status, named_already: set[int | None]) -> Iterator[Finding]:
    """named_already: shards that have a finding which says that their slots wait."""
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
        and not (without and named_already.issuperset(without))
    ):
        yield finding(
            "warning",
            "unowned",
            f"{engine['slots_unowned']:,} of {engine['slots']:,} slots have no worker that is "
            f"ready; their events wait." + (f" They belong to {named('shard', without)}." if without else ""),
            "Producers are refused only when their lanes are full.",
        )


def _pressure(document: Status, lately: Lately) -> Iterator[Finding]:
    idle = [shard["id"] for shard in document["shards"] if _gets_nowhere(shard)]  # it is said of each already
    full = [
        shard
        for shard in document["shards"]
        if shard["fill_ratio"] >= LANE_FULL_WARN_SHARE and shard["alive"] and shard["id"] not in idle
    ]
    waiting = sorted(
        (each for each in document["producers"] if each["alive"] and each["blocked"] >= BLOCKED_WARN_SHARE),
        key=lambda each: -each["blocked"],
    )
    if full:
        most = max(shard["fill_ratio"] for shard in full)
        one = len(full) == 1
        text = (
            f"{named('Shard', [shard['id'] for shard in full])} cannot keep up: {'its' if one else 'the'} fullest "
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
        why: tuple[str, str | None, Order | None] = f"{named('Shard', idle)} may be the cause: see there.", None, None
        yield finding(
            "warning",
            "blocked",
            f"{named('Producer', [_client(each) for each in waiting])} waited for room "
            f"{waiting[0]['blocked']:.0%} of the time.",
            *(why if idle else _relief(document, [])),
        )
    if refused := {reason: count for reason, count in lately.refused.items() if count > 0}:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items()))
        yield finding(
            "warning",
            "refused",
            f"{plural(sum(refused.values()), 'event')} refused in the last {lately.seconds:.0f} s ({reasons}).",
            "Each push that was refused raised Backpressure. The table of producers shows which ones.",
        )
    if lately.shed > 0:
        yield finding(
            "warning",
            "shed",
            f"{plural(lately.shed, 'accepted event')} shed in the last {lately.seconds:.0f} s (backpressure = "
            "drop_oldest).",
            "The lanes were full: use more shards, a faster handler, or larger lane_bytes.",
        )


def _relief(document: Status, shards: list[int]) -> tuple[str, str | None, Order | None]:
    """(advice, command, order) for an engine that is too slow."""
    alone = [each["slot"] for each in document["hot_slots"] if each["alone"] and each["shard"] in shards]
    if alone:
        return (
            f"{named('Slot', alone)} alone makes the load. A slot cannot be split: spread its events over more keys.",
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
    policy = "The policy adds shards if this lasts. To add one now:" if document["auto_scale"] else "To add a shard:"
    return policy, f"shardmem scale {engine['name']} {count + 1}", _order("scale", shards=count + 1)


def shard_count(document: Status) -> int:
    """What `scale` is told and counts from: one that failed is still one of them. orders.js of the page says the
    same."""
    return sum(shard["state"] in ("active", "failed") for shard in document["shards"])


def _handoffs(document: Status) -> Iterator[Finding]:
    if not document["supervisor"]["alive"]:
        if (moving := len(document["handoffs"])) and _goes_on(document):
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


def _client(producer: ProducerStatus) -> str:
    return f"{producer['client']} ({producer['pid']})" if producer["client"] else str(producer["pid"])


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
            _order("reload"),
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


def _moves(document: Status) -> Iterator[Finding]:
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
            _order("moves", suspended=False),
        )
    elif moves["automatic"] and moves["held_back"]:
        yield finding(
            "warning",
            "held_back",
            f"No slot can move: {moves['held_back']}.",
            f"Every handoff waits for pushes in progress, here {_of_producers(document)}. Let it continue, or end it.",
        )


def _memory(document: Status) -> Iterator[Finding]:
    """A full /dev/shm refuses new shards, and lanes of new producers, and says so to whoever asked for them alone."""
    engine = document["engine"]
    free, whole = engine["shm_free_bytes"], engine["shm_size_bytes"]
    lanes = max((shard["lanes"] for shard in document["shards"]), default=0)
    needed = engine["lane_bytes"] * max(1, lanes)
    if free is not None and whole and free < needed:
        yield finding(
            "warning",
            "shm_full",
            f"Shared memory is nearly full: {size(free)} of {size(whole)} of /dev/shm are free, and one more shard "
            f"with {plural(max(1, lanes), 'lane')} takes {size(needed)}.",
            "What was accepted is safe; `scale`, `reload` and new producers may be refused. Make /dev/shm larger "
            "(mount -o remount,size=, docker run --shm-size), or lower lane_bytes. To see what is there:",
            "shardmem gc --dry-run",
        )


def _quarantine(document: Status) -> Iterator[Finding]:
    engine = document["engine"]
    if held := engine["quarantine_held"]:
        yield finding(
            "warning",
            "quarantine",
            f"The quarantine holds {plural(held, 'event')} that the handler failed on.",
            "See why, fix the handler and reload it, then replay or purge them:",
            f"shardmem quarantine list {engine['name']}",
        )


def _sources(document: Status) -> Iterator[Finding]:
    if document["engine"]["state"] != "running":
        return
    for source in document["sources"]:
        name, error, engine = source["name"], source["error"], document["engine"]["name"]
        if source["state"] == "misconfigured":
            yield finding(
                "error",
                "source_config",
                f"Source {name} cannot read as it is configured: {error}",
                "It is not started again until its configuration changes: correct [source], and take it up with:",
                f"shardmem reload {engine}",
                _order("reload"),
            )
        elif error is not None:
            yield finding(
                "error",
                "source_failed",
                f"Source {name} has failed: {error}",
                "It is tried again at ever longer intervals, up to 30 s. A change of [source] in the configuration "
                "takes effect with:",
                f"shardmem reload {engine}",
                _order("reload"),
            )
        elif source["state"] == "died":
            yield finding(
                "warning",
                "source_died",
                f"The process of source {name} has died.",
                "A supervisor starts it again at once; nothing is missed. If it dies again and again, the log of the "
                "engine says how.",
            )
        elif source["waits_for"] is not None:
            yield finding(
                "warning",
                "source_waits",
                f"Source {name} waits for its broker: {source['waits_for']}",
                "What it has pushed is handled meanwhile, and nothing is missed. `shardmem doctor engine.toml` says "
                "whether the broker can be reached from here.",
            )
        elif source["remote_error"] is not None:
            yield finding(
                "warning",
                "remote",
                f"Source {name} cannot upload the state of its partitions: {source['remote_error']}",
                f"Its commits stand still since {source['remote_error_age_s'] or 0:,.0f} s, and events flow: another "
                "host would begin at the last commit, and repeat what was done since. In the state nothing is counted "
                "twice. It is tried again at ever longer intervals, up to 30 s.",
            )
        elif source["apart"] and document["engine"]["state_bytes"]:
            yield finding(
                "warning",
                "source_apart",
                f"Source {name} reads partitions whose equals of other topics are on another host: here is not "
                f"{listed(source['apart'])}.",
                "State is kept by partition, for all topics together: a key that is in several of them has two states. "
                "Give the topics equally many partitions, and let Kafka's new protocol of groups share them out: "
                "without group.instance.id, and with group.remote.assignor = range.",
            )
        elif _stands_still(source):
            yield finding(
                "warning",
                "source_commits",
                f"Source {name} has committed nothing for {source['last_commit_age_s']:,.0f} s.",
                "Events flow, but one that was pushed long ago is not handled yet: another host would begin there. See "
                "which shard waits, and what it waits for:",
                f"shardmem status {engine}",
            )
        elif (waiting := _paused(source)) is not None:
            yield finding(
                "info",
                "source_paused",
                waiting,
                "It goes on with:",
                f"shardmem source resume {engine} --source {name}",
                _order("source/resume", source=name),
            )


def _paused(source: SourceStatus) -> str | None:
    if source["paused"]:
        behind = "" if source["lag_bytes"] is None else f", {source['lag_bytes']:,} bytes behind"
        return f"Source {source['name']} is paused{behind}."
    if some := [name for name, each in source["partitions"].items() if each["state"] == "paused"]:
        verb = "is" if len(some) == 1 else "are"
        return f"{plural(len(some), 'partition')} of source {source['name']} {verb} paused: {listed(some)}."
    return None


def _stands_still(source: SourceStatus) -> bool:
    age = source["last_commit_age_s"]
    return source["group"] is not None and source["state"] == "running" and age is not None and age > STILL_S


def _advice(document: Status, said: set[str]) -> Iterator[Finding]:
    name, pressed = document["engine"]["name"], said & {"backpressure", "blocked"}
    ill = any(_gets_nowhere(shard) for shard in document["shards"])
    last = document["decisions"][-1] if document["decisions"] and document["supervisor"]["alive"] else None
    if last is not None and last["cause"] == "manual" and not document["auto_scale"]:
        yield finding(
            "info",
            "by_hand",
            f"{last['reason'][:1].upper()}{last['reason'][1:]}.",
            "To hand control back to the policy:",
            f"shardmem scale {name} auto",
            _order("scale", shards="auto"),
        )
    elif last is not None and last["cause"] == "auto_scale_off" and last["advice"] == "up" and not pressed and not ill:
        yield finding(
            "info", "auto_scale_off", f"The policy would add shards: {last['reason']}.", *_relief(document, [])
        )
    elif last is not None and last["cause"] == "at_max_shards" and not pressed and not ill:
        felt = any(shard["fill_ratio"] >= LANE_FULL_NOTE_SHARE for shard in document["shards"]) or any(
            each["alive"] and each["blocked"] >= BLOCKED_NOTE_SHARE for each in document["producers"]
        )
        yield finding(
            "warning" if felt else "info",
            "at_max_shards",
            f"The policy would add shards, but max_shards is reached: {last['reason']}.",
            "Raise max_shards and run the engine again, or make the handler faster.",
        )
    if hot := document["hot_slots"]:
        hottest = max(hot, key=lambda each: each["share"])
        yield finding(
            "info",
            "hot_slot",
            f"Slot {hottest['slot']} on shard {hottest['shard']} has {hottest['share']:.0%} of all load"
            + (f", and {len(hot) - 1} more are hot." if len(hot) > 1 else "."),
            "A slot cannot be split. If its shard cannot keep up, spread its events over more keys.",
        )
