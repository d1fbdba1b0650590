"""A bench for each kind of source: what the conformance suites of tests/sources need to know of it. A kind that is
missing on this machine skips with its reason."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardmem.schema import Schema
from shardmem.sources.contract import BrokerSource, Columns, Position, Source, SourceContext, is_broker, partition_of
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.positions import Positions
from shardmem.sources.files.source import FileSource
from shardmem.sources.kinds import EngineContext
from shardmem.testing.broker import FakeBroker
from shardmem.testing.fake import FakeSource
from support.brokers import kafka
from support.nats import NatsServer

PATIENCE = 30.0
SESSION = 30.0  # of a member that is not to be thrown out by a slow machine


class Member:
    """A source that is driven by hand. told: what it said, in order. of: where a partition begins; None: where it was
    committed."""

    def __init__(self, source: Source, starts: bool = True) -> None:
        self.source, self.starts = source, starts
        self.told: list[tuple[str, list[str]]] = []
        self.held: set[str] = set()
        self.on_revoking: Callable[[Sequence[str]], None] = lambda names: None
        self.on_assigned: Callable[[], None] = lambda: None
        self.payloads: dict[str, list[bytes | None]] = {}
        self.columns: list[Columns] = []
        self.stop = threading.Event()
        source.open(
            SourceContext(logging.getLogger("test"), time.time, self.stop, self._assigned, self._revoking, self._lost)
        )

    def _assigned(self, names: Sequence[str]) -> None:
        self.told.append(("assigned", sorted(names)))
        self.held |= set(names)
        self.on_assigned()

    def _revoking(self, names: Sequence[str], deadline: float) -> None:
        assert deadline > time.monotonic()
        self.told.append(("revoking", sorted(names)))
        self.on_revoking(names)
        self.held -= set(names)

    def _lost(self, names: Sequence[str]) -> None:
        if names:
            self.told.append(("lost", sorted(names)))
        self.held -= set(names)

    def poll(self, timeout: float = 0.05, most: int = 1 << 16) -> Columns | None:
        said = len(self.told)
        columns = self.source.poll(most, timeout)
        if columns is not None:
            self.payloads.setdefault(columns.partition, []).extend(payloads_in(columns))
            self.columns.append(columns.kept(np.arange(len(columns))))
        if self.starts and is_broker(self.source):
            for what, names in self.told[said:]:
                if what == "assigned":
                    self.start(names)
        return columns

    def start(self, names: Sequence[str], at: int | None = None) -> None:
        assert is_broker(self.source)
        for name, position in self.source.committed(names, PATIENCE).items():
            self.source.start(name, at if at is not None else position and position.offset)

    def until(self, condition: Callable[[], Any], *others: Member) -> Any:
        """Polls, and lets others poll, until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, (self.told, {name: len(all) for name, all in self.payloads.items()})
            for member in (self, *others):
                member.poll(0.01)
        return found

    def close(self, drained: bool = True) -> None:
        self.stop.set()
        self.source.close(drained)


def payloads_in(columns: Columns) -> list[bytes | None]:
    if columns.payloads is None:
        return []
    data, offsets = bytes(columns.payloads[0]), columns.payloads[1]
    spans = offsets.tolist() if offsets.ndim == 2 else list(zip(offsets.tolist(), offsets[1:].tolist()))
    gone = [False] * len(spans) if columns.missing is None else columns.missing.tolist()
    return [None if missing else data[first:last] for (first, last), missing in zip(spans, gone)]


