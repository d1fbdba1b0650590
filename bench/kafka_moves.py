"""How long a partition rests that moves from one host to another as planned: from the last of its events that the old
owner has handled to the first that the new one has, while events keep coming."""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import report
from bench.kafka_programs import run_engine
from bench.report import Row

PARTITIONS, RATE = 8, 8000  # events of a second, of all partitions
STEADY = 3.0  # seconds before the second host comes
PATIENCE = 120.0

_SEEN = '''
import mmap, os, struct, sys, time
with open(os.environ["SEEN"], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
def seen(process, partition):
    """When this process handled the first and the last event of a partition."""
    at, now = (process * 64 + partition) * 16, time.monotonic_ns()
    first, _ = struct.unpack_from("<QQ", memory, at)
    struct.pack_into("<QQ", memory, at, first or now, now)
'''
APP = (
    _SEEN
    + """
class Handler:
    def open(self, context):
        self.process = int(os.environ["HOST"]) * 8 + context.shard
    def handle(self, batch):
        for partition in set(batch.origins["partition"].tolist()):
            seen(self.process, partition)
"""
)
PLAIN = (
    _SEEN
    + """
from confluent_kafka import Consumer
bootstrap, topic, group = sys.argv[1:4]
consumer = Consumer({
    "bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
    "group.protocol": "consumer",
})
def revoke(consumer, partitions):
    try:
        consumer.commit(asynchronous=False)
    except Exception:
        pass
consumer.subscribe([topic], on_revoke=revoke)
last = time.monotonic()
while True:
    for partition in {each.partition() for each in consumer.consume(512, 0.05) if each.error() is None}:
        seen(int(os.environ["HOST"]) * 8, partition)
    if time.monotonic() - last > 1:
        consumer.commit(asynchronous=True)
        last = time.monotonic()
"""
)
Host = Callable[[Path, str, str, str], "subprocess.Popen[bytes]"]  # directory, bootstrap, topic, group


def a_loop(directory: Path, bootstrap: str, topic: str, group: str) -> subprocess.Popen[bytes]:
    (directory / "plain.py").write_text(PLAIN)
    return subprocess.Popen([sys.executable, "plain.py", bootstrap, topic, group], cwd=directory)


def an_engine(directory: Path, bootstrap: str, topic: str, group: str) -> subprocess.Popen[bytes]:
    (directory / "app.py").write_text(APP)
    return run_engine(directory, f"bench-{uuid.uuid4().hex[:8]}", "app:Handler", bootstrap, topic, group=group)


class Seen:
    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(16 * 64 * 16))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def of(self, host: int, partition: int) -> tuple[int, int] | None:
        """first and last, of all processes of a host."""
        rows = [
            struct.unpack_from("<QQ", self._memory, (process * 64 + partition) * 16)
            for process in range(8 * host, 8 * host + 8)
        ]
        known = [row for row in rows if row[0]]
        return (min(row[0] for row in known), max(row[1] for row in known)) if known else None

    def handled(self, host: int) -> list[int]:
        return [partition for partition in range(PARTITIONS) if self.of(host, partition)]


@contextlib.contextmanager
def fed(bootstrap: str) -> Iterator[str]:
    """A topic into which events come."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    topic, stop = f"moves-{uuid.uuid4().hex[:8]}", threading.Event()
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for each in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        each.result(60)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1})

    def feed() -> None:
        began, count = time.monotonic(), 0
        while not stop.is_set():
            for _ in range(RATE // 500):
                producer.produce(topic, b"x" * 64, b"k%d" % (count % 1000), partition=count % PARTITIONS)
                count += 1
            producer.poll(0)
            time.sleep(max(0.0, began + count / RATE - time.monotonic()))

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield topic
    finally:
        stop.set()
        feeder.join()
        producer.flush(10)


def pauses(host: Host, bootstrap: str) -> list[float]:
    """In ms, of each partition that the second host got."""
    processes: list[subprocess.Popen[bytes]] = []
    group = f"g-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="shardmem-bench-") as name, fed(bootstrap) as topic:
        directory = Path(name)
        seen = Seen(directory / "seen")
        os.environ["SEEN"] = str(directory / "seen")
        try:
            for number in range(2):
                os.environ["HOST"] = str(number)
                processes.append(host(directory, bootstrap, topic, group))
                share = PARTITIONS if number == 0 else PARTITIONS // 2
                deadline = time.monotonic() + PATIENCE
                while len(seen.handled(number)) < share:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"host {number} handles {len(seen.handled(number))} partitions")
                    time.sleep(0.05)
                time.sleep(STEADY)
            found = []
            for partition in seen.handled(1):
                before, after = seen.of(0, partition), seen.of(1, partition)
                assert before and after
                found.append((after[0] - before[1]) / 1e6)
            return found
        finally:
            for each in processes:
                each.terminate()
            for each in processes:
                each.wait(60)


def measure(bootstrap: str, repeat: int, found: Callable[[list[Row]], None]) -> None:
    contenders = (("loop", "plain loops", a_loop), ("engine", "shardmem", an_engine))
    case = "planned move"
    middle = {
        name: Row(case, name, f"{label}, a partition rests", "ms", [], ("loop",)) for name, label, _ in contenders
    }
    longest = {
        name: Row(f"{case}: longest", name, f"{label}, the one that rests longest", "ms", [], ("loop",))
        for name, label, _ in contenders
    }
    for turn in range(repeat):
        for name, label, host in contenders:
            report.progress(f"{case}: {label}, {turn + 1} of {repeat}")
            try:
                rests = pauses(host, bootstrap)
            except TimeoutError as error:
                middle[name].failures.append(str(error))
                continue
            middle[name].values.append(statistics.median(rests))
            longest[name].values.append(max(rests))
    found(list(middle.values()))
    found(list(longest.values()))
