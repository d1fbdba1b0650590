"""The table of the outbox (Config.outbox_table), checked, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from shardmem.config import state_directory
from shardmem.errors import ConfigError
from shardmem.sources.configured import expanded
from shardmem.sources.kafka.groups import OF_GROUPS
from shardmem.sources.outbox.files import OutboxFiles
from shardmem.sources.outbox.publisher import KafkaClient, Publisher


def library_of(table: Mapping[str, Any]) -> dict[str, str]:
    """Settings of librdkafka, by its names. Raises ConfigError."""
    faults: list[str] = []
    kafka = expanded(table.get("kafka", {}), faults, "outbox.kafka")
    if "url" in table:
        url = urlsplit(str(table["url"]))
        if url.scheme != "kafka" or not url.netloc:
            faults.append(f"outbox={table['url']!r} is not kafka://host:port")
        kafka = {"bootstrap.servers": url.netloc, **{name: text for name, text in parse_qsl(url.query) if "." in name}}
    flat = _flattened(kafka) if isinstance(kafka, Mapping) else {}
    if not faults and not flat.get("bootstrap.servers"):
        faults.append('outbox.kafka."bootstrap.servers" is missing: host:port of a broker, or of several with commas')
    if faults:
        raise ConfigError(faults)
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in flat.items()
        if name not in OF_GROUPS  # they are of the source whose broker this is
    }


def _flattened(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """TOML makes a table of a name with dots that is not in quotes."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= _flattened(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def publisher_of(table: Mapping[str, Any], directory: str, engine: str, **options: Any) -> Publisher:
    """Raises ShardmemError."""
    return Publisher(KafkaClient(library_of(table)), OutboxFiles(state_directory(directory, engine)), **options)
