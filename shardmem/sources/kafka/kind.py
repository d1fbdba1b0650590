"""Kafka as a kind of source: [source] with kind = "kafka"."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import SplitResult, unquote

from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.settings import setting
from shardmem.sources.kafka.client import Client
from shardmem.sources.kafka.groups import ASSIGNOR, COOPERATIVE, TOGETHER, Group
from shardmem.sources.kafka.librdkafka import find
from shardmem.sources.kafka.member import LibraryClient
from shardmem.sources.kafka.source import KafkaSource
from shardmem.sources.kinds import EngineContext, Reach, Subscription, subscription_of

is_broker = True
log = logging.getLogger("shardmem.sources")
STRATEGY = "partition.assignment.strategy"
OURS = {
    "group.id": "write group under [source]",
    "enable.auto.commit": "the source commits what has been handled",
    "enable.auto.offset.store": "the source commits what has been handled",
    "enable.partition.eof": "a topic has no end",
}


@dataclass(frozen=True)
class KafkaSubscription(Subscription):
    reader: str = setting(
        "c", "what reads messages: the extension, or confluent-kafka in Python", "choice", choices=("c", "python")
    )


@dataclass(frozen=True)
class KafkaSettings:
    """librdkafka: its settings, by its names."""

    subscription: KafkaSubscription
    librdkafka: Mapping[str, str] = field(default_factory=dict, repr=False)


def settings_of(table: Mapping[str, Any], schema: Schema) -> KafkaSettings:
    """Raises ConfigError with every fault. What the library says of its settings is known when it is loaded."""
    known = {"kafka", *(each.name for each in fields(KafkaSubscription))}
    faults: list[str] = []
    for name in sorted(table.keys() - known):
        near = difflib.get_close_matches(name, sorted(known), 1)
        faults.append(f"{name} is not a setting{f'; did you mean {near[0]}?' if near else ''}")
    subscription = subscription_of(table, faults, KafkaSubscription)
    given = table.get("kafka", {})
    if not isinstance(given, Mapping):
        faults.append(f"kafka={given!r} is not a table")
        given = {}
    flat = _flat(given)
    faults += [f"kafka.{name} is not yours to set: {why}" for name, why in OURS.items() if name in flat]
    faults += [
        f"kafka.{name} is neither text nor a number"
        for name, value in flat.items()
        if not isinstance(value, (str, int, float))
    ]
    if (strategy := flat.get(STRATEGY, COOPERATIVE)) != COOPERATIVE:
        faults.append(f"kafka.{STRATEGY}={strategy!r} gives all partitions up at each rebalance; use {COOPERATIVE}")
    if not flat.get("bootstrap.servers"):
        faults.append('kafka."bootstrap.servers" is missing: host:port of a broker, or of several with commas')
    if schema.dtype is not None:
        faults.append("kind='kafka' feeds engines of events; this one has a dtype")
    if faults:
        raise ConfigError(faults)
    return KafkaSettings(subscription, {name: _text(value) for name, value in flat.items()})


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """TOML makes a table of a name with dots that is not in quotes."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def open_source(settings: KafkaSettings, engine: EngineContext) -> KafkaSource:
    """Raises ConfigError."""
    wanted = settings.subscription
    group = Group(wanted.group or engine.engine, settings.librdkafka, wanted.start)
    client = client_of(wanted.reader)
    return KafkaSource(client, wanted.topics, group, start=wanted.start, headers=wanted.headers)


def reach(settings: KafkaSettings, timeout: float) -> Reach:
    """Raises ConfigError, BrokerUnavailable."""
    wanted = settings.subscription
    group = Group(wanted.group or "doctor", settings.librdkafka, wanted.start)
    broker = client_of(wanted.reader).look(group.settings_outside(), wanted.topics, timeout)
    group.falls_back(broker)
    counts = {topic: count for topic, count in broker.counts.items() if count}
    together = group.settings(1, len(counts)).get(ASSIGNOR, TOGETHER if len(counts) < 2 else None) == TOGETHER
    together = together and len(set(counts.values())) < 2
    return Reach(counts, group.rebalance, f"{group.protocol} protocol of groups", together)


def client_of(reader: str) -> Client:
    """Raises ConfigError."""
    try:
        from shardmem.sources.kafka.fallback import PythonClient
    except ImportError as error:
        raise ConfigError(
            f"kind='kafka' needs confluent-kafka, which cannot be imported: {error}",
            hint="install it: pip install 'shardmem[kafka]'",
        ) from None
    if reader == "c":
        try:
            return LibraryClient(find())
        except (OSError, AttributeError, ImportError) as error:
            log.info("Kafka is read in Python, which costs about five times as much: %s", error)
    return PythonClient()


def table_of(url: SplitResult, query: Mapping[str, Any]) -> dict[str, Any]:
    """kafka://host:port,host:port/topic,topic?group=name&name=value; names with dots are the library's."""
    own = {name: value for name, value in query.items() if "." not in name}
    library = {name: value for name, value in query.items() if "." in name}
    topics = [topic for topic in unquote(url.path).strip("/").split(",") if topic]
    return {"topics": topics, **own, "kafka": {"bootstrap.servers": url.netloc, **library}}
