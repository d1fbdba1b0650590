"""Which partitions of a broker are ours, from when, and how far they have come.

A partition is taken up with a new epoch, at the place that its group has committed; or, when nobody else has committed
since and its events are still in the lanes, in the same epoch, behind what was pushed. It is given up in this order:
nothing more is pushed, what was pushed is handled, that is committed, the epoch ends. One that another may own already
has its epoch ended first: workers pass over what is left of it. As long as the broker confirms that it is ours, its
lease is renewed; workers take nothing of it past that.

A push of what was read takes all before some offset; the rest waits here until there is room. So the table says how far
the lanes are filled, whenever this process is killed, and the next one goes on there.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.errors import Backpressure, ConfigError, HandlerError, NotRunning, ShardmemError, Superseded
from shardmem.memory.partition_table import NO_LIMIT, PartitionTable
from shardmem.runtime.attachment import Marks
from shardmem.runtime.columns import Origin
from shardmem.runtime.producer import Producer
from shardmem.settings import setting
from shardmem.sources.contract import (
    BrokerSource,
    BrokerUnavailable,
    Columns,
    Position,
    SourceError,
    partition_of,
    topic_and_number,
)
from shardmem.sources.outbox.files import OutboxFiles
from shardmem.sources.states import Stateless, metadata_of
from shardmem.sources.wishes import Pause

ROOM = 0.02  # seconds that a push waits for room; none while something else waits for it already
MARK = 0.1  # seconds between two marks of what has to be handled
SLICE = 0.05  # the longest wait between two renewals of leases
ASK = 5.0  # seconds that the broker has to say what was committed
LEASE = 0.8  # of a session: its last part is for clocks that differ, and for the batch in hand
RETRY = 1.0  # seconds before state that could not be restored is asked for again
NOTHING = 0  # committed
NONE_KNOWN = np.empty(0, "u8")

Committed = dict[str, Position | None]  # by partition


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
    """A partition that is ours. pushed: all before it is in the lanes. safe: all before it was handled. known: offsets
    beyond `pushed` that the process before has put into the lanes. read: the place behind what was read. marked: how
    far there are marks. begun: where it began here; None: nothing was read yet. rest: what was read and found no
    room."""

    partition: str
    number: int
    row: int
    epoch: int
    pushed: int
    safe: int
    committed: int | None
    known: np.ndarray
    read: int
    marked: int
    begun: int | None = None
    rest: Columns | None = None
    state: str = "owned"


class Ownership:
    """`assigned`, `revoking` and `lost` are what the source calls; `take` gets what it has read; `step` is called
    again and again, at least every SLICE."""

    def __init__(
        self,
        source: BrokerSource,
        producer: Producer,
        table: PartitionTable,
        settings: OwnershipSettings,
        *,
        engine: str,
        log: logging.Logger,
        states: Stateless | None = None,
        outbox: OutboxFiles | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """table: its count is set. engine: what no other life of an engine is called. outbox: what handlers send; an
        event is not safe before all that was sent by then is published."""
        self._source, self._producer, self._table, self._settings = source, producer, table, settings
        self._engine, self._states, self._log, self._clock = engine, states or Stateless(), log, clock
        self.held: dict[str, Held] = {}
        self.undecided: dict[str, None] = {}  # assigned; where they begin is not known yet
        self.restoring: dict[int, tuple[Future[None], Committed]] = {}  # by number
        self._away: str | None = None  # why the broker does not say what was committed
        self._not_restored: dict[int, str] = {}  # by number: why its state is not here
        self.committed_at: float | None = None  # clock: when there was nothing more to commit
        self._marks: deque[tuple[Marks, list[tuple[Held, int]]]] = deque()
        self._in_lanes = producer.recover(table)
        self._left = {partition_of(row.topic, row.number): row.row for row in table.rows() if row.state != "none"}
        self._outbox = outbox
        self._unpublished: deque[tuple[dict[str, int], list[tuple[Held, int]]]] = deque()
        self._opened = self._mark_due = self._commit_due = clock()
        self._fault: ShardmemError | None = None
        self._retry_at = 0.0  # clock: state that could not be restored is tried again
        self._paused = Pause()

    # ---- told by the source ------------------------------------------------------------------------------------------

    def assigned(self, partitions: Sequence[str]) -> None:
        """Where they begin is found out by the next `step`."""
        self.lost([partition for partition in partitions if partition in self.held])  # it says nothing of the meantime
        beyond = [name for name in partitions if topic_and_number(name)[1] >= self._table.count]
        if beyond:
            self._fault = self._fault or ConfigError(
                f"{beyond[0]} is there, and slots were shared among {self._table.count} partitions: the topic has "
                "grown, and keys have moved between its partitions",
                hint="Stop the engine, write `partitions = N` into [source], and run it again",
            )
        self.undecided.update(dict.fromkeys(name for name in partitions if name not in beyond))
        if partitions:
            self._end_left(but=partitions)

    def revoking(self, partitions: Sequence[str], deadline: float) -> None:
        """Returns when all that was pushed of them is handled and committed, or when it is too late for that."""
        self._give_up(partitions, min(deadline, self._clock() + self._settings.drain_timeout))

    def lost(self, partitions: Iterable[str]) -> None:
        gone = self._leaving(partitions)
        self._end(gone)
        if gone:
            names = ", ".join(held.partition for held in gone)
            self._log.warning("%s: lost to another owner; what is left of it here is passed over", names)

    def leave(self, deadline: float) -> bool:
        """Gives all of them up in good order; whether all that was pushed was handled."""
        return self._give_up([*self.held, *self.undecided, *self._left], deadline)

    def _give_up(self, partitions: Sequence[str], deadline: float) -> bool:
        going = self._leaving(partitions)
        for held in going:
            held.state, held.rest = "draining", None  # its next owner reads the rest
            self._table.set_state(held.row, "draining")
        in_time = self._drain(going, deadline)
        if not in_time:
            self._end(going)  # first: what is handled from here on is handled by the next owner
            names = ", ".join(held.partition for held in going)
            self._log.warning("%s: given up before all of it was handled: the next owner repeats the rest", names)
        self._look(going if in_time else ())
        for number, safe in safe_of(going).items():
            self._states.give_up(number, safe, max(0.0, deadline - self._clock()))
        self._commit(going)
        self._end(held for held in going if held.partition in self.held)
        return in_time

    def _leaving(self, partitions: Iterable[str]) -> list[Held]:
        names = list(partitions)
        for partition in names:
            self.undecided.pop(partition, None)
            for _, waiting in self.restoring.values():
                waiting.pop(partition, None)
            if (row := self._left.pop(partition, None)) is not None:
                self._table.end(row)
        return [self.held[partition] for partition in names if partition in self.held]

    def _end(self, gone: Iterable[Held]) -> None:
        for held in list(gone):
            self._table.end(held.row)
            del self.held[held.partition]
            if not any(other.number == held.number for other in self.held.values()):
                self._states.lost(held.number)

    def _beginning(self) -> set[int]:
        """Numbers of partitions that were assigned and have not begun."""
        return {topic_and_number(partition)[1] for partition in self.undecided} | self.restoring.keys()

    @property
    def waits_for(self) -> str | None:
        """In words."""
        return self._away or next((why for at, why in self._not_restored.items() if at in self._beginning()), None)

    # ---- where a partition begins ------------------------------------------------------------------------------------

    def _decide(self) -> None:
        self._begin_all(self._restored())
        if not self.undecided or self._clock() < self._retry_at:
            return
        try:
            committed = self._source.committed(list(self.undecided), min(ASK, self._source.session / 4))
        except BrokerUnavailable as error:
            self._away = str(error)
            return
        self._away = None
        self._not_restored = {number: why for number, why in self._not_restored.items() if number in self._beginning()}
        together: dict[int, Committed] = {}
        for partition in self.undecided:
            together.setdefault(topic_and_number(partition)[1], {})[partition] = committed.get(partition)
        asked = together.keys() - self.restoring.keys()  # of one that was lost meanwhile, the end is awaited
        self._begin_all({each: at for number in sorted(asked) for each, at in self._prepare(number, together[number])})

    def _prepare(self, number: int, those: Committed) -> Iterable[tuple[str, Position | None]]:
        """Those that begin now. The state of all topics of a partition is one, and is there before the first event of
        any of them."""
        rows = {partition: self._table.row(*topic_and_number(partition)) for partition in those}
        restoring, ours = None, all(self._is_ours(at, rows[partition]) for partition, at in those.items())
        if not any(held.number == number for held in self.held.values()):
            restoring = self._states.take_up(number, [at.metadata for at in those.values() if at is not None], ours)
        for partition, committed in those.items():
            if self._left.pop(partition, None) is None:
                continue
            if ours and restoring is None:
                self._resume(partition, rows[partition], committed)
            else:
                self._table.end(rows[partition])
        fresh = {name: at for name, at in those.items() if name in self.undecided}
        if restoring is None:
            return fresh.items()
        self.restoring[number] = restoring, fresh
        for partition in fresh:
            del self.undecided[partition]
        return ()

    def _restored(self) -> Committed:
        """Those that begin now."""
        found: Committed = {}
        for number, (restoring, those) in list(self.restoring.items()):
            if not restoring.done():
                continue
            del self.restoring[number]
            self.undecided.update(dict.fromkeys(those))
            if (error := restoring.exception()) is None:
                found.update(those)
                self._not_restored.pop(number, None)
            else:
                self._not_restored[number] = f"the state of partition {number} cannot be restored: {error}"
                self._retry_at = self._clock() + RETRY
        return found

    def _begin_all(self, those: Committed) -> None:
        """Their state is here. They rest until this is done, so all are claimed in one commit."""
        if not self._claim({partition: at for partition, at in those.items() if at is not None}):
            self._retry_at = self._clock() + RETRY
            return
        for partition, committed in those.items():
            self._begin(partition, self._table.row(*topic_and_number(partition)), committed)

    def _claim(self, committed: Mapping[str, Position]) -> bool:
        """Whether what was committed is in our name: if this process is killed before it commits anything, the next one
        is to see that nobody else has since. Not before the state is here, because that is what our name says."""
        others = {
            name: Position(at.offset, metadata_of(self._engine, self._states.named(topic_and_number(name)[1])))
            for name, at in committed.items()
            if _who(at.metadata) != self._engine
        }
        return not others or self._write(others)

    def _begin(self, partition: str, row: int, committed: Position | None) -> None:
        at = committed.offset if committed is not None else NOTHING
        self._hold(partition, row, self._table.begin(row, at), at, at, committed, NONE_KNOWN)

    def _resume(self, partition: str, row: int, committed: Position | None) -> None:
        at, known = self._table.pushed(row), self._in_lanes.pop(row, NONE_KNOWN)
        at += int(np.argmin(np.append(known == at + np.arange(len(known)), False)))  # those that leave no gap
        self._table.set_pushed(row, at)
        self._table.set_state(row, "owned")
        self._hold(partition, row, self._table.resume(row), at, self._table.safe(row), committed, known[known >= at])

    def _hold(
        self, partition: str, row: int, epoch: int, at: int, safe: int, committed: Position | None, known: np.ndarray
    ) -> None:
        del self.undecided[partition]
        number, done = topic_and_number(partition)[1], None if committed is None else committed.offset
        nowhere = committed is None and at == NOTHING and not len(known)
        begun = None if nowhere else safe
        self.held[partition] = Held(partition, number, row, epoch, at, safe, done, known, at, safe, begun)
        self._renew()
        (self._source.pause if partition in self._paused else self._source.resume)([partition])
        self._source.start(partition, None if nowhere else at)
        self._log.info("%s: begins %s, epoch %d", partition, "as configured" if nowhere else f"at {at:,}", epoch)

    def _is_ours(self, committed: Position | None, row: int) -> bool:
        """Whether nobody else has committed since this engine pushed what is in its lanes. Who has only read it in the
        meantime has left nothing behind that counts."""
        if committed is None:
            return True
        return _who(committed.metadata) == self._engine and committed.offset <= self._table.pushed(row)

    def _end_left(self, but: Iterable[str] = ()) -> None:
        """Partitions that the process before had, and that are not ours any more: workers are not to wait for them."""
        for partition in sorted(self._left.keys() - set(but) - self.undecided.keys()):
            self._log.info("%s: is another's now; what is left of it here is passed over", partition)
            self._table.end(self._left.pop(partition))

    # ---- pushing -----------------------------------------------------------------------------------------------------

    def take(self, columns: Columns) -> int:
        """Pushes what is ours; how many events were accepted now. Raises ShardmemError."""
        held = self.held.get(columns.partition)
        if held is None:
            return 0  # it was read before it was taken from us
        if held.rest is not None:
            raise SourceError(f"the source handed over events of {held.partition} while it was paused")
        held.read = columns.next.offset
        if held.begun is None and len(columns):
            held.begun = int(columns.offsets[0])
        if len(held.known):
            new = np.flatnonzero(~np.isin(columns.offsets, held.known))
            if columns.next.offset > held.known[-1]:
                held.known = NONE_KNOWN
            columns = columns.of(new)
        return self._push(held, columns, 0.0 if self.is_full else ROOM)

    def _push(self, held: Held, columns: Columns, timeout: float) -> int:
        left = self._call(held, columns, timeout) if len(columns) else 0
        if left:
            rest = np.arange(len(columns) - left, len(columns))
            held.pushed = max(held.pushed, int(columns.offsets[rest[0]]))
            if held.rest is None:
                held.rest = columns.kept(rest)
                self._source.pause([held.partition])
            else:
                held.rest = columns.of(rest)
        else:
            held.rest, held.pushed = None, columns.next.offset
            self._table.set_pushed(held.row, held.pushed)  # behind the last event, too, where there are gaps
        return len(columns) - left

    def _call(self, held: Held, columns: Columns, timeout: float) -> int:
        """How many found no room: the last ones. Raises ShardmemError."""
        assert columns.payloads is not None
        try:
            self._producer.push_columns(
                columns.keys,
                *columns.payloads,
                timeout=timeout,
                origin=Origin(held.row, held.epoch, columns.offsets),
                timestamps=columns.timestamps,
                headers=columns.headers,
                missing=columns.missing,
            )
        except Backpressure as error:
            if isinstance(error, NotRunning):
                raise
            return len(error.left)
        except ValueError as error:
            raise SourceError(f"{held.partition}: {error}") from None
        return 0

    def _push_rests(self) -> int:
        accepted = 0
        roomy: list[str] = []
        for held in self.held.values():
            if held.rest is not None:
                accepted += self._push(held, held.rest, 0.0)
                roomy += [held.partition] if held.rest is None else []
        if roomy := [partition for partition in roomy if partition not in self._paused]:
            self._source.resume(roomy)
        return accepted

    @property
    def is_full(self) -> bool:
        """Whether something that was read waits for room."""
        return any(held.rest is not None for held in self.held.values())

    # ---- handled, committed ------------------------------------------------------------------------------------------

    def step(self) -> int:
        """How many events were accepted that had found no room before. Raises ShardmemError."""
        if self._fault is not None:
            raise self._fault
        self._renew()
        self._decide()
        if self._left and self._clock() - self._opened > self._source.session:
            self._end_left()
        accepted = self._push_rests()
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
        self._states.step(safe_of(self.held.values()))
        self._commit(list(self.held.values()))

    def _mark(self) -> None:
        """Remembers where the lanes end now: when they have come to that, all that is pushed now was handled."""
        moved = [held for held in self.held.values() if held.pushed != held.marked]
        if moved:
            self._marks.append((self._producer.position(), [(held, held.pushed) for held in moved]))
        for held in moved:
            held.marked = held.pushed

    def _look(self, drained: Iterable[Held] = ()) -> None:
        while self._marks and self._producer.handled(self._marks[0][0]):
            sent = self._outbox.position() if self._outbox is not None else {}
            self._unpublished.append((sent, self._marks.popleft()[1]))
        while self._unpublished and self._has_published(self._unpublished[0][0]):
            for held, offset in self._unpublished.popleft()[1]:
                held.safe = max(held.safe, offset)
        for held in drained:
            held.safe = held.pushed
        for held in self.held.values():
            self._table.set_safe(held.row, held.safe)

    def _commit(self, those: Sequence[Held]) -> None:
        """How far each was handled. Raises nothing that the broker may say: the next commit says more."""
        behind: dict[str, Position] = {}
        for held in those:
            offset, state, is_new = self._states.place(held.number, topic_and_number(held.partition)[0], held.safe)
            if offset is not None and (is_new or offset != (held.committed or NOTHING)):
                behind[held.partition] = Position(offset, metadata_of(self._engine, state))
        if not behind:
            if not self._beginning() and all((held.committed or NOTHING) == held.read for held in those):
                self.committed_at = self._clock()  # there is nothing to commit
        elif self._write(behind):
            self.committed_at = self._clock()
            for held in those:
                if held.partition in behind:
                    held.committed = behind[held.partition].offset
            for number in {held.number for held in those if held.partition in behind}:
                self._states.committed(number)

    def _write(self, places: Mapping[str, Position]) -> bool:
        try:
            self._source.commit(places, True)
        except Superseded as error:
            self._log.warning("a commit was refused: %s", error)
            self.lost(places)
            return False
        except SourceError as error:
            self._log.warning("not committed: %s", error)
            return False
        return True

    def _has_published(self, sent: Mapping[str, int]) -> bool:
        return self._outbox is None or self._outbox.has_published(sent)

    def _publish(self, deadline: float) -> bool:
        """Whether what handlers have sent by now was published in time."""
        sent = self._outbox.position() if self._outbox is not None else {}
        while not self._has_published(sent):
            self._renew()
            if self._clock() >= deadline:
                return False
            time.sleep(SLICE)
        return True

    def _drain(self, those: Sequence[Held], deadline: float) -> bool:
        """Whether all that was pushed of them was handled in time."""
        slots = [slot for held in those for slot in self._table.slots_of(held.number)]
        while slots:
            self._renew()
            try:
                self._producer.flush(min(SLICE, max(0.0, deadline - self._clock())), slots=slots)
                return self._publish(deadline)
            except TimeoutError:
                pass
            except HandlerError:  # its shard is tried again
                time.sleep(SLICE)
            if self._clock() >= deadline:
                return False
        return True

    def _renew(self) -> None:
        until = NO_LIMIT
        if self._settings.fence:
            until = self._source.confirmed_ns() + int(LEASE * self._source.session * 1e9)
        self._table.renew([held.row for held in self.held.values()], until)

    # ---- asked by people ---------------------------------------------------------------------------------------------

    def pause(self, wanted: Pause) -> None:
        self._paused = wanted
        if waiting := [partition for partition in self.held if partition in wanted]:
            self._source.pause(waiting)
        if going := [name for name, held in self.held.items() if held.rest is None and name not in wanted]:
            self._source.resume(going)

    def seek(self, partition: str, to: str | int) -> Position:
        """Goes on there when all that was pushed of it was handled. Raises SourceError: nothing has changed then."""
        held = self.held.get(partition)
        if held is None:
            raise SourceError(f"{partition} is not of this host; it has {', '.join(self.held) or 'none'}")
        if not self._drain([held], self._clock() + self._settings.drain_timeout):
            raise SourceError(f"{partition} still has events in the lanes after {self._settings.drain_timeout:g} s")
        place = self._source.seek(partition, to)
        at, epoch = place.offset, self._table.begin(held.row, place.offset)
        self.held[partition] = Held(partition, held.number, held.row, epoch, at, at, at, NONE_KNOWN, at, at)
        self._renew()
        if held.rest is not None and partition not in self._paused:
            self._source.resume([partition])
        offset, state, _ = self._states.place(held.number, topic_and_number(partition)[0], at)
        if offset == at:
            self._write({partition: Position(at, metadata_of(self._engine, state))})
        return place

    # ---- what can be seen of it --------------------------------------------------------------------------------------

    def rows(self) -> dict[str, dict[str, Any]]:
        """Of each partition; another thread may ask. behind: what was read and is not committed."""
        waiting = {"offset": 0, "committed": None, "epoch": 0, "behind": 0, "state": "assigned"}
        found = {partition: dict(waiting) for partition in list(self.undecided)}
        for _, those in list(self.restoring.values()):
            found |= {partition: {**waiting, "state": "restoring"} for partition in list(those)}
        for held in list(self.held.values()):
            found[held.partition] = {
                "offset": held.pushed,
                "committed": held.committed,
                "epoch": held.epoch,
                "behind": held.read - _first_of(held.committed, held.begun, held.read),
                "state": self._state_of(held),
            }
        return found

    def _state_of(self, held: Held) -> str:
        if held.state != "owned":
            return held.state
        return "paused" if held.partition in self._paused else "full" if held.rest is not None else "owned"


def safe_of(those: Iterable[Held]) -> dict[int, dict[str, int]]:
    """By number and topic: all before it was handled."""
    found: dict[int, dict[str, int]] = {}
    for held in those:
        found.setdefault(held.number, {})[topic_and_number(held.partition)[0]] = held.safe
    return found


def _first_of(*places: int | None) -> int:
    return next(each for each in places if each is not None)


def _who(metadata: str) -> str | None:
    try:
        said = json.loads(metadata)
    except ValueError:
        return None
    return said.get("e") if isinstance(said, dict) else None
