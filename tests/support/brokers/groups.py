"""The groups that support.hosts makes its hosts members of: of a broker in a file, and of Apache Kafka."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmem.testing.broker import FakeBroker
from support.brokers.kafka import KafkaCluster
from support.brokers.network import Network, network
from support.chaos import SLOTS
from support.handlers.judged import TABLES
from support.hosts import KEYS, LONG, PARTITIONS, Host
from support.partitions import counts

SESSION = 15.0  # a busy machine is not to end one by itself
TOPIC, GROUP = "t", "hosts"
NAMES = [f"{TOPIC}/{number}" for number in range(PARTITIONS)]


class FakeGroup:
    planned = ("kill_source", "kill_supervisor", "leave", "scale", "reload")
    others = ("freeze", "kill_host", "kill_worker", "kill_source", "leave", "scale")

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "broker")
        self.broker = FakeBroker(self.path)
        self.broker.create_topic(TOPIC, PARTITIONS)
        self.files = (self.path,)
        self.said = ""

    def daemon(self, host: str, directory: Path) -> Mapping[str, Any]:
        source = (
            f"fake:{self.path}?topics={TOPIC}&group={GROUP}&session={SESSION}s&instance={host}&commit_interval=200ms"
            "&drain_timeout=60s"
        )
        return {"handler": "support.recorder:Recorder", "source": source, "retry_max_wait": 1}

    def produce(self, events: Sequence[tuple[int, bytes]]) -> None:
        with contextlib.closing(FakeBroker(self.path)) as broker:  # it is another thread's
            broker.produce(TOPIC, events)

    def has_committed_all(self) -> bool:
        places = self.broker.committed(GROUP, NAMES)
        ends = {name: self.broker.end(name) for name in NAMES}
        self.said = f"{places} of {ends}"
        return all(ends[name] == (0 if (at := places[name]) is None else at.offset) for name in NAMES)

    def cut(self, host: str, is_cut: bool) -> None:
        raise NotImplementedError("a file has no network")

    def kill_a_broker(self, chance: random.Random) -> None:
        raise NotImplementedError("a file has no process")


class KafkaGroup:
    """Three brokers; state and guarded sinks are judged, too. protocol: of the group. A source that is killed has its
    partitions again at once where its member has a name, and only the old protocol gives that to the next process."""

    def __init__(self, directory: Path, protocol: str) -> None:
        self.protocol = protocol
        kills = ("kill_source",) if protocol == "classic" else ()
        self.planned = (*kills, "kill_supervisor", "leave", "scale", "reload")
        self.others = (
            "freeze", "cut", "kill_host", "kill_worker", "kill_source", "kill_supervisor", "kill_broker", "leave",
            "scale", "reload",
        )  # fmt: skip
        self.said = ""
        self._directory = directory
        self.sink = str(directory / "sink.sqlite")
        self.files = (self.sink,)
        self.networks: dict[str, Network] = {}

    @contextlib.contextmanager
    def running(self, hosts: Sequence[str]) -> Iterator[KafkaGroup]:
        """hosts: their names, by the letters that listeners have."""
        import confluent_kafka
        from confluent_kafka.admin import AdminClient, NewTopic

        with contextlib.ExitStack() as stack, contextlib.closing(sqlite3.connect(self.sink)) as database:
            database.execute("pragma journal_mode = wal")
            database.executescript(TABLES)
            for name in hosts:
                self.networks[name] = network()
                stack.callback(self.networks[name].close)
            letters = {f"H{number}": self.networks[name] for number, name in enumerate(hosts)}
            self._letters = dict(zip(hosts, letters))
            settings = [f"group.consumer.session.timeout.ms={int(SESSION * 1000)}"]
            self.cluster = KafkaCluster(self._directory / "cluster", 3, 256, settings, letters)
            stack.callback(self.cluster.close)
            library = {"bootstrap.servers": self.cluster.bootstrap, "log_level": 0}
            admin = AdminClient(library)
            for each in admin.create_topics([NewTopic(TOPIC, PARTITIONS, 3)]).values():
                each.result(60)
            self._producer = confluent_kafka.Producer({**library, "enable.idempotence": True, "linger.ms": 1})
            self._library = library
            yield self

    def daemon(self, host: str, directory: Path) -> Mapping[str, Any]:
        member = f"&group.instance.id={host}&session.timeout.ms={int(SESSION * 1000)}"
        bootstrap = self.cluster.bootstrap_in(self._letters[host])
        source = f"kafka://{bootstrap}/{TOPIC}?group={GROUP}&commit_interval=200ms&drain_timeout=60s"
        file = directory / "engine.toml"
        file.write_text(
            f'handler = "support.handlers.judged:Judged"\n[state]\nremote = "file://{self._directory}/remote"\n'
            'remote_interval = "500ms"\n'
        )
        return {
            "handler": str(file),
            "prefix": self.networks[host].prefix,
            "source": source + (member if self.protocol == "classic" else "&group.protocol=consumer"),
            "retry_max_wait": 1,
            "batch_rows": 256,
            "lane_bytes": 1 << 16,
        }

    def produce(self, events: Sequence[tuple[int, bytes]]) -> None:
        for key, payload in events:
            self._producer.produce(TOPIC, payload, b"%d" % key, partition=key % PARTITIONS)
        left = self._producer.flush(LONG)
        assert left == 0, f"the brokers have not taken {left} events"

    def has_committed_all(self) -> bool:
        """By a client of its own each time: one that has seen brokers come and go may ask the wrong one for minutes."""
        import confluent_kafka

        wanted = [confluent_kafka.TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        asked = confluent_kafka.Consumer({**self._library, "group.id": GROUP})
        try:
            found = asked.committed(wanted, 10)
            ends = [asked.get_watermark_offsets(each, 10)[1] for each in wanted]
        except confluent_kafka.KafkaException as error:
            self.said = str(error)
            return False
        finally:
            asked.close()
        self.said = f"{[(each.offset, each.error) for each in found]} of {ends}"
        return [max(0, each.offset) for each in found] == ends

    def cut(self, host: str, is_cut: bool) -> None:
        (self.networks[host].cut if is_cut else self.networks[host].heal)()

    def kill_a_broker(self, chance: random.Random) -> None:
        number = chance.randint(1, 3)
        self.cluster.kill(number)
        time.sleep(chance.uniform(0.0, 3.0))
        self.cluster.start(number)
        self.cluster.await_ready(number)
        self.cluster.await_in_sync(TOPIC)

    # ---- the judgement -----------------------------------------------------------------------------------------------

    def judge(self, hosts: Sequence[Host], numbers: Sequence[int]) -> list[str]:
        """State, where its partition is now, and what was written into the database. numbers: of events of each
        key."""
        wanted = {key: count for key, count in enumerate(numbers) if count}
        found: dict[int, int] = {}
        for host in hosts:
            owned = {int(name.rpartition("/")[2]) for name in host.owned()}
            state = counts(str(host.rig.directory / "state" / f"{host.name}.state"), "counted", PARTITIONS, SLOTS)
            found.update({int(key): n for number in owned for key, n in state[number].items()})
        with contextlib.closing(sqlite3.connect(self.sink, timeout=30)) as database:
            latest = dict(database.execute("select key, number + 1 from latest").fetchall())
            summed = dict(database.execute("select key, n from summed").fetchall())
        return [
            f"{what} of key {key}: {of[key] if key in of else 'nothing'}, and {wanted.get(key, 0)} were produced"
            for what, of in (("state", found), ("upsert", latest), ("transaction", summed))
            for key in range(KEYS)
            if of.get(key) != wanted.get(key)
        ]
