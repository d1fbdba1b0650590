"""A topic of Kafka into an engine, beside plain loops around a consumer. One table.

    python bench/kafka.py [--events N] [--bootstrap HOST:PORT] [--quick] [--repeat N] [--json FILE] [--against FILE]

Without --bootstrap it starts Apache Kafka from the jars that SHARDMEM_KAFKA_JARS names, on this machine: its share of
the cores is in every figure. A topic is filled once; every contender reads it as a group of its own, from its start to
its end, and the clock runs from the first event that it has handled to the last. CPU is user and system time of all
processes of a contender, from before that to after it, without the broker's; their start is in it.

The handlers do the same everywhere: `columns` adds up the lengths of payloads as columns, `light` adds
to a dict for each event, `heavy` decodes JSON and hashes 25 times, about 13 us.
"""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import psutil  # noqa: E402

from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402

PATIENCE = 300.0
WORKERS = 2

# What every contender runs: `work(key, payload)` for each event, and `Progress` for how far it is.
COMMON = '''
import hashlib, json, mmap, os, struct, time
class Progress:
    """A slot of a file for each process: events, time of the first and of the last, in ns."""
    def __init__(self, slot):
        with open(os.environ["PROGRESS"], "r+b") as file:
            self.map, self.at = mmap.mmap(file.fileno(), 0), slot * 24
        self.count = self.first = 0
    def add(self, events):
        now = time.monotonic_ns()
        self.first = self.first or now
        self.count += events
        struct.pack_into("<QQQ", self.map, self.at, self.count, self.first, now)
counts = {}
def light(key, payload):
    counts[key] = counts.get(key, 0) + len(payload)
def heavy(key, payload):
    data = json.loads(payload)
    for _ in range(25):
        data = hashlib.sha256(payload).digest()
    counts[key] = data
'''
APP = (
    COMMON
    + """
class Handler:
    def open(self, context):
        self.progress = Progress(context.shard)
class columns(Handler):
    def handle(self, batch):
        columns = batch.columns()
        self.size = int((columns.ends - columns.starts).sum())
        self.progress.add(len(batch))
class per_event(Handler):
    def handle(self, batch):
        work = self.work
        for key, payload in batch:
            work(key, payload)
        self.progress.add(len(batch))
class Light(per_event):
    work = staticmethod(light)
class Heavy(per_event):
    work = staticmethod(heavy)
"""
)
PLAIN = (
    COMMON
    + """
import sys
from confluent_kafka import Consumer
slot, bootstrap, topic, group, work = int(sys.argv[1]), *sys.argv[2:6]
work = {"light": light, "heavy": heavy, "none": None}[work]
progress, consumer = Progress(slot), Consumer({
    "bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
    "group.protocol": "consumer",
})
consumer.subscribe([topic])
last = time.monotonic()
while True:
    messages = [each for each in consumer.consume(4096, 0.1) if each.error() is None]
    if work:
        for each in messages:
            work(each.key(), each.value())
    if messages:
        progress.add(len(messages))
    if time.monotonic() - last > 1:
        if progress.count:
            consumer.commit(asynchronous=True)
        last = time.monotonic()
"""
)


