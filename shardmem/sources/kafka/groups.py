"""How a member joins its group: by which protocol, and with which settings of the library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONSUMER, CLASSIC = "consumer", "classic"
SESSION, HEARTBEAT = 45.0, 5.0  # seconds, as brokers and the library have them unless told otherwise
POLL_INTERVAL = 300.0

# What the new protocol leaves to the broker: whoever sets one of these wants the old one.
CLASSIC_ONLY = ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy", "group.protocol.type")
COOPERATIVE = "cooperative-sticky"
ASSIGNOR, TOGETHER = "group.remote.assignor", "range"  # partitions of equal number, of topics that have equally many
OF_GROUPS = (*CLASSIC_ONLY, "group.protocol", "group.instance.id", ASSIGNOR, "max.poll.interval.ms")

# The library bounds what it has fetched for each queue alone where partitions have queues of their own.
AHEAD_BYTES, AHEAD_EVENTS = 128 << 20, 400_000

# The library says nowhere but in its log which protocols a broker has; it would join by the new one for ever.
OUTSIDE = {"debug": "feature", "log.queue": "true"}
_HEARTBEAT = re.compile(r"ApiKey ConsumerGroupHeartbeat \(68\) Versions \d+\.\.(\d+)")
_ANY = re.compile(r"ApiKey \w+ \(\d+\) Versions")


@dataclass(frozen=True)
class Broker:
    """What a look from outside the group has shown. counts: partitions of each topic."""

    counts: dict[str, int]
    has_new_protocol: bool


def has_new_protocol(lines: Iterable[str]) -> bool:
    """Of the lines that the library logs when it has connected; if it does not say, yes. The library needs the second
    version of the heartbeat, which came with Kafka 4.0."""
    text = "\n".join(lines)
    if found := _HEARTBEAT.search(text):
        return int(found[1]) >= 1
    return _ANY.search(text) is None


class Group:
    def __init__(self, name: str, given: Mapping[str, str], start: str) -> None:
        self.name, self._given, self._start = name, dict(given), start
        self.protocol = given.get("group.protocol", CONSUMER).lower()
        self.chosen = "group.protocol" in given  # by the user
        self.of_broker: tuple[float, float] | None = None  # session and heartbeat, if it has said so
        if not self.chosen and any(each in given for each in (*CLASSIC_ONLY, "group.instance.id")):
            self.protocol = CLASSIC

    def falls_back(self, broker: Broker) -> bool:
        """Whether the protocol had to be changed for a broker."""
        if broker.has_new_protocol or self.chosen or self.protocol == CLASSIC:
            return False
        self.protocol = CLASSIC
        return True

    @property
    def instance(self) -> str | None:
        """The fixed name of the member."""
        return self._given.get("group.instance.id")

    @property
    def session(self) -> float:
        """Seconds after which the group gives a member up that has said nothing since its last commit."""
        if self.protocol == CONSUMER:
            session, heartbeat = self.of_broker or (SESSION, HEARTBEAT)
            return max(session / 2, session - heartbeat)  # a commit does not count as a heartbeat there
        return self._seconds("session.timeout.ms", SESSION)

    @property
    def rebalance(self) -> float:
        """Seconds that a member has to give partitions up."""
        return self._seconds("max.poll.interval.ms", POLL_INTERVAL)

    def _seconds(self, name: str, unless: float) -> float:
        try:
            return int(self._given[name]) / 1000
        except (KeyError, ValueError):
            return unless

    def settings(self, partitions: int, topics: int = 1) -> dict[str, str]:
        """For a member of it; partitions: of all topics."""
        share = max(1, partitions)
        made = {
            "queued.min.messages": str(max(2000, min(100_000, AHEAD_EVENTS // share))),
            "queued.max.messages.kbytes": str(max(1024, min(65536, AHEAD_BYTES // share >> 10))),
            "fetch.wait.max.ms": "100",  # whatever else is asked of a broker waits behind it
            "auto.offset.reset": self._start,
            **self._given,
            "group.id": self.name,
            "group.protocol": self.protocol,
            "enable.auto.commit": "false",
            "enable.auto.offset.store": "false",
            "enable.partition.eof": "false",
            "log.queue": "true",
        }
        if self.protocol == CONSUMER and topics > 1:
            made.setdefault(ASSIGNOR, TOGETHER)
        if self.protocol == CLASSIC:
            made.setdefault("partition.assignment.strategy", COOPERATIVE)
        return made

    def settings_outside(self) -> dict[str, str]:
        """To ask a broker without joining."""
        return {name: value for name, value in self._given.items() if name not in OF_GROUPS}
