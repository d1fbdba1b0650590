"""The engines of this machine, each in one line: what `shardmem ls` and the index page show."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypedDict

from shardmem.client.client import Client
from shardmem.errors import ShardmemError
from shardmem.memory.segment import engine_names
from shardmem.status.document import Level, Status
from shardmem.status.findings import VERDICTS

LOOK_S = 0.25  # between two looks: a rate needs both


class EngineLine(TypedDict):
    """verdict, level: of its worst finding. error: why it cannot be read; then the figures are None."""

    name: str
    state: str
    host: str | None
    handler: str | None
    shards: int | None
    rate: float | None  # events handled in a second
    in_flight: int | None
    oldest_s: float | None  # how long ago the first of them was pushed
    level: Level
    verdict: str
    findings: list[str]
    http: str | None
    pid: int | None  # of a supervisor that lives
    error: str | None


def engines(shown: Callable[[Status], Status] = lambda document: document) -> list[EngineLine]:
    """By name. Takes LOOK_S where there are any; an engine that cannot be read is a line too. shown: what of a document
    may be."""
    lines: list[EngineLine] = []
    clients: list[Client] = []
    for name in engine_names():
        try:
            client = Client(name)
        except ShardmemError as error:
            lines.append(_unreadable(name, error))
        else:
            clients.append(client)
    try:
        first = [_status(client) for client in clients]
        if any(isinstance(each, dict) for each in first):
            time.sleep(LOOK_S)
        for client in clients:
            found = _status(client)
            lines.append(line(shown(found)) if isinstance(found, dict) else _unreadable(client.name, found))
    finally:
        for client in clients:
            client.close()
    return sorted(lines, key=lambda each: each["name"])


def oldest_s(document: Status) -> float | None:
    """How long ago the first of all events in flight was pushed."""
    return max((shard["oldest_s"] for shard in document["shards"] if shard["oldest_s"] is not None), default=None)


def line(document: Status) -> EngineLine:
    engine, supervisor, found = document["engine"], document["supervisor"], document["findings"]
    level = found[0]["level"] if found else "info"
    alone = engine["state"] != "stopped" and not supervisor["alive"]
    return {
        "name": engine["name"],
        "state": "no supervisor" if alone else engine["state"],
        "host": engine["host"],
        "handler": engine["handler"],
        "shards": sum(shard["state"] in ("active", "draining", "failed") for shard in document["shards"]),
        "rate": sum(shard["rate"] for shard in document["shards"]),
        "in_flight": document["accounting"]["in_flight"],
        "oldest_s": oldest_s(document),
        "level": level,
        "verdict": VERDICTS[level],
        "findings": [each["text"] for each in found],
        "http": engine["http"],
        "pid": supervisor["pid"] if supervisor["alive"] else None,
        "error": None,
    }


def _status(client: Client) -> Status | ShardmemError:
    try:
        return client.status()
    except ShardmemError as error:
        return error


def _unreadable(name: str, error: ShardmemError) -> EngineLine:
    return {
        "name": name,
        "state": "cannot be read",
        "host": None,
        "handler": None,
        "shards": None,
        "rate": None,
        "in_flight": None,
        "oldest_s": None,
        "level": "error",
        "verdict": VERDICTS["error"],
        "findings": [],
        "http": None,
        "pid": None,
        "error": str(error),
    }
