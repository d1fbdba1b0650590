"""The loop that drives a source on a broker: as of files, but its partitions come and go, wait for room one by one, and
a broker that does not answer is waited for."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from shardmem.errors import ConfigError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.partition_table import PartitionTable
from shardmem.private_files import open_private
from shardmem.runtime.columns import spans_of
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.producer import Producer
from shardmem.sources.contract import (
    BrokerSource,
    BrokerUnavailable,
    Columns,
    Position,
    Rejected,
    SourceContext,
    partition_of,
    sizes_of,
    topic_and_number,
)
from shardmem.sources.outbox.files import OutboxFiles
from shardmem.sources.ownership import ASK, SLICE, Ownership, OwnershipSettings
from shardmem.sources.runner import Runner
from shardmem.sources.states import States
from shardmem.sources.wishes import Pause
from shardmem.state.partitions import Layout
from shardmem.state_settings import RemoteSettings
from shardmem.text import plural

EVENTS = 4096  # that are read at once
RETRY = 0.005  # seconds between two looks whether there is room
SETTLED = 10.0  # seconds after which a partition that is not here does not come by the same rebalance
AWAY = 0.2, 5.0  # seconds between two calls of a broker that does not answer: first, and at most

T = TypeVar("T")


class BrokerRunner(Runner):
    source: BrokerSource

    def __init__(
        self,
        source: BrokerSource,
        producer: Producer,
        control: ControlSegment,
        settings: OwnershipSettings,
        state_files: StateFiles,
        state: RemoteSettings,
        file: Callable[[str], str],
        outbox: OutboxFiles | None = None,
        **options: Any,
    ) -> None:
        """file: the path of what is kept under a name for the next process of this source. outbox: what handlers
        send."""
        super().__init__(source, producer, **options)
        self._outbox = outbox
        self._control, self._settings, self._file = control, settings, file
        self._state_files, self._state = state_files, state
        self._table = PartitionTable(control)
        self.ownership: Ownership | None = None
        self._states: States | None = None
        self.waits_for: str | None = None
        self._counts: Mapping[str, int] = {}
        self._together_at = time.monotonic()  # when no partition was here without its equals

    def run(self) -> None:
        """Raises ShardmemError."""
        self._until_it_answers(lambda: self.source.open(self._context()))
        if self._until_it_answers(self._count) is None:
            return  # told to stop before that
        self.ownership = own = self._owner()
        while not self.stop.is_set() and not self.source.ended:
            self._follow_wishes()
            away = self._poll()
            self._accepted(own.step())
            self._wait_for(away or own.waits_for)

    def _poll(self) -> str | None:
        """Why the broker does not answer."""
        assert self.ownership is not None
        try:
            columns = self.source.poll(EVENTS, RETRY if self.ownership.is_full else SLICE)
        except BrokerUnavailable as error:
            self.stop.wait(SLICE)
            return str(error)
        if columns is not None:
            self._take(self._without_too_large(columns))
        return None

    def finish(self, wait: bool, tick: Callable[[], None] = lambda: None, grace: float | None = None) -> bool:
        """Gives its partitions up in good order."""
        done = True
        if self.ownership is not None:
            done = self.ownership.leave(time.monotonic() + (1e9 if grace is None else grace))
        self.source.close(done)
        return done

    def give_way(self) -> None:
        """As if it were killed: it stays a member of its group, and its partitions are the next process's."""
        if self.ownership is not None:
            self.ownership.commit()

    # ---- a broker that does not answer -------------------------------------------------------------------------------

    def _until_it_answers(self, call: Callable[[], T]) -> T | None:
        """None: told to stop before that."""
        delay = AWAY[0]
        while not self.stop.is_set():
            try:
                found = call()
            except BrokerUnavailable as error:
                self._wait_for(str(error))
                self.stop.wait(delay)
                delay = min(AWAY[1], 2 * delay)
            else:
                self._wait_for(None)
                return found
        return None

    def _wait_for(self, what: str | None) -> None:
        if what != self.waits_for:
            self.waits_for = what
            self._log.log(*((20, "waits no more") if what is None else (30, "waits: %s", what)))

    # ---- how many partitions -----------------------------------------------------------------------------------------

    def _count(self) -> int:
        """Of the largest topic. Raises ConfigError when it is another than it was; BrokerUnavailable."""
        counts = {topic: self.source.partition_counts(ASK).get(topic, 0) for topic in self.source.topics}
        if missing := [topic for topic, count in counts.items() if not count]:
            raise BrokerUnavailable(f"the broker has no topic {', '.join(missing)}")
        largest, told, before = max(counts.values()), self._settings.partitions, self._kept_count()
        if told is not None and told != largest:
            raise ConfigError(f"source.partitions={told}, and the broker has {_described(counts)}")
        if told is None and before not in (None, largest):
            raise ConfigError(
                f"the broker has {_described(counts)}, and it were {before} when this engine began: keys have moved "
                "between partitions",
                hint=f"If that may be so, write `partitions = {largest}` into [source], and run the engine again",
            )
        self._table.set_count(largest)
        self._counts = counts
        with open(self._file("partitions"), "w", encoding="utf-8", opener=open_private) as file:
            json.dump({"partitions": largest}, file)
        return largest

    def _kept_count(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            with open(self._file("partitions"), encoding="utf-8", opener=open_private) as file:
                return int(json.load(file)["partitions"])
        return None

    # ---- whose it is -------------------------------------------------------------------------------------------------

    def _owner(self) -> Ownership:
        control, engine = self._control, self._control.geometry.engine_id
        self._states = States.open(
            self._state_files,
            Layout(control.slots, self._table.count),
            self._state,
            told=self._settings.partitions is not None,
            log=self._log,
        )
        return Ownership(
            self.source,
            self.producer,
            self._table,
            self._settings,
            engine=f"{control.engine}-{engine:x}",
            states=self._states,
            outbox=self._outbox,
            log=self._log,
        )

    def _context(self) -> SourceContext:
        def owner() -> Ownership:
            assert self.ownership is not None, "partitions come and go within poll"
            return self.ownership

        return SourceContext(
            self._log,
            time.time,
            self.stop,
            assigned=lambda parts: owner().assigned(parts),
            revoking=lambda parts, deadline: owner().revoking(parts, deadline),
            lost=lambda parts: owner().lost(parts),
        )

    # ---- what is read, and what people wish --------------------------------------------------------------------------

    def _push(self, columns: Columns) -> None:
        assert self.ownership is not None
        if columns.payloads is None and len(columns):
            raise ConfigError("a broker feeds an engine of events; this one has a dtype")
        if self.limits.rate:
            self._slow_down(len(columns))
        self._accepted(self.ownership.take(columns))
        with self.tally.lock:
            self.tally.bytes += columns.bytes

    def _accepted(self, events: int) -> None:
        if events:
            with self.tally.lock:
                self.tally.events += events

    def _without_too_large(self, columns: Columns) -> Columns:
        """An event that no lane has room for is rejected, as a record that is none."""
        if columns.payloads is None:
            return columns
        sizes = sizes_of(columns)
        large = np.flatnonzero(sizes > self.producer.largest)
        if not len(large):
            return columns
        kept = np.flatnonzero(sizes <= self.producer.largest)
        data, spans = memoryview(columns.payloads[0]), spans_of(columns.payloads[1])
        found = [
            Rejected(
                columns.partition,
                columns.position(i),
                "too large",
                f"{columns.partition}, offset {columns.offsets[i]:,}: {sizes[i]:,} bytes, and a lane takes "
                f"{self.producer.largest:,}; raise lane_bytes",
                bytes(data[spans[i, 0] : spans[i, 1]]),
                int(np.searchsorted(kept, i)),
            )
            for i in large.tolist()
        ]
        before = [replace(each, after=int(np.searchsorted(kept, each.after))) for each in columns.rejected]
        part = columns.of(kept)
        part.rejected = sorted([*before, *found], key=lambda each: each.position.offset)
        return part

    def _set_paused(self, wanted: Pause) -> None:
        assert self.ownership is not None
        self.ownership.pause(wanted)

    def _go_to(self, partition: str, to: str | int) -> Position:
        assert self.ownership is not None
        place = self.ownership.seek(partition, to)
        self._log.info("%s: going on at offset %s, as asked", partition, f"{place.offset:,}")
        return place

    def interrupt(self) -> None:
        """Nothing here waits long."""

    # ---- what can be seen of it --------------------------------------------------------------------------------------

    def _apart(self, partitions: Collection[str]) -> list[str]:
        """For longer than they take to come one by one."""
        if not (found := apart(partitions, self._counts)):
            self._together_at = time.monotonic()
        return found if time.monotonic() - self._together_at > SETTLED else []

    def describe(self) -> dict[str, Any]:
        own, lag = self.ownership, {} if self.ownership is None else self.source.lag()
        partitions = {name: _with_lag(row, lag.get(name)) for name, row in (own.rows() if own else {}).items()}
        behind = [each["lag"] for each in partitions.values()]
        committed_at = None if own is None else own.committed_at
        return {
            **super().describe(),
            "group": getattr(self.source, "group", None),
            "waits_for": self.waits_for,
            "apart": self._apart(partitions),
            "remote": None if self._states is None else self._states.describe(),
            "epoch": max((each["epoch"] for each in partitions.values()), default=0),
            "lag_bytes": None,
            "lag_events": None if own is None or None in behind else sum(behind),
            "partitions": partitions,
            "last_commit": None if committed_at is None else time.time() - (time.monotonic() - committed_at),
        }


def apart(partitions: Collection[str], counts: Mapping[str, int]) -> list[str]:
    """Those that are not among them, while another topic's of the same number is."""
    numbers = sorted({topic_and_number(each)[1] for each in partitions})
    equals = [partition_of(topic, number) for number in numbers for topic, count in counts.items() if number < count]
    return [each for each in equals if each not in partitions]


def _with_lag(row: Mapping[str, Any], unread: int | None) -> dict[str, Any]:
    """Behind is what was read and is not committed: what the group's tools, too, count as its lag."""
    return {**row, "at": "", "lag": None if unread is None else unread + row["behind"]}


def _described(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{plural(count, 'partition')} of {topic}" for topic, count in counts.items())
