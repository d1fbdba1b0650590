"""The contract of a source: what feeds an engine from outside. runner.py drives it, of a broker together with
ownership.py; tests/sources holds each one to it.

A source reads partitions (files, or partitions of a topic), in order within each. It is called by one thread only. It
never pushes: it hands over columns, and is told with `commit` how far all of them have been handled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeGuard

import numpy as np

from shardmem.errors import ShardmemError
from shardmem.runtime.columns import Keys, spans_of


class SourceError(ShardmemError):
    """A source cannot go on: its file cannot be read, its broker refuses it."""


class BrokerUnavailable(SourceError):
    """The broker does not answer, or does not know the topic yet. Nothing has failed: it is called again until it
    does, and status says what is waited for."""


@dataclass(frozen=True)
class Position:
    """A place between two events of a partition. metadata: what is kept with it and comes back with it: of a file for
    people to see ("line 7"), of a broker what ownership.py writes with a commit."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True)
class Rejected:
    """A record that is no event, and what of it: where it is, its bytes (or the first of them), why. after: how many
    events of its columns come before it."""

    partition: str
    position: Position
    reason: str  # one word for a histogram
    text: str  # for people: place and reason
    data: bytes
    after: int = 0


@dataclass
class Columns:
    """Events of one partition, in order. Its memory is the source's, until the next poll.

    An events engine gets keys and payloads, as Producer.push_columns takes them; a records engine gets records.
    offsets: where each event begins; of a broker, its own offsets, rising. next: the place behind all of it, rejected
    records included: what to commit when all of it has been handled. timestamps: int64, ms since 1970. headers: data
    and offsets, of each event in the form of Producer.push_columns. missing: bool, of events whose payload is None.
    bytes: how much was read for it; in_bytes: places count them.
    """

    partition: str
    offsets: np.ndarray
    next: Position
    payloads: tuple[Any, np.ndarray] | None = None  # data, offsets
    keys: Any = None
    records: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    headers: tuple[Any, np.ndarray] | None = None
    missing: np.ndarray | None = None
    lines: np.ndarray | None = None
    rejected: Sequence[Rejected] = ()
    bytes: int = 0
    in_bytes: bool = False

    def __len__(self) -> int:
        return len(self.offsets)

    def first(self, count: int) -> Columns:
        """The first events of these."""
        place = self.position(count)
        every = np.arange(min(count, len(self)))
        return replace(
            self.of(every),
            next=place,
            rejected=[each for each in self.rejected if each.after <= count],
            bytes=self.bytes - (self.next.offset - place.offset) * self.in_bytes,
        )

    def of(self, events: np.ndarray) -> Columns:
        """These events of it, by number, rising; the place behind all of it stays."""
        keys = self.keys
        if isinstance(keys, tuple):
            keys = keys[0], spans_of(keys[1])[events], *keys[2:]
        elif keys is not None:
            keys = keys[events]

        def part(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[events]

        def parts(column: tuple[Any, np.ndarray] | None) -> tuple[Any, np.ndarray] | None:
            return None if column is None else (column[0], spans_of(column[1])[events])

        return replace(
            self,
            offsets=self.offsets[events],
            payloads=parts(self.payloads),
            keys=keys,
            records=part(self.records),
            timestamps=part(self.timestamps),
            headers=parts(self.headers),
            missing=part(self.missing),
            lines=part(self.lines),
        )

    def kept(self, events: np.ndarray) -> Columns:
        """These events of it, in memory of their own: they outlive the next poll."""
        some = self.of(events)

        def copied(column: tuple[Any, np.ndarray] | None) -> tuple[Any, np.ndarray] | None:
            return None if column is None else _packed(*column)

        keys = some.keys
        if isinstance(keys, Keys) and keys.offsets is not None:
            keys = Keys(keys.kinds, keys.numbers, *_packed(keys.data, keys.offsets))
        elif isinstance(keys, tuple):
            keys = *_packed(*keys[:2]), *keys[2:]
        return replace(some, payloads=copied(some.payloads), keys=keys, headers=copied(some.headers), rejected=())

    def position(self, event: int) -> Position:
        """The place before an event."""
        if event >= len(self):
            return self.next
        line = "" if self.lines is None else f"line {self.lines[event]}"
        return Position(int(self.offsets[event]), line)


def _packed(data: Any, offsets: np.ndarray) -> tuple[bytes, np.ndarray]:
    memory = memoryview(data)
    pieces = [bytes(memory[first:last]) for first, last in spans_of(offsets).tolist()]
    return b"".join(pieces), np.cumsum([0, *map(len, pieces)])


def sizes_of(columns: Columns) -> np.ndarray:
    """Bytes of payload and key of each event."""
    assert columns.payloads is not None
    total: np.ndarray = np.diff(spans_of(columns.payloads[1]), axis=1).ravel()
    keys = columns.keys
    offsets = keys.offsets if isinstance(keys, Keys) else keys[1] if isinstance(keys, tuple) else None
    return total if offsets is None else total + np.diff(spans_of(offsets), axis=1).ravel()


def _nothing(*_: Any) -> None: ...


@dataclass
class SourceContext:
    """What a source is given when it is opened. The calls are made from within `poll` (of a file also `open`), on its
    thread.

    assigned: with partitions that it reads from now on; of a broker with every assignment, also one of none. revoking:
    with partitions that it is about to give up in good order, and the moment (time.monotonic) by which it has to
    return: it returns when all that was read of them has been handled and committed, or when it is too late for that.
    lost: with partitions that another may own already.
    """

    log: logging.Logger
    clock: Callable[[], float]
    stop: threading.Event
    assigned: Callable[[Sequence[str]], None] = field(default=_nothing)
    revoking: Callable[[Sequence[str], float], None] = field(default=_nothing)
    lost: Callable[[Sequence[str]], None] = field(default=_nothing)


class Source(Protocol):
    ended: bool  # nothing will come any more

    def open(self, context: SourceContext) -> None: ...

    def poll(self, max_events: int, timeout: float) -> Columns | None:
        """The next events of any partition that is not paused; None when there were none in time, and at once when
        partitions were assigned: they wait to be told where to begin. What is at hand is returned at once. Raises
        SourceError."""
        ...

    def pause(self, partitions: Sequence[str]) -> None:
        """Twice is once. What is read ahead of them is kept, and not handed over. Of a broker: those that it does not
        have are passed over."""
        ...

    def resume(self, partitions: Sequence[str]) -> None: ...

    def seek(self, partition: str, to: str | int) -> Position:
        """Go on there: "start", "end", or an offset between two events. Raises SourceError; then nothing has
        changed."""
        ...

    def lag(self) -> Mapping[str, int | None]:
        """How much of each partition is there and was not read, of a broker in events, else in bytes; None: that cannot
        be told. Another thread may ask."""
        ...

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        """All events before these places have been handled. sync: return when that is written down. Raises SourceError
        then; of a broker Superseded when it refuses because another owns one of them: none of them counts as written,
        and all of them have been lost; those that are still its own are assigned once more. Without sync an error is
        passed over, since the next commit says more."""
        ...

    def close(self, drained: bool) -> None: ...


class BrokerSource(Source, Protocol):
    """A source whose partitions other hosts may own. They are called topic/number, see `partition_of`.

    topics: their order is their number. session: seconds after which another may own what it owned, when the broker
    hears no more of it.
    """

    topics: Sequence[str]
    session: float

    def partition_counts(self, timeout: float) -> Mapping[str, int]:
        """Of each topic. Raises SourceError, BrokerUnavailable; after `open`."""
        ...

    def committed(self, partitions: Sequence[str], timeout: float) -> Mapping[str, Position | None]:
        """None: nothing yet. Raises SourceError, BrokerUnavailable."""
        ...

    def start(self, partition: str, offset: int | None) -> None:
        """Deliver it from here on; before that, nothing of it is. Called once for each time that it was assigned, then
        or later. None: as the setting `start` says. One that it does not have any more is passed over."""
        ...

    def confirmed_ns(self) -> int:
        """CLOCK_BOOTTIME at the beginning of the last round in which the broker said that this member owns what it
        owns; 0: never."""
        ...


def is_broker(source: Source) -> TypeGuard[BrokerSource]:
    return hasattr(source, "committed")


def partition_of(topic: str, number: int) -> str:
    return f"{topic}/{number}"


def topic_and_number(partition: str) -> tuple[str, int]:
    topic, _, number = partition.rpartition("/")
    return topic, int(number)
