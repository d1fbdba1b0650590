"""What the control API offers, each declared once: bodies are checked against this; OpenAPI and `--help` are made of
it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

WHOLE = {"title": "a whole number", "type": "integer"}  # how large it may be depends on the engine, and it says so
AUTO = {"title": "'auto'", "type": "string", "enum": ["auto"]}
SWITCH = {"title": "true or false", "type": "boolean"}
DEADLINE: dict[str, Any] = {
    "title": "a number of seconds from 0 to 86400",
    "type": "number",
    "minimum": 0,
    "maximum": 86400,
}
LANES = 10  # seconds for which a replay waits for room, in all, unless it is told otherwise
SECONDS = {"title": "a number of seconds from 0 to 60", "type": "number", "minimum": 0, "maximum": 60}
IDS = {"title": "a list of the numbers of events", "type": "array", "items": WHOLE, "minItems": 1}
ALL = {"title": "true", "type": "boolean", "enum": [True]}
TEXT = {"title": "text", "type": "string"}
PARTITIONS = {"title": "a list of names", "type": "array", "items": TEXT, "minItems": 1}
PLACE = {
    "oneOf": [
        {"title": "'start' or 'end'", "type": "string", "enum": ["start", "end"]},
        {"title": "an offset", "type": "integer", "minimum": 0, "maximum": (1 << 63) - 1},
    ]
}
SLOTS = {
    "oneOf": [
        {"title": "a list of numbers", "type": "array", "items": WHOLE},
        {"title": "text like '17,40-60'", "type": "string", "pattern": r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"},
        WHOLE,
    ]
}


@dataclass(frozen=True)
class Command:
    """help: one line for the command line and OpenAPI, and the first line of the docstrings of Client and Engine. more:
    sentences for OpenAPI. answer: a name of answers.COMPONENTS. body: a JSON schema of each member, made of what
    `_fits` knows. optional: members that may be left out. one_of: exactly one of these is required."""

    name: str
    help: str
    answer: str
    body: dict[str, dict[str, Any]] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    more: str = ""

    def faults(self, wanted: Any) -> list[str]:
        """What is wrong with a body; nothing: it can be carried out."""
        if not isinstance(wanted, dict):
            return ["the body is not a JSON object"]
        found = [
            f"{key} is not a member of the body; "
            + (f"its members are {', '.join(self.body)}" if self.body else "it has none")
            for key in wanted
            if key not in self.body
        ]
        found += [f"{key} is missing" for key in self.required if key not in wanted]
        if self.one_of and sum(key in wanted for key in self.one_of) != 1:
            found.append(f"exactly one of {', '.join(self.one_of)} is required")
        return found + [
            fault for key, schema in self.body.items() if key in wanted for fault in _faults(key, wanted[key], schema)
        ]

    @property
    def required(self) -> list[str]:
        return [key for key in self.body if key not in (*self.optional, *self.one_of)]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the body."""
        return {
            "type": "object",
            "properties": self.body,
            "additionalProperties": False,
            **({"required": self.required} if self.required else {}),
            **({"oneOf": [{"required": [key]} for key in self.one_of]} if self.one_of else {}),
        }


@dataclass(frozen=True)
class Read:
    """Something to read. answer: a name of answers.COMPONENTS, or "string". kinds: its content types. private: over TCP
    it needs the token, because keys and payloads are the users' data. values: a JSON schema of each {part} of the path.
    refused: what 503 means; empty: there is none. problems: other status codes.
    """

    path: str
    help: str
    answer: str
    kinds: tuple[str, ...] = ("application/json",)
    private: bool = False
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: str = ""
    problems: tuple[str, ...] = ()


