"""Engines that are fed by Apache Kafka: the source is killed, hosts come and go."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

import shardmem
from support.brokers import kafka

pytestmark = [pytest.mark.skipif(kafka.why_not() is not None, reason=str(kafka.why_not())), pytest.mark.timeout(240)]

# One line for each event: partition, offset, key, payload, time, headers.
APP = """
import json, os
def handle(batch):
    rows = zip(batch, batch.origins.tolist(), batch.timestamps.tolist(), batch.headers or [[]] * len(batch))
    lines = [
        json.dumps([at, offset, *(each and each.decode() for each in event), when, [name for name, _ in headers]])
        for event, (_, at, offset), when, headers in rows
    ]
    with open(f"{os.environ['OUT']}.{os.getpid()}", "a") as out:
        out.write("\\n".join(lines) + "\\n")
"""


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """All workers of a run share one."""
    with kafka.shared(tmp_path_factory.getbasetemp().parent / "kafka") as bootstrap:
        yield bootstrap


@pytest.fixture
def topic(broker):
    from confluent_kafka.admin import AdminClient, NewTopic

    name = f"t-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": broker})
    for each in admin.create_topics([NewTopic(name, 4, 1)]).values():
        each.result(60)
    return name


class Producer:
    """Numbers its events, and knows what there should be of each partition."""

    def __init__(self, bootstrap, topic):
        import confluent_kafka

        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 0}
        )
        self.topic, self.count = topic, collections.Counter()

    def put(self, events):
        for at in range(events):
            number = at % 4
            self._producer.produce(self.topic, b"%d" % self.count[number], b"k%d" % (at % 40), partition=number)
            self.count[number] += 1
        assert 0 == self._producer.flush(60)

    def put_one(self, number, **event):
        self._producer.produce(self.topic, partition=number, **event)
        self.count[number] += 1
        assert 0 == self._producer.flush(60)


class Host:
    """An engine of its own, with a source in the same group as that of others."""

    def __init__(self, directory, bootstrap, topic, **library):
        self.directory, self.name = directory, f"host-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.out = directory / f"{self.name}.out"
        (directory / "app.py").write_text(APP)
        given = {"bootstrap.servers": bootstrap, **library}
        lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in given.items()]
        (directory / f"{self.name}.toml").write_text(
            f'name = "{self.name}"\nhandler = "app:handle"\nshards = 2\nstate_dir = "{directory}/{self.name}.state"\n'
            f'[source]\nkind = "kafka"\ntopics = ["{topic}"]\ngroup = "g-{topic}"\nheaders = true\n'
            "commit_interval = 0.2\n[source.kafka]\n" + "\n".join(lines) + "\n"
        )
        with open(directory / f"{self.name}.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardmem", "run", f"{self.name}.toml"],
                cwd=directory,
                env={**os.environ, "OUT": str(self.out)},
                stderr=log,
            )

    def source(self):
        try:
            with shardmem.Client(self.name) as client:
                return (client.status()["sources"] or [None])[0]
        except shardmem.ShardmemError:
            return None

    def partitions(self):
        source = self.source()
        return set(source["partitions"]) if source and source.get("partitions") else set()

    def handled(self):
        """[(partition, offset, key, payload, time, headers)], as each worker wrote them down."""
        found = []
        for path in self.directory.glob(f"{self.out.name}.*"):
            found += [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
        return found

    def wait(self, what, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not {what}: {self.source()} {self.said()}"
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)

    def said(self):
        return (self.directory / f"{self.name}.log").read_text(errors="replace")[-3000:]

    def stop(self):
        with shardmem.Client(self.name) as client:
            client.stop()
        assert 0 == self.process.wait(60), self.said()


@pytest.fixture
def host(tmp_path, broker, topic):
    made = []

    def host(**library):
        made.append(Host(tmp_path, broker, topic, **library))
        return made[-1]

    yield host
    for each in made:
        if each.process.poll() is None:
            each.process.terminate()
            try:
                each.process.wait(20)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()


def counted(*hosts):
    return collections.Counter((row[0], row[1]) for each in hosts for row in each.handled())


def expected(producer):
    return {(number, offset): 1 for number, count in producer.count.items() for offset in range(count)}


def committed(bootstrap, topic):
    import confluent_kafka

    consumer = confluent_kafka.Consumer({"bootstrap.servers": bootstrap, "group.id": f"g-{topic}"})
    try:
        found = consumer.committed([confluent_kafka.TopicPartition(topic, number) for number in range(4)], 60)
        return {each.partition: each.offset for each in found}
    finally:
        consumer.close()


def test_a_source_that_is_killed_repeats_nothing_and_commits_what_was_handled(broker, topic, host):
    producer = Producer(broker, topic)
    producer.put_one(0, key=b"a", value=None, timestamp=1234567890123, headers=[("trace", b"\x01")])
    producer.put_one(1, key=None, value=b"0")
    producer.put(4000)
    first = host(**{"group.instance.id": "one"})
    first.wait("handled", lambda: len(first.handled()) >= 1000)
    before = first.source()["pid"]
    os.kill(before, signal.SIGKILL)
    producer.put(4000)
    first.wait("started again", lambda: (first.source() or {}).get("pid") not in (None, before))
    first.wait("all handled", lambda: counted(first).keys() == expected(producer).keys())
    assert counted(first) == expected(producer)
    rows = {(row[0], row[1]): row[2:] for row in first.handled()}
    assert ["a", None, 1234567890123, ["trace"]] == rows[0, 0] and None is rows[1, 0][0]
    first.stop()
    assert dict(producer.count) == committed(broker, topic)
    again = host(**{"group.instance.id": "one"})
    producer.put(40)
    again.wait("the rest handled", lambda: len(again.handled()) >= 40)
    assert counted(first, again) == expected(producer)


def test_hosts_that_come_and_go_in_good_order_repeat_nothing(broker, topic, host):
    producer = Producer(broker, topic)
    first = host()
    first.wait("all partitions", lambda: len(first.partitions()) == 4)
    producer.put(400)
    second = host()
    second.wait("half of them", lambda: len(second.partitions()) == 2 and len(first.partitions()) == 2)
    producer.put(400)
    second.wait("handled", lambda: counted(first, second).keys() == expected(producer).keys())
    assert second.handled()
    first.stop()
    producer.put(400)
    second.wait("taken over", lambda: counted(first, second).keys() == expected(producer).keys())
    assert counted(first, second) == expected(producer)
