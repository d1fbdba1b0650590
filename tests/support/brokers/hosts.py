"""Engines on Apache Kafka, what is produced for them, and what they have handled."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
import uuid

import shardmem

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
    """An engine of its own, with a source in the same group as that of others. more: topics that it reads, too.
    tables: of its configuration."""

    def __init__(self, directory, bootstrap, topic, *, more=(), app=APP, tables="", **library):
        self.directory, self.name = directory, f"host-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.out = directory / f"{self.name}.out"
        (directory / "app.py").write_text(app)
        given = {"bootstrap.servers": bootstrap, **library}
        lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in given.items()]
        (directory / f"{self.name}.toml").write_text(
            f'name = "{self.name}"\nhandler = "app:handle"\nshards = 2\nstate_dir = "{directory}/{self.name}.state"\n'
            f'[source]\nkind = "kafka"\ntopics = {json.dumps([topic, *more])}\ngroup = "g-{topic}"\nheaders = true\n'
            "commit_interval = 0.2\n[source.kafka]\n" + "\n".join(lines) + f"\n{tables}\n"
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


def create_topic(bootstrap, partitions=4, replicas=1):
    from confluent_kafka.admin import AdminClient, NewTopic

    name = f"t-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for each in admin.create_topics([NewTopic(name, partitions, replicas)]).values():
        each.result(60)
    return name


def end(hosts):
    for each in hosts:
        if each.process.poll() is None:
            each.process.terminate()
            try:
                each.process.wait(20)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
