"""Whether an engine is healthy, and if not, what is wrong and what helps: one judgement for page, `top` and `status`.

Pure: a status document in, findings out, the worst first. A finding is {level, kind, shard, shards, text, advice,
command, order}: `shards` are all that it is about, `shard` the first of them, `command` is for a shell, `order` the
same for the control API; both are None where only the user's own program can help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shardmem.status.document import LEVELS, Finding, Level, Order, ProducerStatus, Status
from shardmem.status.findings.finding import finding, goes_on, order
from shardmem.status.findings.moves import of_handoffs, of_moves
from shardmem.status.findings.shards import gets_nowhere, of_shards
from shardmem.status.findings.sources import of_sources
from shardmem.text import named, plural, size

VERDICTS: dict[Level, str] = {"info": "healthy", "warning": "needs attention", "error": "failing"}
STALE_S = 10.0  # without a turn of the supervisor's loop: it turns every two seconds at least, a large plan takes one
LANE_FULL_WARN_SHARE = 0.8  # a shard cannot keep up
LANE_FULL_NOTE_SHARE = 0.5  # more shards would be felt
BLOCKED_WARN_SHARE = 0.25  # part of its time that a producer waits for room
BLOCKED_NOTE_SHARE = 0.02


@dataclass(frozen=True)
class Lately:
    """What became more within the last `seconds`. Nothing: there was no earlier look."""

    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    shed: int = 0


def findings(document: Status, lately: Lately = Lately()) -> list[Finding]:
    shards, pressure = [*of_shards(document)], [*_pressure(document, lately)]
    found = [
        *_engine(document),
        *_supervisor(document),
        *shards,
        *_unowned(document, {each["shard"] for each in shards}),
        *pressure,
        *of_handoffs(document),
        *of_moves(document),
        *_memory(document),
        *_quarantine(document),
        *of_sources(document),
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
            order("stop", now=True),
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
        if state != "stopped" and not goes_on(document):
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


def _unowned(document: Status, named_already: set[int | None]) -> Iterator[Finding]:
    """named_already: shards that have a finding which says that their slots wait."""
    engine = document["engine"]
    without = [
        shard["id"]
        for shard in document["shards"]
        if shard["slots"]
        and not (shard["alive"] and shard["phase"] == "ready" and shard["state"] in ("active", "draining"))
    ]
    gone = not document["supervisor"]["alive"] and not goes_on(document)
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
    idle = [shard["id"] for shard in document["shards"] if gets_nowhere(shard)]  # it is said of each already
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
    return policy, f"shardmem scale {engine['name']} {count + 1}", order("scale", shards=count + 1)


def shard_count(document: Status) -> int:
    """What `scale` is told and counts from: one that failed is still one of them. orders.js of the page says the
    same."""
    return sum(shard["state"] in ("active", "failed") for shard in document["shards"])


def _client(producer: ProducerStatus) -> str:
    return f"{producer['client']} ({producer['pid']})" if producer["client"] else str(producer["pid"])


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


def _advice(document: Status, said: set[str]) -> Iterator[Finding]:
    name, pressed = document["engine"]["name"], said & {"backpressure", "blocked"}
    ill = any(gets_nowhere(shard) for shard in document["shards"])
    last = document["decisions"][-1] if document["decisions"] and document["supervisor"]["alive"] else None
    if last is not None and last["cause"] == "manual" and not document["auto_scale"]:
        yield finding(
            "info",
            "by_hand",
            f"{last['reason'][:1].upper()}{last['reason'][1:]}.",
            "To hand control back to the policy:",
            f"shardmem scale {name} auto",
            order("scale", shards="auto"),
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
