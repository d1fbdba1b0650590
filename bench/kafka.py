"""A topic of Kafka into an engine, beside plain loops around a consumer and other systems. One table.

    python bench/kafka.py [--events N] [--bootstrap HOST:PORT] [--quick] [--repeat N] [--json FILE] [--against FILE]

Without --bootstrap it starts Apache Kafka from the jars that SHARDMEM_KAFKA_JARS names, on this machine: its share of
the cores is in every figure. A topic is filled once; every contender reads it as a group of its own, from its start to
its end. The clock runs from the moment at which the first event was read (of an engine: is in a lane, before any is
handled) to the last that was handled. CPU is user and system time of all processes of a contender, from before that to
after it, without the broker's; their start is in it.

The handlers do the same everywhere: `columns` adds up the lengths of payloads as columns, `light` adds
to a dict for each event, `heavy` decodes JSON and hashes 25 times, about 13 us. What is told of moves is in
kafka_moves.py. Systems that need another confluent-kafka may be in another environment: SHARDMEM_RIVALS, its Python.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import psutil  # noqa: E402

import shardmem  # noqa: E402
from bench import kafka_moves, report  # noqa: E402
from bench import kafka_programs as programs  # noqa: E402
from bench.kafka_programs import Start, engine, plain, rival, why_not  # noqa: E402
from bench.report import Row  # noqa: E402

PATIENCE = 300.0


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
        self.directory, self.path, self.events = directory, directory / "progress", events
        self.path.write_bytes(bytes(24 * 64))
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)

    def slots(self) -> list[tuple[int, int, int]]:
        return [slot for slot in struct.iter_unpack("<QQQ", self.map[:]) if slot[0]]

    def measure(self, processes: list[subprocess.Popen[bytes]]) -> tuple[float, float]:
        """(events in a second, us of CPU for each). Raises TimeoutError, ChildProcessError."""
        deadline, began = time.monotonic() + PATIENCE, 0
        while sum(slot[0] for slot in self.slots()) < self.events:
            if not began and not self.slots() and first_accepted(self.directory):
                began = time.monotonic_ns()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sum(slot[0] for slot in self.slots()):,} of {self.events:,} events")
            if any(each.poll() is not None for each in processes):
                raise ChildProcessError("it ended early")
            time.sleep(0.01 if began or self.slots() else 0.002)
        cpu = 0.0
        for each in processes:
            for process in [psutil.Process(each.pid), *psutil.Process(each.pid).children(recursive=True)]:
                times = process.cpu_times()
                cpu += times.user + times.system
        slots = self.slots()
        firsts = [slot[1] for slot in slots if slot[1]] + [began] * bool(began)
        seconds = (max(slot[2] for slot in slots) - min(firsts)) / 1e9
        return self.events / seconds, cpu / self.events * 1e6


def first_accepted(directory: Path) -> bool:
    """Whether an engine that is fed from there has taken an event."""
    for path in directory.glob("*.toml"):
        try:
            with shardmem.Client(path.stem) as client:
                return client.status()["accounting"]["accepted"] > 0
        except shardmem.ShardmemError:
            return False
    return False


@dataclass(frozen=True)
class Contender:
    """needs: module and package of a rival."""

    name: str
    label: str
    start: Start
    needs: tuple[str, str] | None = None


QUIX_PACKAGE, BYTEWAX_PACKAGE = ("quixstreams", "quixstreams"), ("bytewax.connectors.kafka", "bytewax[kafka]")
ARROYO_PACKAGE = "arroyo", "sentry-arroyo"
RIVALS = ("quix", "bytewax", "arroyo", "arroyo2")  # whose failures are shown, and are not ours


def rivals(work: str) -> list[Contender]:
    return [
        Contender("quix", "quixstreams", rival(programs.QUIX, work), QUIX_PACKAGE),
        Contender("bytewax", "bytewax", rival(programs.BYTEWAX, work), BYTEWAX_PACKAGE),
        Contender("arroyo", "arroyo, RunTask", rival(programs.ARROYO, work, 0), ARROYO_PACKAGE),
        Contender("arroyo2", "arroyo, two processes", rival(programs.ARROYO, work, 2), ARROYO_PACKAGE),
    ]


@dataclass(frozen=True)
class Case:
    """share: of the events. A rival that takes longer than PATIENCE has failed."""

    name: str
    partitions: int
    share: float
    reference: str
    contenders: list[Contender]


def cases() -> list[Case]:
    return [
        Case("light", 8, 1.0, "plain", [
            Contender("plain", "plain loop", plain("light", 1)),
            Contender("plain2", "two plain loops", plain("light", 2)),
            Contender("columns", "shardmem, handler of columns", engine("columns")),
            Contender("events", "shardmem, handler of events", engine("Light")),
            Contender("python", "shardmem, handler of events, reader in Python", engine("Light", "python")),
            *rivals("light"),
        ]),
        Case("one partition", 1, 0.1, "plain2", [
            Contender("plain", "plain loop", plain("heavy", 1)),
            Contender("plain2", "two plain loops, one has nothing", plain("heavy", 2)),
            Contender("events", "shardmem, handler of events", engine("Heavy")),
            *rivals("heavy"),
        ]),
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
        for case in cases():
            wanted = int(events * case.share)
            topic = fill(bootstrap, case.partitions, wanted)
            rates = {each.name: row(case, each, "", "events/s") for each in case.contenders}
            costs = {each.name: row(case, each, ": CPU", "us") for each in case.contenders}
            for turn in range(chosen.repeat):
                for each in case.contenders:
                    if rates[each.name].absent:
                        continue
                    report.progress(f"{case.name}: {each.label}, {turn + 1} of {chosen.repeat}")
                    try:
                        rate, cost = once(each.start, bootstrap, topic, wanted)
                    except (TimeoutError, ChildProcessError) as error:
                        rates[each.name].failures.append(str(error))
                        continue
                    rates[each.name].values.append(rate)
                    costs[each.name].values.append(cost)
            found(list(rates.values()))
            found([each for each in costs.values() if not each.absent])
        kafka_moves.measure(bootstrap, chosen.repeat, found)
    return []


def row(case: Case, contender: Contender, of: str, unit: str) -> Row:
    made = Row(f"{case.name}{of}", contender.name, contender.label, unit, [], (case.reference,))
    made.absent = why_not(*contender.needs) if contender.needs else None
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, metavar="N", help="in a topic (default 3,000,000; 100,000 with --quick)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a broker that runs already")
    report.options(parser, repeat=3)
    chosen = parser.parse_args()
    rows = report.run("kafka", chosen, lambda found: measure(chosen, found))
    return 1 if any(row.failures for row in rows if row.contender not in RIVALS) else 0


if __name__ == "__main__":
    sys.exit(main())
