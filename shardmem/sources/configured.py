"""`[source]` of an engine's configuration: what it may say, checked."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.settings import declared
from shardmem.sources.kinds import Kind, kind_named, read_table
from shardmem.sources.ownership import OwnershipSettings

ON_BAD = ("skip", "stop")
_OF_ALL = ("kind", "name", "on_bad", "dead_letter", "rate")

NoneType = type(None)


@dataclass(frozen=True)
class SourceSettings:
    """One source of an engine. own: the settings of its kind. on_bad: what is done about a record that is no event.
    ownership: of a broker."""

    name: str
    kind: Kind
    own: Any
    on_bad: str = "skip"
    dead_letter: str | None = None
    rate: float | None = None
    ownership: OwnershipSettings | None = None


def sources_in(given: Any, schema: Schema) -> list[SourceSettings]:
    """Of a table [source], or of several [[source]]. Raises ConfigError with every fault."""
    found, faults = [], []
    tables = tables_in(given)
    for number, table in enumerate(tables):
        try:
            found.append(_source_of(table, number, schema))
        except ConfigError as error:
            faults += [f"source.{fault}" for fault in error.faults]
    names = [each.name for each in found]
    faults += [
        f"source.name={name!r} is the name of two sources" for name in sorted(set(names)) if names.count(name) > 1
    ]
    if sum(each.ownership is not None for each in found) > 1:
        faults.append("source.kind is that of a broker in two sources; one can read several topics")
    if faults:
        raise ConfigError(faults)
    return found


def tables_in(given: Any) -> list[Any]:
    """One table for each source. Text: a URL, kind:path?name=value&name=value. Raises ConfigError."""
    if isinstance(given, str):
        url = urlsplit(given)
        query = {key: _plain(value) for key, value in parse_qsl(url.query, keep_blank_values=True)}
        return [{"kind": url.scheme, **_kind_of(url.scheme).table_of(url, query)}]
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, (list, tuple, NoneType)):
        raise ConfigError(f"source={given!r} is neither a URL nor a table")
    return list(given or ())


def _kind_of(name: Any) -> Kind:
    try:
        return kind_named(name)
    except ConfigError as error:
        raise ConfigError([f"source.{fault}" for fault in error.faults]) from None


def _plain(text: str) -> Any:
    return {"true": True, "false": False}.get(text, int(text) if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else text)


def expanded(value: Any, faults: list[str], name: str = "") -> Any:
    """With variables of the environment for what is "$NAME": so a secret need not stand in a file. HOSTNAME, which
    shells do not hand on, is the name of the host."""
    if isinstance(value, Mapping):
        return {key: expanded(each, faults, f"{name}.{key}" if name else str(key)) for key, each in value.items()}
    match = re.fullmatch(r"\$(?:\{(\w+)\}|(\w+))", value) if isinstance(value, str) else None
    if match is None:
        return value
    variable = match[1] or match[2]
    found = os.environ.get(variable, socket.gethostname() if variable == "HOSTNAME" else None)
    if found is None:
        faults.append(f"{name}={value!r} names a variable that is not set")
    return found or ""


def _source_of(table: Any, number: int, schema: Schema) -> SourceSettings:
    if not isinstance(table, Mapping):
        raise ConfigError(f"kind is missing: {table!r} is not a table")
    faults: list[str] = []
    table = expanded(table, faults)
    kind = kind_named(table.get("kind"))
    default = str(table["kind"]).rpartition(":")[2].rpartition(".")[2].lower()
    name = str(table.get("name", default if number == 0 else f"{default}-{number + 1}"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
        faults.append(f"name={name!r} is not usable: 1 to 32 letters, digits, '-' or '_'")
    if table.get("on_bad", "skip") not in ON_BAD:
        faults.append(f"on_bad={table['on_bad']!r} is not one of {', '.join(ON_BAD)}")
    rate = table.get("rate")
    if rate is not None and not (isinstance(rate, (int, float)) and rate > 0):
        faults.append(f"rate={rate!r} is not a number above 0")
    ownership, of_runner = None, set(_OF_ALL)
    if kind.is_broker:
        ownership = read_table(OwnershipSettings, table, faults)
        of_runner |= declared(OwnershipSettings).keys()
    own = None
    try:
        own = kind.settings_of({key: value for key, value in table.items() if key not in of_runner}, schema)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    return SourceSettings(name, kind, own, table.get("on_bad", "skip"), table.get("dead_letter"), rate, ownership)
