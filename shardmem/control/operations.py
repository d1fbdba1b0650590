"""What the control API can be asked, each declared once: a body is checked against this, and GET /openapi.json is made of it."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import shardmem

WHOLE = {"title": "a whole number", "type": "integer"}  # how large it may be depends on the engine, and it says so
AUTO = {"title": "'auto'", "type": "string", "enum": ["auto"]}
SWITCH = {"title": "true or false", "type": "boolean"}
LANES = 10  # seconds for which a replay waits for room, in all, unless it is told otherwise
SECONDS = {"title": "a number of seconds from 0 to 60", "type": "number", "minimum": 0, "maximum": 60}
EVENT_ID = {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999_999}
IDS = {"title": "a list of the numbers of events", "type": "array", "items": WHOLE, "minItems": 1}
ALL = {"title": "true", "type": "boolean", "enum": [True]}
SLOTS = {"oneOf": [{"title": "a list of numbers", "type": "array", "items": WHOLE},
                   {"title": "text like '17,40-60'", "type": "string", "pattern": r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"}, WHOLE]}


@dataclass(frozen=True)
class Command:
    """body: a JSON schema of each member, made of what `_fits` knows. optional: members that may be left out. one_of: of these,
    exactly one has to be there."""

    name: str
    help: str
    body: dict[str, dict[str, Any]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()

    def faults(self, wanted: Any) -> list[str]:
        """What is wrong with a body; nothing: it can be carried out."""
        if not isinstance(wanted, dict):
            return ["the body is no JSON object"]
        found = [f"{key} is not a member; there {'are ' + ', '.join(self.body) if self.body else 'is none'}"
                 for key in wanted if key not in self.body]
        found += [f"{key} is missing" for key in self.required if key not in wanted]
        if self.one_of and sum(key in wanted for key in self.one_of) != 1:
            found.append(f"one of {' and '.join(self.one_of)} has to be there, and only one")
        return found + [fault for key, schema in self.body.items() if key in wanted for fault in _faults(key, wanted[key], schema)]

    @property
    def required(self) -> list[str]:
        return [key for key in self.body if key not in (*self.optional, *self.one_of)]

    @property
    def schema(self) -> dict[str, Any]:
        """Of the body."""
        return {"type": "object", "properties": self.body, "additionalProperties": False,
                **({"required": self.required} if self.required else {}),
                **({"oneOf": [{"required": [key]} for key in self.one_of]} if self.one_of else {})}


@dataclass(frozen=True)
class Read:
    """What can be looked at. private: over TCP it needs the token, because keys and payloads are the users' data. values: a JSON
    schema of each {part} of the path."""

    path: str
    help: str
    kind: str = "application/json"
    private: bool = False
    values: dict[str, dict[str, Any]] = field(default_factory=dict)


COMMANDS = (
    Command("scale", "More or fewer shards, slots evened out; \"auto\" hands back to the policy",
            {"shards": {"oneOf": [WHOLE, AUTO]}}),
    Command("drain", "The slots of a shard go to the others, then it is removed", {"shard": WHOLE}),
    Command("move", "Slots to a shard; nothing is lost, repeated or reordered",
            {"slots": SLOTS, "to": WHOLE}),
    Command("rebalance", "Even out the slots over the shards, with the fewest moves"),
    Command("reload", "Every worker is replaced by a fresh one, with what the configuration says now"),
    Command("quarantine/replay", "Events of the quarantine are pushed again, as new ones; the answer says which stay (left), "
            f"and why. timeout: how long to wait for room in lanes, {LANES} s unless given",
            {"ids": IDS, "all": ALL, "timeout": SECONDS}, optional=("timeout",), one_of=("ids", "all")),
    Command("quarantine/purge", "Events of the quarantine are thrown away, for good; all: those that were replayed too",
            {"ids": IDS, "all": ALL}, one_of=("ids", "all")),
    Command("stop", "Drain and stop; now: leave what is not handled in shared memory", {"now": SWITCH}, ("now",)),
)
PAGE_FILES = ("page.html", "page.css", "icon.svg", "charts.js", "dialog.js", "orders.js", "page.js", "quarantine.js", "slots.js", "tables.js",
              "words.js")
READS = (
    Read("/", "The page: an engine as it runs, for a browser", "text/html"),
    Read("/page/{file}", "What the page is made of", "text/javascript",
         values={"file": {"type": "string", "enum": list(PAGE_FILES)}}),
    Read("/access", "What whoever asks may do: all, read, or, with the token, more"),
    Read("/slots", "The shard of every slot, in order"),
    Read("/lanes/{shard}", "The open lanes of a shard, one for each producer", values={"shard": {"type": "integer", "minimum": 0,
                                                                                              "maximum": 99999}}),
    Read("/status", "The document of `shardmem status --json`"),
    Read("/quarantine", "The newest 100 events in quarantine that were not replayed, without payloads; how many there are, and "
         "how many there may be", private=True),
    Read("/quarantine/{id}", "One event of the quarantine, with traceback, key and payload", private=True, values={"id": EVENT_ID}),
    Read("/metrics", "The figures of docs/metrics.md, as Prometheus text or OpenMetrics", "text/plain"),
    Read("/livez", "200 while the supervisor's loop goes round, else 503 with reasons"),
    Read("/readyz", "200 while every slot has a live owner, else 503 with reasons"),
    Read("/openapi.json", "This document"),
)
_IS: dict[str, Any] = {"integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
                       "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
                       "string": lambda value: isinstance(value, str), "boolean": lambda value: isinstance(value, bool),
                       "array": lambda value: isinstance(value, list)}


def _faults(key: str, value: Any, schema: dict[str, Any]) -> list[str]:
    return [] if _fits(value, schema) else [f"{key}={value!r} is {_wrong(schema)}"]


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if "oneOf" in schema:
        return any(_fits(value, each) for each in schema["oneOf"])
    return (_IS[schema["type"]](value) and value in schema.get("enum", (value,))
            and ("pattern" not in schema or re.fullmatch(schema["pattern"], value) is not None)
            and ("minimum" not in schema or schema["minimum"] <= value <= schema["maximum"])
            and ("minItems" not in schema or len(value) >= schema["minItems"])
            and ("items" not in schema or all(_fits(each, schema["items"]) for each in value)))


def _wrong(schema: dict[str, Any]) -> str:
    if "oneOf" in schema:
        return f"neither {' nor '.join(each['title'] for each in schema['oneOf'])}"
    return f"not {schema['title']}"


def openapi() -> dict[str, Any]:
    """OpenAPI 3.0 of all of it."""
    def answer(text: str, kind: str = "application/json", schema: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"description": text, "content": {kind: {"schema": schema or {"type": "string" if "text" in kind else "object"}}}}

    problem = {"$ref": "#/components/schemas/Problem"}
    paths: dict[str, Any] = {}
    for read in READS:
        answers = {"200": answer(read.help, read.kind), "403": answer("Not for you", schema=problem)}
        if read.path in ("/livez", "/readyz"):
            answers["503"] = answer("It is not, and why")
        if read.private:
            answers |= {"401": answer("TCP, and not the token", schema=problem), "409": answer("It cannot be done", schema=problem)}
        paths[read.path] = {"get": {"operationId": re.sub(r"\W", "", read.path) or "page", "summary": read.help, "responses": answers,
                                    **({"security": [{}, {"token": []}]} if read.private else {})}}
        if read.values:
            answers["404"] = answer("There is none of that name or number", schema=problem)
            paths[read.path]["get"]["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema}
                                                     for name, schema in read.values.items()]
    for each in COMMANDS:
        paths[f"/{each.name}"] = {"post": {
            "operationId": re.sub(r"\W", "_", each.name), "summary": each.help, "security": [{}, {"token": []}],
            "requestBody": {"required": bool(each.required or each.one_of), "content": {"application/json": {"schema": each.schema}}},
            "responses": {"200": answer("What was done"),
                          **{code: answer(text, schema=problem) for code, text in (
                              ("400", "The body makes no sense"), ("401", "TCP, and not the token"),
                              ("403", "Not for you, or TCP without http_token"), ("409", "It cannot be done"))}}}}
    return {"openapi": "3.0.3",
            "info": {"title": "shardmem", "version": shardmem.__version__,
                     "description": "The control API of one engine, on its unix socket and on http_port"},
            "paths": paths,
            "components": {
                "schemas": {"Problem": {"type": "object", "required": ["error", "kind"],
                                        "properties": {"error": {"type": "string"}, "kind": {"type": "string"}}}},
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer",
                                              "description": "http_token; on TCP only, the unix socket needs none"}}}}
