"""Whether an engine lives and whether it is ready, from its status document: the reasons against, or none."""

from __future__ import annotations

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.words import now_ns
from shardmem.status.document import Status
from shardmem.status.findings import STALE_S
from shardmem.status.observer import Observer


def hangs(control: ControlSegment) -> str | None:
    """That the supervisor lives and its loop stands still, and what helps, as the findings say it: it would not
    answer."""
    beat = control.view_engine().heartbeat_ns
    if not beat or now_ns() - beat <= STALE_S * 1e9:
        return None
    observer = Observer(control)
    try:
        found = observer.status()["findings"]
    finally:
        observer.close()
    texts = (
        f"{each['text']} {each['advice']} -> {each['command']}" for each in found if each["kind"] == "supervisor_hangs"
    )
    return next(texts, None)


def against_life(document: Status) -> list[str]:
    """Why a new supervisor would do better. What workers do is no reason: a supervisor that is killed cannot help
    them."""
    age = document["supervisor"]["heartbeat_age_s"]
    return [f"the supervisor has not responded for {age:.3g} s"] if age is not None and age > STALE_S else []


def against_readiness(document: Status) -> list[str]:
    """Why not every event that is sent now would be handled soon. A shard that drains still serves the slots it has
    left."""
    engine, found = document["engine"], []
    if engine["state"] != "running":
        found.append(f"the engine is {engine['state']}")
    for shard in document["shards"]:
        if shard["state"] == "failed":
            found.append(f"shard {shard['id']} failed: {shard['error']}")
        elif shard["condition"] == "waiting":
            found += [] if engine["ready_while_waiting"] else [f"shard {shard['id']} waits: {shard['reason']}"]
        elif shard["slots"] and not (shard["alive"] and shard["phase"] == "ready"):
            found.append(
                f"shard {shard['id']} has {shard['slots']} slots and no worker that is ready: "
                f"{shard['condition']}, {shard['reason']}"
            )
    if engine["slots_unowned"]:
        found.append(f"{engine['slots_unowned']} of {engine['slots']} slots have no live owner")
    return found
