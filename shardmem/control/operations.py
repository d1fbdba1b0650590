"""The commands of the control API, each declared once: its body is checked against this, and GET /openapi.json is made of it."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import shardmem

WHOLE = {"title": "a whole number", "type": "integer"}  # how large it may be depends on the engine, and it says so
AUTO = {"title": "'auto'", "type": "string", "enum": ["auto"]}
SWITCH = {"title": "true or false", "type": "boolean"}
SLOTS = {"oneOf": [{"title": "a list of numbers", "type": "array", "items": WHOLE},
                   {"title": "text like '17,40-60'", "type": "string", "pattern": r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"}, WHOLE]}


@dataclass(frozen=True)
class Command:
    """body: a JSON schema of each member, made of what `_fits` knows. optional: members that may be left out."""

    name: str
    help: str
    body: dict[str, dict[str, Any]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()

    def faults(self, wanted: Any) -> list[str]:
        """What is wrong with a body; nothing: it can be carried out."""
        if not isinstance(wanted, dict):
            return ["the body is no JSON object"]
        found = [f"{key} is not a member; there {'are ' + ', '.join(self.body) if self.body else 'is none'}"
                 for key in wanted if key not in self.body]
        found += [f"{key} is missing" for key in self.body if key not in wanted and key not in self.optional]
        return found + [fault for key, schema in self.body.items() if key in wanted for fault in _faults(key, wanted[key], schema)]


COMMANDS = (
    Command("scale", "More or fewer shards, slots evened out; \"auto\" hands back to the policy",
            {"shards": {"oneOf": [WHOLE, AUTO]}}),
    Command("drain", "The slots of a shard go to the others, then it is removed", {"shard": WHOLE}),
    Command("move", "Slots to a shard; nothing is lost, repeated or reordered",
            {"slots": SLOTS, "to": WHOLE}),
    Command("rebalance", "Even out the slots over the shards, with the fewest moves"),
    Command("reload", "Every worker is replaced by a fresh one, with what the configuration says now"),
    Command("stop", "Drain and stop; now: leave what is not handled in shared memory", {"now": SWITCH}, ("now",)),
)
READS = {
    "/": ("The page: an engine as it runs, for a browser", "text/html"),
    "/page/{file}": ("What the page is made of", "text/javascript"),
    "/access": ("What whoever asks may do: all, read, or with a token", "application/json"),
    "/slots": ("The shard of every slot, in order", "application/json"),
    "/lanes/{shard}": ("The open lanes of a shard, one for each producer", "application/json"),
    "/status": ("The document of `shardmem status --json`", "application/json"),
    "/metrics": ("The figures of docs/metrics.md, as Prometheus text or OpenMetrics", "text/plain"),
    "/livez": ("200 while the supervisor's loop goes round, else 503 with reasons", "application/json"),
    "/readyz": ("200 while every slot has a live owner, else 503 with reasons", "application/json"),
    "/openapi.json": ("This document", "application/json"),
}
_IS: dict[str, Any] = {"integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
                       "string": lambda value: isinstance(value, str), "boolean": lambda value: isinstance(value, bool),
                       "array": lambda value: isinstance(value, list)}


def _faults(key: str, value: Any, schema: dict[str, Any]) -> list[str]:
    return [] if _fits(value, schema) else [f"{key}={value!r} is {_wrong(schema)}"]


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if "oneOf" in schema:
        return any(_fits(value, each) for each in schema["oneOf"])
    return (_IS[schema["type"]](value) and value in schema.get("enum", (value,))
            and ("pattern" not in schema or re.fullmatch(schema["pattern"], value) is not None)
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
    for path, (text, kind) in READS.items():
        answers = {"200": answer(text, kind), "403": answer("Not for you", schema=problem)}
        if path in ("/livez", "/readyz"):
            answers["503"] = answer("It is not, and why")
        named = re.findall(r"{(\w+)}", path)
        if named:
            answers["404"] = answer("There is none", schema=problem)
        paths[path] = {"get": {"operationId": re.sub(r"\W", "", path) or "page", "summary": text, "responses": answers,
                               "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                                              for name in named]}}
    for each in COMMANDS:
        required = [key for key in each.body if key not in each.optional]
        schema = {"type": "object", "properties": each.body, "additionalProperties": False,
                  **({"required": required} if required else {})}
        paths[f"/{each.name}"] = {"post": {
            "operationId": each.name, "summary": each.help, "security": [{}, {"token": []}],
            "requestBody": {"required": bool(required), "content": {"application/json": {"schema": schema}}},
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
