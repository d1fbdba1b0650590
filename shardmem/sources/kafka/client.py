"""What the source asks of a client of Kafka, and what a client tells it. There are two: member.py, through the library
itself, and fallback.py, through confluent-kafka.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from shardmem.sources.contract import Position
from shardmem.sources.kafka.commits import Committer
from shardmem.sources.kafka.groups import Broker
from shardmem.sources.kafka.messages import Messages
from shardmem.sources.kafka.words import Trouble

Partition = tuple[str, int]


class Listener(Protocol):
    """What a member calls while it is served."""

    def assigned(self, partitions: Sequence[Partition]) -> None: ...

    def revoked(self, partitions: Sequence[Partition], lost: bool) -> None: ...

    def trouble(self, trouble: Trouble) -> None: ...

    def logged(self, level: int, text: str) -> None: ...

    def commit_answered(self, serial: int, error: int) -> None: ...


class Member(Committer, Protocol):
    """Of a group: reads through the library, or through confluent-kafka."""

    def serve(self) -> None:
        """Rebalances, errors, answers to commits."""
        ...

    def read(self, most: int) -> Messages | None:
        """What is at hand of one partition that has begun and is not paused."""
        ...

    def wait(self, timeout: float) -> None:
        """Until there may be something to serve or to read."""
        ...

    def begin(self, partition: Partition, offset: int) -> bool:
        """Deliver it from there on; whether that could be done: not while it is still being assigned."""
        ...

    def seek(self, partition: Partition, offset: int) -> bool: ...

    def pause(self, partitions: Sequence[Partition]) -> None: ...

    def resume(self, partitions: Sequence[Partition]) -> None: ...

    def committed(self, partitions: Sequence[Partition], timeout: float) -> Mapping[Partition, Position | None]:
        """Raises BrokerUnavailable."""
        ...

    def positions(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        """Where each goes on, past the marks of transactions; without those that have delivered nothing."""
        ...

    def bounds_known(self, partition: Partition) -> tuple[int | None, int | None]:
        """As of the last fetch: the first offset that there is, and the next that there will be."""
        ...

    def bounds(self, partition: Partition, timeout: float) -> tuple[int, int]:
        """Asks the broker. Raises BrokerUnavailable."""
        ...

    def close(self, leave: bool) -> None:
        """leave: tell the group; otherwise it notices when the session is over."""
        ...


class Client(Protocol):
    """Makes members."""

    def check(self, settings: Mapping[str, str]) -> None:
        """Raises ConfigError: what the library says of each."""
        ...

    def look(self, settings: Mapping[str, str], topics: Sequence[str], timeout: float) -> Broker:
        """Raises BrokerUnavailable."""
        ...

    def join(self, settings: Mapping[str, str], topics: Sequence[str], listener: Listener, headers: bool) -> Member: ...
