"""The types of the status document and the schema that the control API publishes are one description."""

from __future__ import annotations

import types
import typing
from typing import Any

import pytest

import shardmem
from shardmem.http.answers import Schema, array, obj, status_schema
from shardmem.status import document

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def described(hint: Any) -> Any:
    """A type in the words of a schema, as far as both say the same."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if typing.is_typeddict(hint):
        members = typing.get_type_hints(hint)
        return {"members": {key: described(member) for key, member in members.items()}}
    if origin in (typing.Union, types.UnionType):
        (inner,) = [each for each in args if each is not type(None)]
        return {"null": described(inner)}
    if origin is typing.Literal:
        return "string"
    if origin is list:
        return [described(args[0])]
    return "object" if origin is dict else PLAIN[hint]


def of_schema(schema: Schema) -> Any:
    if schema.get("nullable"):
        return {"null": of_schema({**schema, "nullable": False})}
    if schema["type"] == "array":
        return [of_schema(schema["items"])]
    if schema["type"] == "object" and schema.get("additionalProperties") is False:
        return {"members": {key: of_schema(member) for key, member in schema["properties"].items()}}
    return schema["type"]


def differences(typed: Any, said: Any, path: str = "status") -> list[str]:
    """Where they differ. A schema says number of a gauge, whole or not: the type may say more."""
    if isinstance(typed, dict) and isinstance(said, dict) and typed.keys() == said.keys() == {"members"}:
        ours, theirs = typed["members"], said["members"]
        found = [f"{path}.{key} is in one of them only" for key in sorted(ours.keys() ^ theirs.keys())]
        for key in ours.keys() & theirs.keys():
            found += differences(ours[key], theirs[key], f"{path}.{key}")
        return found
    if isinstance(typed, dict) and isinstance(said, dict) and typed.keys() == said.keys() == {"null"}:
        return differences(typed["null"], said["null"], path)
    if isinstance(typed, list) and isinstance(said, list):
        return differences(typed[0], said[0], f"{path}[]")
    return [] if typed == said or (typed, said) == ("integer", "number") else [f"{path}: {typed} and {said}"]


def test_the_types_of_the_status_document_are_its_schema():
    assert [] == differences(described(shardmem.Status), of_schema(status_schema()))


@pytest.mark.parametrize(
    "member, schema",
    [("novelty", {"type": "string"}), ("pid", {"type": "string"}), ("uptime_s", {"type": "number"}), ("pid", None)],
)
def test_a_member_that_only_one_of_them_has_or_that_has_another_type_is_found(member, schema):
    spoilt = status_schema()
    shard = dict(spoilt["properties"]["supervisor"]["properties"])
    shard.pop(member, None)
    changed = obj(**shard, **({member: schema} if schema else {}))
    if member == "uptime_s":
        changed["properties"][member] = array({"type": "number"})
    spoilt = obj(**{**spoilt["properties"], "supervisor": changed})
    found = differences(described(document.Status), of_schema(spoilt))
    assert len(found) == 1 and f"supervisor.{member}" in found[0]


def test_the_history_has_its_old_name_too(loopback):
    from shardmem.status.observer import Observer

    observer = Observer(loopback().control)
    found = observer.status()
    observer.close()
    assert found["events"] is found["history"]
