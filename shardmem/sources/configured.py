"""`[source]` of an engine's configuration: what it may say, checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.sources.files.formats import check_fits
from shardmem.sources.files.options import FileOptions

KINDS = ("file",)
ON_BAD = ("skip", "stop")
_OWN = ("kind", "name", "path", "paths", "follow", "from_end", "on_bad", "dead_letter", "rate")

NoneType = type(None)


@dataclass(frozen=True)
class SourceSettings:
    """One source of an engine. on_bad: what is done about a record that is no event."""

    kind: str
    name: str
    paths: tuple[str, ...]
    options: FileOptions
    follow: bool = True
    from_end: bool = False
    on_bad: str = "skip"
    dead_letter: str | None = None
    rate: float | None = None


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
    if faults:
        raise ConfigError(faults)
    return found


def tables_in(given: Any) -> list[Any]:
    """One table for each source. Text: a URL, kind:path?name=value&name=value."""
    if isinstance(given, str):
        address = urlsplit(given)
        path = unquote(address.netloc + address.path)
        values = dict(parse_qsl(address.query, keep_blank_values=True))
        return [{"kind": address.scheme, "path": path, **{key: _plain(value) for key, value in values.items()}}]
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, (list, tuple, NoneType)):
        raise ConfigError(f"source={given!r} is neither a URL nor a table")
    return list(given or ())


def _plain(text: str) -> Any:
    return {"true": True, "false": False}.get(text, int(text) if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else text)


def _source_of(table: Any, number: int, schema: Schema) -> SourceSettings:
    if not isinstance(table, Mapping):
        raise ConfigError(f"kind is missing: {table!r} is not a table")
    known = {*_OWN, *(each.name for each in fields(FileOptions))}
    faults = []
    for name in sorted(table.keys() - known):
        near = difflib.get_close_matches(name, sorted(known), 1)
        faults.append(f"{name} is not a setting{f'; did you mean {near[0]}?' if near else ''}")
    if table.get("kind") not in KINDS:
        faults.append(f"kind={table.get('kind')!r} is not one of {', '.join(KINDS)}")
    paths = table.get("paths", [table["path"]] if "path" in table else [])
    paths = [paths] if isinstance(paths, str) else paths
    if not paths or not all(isinstance(path, str) and path and path != "-" for path in paths):
        faults.append("paths is missing: names of files, directories or patterns")
    name = str(table.get("name", "file" if number == 0 else f"file-{number + 1}"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
        faults.append(f"name={name!r} is not usable: 1 to 32 letters, digits, '-' or '_'")
    if table.get("on_bad", "skip") not in ON_BAD:
        faults.append(f"on_bad={table['on_bad']!r} is not one of {', '.join(ON_BAD)}")
    for flag in ("follow", "from_end"):
        if not isinstance(table.get(flag, False), bool):
            faults.append(f"{flag}={table[flag]!r} is neither true nor false")
    rate = table.get("rate")
    if rate is not None and not (isinstance(rate, (int, float)) and rate > 0):
        faults.append(f"rate={rate!r} is not a number above 0")
    options = FileOptions()
    if isinstance(table.get("key"), int):
        table = {**table, "key": str(table["key"])}
    try:
        options = FileOptions.of(**{key: value for key, value in table.items() if key in known and key not in _OWN})
        check_fits(options, schema)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    return SourceSettings(
        table["kind"],
        name,
        tuple(paths),
        options,
        table.get("follow", True),
        table.get("from_end", False),
        table.get("on_bad", "skip"),
        table.get("dead_letter"),
        rate,
    )
