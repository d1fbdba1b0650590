"""The loop that drives a source into a producer: on the command line, and in the process that a supervisor watches.

It pushes what the source has, at once; remembers where the lanes ended for each place in the source, and commits a
place when all that was pushed before it has been handled. An interrupt ends it between two events, and it says where to
go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardmem.errors import Interrupted, ShardmemError
from shardmem.runtime.attachment import Marks
from shardmem.runtime.call import DEFAULT
from shardmem.runtime.producer import Producer
from shardmem.sources.contract import Columns, Position, Rejected, Source, SourceContext
from shardmem.sources.wishes import Pause

COMMIT = 0.5  # seconds between two commits
POLL = 0.1  # the longest wait for a source, so that a stop is noticed
EVENTS = 16384
GIVE_WAY = 1.0  # seconds that one that has failed waits for that
STOP_GRACE = 2.0  # seconds that a run which is stopped waits for its events to be handled


class TooManyBad(ShardmemError):
    """More records were rejected than may be."""


@dataclass
class Limits:
    """max_bad: how many rejected records are put up with; None: any number. max_bad_share: of 1, of all records.
    events: stop after so many. rate: events in a second."""

    max_bad: int | None = 0
    max_bad_share: float | None = None
    events: int | None = None
    rate: float | None = None


@dataclass
class Tally:
    """What was done so far. Several runners may share one."""

    events: int = 0  # accepted
    dropped: int = 0  # not accepted, in a mode that drops
    bytes: int = 0
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, Position] = field(default_factory=dict)  # how far each partition was pushed
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    offered: int = 0  # taken from sources, so that several keep one limit


class Runner:
    """`run` returns when the source has ended, the limit is reached, or `stop` was set."""

    def __init__(
        self,
        source: Source,
        producer: Producer,
        *,
        limits: Limits | None = None,
        tally: Tally | None = None,
        stop: threading.Event | None = None,
        rejected: Callable[[Rejected], None] = lambda each: None,
        progress: Callable[[str], None] = lambda partition: None,
        timeout: float | None = DEFAULT,
        log: logging.Logger | None = None,
    ) -> None:
        self.source, self.producer, self.limits = source, producer, limits or Limits()
        self.tally, self.stop = tally or Tally(), stop or threading.Event()
        self._rejected, self._progress, self._timeout = rejected, progress, timeout
        self._log = log or logging.getLogger("shardmem.sources")
        self._marks: deque[tuple[Marks, dict[str, Position]]] = deque()
        self._moved: dict[str, Position] = {}  # pushed since the last mark
        self._committed_at = time.monotonic()
        self.last_commit: float | None = None  # seconds since 1970
        self.committed: dict[str, Position] = {}
        self.partitions: set[str] = set()
        self.wanted = self.paused = Pause()
        self._seeks: deque[tuple[int, str, str | int]] = deque()
        self.sought: tuple[int, str | None, int] = (0, None, 0)  # the newest seek: why it could not be, where it led
        self.next: str | None = None  # in words, when events were not accepted and are not the last
        self._started = time.monotonic()

    def run(self) -> None:
        """Raises ShardmemError; `tally.places` says then where to go on."""
        self.source.open(self._context())
        while not self.stop.is_set() and not self.source.ended and not self._reached_limit():
            self._follow_wishes()
            columns = self.source.poll(EVENTS, POLL)
            if columns is not None:
                self._take(columns)
            self._commit()

    def finish(self, wait: bool, tick: Callable[[], None] = lambda: None, grace: float | None = None) -> bool:
        """Commits what has been handled, and first waits for that if asked to, at most so many seconds; whether all of
        it was."""
        done, deadline = not wait, None if grace is None else time.monotonic() + grace
        while not done:
            try:
                self.producer.flush(0.1)
                done = True
            except TimeoutError:
                tick()
                if deadline is None and self.stop.is_set():
                    deadline = time.monotonic() + STOP_GRACE
                if deadline is not None and time.monotonic() >= deadline:
                    break
            except ShardmemError:
                self._commit(now=True)
                self.source.close(False)
                raise
        self._commit(now=True)
        self.source.close(done)
        return done

    def interrupt(self) -> None:
        """From a signal handler, when `stop` was set: a push that waits for room ends."""
        self.producer.interrupt()

    def give_way(self) -> None:
        """It has failed, and another process goes on soon."""
        self.finish(True, grace=GIVE_WAY)

    def _context(self) -> SourceContext:
        return SourceContext(
            self._log,
            time.time,
            self.stop,
            assigned=self._assigned,
            lost=lambda parts: self.partitions.difference_update(parts),
        )

    def _assigned(self, partitions: Sequence[str]) -> None:
        self.partitions.update(partitions)
        if waiting := [each for each in partitions if each in self.paused]:
            self.source.pause(waiting)

    # ---- what people wish
    # ----------------------------------------------------------------------------------------------------

    def seek(self, number: int, partition: str, to: str | int) -> None:
        """Soon; `sought` says when it was, and what came of it."""
        self._seeks.append((number, partition, to))

    def _follow_wishes(self) -> None:
        if (wanted := self.wanted) != self.paused:
            self._set_paused(wanted)
            self.paused = wanted
        while self._seeks:
            number, partition, to = self._seeks.popleft()
            try:
                self.sought = number, None, self._go_to(partition, to).offset
            except ShardmemError as error:
                self.sought = number, str(error), 0

    def _set_paused(self, wanted: Pause) -> None:
        """A source of one partition may not look which ones it is told: it is told nothing of none."""
        if waiting := sorted(each for each in self.partitions if each in wanted):
            self.source.pause(waiting)
        if going := sorted(each for each in self.partitions if each not in wanted):
            self.source.resume(going)

    def _go_to(self, partition: str, to: str | int) -> Position:
        place = self.source.seek(partition, to)
        for moved in (self._moved, *(each for _, each in self._marks)):
            moved.pop(partition, None)  # a place behind it would be written down later
        with self.tally.lock:
            self.tally.places[partition] = place
        self.source.commit({partition: place}, True)
        self._log.info("%s: going on at byte %s, as asked", partition, f"{place.offset:,}")
        return place

    def _reached_limit(self) -> bool:
        return self.limits.events is not None and self.tally.offered >= self.limits.events

    # ---- one block
    # ------------------------------------------------------------------------------------------------------------

    def _take(self, columns: Columns) -> None:
        """Pushes the events in the order of the partition, and gives rejected records away. Raises ShardmemError."""
        if self.limits.events is not None:
            with self.tally.lock:
                most = max(0, self.limits.events - self.tally.offered)
                columns = columns.first(most) if len(columns) > most else columns
                self.tally.offered += len(columns)
        if not columns.rejected:
            self._push(columns)
        else:
            for each in columns.rejected:
                with self.tally.lock:
                    within = self._puts_up_with(self.tally.skipped + 1, self.tally.events + each.after)
                if not within:
                    good = columns.first(each.after)
                    good.bytes = (good.bytes - good.next.offset + each.position.offset) if good.in_bytes else 0
                    good.rejected, good.next = (), each.position
                    self._push(good)
                    raise TooManyBad(each.text)
                self._rejected(each)
                with self.tally.lock:
                    self.tally.skipped += 1
                    self.tally.reasons[each.reason] += 1
            self._push(columns)
        self._progress(columns.partition)

    def _puts_up_with(self, bad: int, events: int) -> bool:
        limits = self.limits
        if limits.max_bad_share is not None:
            records = bad + events
            return records < 1000 or bad <= limits.max_bad_share * records  # of few, a share says little; see the end
        return limits.max_bad is None or bad <= limits.max_bad

    def _push(self, columns: Columns) -> None:
        if self.limits.rate:
            self._slow_down(len(columns))
        accepted, count = 0, len(columns)
        try:
            if count:
                if columns.records is not None:
                    accepted = self.producer.send(columns.records, self._timeout)
                else:
                    assert columns.payloads is not None
                    accepted = self.producer.push_columns(columns.keys, *columns.payloads, timeout=self._timeout)
        except ShardmemError as error:
            left = getattr(error, "left", range(count))
            first = int(left[0]) if len(left) else count
            self._pushed(columns, count - len(left), columns.position(first))
            with self.tally.lock:
                self.tally.bytes += columns.first(first).bytes if columns.in_bytes else 0
            if len(left) and len(left) != count - first:  # a shard that had room has got later ones
                lines = "" if columns.lines is None else f"line {columns.lines[first]} on"
                self.next = (
                    f"of {columns.partition}, {lines}, {len(left):,} events were not accepted, and not only the last"
                )
            raise
        except ValueError as error:
            raise ShardmemError(f"{columns.partition}: {error}") from None
        self._pushed(columns, accepted, columns.next)
        with self.tally.lock:
            self.tally.dropped += count - accepted
            self.tally.bytes += columns.bytes

    def _pushed(self, columns: Columns, accepted: int, place: Position) -> None:
        with self.tally.lock:
            self.tally.events += accepted
            self.tally.places[columns.partition] = place
        self._moved[columns.partition] = place

    def _slow_down(self, events: int) -> None:
        assert self.limits.rate
        due = self._started + (self.tally.events + events) / self.limits.rate
        if (wait := due - time.monotonic()) > 0:
            self.stop.wait(wait)
        if self.stop.is_set():
            raise Interrupted("interrupted")

    # ---- how far it has been handled
    # ----------------------------------------------------------------------------------------

    def _commit(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._committed_at < COMMIT:
            return
        self._committed_at = time.monotonic()
        if self._moved:
            self._marks.append((self.producer.position(), self._moved))
            self._moved = {}
        handled: dict[str, Position] = {}
        while self._marks and self.producer.handled(self._marks[0][0]):
            handled.update(self._marks.popleft()[1])
        if handled:
            self.source.commit(handled, now)
            self.committed.update(handled)
            self.last_commit = time.time()

    def describe(self) -> dict[str, Any]:
        """For status."""
        lag, places = self.source.lag(), dict(self.tally.places)
        shown = [*(name for name in places if name not in lag), *lag][-100:]
        known = [behind for behind in lag.values() if behind is not None]
        return {
            "paused": self.paused.every,
            "events": self.tally.events,
            "bytes": self.tally.bytes,
            "skipped": self.tally.skipped,
            "reasons": dict(self.tally.reasons),
            "lag_bytes": sum(known) if len(known) == len(lag) else None,
            "partitions": {
                name: {
                    "offset": places[name].offset if name in places else 0,
                    "at": places[name].metadata if name in places else "",
                    "committed": self.committed[name].offset if name in self.committed else None,
                    "lag": lag.get(name, 0),
                    "state": "paused" if name in self.paused else "owned" if name in self.partitions else "ended",
                }
                for name in shown
            },
            "last_commit": self.last_commit,
            "sought": self.sought,
        }
