"""One finding, and what more than one kind of them looks at."""

from __future__ import annotations

from typing import Any

from shardmem.status.document import Finding, Level, Order, Status

RECENT_S = 60.0  # crashes within this are recent


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


def order(name: str, **body: Any) -> Order:
    return {"name": name, "body": body}


def goes_on(document: Status) -> bool:
    return any(shard["alive"] for shard in document["shards"])
