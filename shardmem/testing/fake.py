"""A source on a FakeBroker: [source] with kind = "fake"."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote

from shardmem.errors import ConfigError, Superseded
from shardmem.schema import Schema
from shardmem.settings import declared, setting
from shardmem.sources.contract import BrokerUnavailable, Columns, Position, SourceContext, SourceError
from shardmem.sources.kinds import EngineContext, Reach, Subscription, subscription_of
from shardmem.testing.broker import FakeBroker, Membership, boottime_ns

is_broker = True
BEATS, OFTEN = 8, 0.2  # heartbeats of a session, and the longest time between two
PATIENCE = 60.0  # seconds that it may take to give partitions up
LOOK = 0.005  # seconds between two looks at partitions that have nothing new


@dataclass(frozen=True)
class FakeSettings(Subscription):
    """broker: its file. instance: see FakeBroker.join."""

    broker: str | None = setting(None, "file of the FakeBroker")
    session: float = setting(6.0, "time without a heartbeat after which another may have its partitions", "seconds")
    instance: str | None = setting(None, "name that this member keeps when it joins again")


def settings_of(table: Mapping[str, Any], schema: Schema) -> FakeSettings:
    """Raises ConfigError."""
    faults: list[str] = []
    made = subscription_of(table, faults, FakeSettings)
    faults += [f"{name} is not a setting" for name in sorted(table.keys() - declared(FakeSettings).keys())]
    if made.broker is None:
        faults.append("broker is missing: the file of a FakeBroker")
    if schema.is_records:
        faults.append("kind='fake' feeds an engine of events, and this one has a dtype")
    if faults:
        raise ConfigError(faults)
    return made


def open_source(settings: FakeSettings, engine: EngineContext) -> FakeSource:
    assert settings.broker is not None
    return FakeSource(
        FakeBroker(settings.broker),
        settings.topics,
        settings.group or engine.engine,
        session=settings.session,
        instance=settings.instance,
        start=settings.start,
        headers=settings.headers,
    )


def reach(settings: FakeSettings, timeout: float) -> Reach:
    assert settings.broker is not None
    broker = FakeBroker(settings.broker)
    try:
        counts = broker.partition_counts()
    finally:
        broker.close()
    return Reach({topic: count for topic, count in counts.items() if topic in settings.topics}, PATIENCE)


def table_of(url: SplitResult, query: Mapping[str, Any]) -> dict[str, Any]:
    return {"broker": unquote(url.netloc + url.path), **query}


class FakeSource:
    """A BrokerSource. A thread of its own sends heartbeats; what they answer is acted upon within `poll`."""

    ended = False

    def __init__(
        self,
        broker: FakeBroker,
        topics: Sequence[str],
        group: str,
        *,
        session: float = 6.0,
        instance: str | None = None,
        start: str = "earliest",
        headers: bool = False,
    ) -> None:
        self.topics, self.group, self.session = tuple(topics), group, session
        self._broker, self._instance, self._start, self._headers = broker, instance, start, headers
        self._lock = threading.Lock()  # no heartbeat while what is held changes
        self.membership: Membership | None = None
        self._held: set[str] = set()
        self._assigned: list[str] | None = None
        self._is_new = True  # it has not said what was assigned to this membership
        self._confirmed = 0
        self._places: dict[str, int] = {}  # of those that were started
        self._turn: list[str] = []
        self._paused: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beats, daemon=True)

    # ---- the contract ------------------------------------------------------------------------------------------------

    def open(self, context: SourceContext) -> None:
        self._context = context
        self._join()
        self._thread.start()

    def poll(self, max_events: int, timeout: float) -> Columns | None:
        if self._follow_group():
            return None
        for _ in range(len(self._turn)):
            name = self._turn.pop(0)
            self._turn.append(name)
            if name not in self._paused:
                columns = self._broker.fetch(name, self._places[name], max_events, self._headers)
                if columns is not None:
                    self._places[name] = columns.next.offset
                    return columns
        self._context.stop.wait(min(timeout, LOOK))
        return None

    def pause(self, partitions: Sequence[str]) -> None:
        self._paused |= set(partitions) & self._held

    def resume(self, partitions: Sequence[str]) -> None:
        self._paused -= set(partitions)

    def seek(self, partition: str, to: str | int) -> Position:
        if partition not in self._places:
            raise SourceError(f"{partition} is not this member's; it has {', '.join(sorted(self._places)) or 'none'}")
        end = self._broker.end(partition)
        place = 0 if to == "start" else end if to == "end" else int(to)
        if not 0 <= place <= end:
            raise SourceError(f"{partition} ends at offset {end:,}; there is no place {place:,} in it")
        self._places[partition] = place
        return Position(place)

    def lag(self) -> Mapping[str, int | None]:
        found: dict[str, int | None] = {}
        for name, place in list(self._places.items()):
            try:
                found[name] = self._broker.end(name) - place
            except BrokerUnavailable:
                found[name] = None
        return found

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        membership = self.membership
        try:
            if membership is None:
                raise Superseded(f"the session of this member of group {self.group} is over")
            self._broker.commit(membership, positions)
        except Superseded:
            self.membership = None  # it joins again within the next poll
            if sync:
                raise
        except BrokerUnavailable:
            if sync:
                raise

    def close(self, drained: bool) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.membership is not None:
            try:
                self._broker.leave(self.membership)
            except BrokerUnavailable:
                self._context.log.info("the broker hears of it when the session is over")
        self._broker.close()

    def partition_counts(self, timeout: float) -> Mapping[str, int]:
        return self._broker.partition_counts()

    def committed(self, partitions: Sequence[str], timeout: float) -> Mapping[str, Position | None]:
        return self._broker.committed(self.group, partitions)

    def start(self, partition: str, offset: int | None) -> None:
        if partition not in self._held:
            return
        if offset is None:
            offset = 0 if self._start == "earliest" else self._broker.end(partition)
        self._places[partition] = offset
        self._turn.append(partition)

    def confirmed_ns(self) -> int:
        return self._confirmed

    # ---- its group ---------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        began = boottime_ns()
        self.membership = self._broker.join(
            self.group, self.topics, self.session, instance=self._instance, patience=PATIENCE
        )
        self._confirmed = began
        self._beat()

    def _beats(self) -> None:
        while not self._over.wait(min(OFTEN, self.session / BEATS)):
            self._beat()
        self._broker.close()

    def _beat(self) -> None:
        with self._lock:
            if self.membership is None:
                return
            began = boottime_ns()
            try:
                self._assigned = self._broker.heartbeat(self.membership, self._held)
                self._confirmed = began
            except Superseded:
                self.membership = None
            except BrokerUnavailable:
                pass  # it may answer in time

    def _follow_group(self) -> bool:
        """Whether partitions were assigned."""
        if self.membership is None:
            self._forget(sorted(self._held), self._context.lost)
            self._assigned, self._is_new = None, True
            self._join()
        assigned = self._assigned
        if assigned is None:
            return False
        if gone := sorted(self._held - set(assigned)):
            self._forget(gone, lambda names: self._context.revoking(names, time.monotonic() + PATIENCE))
            self._beat()  # so that the next owner has not to wait for it
            return False
        new = sorted(set(assigned) - self._held)
        with self._lock:
            self._held |= set(new)
        if new or self._is_new:
            self._is_new = False
            self._context.assigned(new)
        return bool(new)

    def _forget(self, names: list[str], say: Callable[[list[str]], None]) -> None:
        self._turn = [name for name in self._turn if name not in names]
        say(names)
        with self._lock:
            self._held -= set(names)
        self._paused -= set(names)
        for name in names:
            self._places.pop(name, None)