@contextmanager
def broker(bootstrap: str | None) -> Iterator[str]:
    if bootstrap:
        yield bootstrap
        return
    path = Path(__file__).resolve().parents[1] / "tests" / "support" / "brokers" / "kafka.py"
    spec = importlib.util.spec_from_file_location("bench_broker", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if why := module.why_not():
        print(f"not measured: {why}")
        sys.exit(0)
    with tempfile.TemporaryDirectory(prefix="shardmem-bench-") as directory:
        cluster = module.KafkaCluster(Path(directory) / "kafka", heap_mb=512)
        try:
            yield cluster.bootstrap
        finally:
            cluster.close()


def fill(bootstrap: str, partitions: int, events: int) -> str:
    """The topic, with payloads of 64 bytes that are JSON, of 10,000 keys."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = f"bench-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for each in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        each.result(60)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 500_000})
    for number in range(events):
        payload = b'{"number": %d, "text": "%s"}' % (number, b"x" * 64)
        while True:
            try:
                producer.produce(topic, payload[:62] + b'"}', b"k%d" % (number % 10_000))
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(PATIENCE) == 0
    return topic


class Watched:
    """Progress of all processes of a contender, and their CPU."""

    def __init__(self, directory: Path, events: int) -> None:
        self.path, self.events = directory / "progress", events
        self.path.write_bytes(bytes(24 * 64))
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)

    def slots(self) -> list[tuple[int, int, int]]:
        return [slot for slot in struct.iter_unpack("<QQQ", self.map[:]) if slot[0]]

    def measure(self, processes: list[subprocess.Popen[bytes]]) -> tuple[float, float]:
        """(events in a second, us of CPU for each). Raises TimeoutError, ChildProcessError."""
        deadline = time.monotonic() + PATIENCE
        while sum(slot[0] for slot in self.slots()) < self.events:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sum(slot[0] for slot in self.slots()):,} of {self.events:,} events")
            if any(each.poll() is not None for each in processes):
                raise ChildProcessError("it ended early")
            time.sleep(0.01)
        cpu = 0.0
        for each in processes:
            for process in [psutil.Process(each.pid), *psutil.Process(each.pid).children(recursive=True)]:
                times = process.cpu_times()
                cpu += times.user + times.system
        slots = self.slots()
        seconds = (max(slot[2] for slot in slots) - min(slot[1] for slot in slots)) / 1e9
        return self.events / seconds, cpu / self.events * 1e6


def plain(directory: Path, bootstrap: str, topic: str, work: str, count: int) -> list[subprocess.Popen[bytes]]:
    (directory / "plain.py").write_text(PLAIN)
    group = f"g-{uuid.uuid4().hex[:8]}"
    return [
        subprocess.Popen([sys.executable, str(directory / "plain.py"), str(slot), bootstrap, topic, group, work])
        for slot in range(count)
    ]


def engine(directory: Path, bootstrap: str, topic: str, handler: str, reader: str) -> list[subprocess.Popen[bytes]]:
    (directory / "app.py").write_text(APP)
    name = f"bench-{uuid.uuid4().hex[:8]}"
    (directory / "engine.toml").write_text(
        f'name = "{name}"\nhandler = "app:{handler}"\nshards = {WORKERS}\nlane_bytes = "4 MiB"\nlog_level = "error"\n'
        f'state_dir = "{directory}/state"\n[source]\nkind = "kafka"\ntopics = ["{topic}"]\nreader = "{reader}"\n'
        f'group = "{name}"\n[source.kafka]\n"bootstrap.servers" = "{bootstrap}"\n'
    )
    return [
        subprocess.Popen(
            [sys.executable, "-m", "shardmem", "run", "engine.toml"], cwd=directory, stderr=subprocess.DEVNULL
        )
    ]


Start = Callable[[Path, str, str], list["subprocess.Popen[bytes]"]]


def cases() -> list[tuple[str, int, float, str, list[tuple[str, str, Start]]]]:
    """(case, partitions, share of the events, reference, [(contender, label, how it is started)])"""

    def loops(work: str, count: int) -> Start:
        return lambda directory, bootstrap, topic: plain(directory, bootstrap, topic, work, count)

    def shards(handler: str, reader: str = "c") -> Start:
        return lambda directory, bootstrap, topic: engine(directory, bootstrap, topic, handler, reader)

    return [
        (
            "light", 8, 1.0, "plain",
            [
                ("plain", "plain loop", loops("light", 1)),
                ("plain2", "two plain loops", loops("light", 2)),
                ("columns", "shardmem, handler of columns", shards("columns")),
                ("events", "shardmem, handler of events", shards("Light")),
                ("python", "shardmem, handler of events, reader in Python", shards("Light", "python")),
            ],
        ),
        (
            "one partition", 1, 0.1, "plain2",
            [
                ("plain", "plain loop", loops("heavy", 1)),
                ("plain2", "two plain loops, one has nothing", loops("heavy", 2)),
                ("events", "shardmem, handler of events", shards("Heavy")),
            ],
        ),
    ]  # fmt: skip


def once(start: Start, bootstrap: str, topic: str, events: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="shardmem-bench-") as name:
        directory = Path(name)
        watched = Watched(directory, events)
        os.environ["PROGRESS"] = str(watched.path)
        processes = start(directory, bootstrap, topic)
        try:
            return watched.measure(processes)
        finally:
            for each in processes:
                each.terminate()
            for each in processes:
                each.wait(60)


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> list[dict[str, Any]]:
    events = chosen.events or (100_000 if chosen.quick else 3_000_000)
    with broker(chosen.bootstrap) as bootstrap:
        for case, partitions, share, reference, contenders in cases():
            wanted = int(events * share)
            topic = fill(bootstrap, partitions, wanted)
            rates = {name: Row(case, name, label, "events/s", [], (reference,)) for name, label, _ in contenders}
            costs = {name: Row(f"{case}: CPU", name, label, "us", [], (reference,)) for name, label, _ in contenders}
            for turn in range(chosen.repeat):
                for name, label, start in contenders:
                    report.progress(f"{case}: {label}, {turn + 1} of {chosen.repeat}")
                    try:
                        rate, cost = once(start, bootstrap, topic, wanted)
                    except (TimeoutError, ChildProcessError) as error:
                        rates[name].failures.append(str(error))
                        continue
                    rates[name].values.append(rate)
                    costs[name].values.append(cost)
            found(list(rates.values()))
            found(list(costs.values()))
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, metavar="N", help="in a topic (default 3,000,000; 100,000 with --quick)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a broker that runs already")
    report.options(parser, repeat=3)
    chosen = parser.parse_args()
    rows = report.run("kafka", chosen, lambda found: measure(chosen, found))
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
