"""`[state]` of an engine's configuration: where the state of its partitions is kept for other hosts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmem.errors import ConfigError
from shardmem.settings import declared, setting


@dataclass(frozen=True)
class RemoteSettings:
    """The table [state]."""

    remote: str | None = setting(
        None, "where snapshots of partitions are kept: file:///directory or s3://bucket/prefix", unset="nowhere"
    )
    remote_interval: float = setting(30.0, "time between two snapshots of a partition", "seconds")
    standby: bool = setting(
        False, "whether this host fetches snapshots of partitions that others own, to take over sooner", "switch"
    )


def remote_settings(table: Any) -> RemoteSettings:
    """Checked. Raises ConfigError with every fault."""
    if table is None:
        return RemoteSettings()
    if not isinstance(table, Mapping):
        raise ConfigError(f"state={table!r} is not a table [state]")
    known, faults = declared(RemoteSettings), list[str]()
    for name in sorted(table.keys() - known.keys()):
        near = difflib.get_close_matches(name, sorted(known), 1)
        faults.append(f"state.{name} is not a setting{f'; did you mean {near[0]}?' if near else ''}")
    values = {
        name: each.read(table[name], lambda fault: faults.append(f"state.{fault}"))
        for name, each in known.items()
        if table.get(name) is not None
    }
    made = RemoteSettings(**values)
    if made.remote is not None and not re.fullmatch(r"file://(localhost)?/.+|s3://[^/]+(/.*)?", made.remote):
        faults.append(f"state.remote={made.remote!r} is neither file:///directory nor s3://bucket/prefix")
    if made.remote is None and (made.standby or "remote_interval" in values):
        faults.append("state.remote is missing: without it there are no snapshots")
    if made.remote_interval < 0.1:
        faults.append(f"state.remote_interval={made.remote_interval:g} is less than 0.1 s")
    if faults:
        raise ConfigError(faults)
    return made
