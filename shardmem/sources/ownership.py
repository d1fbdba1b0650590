"""Which partitions of a broker are ours, from when, and how far they have come.

A partition is taken up with a new epoch, at the place that its group has committed; or, when nobody else has committed
since and its events are still in the lanes, in the same epoch, behind what was pushed. It is given up in this order:
nothing more is pushed, what was pushed is handled, that is committed, the epoch ends. One that another may own already
has its epoch ended first: workers pass over what is left of it. As long as the broker confirms that it is ours, its
lease is renewed; workers take nothing of it past that.

What was read is pushed in calls of at most CALL events, none of which waits. So each is one pass over the lanes, and
the next process of this source can tell what of it was pushed, whenever this one is killed.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.errors import Backpressure, ConfigError, HandlerError, NotRunning, ShardmemError, Superseded
from shardmem.memory.partition_table import PartitionTable
from shardmem.runtime.attachment import Marks
from shardmem.runtime.columns import Origin
from shardmem.runtime.producer import Producer
from shardmem.settings import setting
from shardmem.sources.contract import BrokerSource, BrokerUnavailable, Columns, Position, SourceError, topic_and_number
from shardmem.sources.unfinished import Unfinished

CALL = 4096  # events of one call of the producer
MARK = 0.1  # seconds between two marks of what has to be handled
SLICE = 0.05  # the longest wait between two renewals of leases
ASK = 5.0  # seconds that the broker has to say what was committed
LEASE = 0.8  # of a session: its last part is for clocks that differ, and for the batch in hand
ALWAYS = (1 << 63) - 1
EARLIEST = 0


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
        None,
        "partitions that the largest topic has; needed when their number has changed",
        "number",
        least=1,
        most=1024,
        unset="as the broker says",
    )


@dataclass
class Held:
    """A partition that is ours. pushed: all before it is in the lanes. safe: all before it was handled. known: what the
    process before had pushed beyond `pushed`. read: the place behind what was read. marked: how far there are marks.
    rest: what was read and found no room."""

    partition: str
    number: int
    row: int
    epoch: int
    pushed: int
    safe: int
    committed: int | None
    known: InLanes
    read: int = 0
    marked: int = 0
    rest: Columns | None = None
    state: str = "owned"


@dataclass(frozen=True)
class InLanes:
    """Offsets that a predecessor has pushed: all before `before` but those that are missing, and the others."""

    before: int = 0
    missing: np.ndarray = np.empty(0, "u8")
    others: np.ndarray = np.empty(0, "u8")

    @property
    def end(self) -> int:
        return max(self.before, 1 + int(self.others.max(initial=-1)) if len(self.others) else 0)

    def has(self, offsets: np.ndarray) -> np.ndarray:
        found: np.ndarray = (offsets < self.before) & ~np.isin(offsets, self.missing) | np.isin(offsets, self.others)
        return found


class Ownership:
    """`assigned`, `revoking` and `lost` are what the source calls; `take` gets what it has read; `step` is called
    again and again, at least every SLICE."""

    def __init__(
        self,
        source: BrokerSource,
        producer: Producer,
        table: PartitionTable,
        settings: OwnershipSettings,
        unfinished: Unfinished,
        *,
        engine: str,
        slots: int,
        partitions: int,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """engine: what no other life of an engine is called. partitions: of the largest topic."""
        self._source, self._producer, self._table, self._settings = source, producer, table, settings
        self._unfinished, self._engine, self._log, self._clock = unfinished, engine, log, clock
        self._partitions, self._share = partitions, slots >> (partitions - 1).bit_length()
        self.held: dict[str, Held] = {}
        self.undecided: dict[str, None] = {}  # assigned; where they begin is not known yet
        self.waits_for: str | None = None
        self.committed_at: float | None = None  # clock: when everything that was handled had last been committed
        self._marks: deque[tuple[Marks, list[tuple[Held, int]]]] = deque()
        self._in_lanes = producer.recover(table)
        self._left = {row.partition: row.row for row in table.rows() if row.is_owned}  # a predecessor's
        self._opened = self._mark_due = self._commit_due = clock()
        self._fault: ShardmemError | None = None
        self._paused = False

    # ---- told by the source ------------------------------------------------------------------------------------------

    def assigned(self, partitions: Sequence[str]) -> None:
        """Where they begin is found out by the next `step`."""
        self.lost([partition for partition in partitions if partition in self.held])  # it says nothing of the meantime
        beyond = [name for name in partitions if topic_and_number(name)[1] >= self._partitions]
        if beyond:
            self._fault = self._fault or ConfigError(
                f"{beyond[0]} is there, and slots were shared among {self._partitions} partitions: the topic has "
                "grown, and keys have moved between its partitions",
                hint="Stop the engine, write `partitions = N` into [source], and run it again",
            )
        self.undecided.update(dict.fromkeys(name for name in partitions if name not in beyond))
        if partitions:
            self._end_left(but=partitions)

    def revoking(self, partitions: Sequence[str], deadline: float) -> None:
        """Returns when all that was pushed of them is handled and committed, or when it is too late for that."""
        self._give_up(partitions, min(deadline, self._clock() + self._settings.drain_timeout))

    def leave(self, deadline: float) -> bool:
        """All of them; whether all that was pushed was handled."""
        return self._give_up([*self.held, *self.undecided, *self._left], deadline)

    def _give_up(self, partitions: Sequence[str], deadline: float) -> bool:
        going = self._leaving(partitions)
        for held in going:
            held.state = "draining"
        in_time = self._finish_pushing(going, deadline) and self._drain(going, deadline)
        if not in_time:
            self._end(going)  # first: what is handled from here on is handled by the next owner
            names = ", ".join(held.partition for held in going)
            self._log.warning("%s: given up before all of it was handled: the next owner repeats the rest", names)
        self._look(going if in_time else ())
        self._commit(going)
        self._end(held for held in going if held.partition in self.held)
        return in_time

    def lost(self, partitions: Iterable[str]) -> None:
        gone = self._leaving(partitions)
        self._end(gone)
        if gone:
            names = ", ".join(held.partition for held in gone)
            self._log.warning("%s: lost to another owner; what is left of it here is passed over", names)

    def _leaving(self, partitions: Iterable[str]) -> list[Held]:
        for partition in partitions:
            self.undecided.pop(partition, None)
            if (row := self._left.pop(partition, None)) is not None:
                self._table.end(row)
        return [self.held[partition] for partition in partitions if partition in self.held]

    def _end(self, gone: Iterable[Held]) -> None:
        for held in list(gone):
            self._table.end(held.row)
            self._unfinished.clear(held.row)
            del self.held[held.partition]

    # ---- where a partition begins ------------------------------------------------------------------------------------

    def _decide(self) -> None:
        if not self.undecided:
            return
        try:
            committed = self._source.committed(list(self.undecided), min(ASK, self._source.session / 4))
        except BrokerUnavailable as error:
            self.waits_for = str(error)
            return
        self.waits_for = None
        for partition in list(self.undecided):
            del self.undecided[partition]
            self._take_up(partition, committed.get(partition))

    def _take_up(self, partition: str, committed: Position | None) -> None:
        topic, number = topic_and_number(partition)
        row = self._table.row(topic, number)
        if self._left.pop(partition, None) is not None and self._is_ours(committed, row):
            epoch, at, safe = self._table.resume(row), self._table.pushed(row), self._table.safe(row)
            known = self._known(row, epoch, at)
        else:
            at = safe = committed.offset if committed is not None else EARLIEST
            epoch, known = self._table.begin(row, at), InLanes()
            self._unfinished.clear(row)
        held = Held(partition, number, row, epoch, at, safe, committed and committed.offset, known, at, safe)
        self.held[partition] = held
        self._renew()
        if self._paused:
            self._source.pause([partition])
        nowhere = committed is None and at == EARLIEST and not known.end
        self._source.start(partition, None if nowhere else at)
        self._log.info("%s: from offset %s on, epoch %d", partition, "none" if nowhere else f"{at:,}", epoch)

    def _is_ours(self, committed: Position | None, row: int) -> bool:
        """Whether nobody else has committed since this engine pushed what is in its lanes. Who has only read it in the
        meantime has left nothing behind that counts."""
        if committed is None:
            return True
        return _who(committed.metadata) == self._engine and committed.offset <= self._table.pushed(row)

    def _known(self, row: int, epoch: int, pushed: int) -> InLanes:
        found = np.asarray(self._in_lanes.pop(row, ()), "u8")
        block = self._unfinished.get(row)
        if block is None or block.epoch != epoch or block.next <= pushed:
            return InLanes(others=found[found >= pushed])
        return InLanes(block.next, np.setdiff1d(block.left, found), found)

    def _end_left(self, but: Iterable[str] = ()) -> None:
        """Partitions that a predecessor had, and that are not ours any more: workers are not to wait for them."""
        for partition in set(self._left) - set(but) - self.undecided.keys():
            self._log.info("%s: is another's now; what is left of it here is passed over", partition)
            self._table.end(self._left.pop(partition))

    # ---- pushing -----------------------------------------------------------------------------------------------------

    def take(self, columns: Columns) -> int:
        """Pushes what is ours; how many events were accepted now."""
        held = self.held.get(columns.partition)
        if held is None:
            return 0  # it was read before it was taken from us
        if held.rest is not None:
            raise SourceError(f"the source handed over events of {held.partition} while it was paused")
        if held.known.end:
            new = np.flatnonzero(~held.known.has(columns.offsets))
            if columns.next.offset >= held.known.end:
                held.known = InLanes()
            columns = columns.of(new)
        held.read = columns.next.offset
        return self._push(held, columns)

    def _push(self, held: Held, columns: Columns) -> int:
        accepted = 0
        for first in range(0, max(1, len(columns)), CALL):
            is_last = first + CALL >= len(columns)
            part = columns if first == 0 and is_last else columns.of(np.arange(first, min(first + CALL, len(columns))))
            left = self._call(held, part) if len(part) else np.empty(0, "i8")
            accepted += len(part) - len(left)
            if len(left):
                rest = np.concatenate([first + left, np.arange(first + len(part), len(columns))])
                held.rest = columns.kept(rest)
                self._unfinished.put(held.row, held.epoch, part.offsets[left], int(part.offsets[-1]) + 1)
                self._source.pause([held.partition])
                return accepted
            held.pushed = columns.next.offset if is_last else int(part.offsets[-1]) + 1
            self._table.set_pushed(held.row, held.pushed)
        held.rest = None
        return accepted

    def _call(self, held: Held, part: Columns) -> np.ndarray:
        """The numbers of those that found no room. Raises ShardmemError."""
        assert part.payloads is not None
        try:
            self._producer.push_columns(
                part.keys,
                *part.payloads,
                timeout=0,
                origin=Origin(held.row, held.epoch, part.offsets),
                timestamps=part.timestamps,
                headers=part.headers,
                missing=part.missing,
            )
        except Backpressure as error:
            if isinstance(error, NotRunning):
                raise
            return np.asarray(error.left)
        except ValueError as error:
            raise SourceError(f"{held.partition}: {error}") from None
        return np.empty(0, "i8")

    def _push_rests(self, those: Iterable[Held]) -> int:
        accepted = 0
        for held in list(those):
            if held.rest is not None:
                accepted += self._push(held, held.rest)
        return accepted

    def _finish_pushing(self, those: list[Held], deadline: float) -> bool:
        """What was pushed in part has to be pushed wholly, or its next owner would repeat the part."""
        while any(held.rest is not None for held in those):
            self._push_rests(those)
            self._renew()
            if self._clock() >= deadline:
                return False
            self._wait()
        return True

    # ---- handled, committed ------------------------------------------------------------------------------------------

    def step(self) -> int:
        """How many events were accepted that had found no room before. Raises ShardmemError."""
        if self._fault is not None:
            raise self._fault
        self._renew()
        self._decide()
        if self._left and self._clock() - self._opened > self._source.session:
            self._end_left()
        waiting = [held for held in self.held.values() if held.rest is not None]
        accepted = self._push_rests(waiting)
        if not self._paused and (roomy := [held.partition for held in waiting if held.rest is None]):
            self._source.resume(roomy)
        self._look()
        if self._clock() >= self._mark_due:
            self._mark_due = self._clock() + min(MARK, self._settings.commit_interval / 2)
            self._mark()
        if self._clock() >= self._commit_due:
            self._commit_due = self._clock() + self._settings.commit_interval
            self.commit()
        return accepted

    def commit(self) -> None:
        """How far everything was handled, now."""
        self._look()
        self._commit(list(self.held.values()))

    @property
    def is_full(self) -> bool:
        """Whether something that was read waits for room."""
        return any(held.rest is not None for held in self.held.values())

    def pause(self, paused: bool) -> None:
        self._paused = paused
        if paused:
            self._source.pause(list(self.held))
        else:
            self._source.resume([held.partition for held in self.held.values() if held.rest is None])

    def _mark(self) -> None:
        """Remembers where the lanes end now: when they have come to that, all that is pushed now was handled."""
        moved = [held for held in self.held.values() if held.pushed != held.marked]
        if moved:
            self._marks.append((self._producer.position(), [(held, held.pushed) for held in moved]))
        for held in moved:
            held.marked = held.pushed

    def _look(self, drained: Iterable[Held] = ()) -> None:
        while self._marks and self._producer.handled(self._marks[0][0]):
            for held, offset in self._marks.popleft()[1]:
                held.safe = max(held.safe, offset)
        for held in drained:
            held.safe = held.pushed
        for held in self.held.values():
            self._table.set_safe(held.row, held.safe)

    def _commit(self, those: Sequence[Held]) -> None:
        """How far each was handled. Raises nothing that the broker may say: the next commit says more."""
        behind = {held.partition: held.safe for held in those if held.safe != (held.committed or EARLIEST)}
        if not behind:
            if all(held.safe == held.read for held in those):
                self.committed_at = self._clock()  # there is nothing to commit
            return
        if self._write(behind):
            self.committed_at = self._clock()
            for held in those:
                held.committed = behind.get(held.partition, held.committed)

    def _write(self, places: Mapping[str, int]) -> bool:
        metadata = json.dumps({"e": self._engine})
        try:
            self._source.commit({name: Position(offset, metadata) for name, offset in places.items()}, True)
        except Superseded as error:
            self._log.warning("a commit was refused: %s", error)
            self.lost(places)
            return False
        except SourceError as error:
            self._log.warning("not committed: %s", error)
            return False
        return True

    def _drain(self, those: Sequence[Held], deadline: float) -> bool:
        """Whether all that was pushed of them was handled in time."""
        slots = [slot for held in those for slot in self.slots_of(held.number)]
        while slots:
            self._renew()
            try:
                self._producer.flush(min(SLICE, max(0.0, deadline - self._clock())), slots=slots)
                return True
            except (TimeoutError, HandlerError) as error:
                if self._clock() >= deadline:
                    return False
                if isinstance(error, HandlerError):  # its shard is tried again
                    self._wait()
        return True

    def slots_of(self, number: int) -> range:
        return range(number * self._share, (number + 1) * self._share)

    def _renew(self) -> None:
        until = ALWAYS
        if self._settings.fence:
            until = self._source.confirmed_ns() + int(LEASE * self._source.session * 1e9)
        self._table.renew([held.row for held in self.held.values()], until)

    def _wait(self) -> None:
        time.sleep(SLICE / 10)

    # ---- asked by people ---------------------------------------------------------------------------------------------

    def seek(self, partition: str, to: str | int) -> Position:
        """Goes on there when all that was pushed of it was handled. Raises SourceError: nothing has changed then."""
        held = self.held.get(partition)
        if held is None:
            raise SourceError(f"{partition} is not of this host; it has {', '.join(self.held) or 'none'}")
        deadline = self._clock() + self._settings.drain_timeout
        if not (self._finish_pushing([held], deadline) and self._drain([held], deadline)):
            raise SourceError(f"{partition} still has events in the lanes after {self._settings.drain_timeout:g} s")
        place = self._source.seek(partition, to)
        self._table.end(held.row)
        epoch, at = self._table.begin(held.row, place.offset), place.offset
        self.held[partition] = Held(partition, held.number, held.row, epoch, at, at, at, InLanes(), at, at)
        self._renew()
        self._write({partition: at})
        return place

    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """For status."""
        found: dict[str, Mapping[str, Any]] = {
            held.partition: {
                "offset": held.pushed,
                "committed": held.committed,
                "epoch": held.epoch,
                "behind": held.read - (held.committed or held.read),
                "state": "full" if held.state == "owned" and held.rest is not None else held.state,
            }
            for held in list(self.held.values())
        }
        waiting = {"offset": 0, "committed": None, "epoch": 0, "behind": 0, "state": "assigned"}
        return {**dict.fromkeys(list(self.undecided), waiting), **found}


def _who(metadata: str) -> str | None:
    try:
        said = json.loads(metadata)
        return said.get("e") if isinstance(said, dict) else None
    except ValueError:
        return None
