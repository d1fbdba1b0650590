"""Doctor: can the brokers of [source] be reached from here, and does what is configured fit to what they have?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shardmem.config import Config
from shardmem.errors import ShardmemError
from shardmem.host.doctor import ERROR, OK, WARNING, Check
from shardmem.sources.configured import SourceSettings, sources_in
from shardmem.sources.kinds import Reach
from shardmem.text import plural

TIMEOUT = 10.0  # seconds that a broker has to answer
FEW = 4  # slots of a partition below which its keys cannot spread over shards


def brokers(config: Config) -> Iterator[Check]:
    if config.source is None:
        return
    for each in sources_in(config.source, config.schema):
        reach: Any = getattr(each.kind, "reach", None)
        if each.ownership is None or reach is None:
            continue
        name = f"source {each.name}"
        try:
            found: Reach = reach(each.own, TIMEOUT)
        except ShardmemError as error:
            yield Check(
                name,
                ERROR,
                f"not reached: {error}",
                error.hint or "start the broker; see whether a firewall is in the way",
            )
            continue
        yield from _judge(name, each, found, config.slots)


def _judge(name: str, source: SourceSettings, found: Reach, slots: int) -> Iterator[Check]:
    assert source.ownership is not None
    topics = source.own.topics if hasattr(source.own, "topics") else source.own.subscription.topics
    missing = [topic for topic in topics if topic not in found.counts]
    if missing:
        yield Check(name, WARNING, f"there is no topic {', '.join(missing)}", "create it: until then the source waits")
    if not found.counts:
        return
    if not found.together:
        yield Check(
            name,
            WARNING,
            f"partitions of equal number of {', '.join(found.counts)} may come to different hosts",
            "no action where handlers keep no state for keys of several topics; else give the topics equally many "
            "partitions and use the new protocol of groups with group.remote.assignor = range",
        )
    largest, told = max(found.counts.values()), source.ownership.partitions
    each = slots >> (largest - 1).bit_length()
    said = ", ".join(f"{topic}: {plural(count, 'partition')}" for topic, count in found.counts.items())
    said += f", {found.protocol}" if found.protocol else ""
    if told is not None and told != largest:
        yield Check(name, ERROR, f"{said}; source.partitions={told}", f"write partitions = {largest}, or leave it out")
    elif not each:
        yield Check(
            name, ERROR, f"{said}; {slots} slots", f"raise slots to {FEW << (largest - 1).bit_length()} or more"
        )
    elif each < FEW:
        remedy = f"raise slots to {FEW << (largest - 1).bit_length()} or more: the keys of a partition go to "
        remedy += f"{plural(each, 'shard')} at most"
        yield Check(name, WARNING, f"{said}; {slots} slots", remedy)
    elif found.patience is not None and source.ownership.drain_timeout >= found.patience:
        yield Check(
            name,
            WARNING,
            f"drain_timeout is {source.ownership.drain_timeout:g} s, and the broker waits {found.patience:g} s for a "
            "partition to be given up",
            "lower drain_timeout, or let the broker wait longer",
        )
    else:
        yield Check(name, OK, f"{said}, {plural(each, 'slot')} for each")
