"""The contract of a source: what feeds an engine from outside. runner.py drives it; tests/sources holds each one to it.

A source reads partitions (files, or partitions of a topic), in order within each. It is called by one thread only. It
never pushes: it hands over columns, and is told with `commit` how far all of them have been handled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shardmem.errors import ShardmemError


class SourceError(ShardmemError):
    """A source cannot go on: its file cannot be read, its broker is not there."""


@dataclass(frozen=True)
class Position:
    """A place between two events of a partition. metadata: what the source needs besides, and people like to see ("line
    7")."""

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
    offsets: where each event begins. next: the place behind all of it, rejected records included. bytes: how much was
    read for it; in_bytes: places count them.
    """

    partition: str
    offsets: np.ndarray
    next: Position
    payloads: tuple[Any, np.ndarray] | None = None  # data, offsets
    keys: Any = None
    records: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    lines: np.ndarray | None = None
    rejected: Sequence[Rejected] = ()
    bytes: int = 0
    in_bytes: bool = False

    def __len__(self) -> int:
        return len(self.offsets)

    def first(self, count: int) -> Columns:
        """The first events of these."""
        every, place = slice(0, count), self.position(count)
        keys = self.keys
        if isinstance(keys, tuple):
            keys = keys[0], keys[1][: count + (keys[1].ndim == 1)]
        elif keys is not None:
            keys = keys[every] if isinstance(keys, np.ndarray) else keys[np.arange(count)]
        return Columns(
            self.partition,
            self.offsets[every],
            place,
            self.payloads and (self.payloads[0], self.payloads[1][: count + (self.payloads[1].ndim == 1)]),
            keys,
            None if self.records is None else self.records[every],
            None if self.timestamps is None else self.timestamps[every],
            None if self.lines is None else self.lines[every],
            [each for each in self.rejected if each.after <= count],
            self.bytes - (self.next.offset - place.offset) * self.in_bytes,
            self.in_bytes,
        )

    def position(self, event: int) -> Position:
        """The place before an event."""
        if event >= len(self):
            return self.next
        line = "" if self.lines is None else f"line {self.lines[event]}"
        return Position(int(self.offsets[event]), line)


def _nothing(*_: Any) -> None: ...


@dataclass
class SourceContext:
    """What a source is given when it is opened. assigned, revoking, lost: to be called with partitions that it reads
    from now on, is about to lose (with a deadline), or has lost."""

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
        """The next events of any partition that is not paused; None when there were none in time. What is at hand is
        returned at once. Raises SourceError."""
        ...

    def pause(self, partitions: Sequence[str]) -> None: ...

    def resume(self, partitions: Sequence[str]) -> None: ...

    def seek(self, partition: str, to: str | int) -> Position:
        """Go on there: "start", "end", or an offset between two events. Raises SourceError; then nothing has
        changed."""
        ...

    def lag(self) -> Mapping[str, int | None]:
        """How much of each partition is there and was not read; None: that cannot be told. Another thread may ask."""
        ...

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        """All events before these places have been handled. sync: return when that is written down."""
        ...

    def close(self, drained: bool) -> None: ...
