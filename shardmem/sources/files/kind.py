"""Files as a kind of source: [source] with kind = "file"."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import SplitResult, unquote

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.sources.files.formats import check_fits
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.positions import Positions
from shardmem.sources.files.source import FileSource
from shardmem.sources.kinds import EngineContext
from shardmem.status.sources import file_of

is_broker = False
_OWN = ("path", "paths", "follow", "from_end")


@dataclass(frozen=True)
class FileSettings:
    paths: tuple[str, ...]
    options: FileOptions
    follow: bool = True
    from_end: bool = False


def settings_of(table: Mapping[str, Any], schema: Schema) -> FileSettings:
    """Raises ConfigError with every fault."""
    known = {*_OWN, *(each.name for each in fields(FileOptions))}
    faults = []
    for name in sorted(table.keys() - known):
        near = difflib.get_close_matches(name, sorted(known), 1)
        faults.append(f"{name} is not a setting{f'; did you mean {near[0]}?' if near else ''}")
    paths = table.get("paths", [table["path"]] if "path" in table else [])
    paths = [paths] if isinstance(paths, str) else paths
    if not paths or not all(isinstance(path, str) and path and path != "-" for path in paths):
        faults.append("paths is missing: names of files, directories or patterns")
    for flag in ("follow", "from_end"):
        if not isinstance(table.get(flag, False), bool):
            faults.append(f"{flag}={table[flag]!r} is neither true nor false")
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
    return FileSettings(tuple(paths), options, table.get("follow", True), table.get("from_end", False))


def open_source(settings: FileSettings, engine: EngineContext) -> FileSource:
    """Raises ConfigError, AlreadyRunning."""
    return FileSource(
        deque(settings.paths),
        settings.options,
        engine.schema,
        engine.largest,
        follow=settings.follow,
        from_end=settings.from_end,
        positions=Positions(file_of(engine.directory, engine.engine, engine.source, "positions")),
        keep_all=engine.keep_all,
    )


def table_of(url: SplitResult, query: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": unquote(url.netloc + url.path), **query}
