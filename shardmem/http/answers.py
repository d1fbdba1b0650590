"""What the control API answers, as JSON schemas: the status document from the catalogue of its figures, the rest by
hand.

Every member is named and none may be added (`additionalProperties`): tests find an answer with an undeclared member.
"""

from __future__ import annotations

from typing import Any

from shardmem.memory.native import MOVE_PHASES, PHASES
from shardmem.policy import DecisionKind
from shardmem.status.document import LEVELS
from shardmem.status.figures import COUNTER, FIGURES, GAUGE, STATE, Figure

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}


def obj(**members: Schema) -> Schema:
    """An object of exactly these."""
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    return {**schema, "nullable": True}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


# ---- the status document -------------------------------------------------------------------------------------------

TEXTS: dict[str, Schema] = {  # what is not a figure
    "engine.name": TEXT,
    "engine.schema": {"type": "object", "required": ["kind"], "properties": {"kind": one_of("events", "records")}},
    "engine.quarantine_file": or_null(TEXT),
    "engine.http": or_null(TEXT),
    "engine.memory": TEXT,
    "engine.socket": or_null(TEXT),
    "engine.version": or_null(TEXT),
    "engine.handler": or_null(TEXT),
    "engine.host": or_null(TEXT),
    "producers[].client": or_null(TEXT),
    "moves.held_back": TEXT,
    "moves.complaints": array(TEXT),
    "pins[].slots": TEXT,
    "shards[].phase": one_of(*PHASES),
    "shards[].reason": TEXT,
    "shards[].error": TEXT,
    "shards[].memory": TEXT,
    "shards[].last_exit": or_null(TEXT),
    "sources[].name": TEXT,
    "sources[].kind": TEXT,
    "sources[].error": or_null(TEXT),
    "sources[].group": or_null(TEXT),
    "sources[].apart": array(TEXT),
    "sources[].waits_for": or_null(TEXT),
    "sources[].remote": or_null(TEXT),
    "sources[].remote_error": or_null(TEXT),
    "sources[].reasons": {"type": "object"},
    "sources[].partitions": {"type": "object"},
    "handoffs[].phase": one_of(*MOVE_PHASES),
    "decisions[].kind": one_of(*map(str, DecisionKind)),
    "decisions[].cause": TEXT,
    "decisions[].reason": TEXT,
    "decisions[].advice": or_null(one_of(*map(str, DecisionKind))),
    "history[].text": TEXT,
    "findings[].level": one_of(*LEVELS),
    "findings[].kind": TEXT,
    "findings[].text": TEXT,
    "findings[].advice": TEXT,
    "findings[].command": or_null(TEXT),
    "findings[].order": or_null(obj(name=TEXT, body={"type": "object"})),
}


def _leaf(figure: Figure) -> Schema:
    if figure.values and figure.kind == STATE:
        return one_of(*figure.values)
    if figure.truth:
        return TRUTH
    schema = NUMBER if figure.kind == GAUGE or figure.unit == "seconds" else COUNT if figure.kind == COUNTER else WHOLE
    return or_null(schema) if figure.null else schema


def status_schema() -> Schema:
    leaves = {figure.path: {**_leaf(figure), "description": figure.help} for figure in FIGURES if figure.path} | TEXTS
    schema = _joined({tuple(path.split(".")): schema for path, schema in leaves.items()})
    members = schema["properties"]
    members["events"] = {**members["history"], "deprecated": True, "description": "the name that history had in 0.1"}
    return {**schema, "required": list(members)}


def _member(schema: Schema, name: str) -> Schema:
    found: Schema = schema["properties"][name]
    return found


def _joined(leaves: dict[tuple[str, ...], Schema]) -> Schema:
    """One object of what is below each first part: `name[]` is an array, `name{reason}` an object of any members."""
    below: dict[str, dict[tuple[str, ...], Schema]] = {}
    for path, schema in leaves.items():
        below.setdefault(path[0], {})[path[1:]] = schema
    members = {}
    for part, rest in below.items():
        inner = rest[()] if () in rest else _joined(rest)
        if part.endswith("[]"):
            members[part[:-2]] = array(inner)
        elif part.endswith("}"):
            members[part.partition("{")[0]] = {"type": "object", "additionalProperties": inner}
        else:
            members[part] = inner
    return obj(**members)


# ---- the others ----------------------------------------------------------------------------------------------------

_BYTES = {"type": "object", "required": ["base64"], "properties": {"base64": TEXT}, "additionalProperties": False}
_KEY = {"nullable": True, "anyOf": [TEXT, WHOLE, _BYTES]}
_SECONDS = {"type": "object", "additionalProperties": NUMBER}
_WAIT = {
    "type": "object",
    "required": ["pid", "slots", "text"],
    "properties": {"shard": COUNT, "seat": COUNT, "pid": COUNT, "slots": array(COUNT), "text": TEXT},
    "additionalProperties": False,
}
_DONE = {"done": {"type": "boolean", "description": "false: it goes on in the background"}, "waiting_for": array(_WAIT)}
_MOVED = {
    "moved": array(obj(slot=COUNT, **{"from": COUNT, "to": COUNT})),
    "seconds": _SECONDS,
    "late": array(TEXT),
    **_DONE,
}
_PLACED = {"cordoned": array(COUNT), "pins": array(obj(shard=COUNT, slots=TEXT)), "suspended": {"type": "boolean"}}
_SHARDS = {"shards": array(COUNT), "added": array(COUNT), "removed": array(COUNT)}
_QUARANTINED = {
    "id": COUNT,
    "at": NUMBER,
    "shard": COUNT,
    "slot": COUNT,
    "producer": COUNT,
    "sequence": COUNT,
    "kind": one_of("exception", "death"),
    "reason": TEXT,
    "attempts": COUNT,
    "key": _KEY,
    "bytes": COUNT,
    "replayed_at": or_null(NUMBER),
}


