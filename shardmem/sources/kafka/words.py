"""What the errors of Kafka mean for a source."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Sort(enum.Enum):
    AWAY = "away"  # a broker, or its answer: it comes back, or another takes over
    HELD = "held"  # the name of a static member, by one that has died and is not given up yet
    REFUSED = "refused"  # by the broker, or its certificate by us, until one of both changes
    FATAL = "fatal"
    NOTE = "note"


@dataclass(frozen=True)
class Trouble:
    sort: Sort
    number: int
    text: str


# numbers of the library (below 0) and of the protocol
_AWAY = {
    -195,  # transport
    -193,  # name not resolved
    -187,  # all brokers down
    -185,  # timed out
    -180,  # waiting for the coordinator
    -166,  # timed out in the queue
    -146,  # unknown broker
    -137,  # the broker goes away
    3,  # unknown topic or partition
    5,  # leader not available
    6,  # not the leader
    7,  # request timed out
    8,  # broker not available
    14,  # coordinator loads
    15,  # coordinator not available
    16,  # not the coordinator
}
_REFUSED = {
    -181,  # TLS
    -169,  # authentication
    30,  # group authorization
    31,  # cluster authorization
    33,  # SASL mechanism
    58,  # SASL authentication
}
_FATAL = {29}  # topic authorization: of one topic, while others flow
_HELD = 111  # unreleased instance id

UNANSWERED = -185  # timed out
# After these the library gives all partitions up, and says so. After a stale generation or epoch it keeps them: it is a
# member still, in a rebalance, and whoever took them for lost would leave them to nobody.
SUPERSEDED = {
    -142,  # assignment lost
    25,  # unknown member id
    82,  # fenced instance id
    110,  # fenced member epoch
}
AGAIN = {
    14,  # coordinator loads
    16,  # not the coordinator
    22,  # illegal generation: the next one is on its way
    27,  # rebalance in progress
    113,  # stale member epoch: likewise
    -180,  # waiting for the coordinator
}


def refusal(text: str) -> str:
    """What is said of what was refused; without how long it took, which is another each time."""
    return f"Kafka refuses: {re.sub(r' [(]after [0-9]+ms in state [^)]*[)]', '', text)}"


def sort_of(number: int, fatal: bool = False) -> Sort:
    if number == _HELD:
        return Sort.HELD
    if number in _REFUSED:
        return Sort.REFUSED
    if fatal or number in _FATAL:
        return Sort.FATAL
    return Sort.AWAY if number in _AWAY else Sort.NOTE
