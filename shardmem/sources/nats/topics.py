"""How a topic lies in a stream: which of its messages are one partition, and what of a message is its key.

A stream that maps `clicks.*` to `clicks.{{partition(8,1)}}.{{wildcard(1)}}` gives each message the number of its
partition, the same for the same token: topic `clicks` has partitions 0 to 7, and the key is what comes after the
number. The mapping may be the account's as well; then the stream does not show it. Without one, the topic is one
partition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shardmem.sources.contract import SourceError

_MAPPED = re.compile(r"(.+)\.\{\{\s*partition\(\s*([0-9]+)\s*,[^}]*\}\}(\..*)?")


@dataclass(frozen=True)
class Topic:
    """partitions: None: it has no numbers in its subjects."""

    name: str
    stream: str
    partitions: int | None

    @property
    def count(self) -> int:
        return self.partitions or 1

    def filters(self, number: int) -> list[str]:
        """Subjects of a partition."""
        subject = self.name if self.partitions is None else f"{self.name}.{number}"
        return [subject, f"{subject}.>"]

    def key_of(self, subject: str) -> str | None:
        """What of the subject is the key, if anything is."""
        rest = subject[len(self.name) + 1 :]
        return (rest if self.partitions is None else rest.partition(".")[2]) or None


def topic_of(name: str, config: Any, partitions: int | None) -> Topic:
    """config: of the stream. partitions: as configured. Raises SourceError."""
    if config.retention not in (None, "limits"):
        raise SourceError(
            f"stream {config.name} removes messages that were acknowledged (retention {config.retention}), and a "
            "partition that another host takes up is read again from its last commit",
            hint="Use a stream with retention `limits`; max_age says how long it keeps messages",
        )
    mapped = mapped_partitions(name, config)
    if partitions is not None and mapped is not None and partitions != mapped:
        raise SourceError(
            f"stream {config.name} maps topic {name} to {mapped} partitions, and nats.partitions={partitions}",
            hint="Leave nats.partitions out: the stream says it",
        )
    return Topic(name, config.name, mapped if partitions is None else partitions)


def mapped_partitions(name: str, config: Any) -> int | None:
    """What the subject transforms of a stream say of a topic, those of its sources and of what it mirrors too."""
    transforms = [config.subject_transform]
    for origin in (config.mirror, *(config.sources or ())):
        transforms += (origin and getattr(origin, "subject_transforms", None)) or []
    for transform in transforms:
        match = transform and _MAPPED.fullmatch(transform.dest)
        if match and match[1] == name:
            return int(match[2])
    return None
