"""Which partitions of a broker are ours, from when, and how far they have come."""

from __future__ import annotations

from dataclasses import dataclass

from shardmem.settings import setting


@dataclass(frozen=True)
class OwnershipSettings:
    """Settings that all brokers have, whatever kind."""

    drain_timeout: float = setting(
        20.0, "longest wait, before a partition is given up, for its events to be handled", "seconds"
    )
    commit_interval: float = setting(1.0, "time between two commits", "seconds")
    fence: bool = setting(
        True, "whether workers stop at a partition that another host may own; false: they finish it", "switch"
    )
    partitions: int | None = setting(
        None, "partitions that the topic has, to accept that their number has changed", "number", least=1, most=1024,
        unset="as the broker says",
    )  # fmt: skip