class FileBench:
    """Partitions are files."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.positions = directory, None

    def make(self, partitions: dict[str, list[bytes]]) -> Source:
        names = deque()
        for name, events in partitions.items():
            (self.directory / name).write_bytes(b"".join(event + b"\n" for event in events))
            names.append(str(self.directory / name))
        self.positions = Positions(str(self.directory / "positions"))
        return FileSource(names, FileOptions.of(), Schema(), 1 << 16, positions=self.positions, block=256)

    def kept(self) -> None:
        assert self.positions is not None
        self.positions.close()

    def close(self) -> None: ...


class BrokerBench:
    """What the suite needs of a broker. Partition p<n> of the tests that files take, too, is number n of one topic."""

    def create_topic(self, name: str, partitions: int) -> None: ...
    def produce(
        self,
        topic: str,
        number: int,
        events: Sequence[tuple[bytes | None, bytes | None]],
        *,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp: int | None = None,
    ) -> None: ...
    def source(
        self,
        topics: Sequence[str],
        *,
        session: float = SESSION,
        instance: str | None = None,
        start: str = "earliest",
        headers: bool = False,
    ) -> BrokerSource:
        """A member of one group, not opened."""

    def at(self, partition: str, number: int) -> int:
        """The offset of an event that was produced, or, one behind the last, of the end."""
        return number

    def expel(self, source: BrokerSource) -> None:
        """The broker ends its session. May skip the test."""

    def set_reachable(self, reachable: bool) -> None:
        """May skip the test."""

    def close(self) -> None: ...

    def make(self, partitions: dict[str, list[bytes]]) -> Source:
        if not getattr(self, "_filled", False):
            self.create_topic("t", 2)
            for number, events in enumerate(partitions.values()):
                self.produce("t", number, [(b"k", event) for event in events])
            self._filled = True
        return self.source(["t"], session=SESSION)

    def kept(self) -> None:
        """Commits are with the broker."""


class FakeBench(BrokerBench):
    def __init__(self, directory: Path) -> None:
        self.broker = FakeBroker(str(directory / "broker"))

    def create_topic(self, name: str, partitions: int) -> None:
        self.broker.create_topic(name, partitions)

    def produce(self, topic: str, number: int, events: Any, **options: Any) -> None:
        self.broker.produce(topic, events, partition=number, **options)

    def source(self, topics: Sequence[str], **options: Any) -> FakeSource:
        return FakeSource(FakeBroker(self.broker.path), topics, "g", **{"session": SESSION, **options})

    def expel(self, source: BrokerSource) -> None:
        assert isinstance(source, FakeSource)
        member = source.membership
        assert member is not None
        self.broker.expel("g", member.member)

    def set_reachable(self, reachable: bool) -> None:
        self.broker.set_reachable(reachable)

    def close(self) -> None:
        self.broker.close()


class NatsBench(BrokerBench):
    """Each topic is a stream. Offsets are its numbers, so a partition has some of them."""

    def __init__(self, directory: Path) -> None:
        self.server = NatsServer(directory / "jetstream")
        self._numbers: dict[str, list[int]] = {}

    def create_topic(self, name: str, partitions: int) -> None:
        self.server.create_stream(name, partitions)

    def produce(
        self,
        topic: str,
        number: int,
        events: Any,
        *,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp: int | None = None,
    ) -> None:
        if headers or timestamp:
            pytest.skip("JetStream stamps messages itself, and its headers are text: see test_nats.py")
        made = [(f"{topic}.{number}.{key.decode()}", payload, None) for key, payload in events]
        self._numbers.setdefault(partition_of(topic, number), []).extend(self.server.publish(made))

    def at(self, partition: str, number: int) -> int:
        numbers = self._numbers[partition]
        return numbers[number] if number < len(numbers) else self.server.end(partition.partition("/")[0])

    def source(
        self,
        topics: Sequence[str],
        *,
        session: float = SESSION,
        instance: str | None = None,
        start: str = "earliest",
        headers: bool = False,
    ) -> BrokerSource:
        return self.server.source(topics, session=session, member=instance, start=start, headers=headers)

    def expel(self, source: BrokerSource) -> None:
        self.server.expel(source)

    def set_reachable(self, reachable: bool) -> None:
        self.server.freeze(not reachable)

    def close(self) -> None:
        self.server.close()


class KafkaBench(BrokerBench):
    """librdkafka's mock cluster, which knows the new protocol of groups well."""

    reader = "c"

    def __init__(self, directory: Path) -> None:
        pytest.importorskip("confluent_kafka")
        from support.brokers.mock import MockBroker

        self.broker = MockBroker()
        self.bootstrap = self.broker.bootstrap
        self._producer: Any = None

    def create_topic(self, name: str, partitions: int) -> None:
        self.broker.create(name, partitions)

    def produce(self, topic: str, number: int, events: Any, headers: Any = (), timestamp: int | None = None) -> None:
        from confluent_kafka import Producer

        if self._producer is None:
            # Waits for flush, so that the events of a partition are one set: the mock cluster hands out one at a time,
            # and one of a single event, sent by a producer that was stopped in its loop, failed a test that reads 5.
            self._producer = Producer({"bootstrap.servers": self.bootstrap, "log_level": 0, "linger.ms": 60_000})
        when = {} if timestamp is None else {"timestamp": timestamp}
        for key, payload in events:
            self._producer.produce(topic, payload, key, partition=number, headers=list(headers), **when)
        assert 0 == self._producer.flush(PATIENCE)

    def source(
        self,
        topics: Sequence[str],
        *,
        session: float = SESSION,
        instance: str | None = None,
        start: str = "earliest",
        headers: bool = False,
    ) -> BrokerSource:
        from shardmem.sources.kafka import kind

        given = {"bootstrap.servers": self.bootstrap, "socket.timeout.ms": 5000, "reconnect.backoff.max.ms": 200}
        given |= self.given(session, instance)
        table = {"topics": topics, "group": self.group, "start": start, "headers": headers, "reader": self.reader}
        settings = kind.settings_of({**table, "kafka": given}, Schema())
        return kind.open_source(settings, EngineContext("e", "kafka", "/", Schema(), 1 << 20))

    group = "g"

    def given(self, session: float, instance: str | None) -> dict[str, Any]:
        """Settings of the library."""
        if instance is not None:
            pytest.skip("the mock cluster does not know members with a name of their own")
        self.broker.tell("session", int(session * 1000))
        return {}

    def expel(self, source: BrokerSource) -> None:
        self.broker.expel()

    def set_reachable(self, reachable: bool) -> None:
        self.broker.tell("up" if reachable else "down", 1)

    def close(self) -> None:
        self._producer = None
        self.broker.close()


