"""What bench/kafka.py measures: programs that read a topic as a group of their own, and how each is started.

All of them do the same `work(key, payload)` for each event and say in a file how far they are. Systems that need
another version of confluent-kafka than ours may be in an environment of their own: SHARDMEM_RIVALS names its Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

WORKERS = 2
RIVALS = os.environ.get("SHARDMEM_RIVALS", sys.executable)

Processes = list["subprocess.Popen[bytes]"]
Start = Callable[[Path, str, str], Processes]  # directory, bootstrap, topic

COMMON = '''
import hashlib, json, mmap, os, struct, sys, time
class Progress:
    """A slot of a file for each process: events, time at which the first was at hand, time of the last, in ns."""
    def __init__(self, slot):
        with open(os.environ["PROGRESS"], "r+b") as file:
            self.map, self.at = mmap.mmap(file.fileno(), 0), slot * 24
        self.count = self.first = 0
    def begin(self):
        self.first = self.first or time.monotonic_ns()
    def add(self, events):
        self.count += events
        struct.pack_into("<QQQ", self.map, self.at, self.count, self.first, time.monotonic_ns())
    def one(self):
        """Of those that are called for each event: it is written down for every hundred of them."""
        self.count += 1
        if self.count % 100 == 0:
            self.add(0)
counts = {}
def light(key, payload):
    counts[key] = counts.get(key, 0) + len(payload)
def heavy(key, payload):
    data = json.loads(payload)
    for _ in range(25):
        data = hashlib.sha256(payload).digest()
    counts[key] = data
def named(name):
    return {"light": light, "heavy": heavy}[name]
'''
APP = (
    COMMON
    + """
class Handler:
    def open(self, context):
        self.progress = Progress(context.shard)
class columns(Handler):
    def handle(self, batch):
        self.progress.begin()
        columns = batch.columns()
        self.size = int((columns.ends - columns.starts).sum())
        self.progress.add(len(batch))
class per_event(Handler):
    def handle(self, batch):
        self.progress.begin()
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
from confluent_kafka import Consumer
bootstrap, topic, group, work, slot = *sys.argv[1:5], int(sys.argv[5])
work = named(work)
progress, consumer = Progress(slot), Consumer({
    "bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
    "group.protocol": "consumer",
})
consumer.subscribe([topic])
last = time.monotonic()
while True:
    messages = [each for each in consumer.consume(4096, 0.1) if each.error() is None]
    if messages:
        progress.begin()
        for each in messages:
            work(each.key(), each.value())
        progress.add(len(messages))
    if time.monotonic() - last > 1:
        if progress.count:
            consumer.commit(asynchronous=True)
        last = time.monotonic()
"""
)
QUIX = (
    COMMON
    + """
from quixstreams import Application
bootstrap, topic, group, work = sys.argv[1:5]
progress, work = Progress(0), named(work)
def handle(value, key, timestamp, headers):
    progress.begin()
    work(key, value)
    progress.one()
app = Application(broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest", loglevel="ERROR")
app.dataframe(app.topic(topic, key_deserializer="bytes", value_deserializer="bytes")).update(handle, metadata=True)
app.run()
"""
)
BYTEWAX = (
    COMMON
    + """
import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from confluent_kafka import OFFSET_BEGINNING
bootstrap, topic, group, work = sys.argv[1:5]
progress, work = Progress(0), named(work)
class Part(StatelessSinkPartition):
    def write_batch(self, items):
        progress.begin()
        for each in items:
            work(each.key, each.value)
        progress.add(len(items))
class Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Part()
flow = Dataflow("bench")
source = KafkaSource([bootstrap], [topic], starting_offset=OFFSET_BEGINNING, batch_size=4096)
op.output("out", op.input("in", flow, source), Sink())
run_main(flow)
"""
)
ARROYO = (
    COMMON
    + """
from arroyo.backends.kafka import KafkaConsumer
from arroyo.backends.kafka.configuration import build_kafka_consumer_configuration
from arroyo.processing.processor import StreamProcessor
from arroyo.processing.strategies import CommitOffsets, ProcessingStrategyFactory, RunTask, RunTaskWithMultiprocessing
from arroyo.processing.strategies.run_task_with_multiprocessing import MultiprocessingPool
from arroyo.types import Topic
bootstrap, topic, group, work, processes = *sys.argv[1:5], int(sys.argv[5])
progress, work = Progress(0), named(work)
def handle(message):
    work(message.payload.key, message.payload.value)
def handled(message):
    progress.one()
def handle_here(message):
    progress.begin()
    handle(message)
    progress.one()
class Factory(ProcessingStrategyFactory):
    def create_with_partitions(self, commit, partitions):
        if not processes:
            return RunTask(handle_here, CommitOffsets(commit))
        progress.begin()
        return RunTaskWithMultiprocessing(
            handle, RunTask(handled, CommitOffsets(commit)), max_batch_size=4096, max_batch_time=0.1, pool=pool,
        )
if __name__ == "__main__":
    pool = MultiprocessingPool(num_processes=processes) if processes else None
    settings = build_kafka_consumer_configuration(
        {}, bootstrap_servers=[bootstrap], auto_offset_reset="earliest", group_id=group
    )
    StreamProcessor(KafkaConsumer(settings), Topic(topic), Factory()).run()
"""
)


def plain(work: str, count: int) -> Start:
    def start(directory: Path, bootstrap: str, topic: str) -> Processes:
        group = _group()
        return [
            _program(sys.executable, PLAIN, directory, bootstrap, topic, group, work, slot) for slot in range(count)
        ]

    return start


def rival(program: str, work: str, *more: object) -> Start:
    return lambda directory, bootstrap, topic: [
        _program(RIVALS, program, directory, bootstrap, topic, _group(), work, *more)
    ]


def engine(handler: str, reader: str = "c") -> Start:
    def start(directory: Path, bootstrap: str, topic: str) -> Processes:
        (directory / "app.py").write_text(APP)
        return [run_engine(directory, f"bench-{uuid.uuid4().hex[:8]}", f"app:{handler}", bootstrap, topic, reader)]

    return start


def run_engine(
    directory: Path, name: str, handler: str, bootstrap: str, topic: str, reader: str = "c", group: str | None = None
) -> subprocess.Popen[bytes]:
    (directory / f"{name}.toml").write_text(
        f'name = "{name}"\nhandler = "{handler}"\nshards = {WORKERS}\nlane_bytes = "4 MiB"\nlog_level = "error"\n'
        f'state_dir = "{directory}/{name}"\n[source]\nkind = "kafka"\ntopics = ["{topic}"]\nreader = "{reader}"\n'
        f'group = "{group or name}"\n[source.kafka]\n"bootstrap.servers" = "{bootstrap}"\n'
    )
    return subprocess.Popen(
        [sys.executable, "-m", "shardmem", "run", f"{name}.toml"], cwd=directory, stderr=subprocess.DEVNULL
    )


@cache
def why_not(module: str, package: str) -> str | None:
    """Why a rival cannot be measured here."""
    done = subprocess.run([RIVALS, "-c", f"import {module}"], capture_output=True, text=True)
    if not done.returncode:
        return None
    last = (done.stderr.strip().splitlines() or ["it ended"])[-1]
    return f"not installed (pip install {package}): {last[:80]}"


def _program(python: str, text: str, directory: Path, *arguments: object) -> subprocess.Popen[bytes]:
    (directory / "program.py").write_text(text)
    command = [python, "program.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _group() -> str:
    return f"g-{uuid.uuid4().hex[:8]}"