COMMANDS = (
    Command(
        "scale",
        "Change the number of shards and even out the slots",
        "Scaled",
        {"shards": {"oneOf": [WHOLE, AUTO]}, "timeout": DEADLINE},
        {"shards": 2},
        optional=("timeout",),
        more='"auto" hands control of the number back to the policy.',
    ),
    Command(
        "drain",
        "Hand a shard's slots to the others, then stop and remove it",
        "Drained",
        {"shard": WHOLE, "timeout": DEADLINE},
        {"shard": 1},
        optional=("timeout",),
    ),
    Command(
        "move",
        "Move slots to a shard while events flow",
        "Moved",
        {"slots": SLOTS, "to": WHOLE, "timeout": DEADLINE},
        {"slots": "17,40-60", "to": 1},
        optional=("timeout",),
        more="No event is lost, repeated or reordered.",
    ),
    Command(
        "rebalance",
        "Even out the slots over the shards, with the fewest moves",
        "Moved",
        {"timeout": DEADLINE},
        optional=("timeout",),
    ),
    Command(
        "reload",
        "Replace all workers, with configuration and handler read again",
        "Reloaded",
        {"timeout": DEADLINE},
        optional=("timeout",),
        more="Events keep flowing. If a new worker cannot start, the others stay as they are.",
    ),
    Command("cordon", "Keep a shard from taking more slots", "Placed", {"shard": WHOLE}, {"shard": 1}),
    Command("uncordon", "Let a cordoned shard take slots again", "Placed", {"shard": WHOLE}, {"shard": 1}),
    Command(
        "pin",
        "Move slots to a shard and keep them there",
        "Pinned",
        {"slots": SLOTS, "to": WHOLE, "timeout": DEADLINE},
        {"slots": "17", "to": 1},
        optional=("timeout",),
    ),
    Command("unpin", "Let the strategy move pinned slots again", "Placed", {"slots": SLOTS}, {"slots": "17"}),
    Command(
        "moves",
        "Suspend or resume the moves of the strategy",
        "Placed",
        {"suspended": SWITCH},
        {"suspended": True},
        more="Moves on request, drains and pins go on.",
    ),
    Command(
        "source/pause",
        "Let a source, or partitions of it, read no more",
        "Paused",
        {"source": TEXT, "partitions": PARTITIONS, "timeout": DEADLINE},
        optional=("source", "partitions", "timeout"),
        more="What was read is handled. It holds for the next run of the engine, too. source: its name, where there "
        "are several.",
    ),
    Command(
        "source/resume",
        "Let a source, or partitions of it, go on",
        "Paused",
        {"source": TEXT, "partitions": PARTITIONS, "timeout": DEADLINE},
        optional=("source", "partitions", "timeout"),
        more="Without partitions: all of it.",
    ),
    Command(
        "source/seek",
        "Let a partition of a source go on elsewhere",
        "Sought",
        {"source": TEXT, "partition": TEXT, "to": PLACE, "timeout": DEADLINE},
        {"partition": "clicks/3", "to": "start"},
        optional=("source", "timeout"),
        more="A file or topic/number, at 'start', 'end', or an offset, of a file a byte. Events before it are not "
        "taken back; those behind it come again.",
    ),
    Command(
        "quarantine/replay",
        "Push events in quarantine again, as new events",
        "Replayed",
        {"ids": IDS, "all": ALL, "timeout": SECONDS},
        {"ids": [1, 2]},
        optional=("timeout",),
        one_of=("ids", "all"),
        more=f"timeout: how long to wait for room in lanes, {LANES} s unless given. "
        "The answer says which events are left and why.",
    ),
    Command(
        "quarantine/purge",
        "Delete events in quarantine permanently",
        "Purged",
        {"ids": IDS, "all": ALL},
        {"all": True},
        one_of=("ids", "all"),
        more="all: including events that were replayed.",
    ),
    Command(
        "stop",
        "Drain an engine and stop it",
        "Stopping",
        {"now": SWITCH},
        {"now": False},
        optional=("now",),
        more="now: do not drain; events that are not handled stay in shared memory for the next run.",
    ),
)


def summary(name: str) -> str:
    """The one line of a command, as a sentence."""
    return next(f"{command.help}." for command in COMMANDS if command.name == name)


PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE_FILES = {
    name: PAGE_TYPES[name[name.index(".") :]]
    for name in (
        "page.html",
        "host.html",
        "page.css",
        "icon.svg",
        "charts.js",
        "dialog.js",
        "host.js",
        "orders.js",
        "page.js",
        "quarantine.js",
        "slots.js",
        "sources.js",
        "tables.js",
        "words.js",
    )
}
SHARD: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 99_999, "example": 0}
READS = (
    Read("/", "A page for a browser that shows the engine as it runs", "string", ("text/html",)),
    Read("/host", "A page that shows the engines of this machine, a line each", "string", ("text/html",)),
    Read(
        "/page/{file}",
        "A file of the page",
        "string",
        tuple(sorted(set(PAGE_FILES.values()))),
        problems=("404",),
        values={"file": {"type": "string", "enum": list(PAGE_FILES)}},
    ),
    Read("/access", "What this connection may do: all; read only; or, with the token, all", "Access"),
    Read("/slots", "The shard that owns each slot, in order of the slots", "Slots"),
    Read(
        "/lanes/{shard}",
        "The open lanes of a shard, one for each producer",
        "Lanes",
        problems=("404",),
        values={"shard": SHARD},
    ),
    Read(
        "/status",
        "The status document, as `shardmem status --json` prints it; without the token, what handlers and errors said "
        "is left out",
        "Status",
    ),
    Read(
        "/sources",
        "What feeds the engine from outside: what each source does, how far it is in each partition, and why not "
        "further; without the token, names and errors are left out",
        "Sources",
    ),
    Read(
        "/quarantine",
        "The newest 100 events in quarantine that were not replayed, without payloads; their number, and the limit",
        "Quarantine",
        private=True,
        problems=("409",),
    ),
    Read(
        "/quarantine/{id}",
        "One event in quarantine, with traceback, key and payload",
        "Quarantined",
        private=True,
        problems=("404", "409"),
        values={"id": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999_999, "example": 1}},
    ),
    Read(
        "/state/{name}/{key}",
        "The last saved value of a key of a keyed state; the key is text, or else a number, or else bytes",
        "StateValue",
        private=True,
        problems=("404", "409"),
        values={"name": {"type": "string", "example": "visits"}, "key": {"type": "string", "example": "ann"}},
    ),
    Read(
        "/metrics",
        "The metrics, as Prometheus text or OpenMetrics",
        "string",
        ("text/plain", "application/openmetrics-text"),
    ),
    Read("/livez", "Whether the supervisor responds", "Live", refused="It does not; the reasons"),
    Read("/readyz", "Whether every slot has a live owner", "Ready", refused="A slot has no live owner; the reasons"),
    Read(
        "/settings", "Every setting that is in force, with its default and where it was set", "Settings", private=True
    ),
    Read("/series", "Figures of the last hour, every 5 s, as the page draws them", "Series"),
    Read("/engines", "The engines of this user on this machine, a line each", "Engines"),
    Read(
        "/log",
        "The last 200 records of the log, of supervisor, workers and sources",
        "Log",
        private=True,
        problems=("409",),
    ),
    Read(
        "/log/{shard}", "The same of one shard", "Log", private=True, problems=("404", "409"), values={"shard": SHARD}
    ),
    Read(
        "/stacks/{shard}",
        "The stack of each thread of the worker of a shard at this moment",
        "Stacks",
        private=True,
        problems=("404", "409"),
        values={"shard": SHARD},
    ),
    Read("/openapi.json", "This document", "OpenApi"),
)
_IS: dict[str, Any] = {
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
}


def _faults(key: str, value: Any, schema: dict[str, Any]) -> list[str]:
    return [] if _fits(value, schema) else [f"{key}={value!r} is {_wrong(schema)}"]


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if "oneOf" in schema:
        return any(_fits(value, each) for each in schema["oneOf"])
    return (
        _IS[schema["type"]](value)
        and value in schema.get("enum", (value,))
        and ("pattern" not in schema or re.fullmatch(schema["pattern"], value) is not None)
        and ("minimum" not in schema or schema["minimum"] <= value <= schema["maximum"])
        and ("minItems" not in schema or len(value) >= schema["minItems"])
        and ("items" not in schema or all(_fits(each, schema["items"]) for each in value))
    )


def _wrong(schema: dict[str, Any]) -> str:
    if "oneOf" in schema:
        return f"not {' or '.join(each['title'] for each in schema['oneOf'])}"
    return f"not {schema['title']}"