class KafkaPythonBench(KafkaBench):
    reader = "python"


class RealKafkaBench(KafkaBench):
    """Apache Kafka, one for all tests of a process, which end it; the group is new for each."""

    cluster: Any = None
    protocol = "consumer"

    def __init__(self, directory: Path) -> None:
        from confluent_kafka.admin import AdminClient

        if RealKafkaBench.cluster is None:
            RealKafkaBench.cluster = kafka.KafkaCluster(Path(tempfile.mkdtemp(prefix="kafka-")))
        self.bootstrap = RealKafkaBench.cluster.bootstrap
        self._producer: Any = None
        self._admin: Any = AdminClient({"bootstrap.servers": self.bootstrap})
        self._group, self._topics = f"g-{uuid.uuid4().hex[:8]}", set[str]()

    def create_topic(self, name: str, partitions: int) -> None:
        from confluent_kafka.admin import NewTopic

        self._topics.add(name)
        self._admin.create_topics([NewTopic(name, partitions, 1)])[name].result(PATIENCE)

    def given(self, session: float, instance: str | None) -> dict[str, Any]:
        if instance is None and self.protocol == "consumer":
            self._keep_members_for(session)
            return {}
        wanted = {"session.timeout.ms": int(session * 1000), "heartbeat.interval.ms": 300}
        named = {} if instance is None else {"group.instance.id": instance}
        return {**wanted, **named, "max.poll.interval.ms": max(300_000, int(session * 1000))}

    @property
    def group(self) -> str:
        return self._group

    def _keep_members_for(self, session: float) -> None:
        import confluent_kafka.admin as admin

        change = admin.ConfigEntry(
            "consumer.session.timeout.ms", str(int(session * 1000)), incremental_operation=admin.AlterConfigOpType.SET
        )
        group = admin.ConfigResource(admin.ResourceType.GROUP, self._group, incremental_configs=[change])
        self._admin.incremental_alter_configs([group])[group].result(PATIENCE)

    def expel(self, source: BrokerSource) -> None:
        pytest.skip("nothing but silence ends a session of Apache Kafka")

    def set_reachable(self, reachable: bool) -> None:
        RealKafkaBench.cluster.signal(1, signal.SIGCONT if reachable else signal.SIGSTOP)

    def close(self) -> None:
        self._producer = None
        for each in self._admin.delete_topics(list(self._topics)).values() if self._topics else ():
            each.result(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while self._topics & self._admin.list_topics(timeout=PATIENCE).topics.keys():
            assert time.monotonic() < deadline
            time.sleep(0.05)


class RealClassicBench(RealKafkaBench):
    protocol = "classic"


BROKERS = [FakeBench, NatsBench, KafkaBench, KafkaPythonBench]
if kafka.MORE:
    BROKERS += [RealKafkaBench, RealClassicBench]
KINDS = [FileBench, *BROKERS]


def place(offset: int, metadata: str = "") -> Position:
    return Position(offset, metadata)


__all__ = [
    "BROKERS",
    "KINDS",
    "BrokerBench",
    "FakeBench",
    "FileBench",
    "Member",
    "NatsBench",
    "partition_of",
    "payloads_in",
    "place",
]
