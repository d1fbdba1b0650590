"""NATS JetStream as a kind of source: [source] with kind = "nats"."""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.sources.kinds import EngineContext, Subscription, read_table, subscription_of
from shardmem.sources.nats.settings import NatsTable

if TYPE_CHECKING:
    from shardmem.sources.nats.source import NatsSource

is_broker = True


@dataclass(frozen=True)
class NatsSettings:
    subscription: Subscription
    nats: NatsTable


def settings_of(table: Mapping[str, Any], schema: Schema) -> NatsSettings:
    """Raises ConfigError with every fault."""
    faults: list[str] = []
    _only(table, {"nats", *(each.name for each in fields(Subscription))}, "", faults)
    subscription: Subscription = subscription_of(table, faults)
    if subscription.group is not None and not re.fullmatch(r"[-/_=.A-Za-z0-9]+", subscription.group):
        faults.append(f"group={subscription.group!r} is not usable: letters, digits and -/_=.")
    faults += [f"topics: {name} has wildcards" for name in subscription.topics or () if re.search(r"[*>\s]", name)]
    own = table.get("nats", {})
    if not isinstance(own, Mapping):
        faults.append(f"nats={own!r} is not a table")
        own = {}
    _only(own, {each.name for each in fields(NatsTable)}, "nats.", faults)
    own_faults: list[str] = []
    nats = read_table(NatsTable, own, own_faults)
    if not 1.0 <= nats.session <= 3600:
        own_faults.append(f"session={nats.session:g} s is outside 1 s to 1 h")
    if schema.dtype is not None:
        faults.append("kind='nats' feeds engines of events; this one has a dtype")
    if faults or own_faults:
        raise ConfigError([*faults, *(f"nats.{fault}" for fault in own_faults)])
    return NatsSettings(subscription, nats)


def _only(table: Mapping[str, Any], known: set[str], before: str, faults: list[str]) -> None:
    for name in sorted(table.keys() - known):
        near = difflib.get_close_matches(name, sorted(known), 1)
        faults.append(f"{before}{name} is not a setting{f'; did you mean {near[0]}?' if near else ''}")


def open_source(settings: NatsSettings, engine: EngineContext) -> NatsSource:
    """Raises ConfigError, when nats-py is not installed."""
    try:
        from shardmem.sources.nats.source import NatsSource
    except ModuleNotFoundError as error:
        raise ConfigError(f"kind='nats' needs {error.name}", hint="Install it: pip install 'shardmem[nats]'") from None
    member = settings.nats.member or f"{socket.gethostname()}:{engine.engine}"
    return NatsSource(settings.subscription, settings.nats, settings.subscription.group or engine.engine, member)


def table_of(url: SplitResult, query: Mapping[str, Any]) -> dict[str, Any]:
    """nats://host:port,host:port/topic,topic?group=name&stream=NAME; what is no setting of all brokers is one of
    [source.nats]."""
    own = {name: value for name, value in query.items() if name not in {each.name for each in fields(NatsTable)}}
    nats = {name: value for name, value in query.items() if name not in own}
    account, at, hosts = url.netloc.rpartition("@")
    servers = [f"nats://{account}{at}{host}" for host in hosts.split(",") if host]
    topics = [topic for topic in unquote(url.path).strip("/").split(",") if topic]
    return {"topics": topics, **own, "nats": {**({"servers": servers} if servers else {}), **nats}}