def _whole() -> Schema:
    schema = obj(**_QUARANTINED, traceback=TEXT, payload={"anyOf": [TEXT, _BYTES]})
    schema["properties"]["record"] = {"type": "object", "description": "fields by name, in a records engine"}
    return schema


PROBLEM: Schema = {
    **obj(error=TEXT, hint=or_null(TEXT), kind=TEXT),
    "example": {"error": "shard 7 is not active", "hint": "Name an active shard: 0, 1", "kind": "ConfigError"},
}
PROBLEM["properties"] |= {
    "need": {**COUNT, "description": "OutOfMemory: bytes needed"},
    "free": {**COUNT, "description": "OutOfMemory: bytes free"},
}
COMPONENTS: dict[str, Schema] = {
    "Problem": PROBLEM,
    "Status": status_schema(),
    "Live": {**obj(live=TRUTH, reasons=array(TEXT)), "example": {"live": True, "reasons": []}},
    "Ready": {
        **obj(ready=TRUTH, reasons=array(TEXT)),
        "example": {"ready": False, "reasons": ["the engine is draining"]},
    },
    "Slots": obj(owners=array({**COUNT, "description": "65535: no shard yet"})),
    "Lanes": obj(
        lanes=array(
            obj(
                seat=COUNT,
                pid=COUNT,
                alive=TRUTH,
                accepted=COUNT,
                handled=COUNT,
                in_flight=WHOLE,
                fill_ratio=NUMBER,
                broken=TRUTH,
            )
        )
    ),
    "Access": {**obj(access=one_of("all", "read", "token")), "example": {"access": "token"}},
    "Quarantine": obj(file=TEXT, count=COUNT, limit=COUNT, events=array(obj(**_QUARANTINED))),
    "Quarantined": _whole(),
    "StateValue": obj(state=TEXT, key={}, value={}, age=NUMBER, shard=COUNT, slot=COUNT),
    "Series": obj(
        every_s=NUMBER,
        points=array(
            obj(
                at=NUMBER,
                accepted=or_null(NUMBER),
                handled=or_null(NUMBER),
                refused=or_null(NUMBER),
                in_flight=COUNT,
                p50=or_null(NUMBER),
                p99=or_null(NUMBER),
                fullest=NUMBER,
                mean=NUMBER,
                shards={"type": "object", "additionalProperties": obj(rate=NUMBER, fill=NUMBER, busy=NUMBER)},
            )
        ),
    ),
    "Engines": obj(
        engines=array(
            obj(
                name=TEXT,
                state=TEXT,
                host=or_null(TEXT),
                handler=or_null(TEXT),
                shards=or_null(COUNT),
                rate=or_null(NUMBER),
                in_flight=or_null(WHOLE),
                oldest_s=or_null(NUMBER),
                level=one_of(*LEVELS),
                verdict=TEXT,
                findings=array(TEXT),
                http=or_null(TEXT),
                pid=or_null(COUNT),
                error=or_null(TEXT),
            )
        )
    ),
    "Log": obj(file=TEXT, records=array({"type": "object"})),
    "Stacks": obj(shard=COUNT, pid=COUNT, incarnation=COUNT, in_hand_s=or_null(NUMBER), text=TEXT),
    "Settings": obj(
        settings=array(
            {
                **obj(
                    name=TEXT,
                    value={},
                    text=TEXT,
                    unit=TEXT,
                    required=TRUTH,
                    default={},
                    default_text=TEXT,
                    place=TEXT,
                    line=or_null(COUNT),
                    help=TEXT,
                    limits=TEXT,
                    **{"from": one_of("default", "file", "variable", "flag")},
                )
            }
        )
    ),
    "Sources": obj(sources=_member(status_schema(), "sources")),
    "Paused": obj(source=TEXT, paused=TRUTH, partitions=array(TEXT), alive=TRUTH),
    "Sought": obj(source=TEXT, partition=TEXT, offset=COUNT),
    "Replayed": obj(replayed=array(COUNT), left=array(COUNT), why=or_null(TEXT)),
    "Purged": obj(purged=COUNT),
    "Scaled": obj(auto_scale=TRUTH, **_SHARDS, **_MOVED),
    "Drained": obj(drained=COUNT, **_SHARDS, **_MOVED),
    "Moved": obj(**_MOVED),
    "Placed": obj(**_PLACED),
    "Pinned": obj(**_PLACED, **_MOVED),
    "Stopping": obj(stopping=TRUTH),
    "Reloaded": obj(reloaded=array(obj(**{"from": COUNT, "to": COUNT})), not_applied=array(TEXT), **_MOVED),
    "OpenApi": {"type": "object", "required": ["openapi", "info", "paths"]},
}
