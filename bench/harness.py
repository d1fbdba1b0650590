"""What a case measures, and how every contender is measured: one procedure for all.

Measured
    Throughput: events per second, end to end. Producer and consumer processes are started, connected
    and warmed up, then meet at a barrier; the clock runs from the first send to the moment when the
    last consumer has touched the last event. Touching is adding up the first u64 of every event, and
    the sum must be the expected one: a contender that loses, repeats or tears an event *there* has
    FAILED and gets no figure.
    Latency: one way, at a fixed rate of single events, from just before the send to the moment when
    the consumer has the event. The time sent travels as the first u64 of the event.

Not measured
    Start-up, connecting and the building of events (they exist before the clock runs: every contender
    sends the same pool of 4096 different events again and again). The bytes after the first u64 are
    carried, but nobody looks at them. A consumer that does real work would hide the transport.

Noise
    Every measurement runs in fresh processes; the contenders of one case take turns. Processes are
    pinned if each can have a cpu of its own (producers from the first cpu up, consumers from the last
    one down), else none is; the row says which. All clocks are CLOCK_MONOTONIC, one for the machine.

Kinds of case
    records   fixed-size rows of one type, in blocks as large as the contender likes
    lists     256 events per call, every one a Python object on both sides
    columns   256 events per call, handed over as a whole: joined bytes or arrays
    push      one event per call
    latency   one event per call, 1,000 a second

Writing a contender
    Subclass `Contender`, put an instance into the module's `CONTENDERS`, name the module in
    `rivals/__init__.py`. `forms` says which kinds of case it takes part in, and how events travel:

    ========  ====================================================  =========================
    form      a message, as `sender()` puts and `receiver()` gets   `receiver()` is called as
    ========  ====================================================  =========================
    single    one event: bytes                                      ``get()``
    list      a list of events, 256 on the way in                   ``get(most)``
    joined    one buffer of whole events, 256 on the way in         ``get()``
    ========  ====================================================  =========================

    Any other word is a form of the contender's own; then it overrides `producer` (and `consumer`)
    for it, with loops of its own over the `Pool`.

    A contender whose consumers are not processes of ours (shardmem: its supervisor starts its workers)
    sets `own_workers = True`, starts `trial.consumers` of them in `setup`, connects in `sender` or
    `producer`, and stops everything in `teardown`. Its workers report through the `Tally`, found by an
    environment variable that they inherit; nothing else is asked of them::

        class Touch:                                     # the handler, in the worker
            def open(self, context):
                self.tally = harness.Tally.attach(index) # 0 .. consumers-1: which worker; also pins it
            def handle(self, batch):
                words = batch.records["key"]
                self.tally.add(len(words), int(words.sum()))          # throughput
                # latency: for each event, as soon as it is in hand: self.tally.latency(first_u64)

    `bench` is on the PYTHONPATH of every process (import it as `bench.harness`). Overriding
    `measure` replaces the procedure as a whole (the C floor does: its processes are not Python).
"""

from __future__ import annotations

import json
import math
import mmap
import multiprocessing
import os
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

POOL = 4096  # different events, sent in turn; a round is a whole number of pools
BATCH = 256  # events per list or joined buffer
WARM_EVENTS = 100  # of the latency case, not counted
DEADLINE = 20.0  # seconds a round may take: a lost event shows as a consumer that waits for ever
ENVIRONMENT = "SHARDMEM_BENCH_TRIAL"

clock = time.monotonic_ns
first_word = struct.Struct("<Q").unpack_from
fork = multiprocessing.get_context("fork")


class Failed(Exception):
    """The contender did not do what it was asked; the text says how."""


@dataclass(frozen=True)
class Trial:
    """One measurement: the case, and everything a contender needs to know about it."""

    case: str
    kind: str  # records, columns, lists, push, latency
    form: str  # how this contender carries it
    size: int  # bytes per event
    producers: int
    consumers: int  # as many as producers
    seconds: float  # length of the measured round
    scratch: str  # a directory of this trial's own: sockets, the tally
    cpus: list[int]  # those that the benchmark may use
    rate: int = 1000  # events/s per producer, latency only
    floor: dict[str, int] = field(default_factory=dict)  # ring and publish, for the C floor

    @property
    def tag(self) -> str:
        """A short name that no other trial has, for whatever has a global name space."""
        return f"smb-{os.path.basename(self.scratch)}"

    def cpu(self, role: str, index: int) -> int | None:
        """The cpu of a producer or a consumer; None when not everybody can have one alone."""
        if len(self.cpus) < self.producers + self.consumers:
            return None
        return self.cpus[index] if role == "producer" else self.cpus[-1 - index]

    def pin(self, role: str, index: int) -> None:
        cpu = self.cpu(role, index)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    @property
    def pinning(self) -> str:
        """As the row states it: the producers' cpus > the consumers' cpus."""
        if self.cpu("producer", 0) is None:
            return "none"
        ends = ("producer", self.producers), ("consumer", self.consumers)
        return ">".join(",".join(str(self.cpu(role, i)) for i in range(n)) for role, n in ends)


class Pool:
    """The events of one producer, in every form, built before the clock runs.

    The first u64 of each is a random number below 2**32: any two events differ, and a sum of them
    stays a cheap integer in Python.
    """

    def __init__(self, trial: Trial, index: int) -> None:
        random = np.random.default_rng(index + 1)
        self.rows = random.integers(0, 256, (POOL, trial.size), dtype=np.uint8)
        self.values = self.rows.view("<u8")[:, 0]
        self.values[:] = random.integers(0, 2**32, POOL, dtype=np.uint64)

    @cached_property
    def events(self) -> list[bytes]:
        return [row.tobytes() for row in self.rows]

    @cached_property
    def lists(self) -> list[list[bytes]]:
        return [self.events[i : i + BATCH] for i in range(0, POOL, BATCH)]

    @cached_property
    def joined(self) -> list[bytes]:
        return [self.rows[i : i + BATCH].tobytes() for i in range(0, POOL, BATCH)]

    def checksum(self, count: int) -> int:
        """The sum of the first words of `count` events, a whole number of pools."""
        return count // POOL * int(self.values.sum())


class Tally:
    """Where consumers report that are not processes of ours: one row of words per consumer.

    A row has one writer. The count is written last, so whoever sees the count has the rest too.
    """

    ROWS, LATENCIES = 16, 16384
    COUNT, SUM, LAST = range(3)
    WIDTH = 8 + LATENCIES

    def __init__(self, trial: Trial, create: bool = False) -> None:
        path = os.path.join(trial.scratch, "tally")
        with open(path, "w+b" if create else "r+b") as file:
            if create:
                file.truncate(self.ROWS * self.WIDTH * 8)
            self.words = memoryview(mmap.mmap(file.fileno(), self.ROWS * self.WIDTH * 8)).cast("Q")
        self.taken = [0] * self.ROWS

    @classmethod
    def attach(cls, index: int) -> Tally:
        """The row of the `index`th consumer, for the calling process, which is pinned as that consumer."""
        trial = Trial(**json.loads(os.environ[ENVIRONMENT]))
        trial.pin("consumer", index)
        tally = cls(trial)
        tally.row = tally.words[index * cls.WIDTH : (index + 1) * cls.WIDTH]
        tally.seen, tally.total = tally.row[cls.COUNT], tally.row[cls.SUM]
        return tally

    def add(self, count: int, total: int) -> None:
        """Events just touched, and the sum of their first words."""
        row = self.row
        self.total += total
        self.seen += count
        row[self.SUM] = self.total
        row[self.LAST] = clock()
        row[self.COUNT] = self.seen

    def latency(self, sent: int) -> None:
        """An event that carries the time `sent` has just come to hand."""
        now = clock()
        self.row[8 + self.seen] = now - sent
        self.add(1, sent)

    def totals(self) -> tuple[int, int, int]:
        """Events, sum and last time, over all rows."""
        rows = [self.words[i * self.WIDTH : i * self.WIDTH + 3].tolist() for i in range(self.ROWS)]
        return sum(r[0] for r in rows), sum(r[1] for r in rows), max(r[2] for r in rows)

    def latencies(self) -> list[int]:
        """What came since the last call, of all rows."""
        found: list[int] = []
        for index, taken in enumerate(self.taken):
            base = index * self.WIDTH
            count = self.words[base + self.COUNT]
            found += self.words[base + 8 + taken : base + 8 + count].tolist()
            self.taken[index] = count
        return found


class Contender:
    """One way to carry events between processes. See the top of this module."""

    name = ""
    pip: str | None = None  # what to install when `missing` says so
    forms: dict[str, str] = {}  # kind of case -> form
    own_workers = False
    most: int | None = None  # bytes of an event; None: no limit that matters here
    note = ""  # what it does not do that shardmem does, as the table's notes say it

    def missing(self) -> str | None:
        """Why it cannot take part here, or None. Must not raise."""
        return None

    def label(self, kind: str) -> str:
        """How the row calls it."""
        form = self.forms[kind]
        many = {"single": "", "list": f", lists of {BATCH}", "joined": f", {BATCH} joined"}
        return self.name + many.get(form, f", {form}")

    def setup(self, trial: Trial) -> None:
        """Before any process exists: what producers and consumers are to inherit."""

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        """In a producer: connect, and return what sends one message."""
        raise NotImplementedError

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        """In a consumer: connect, and return what waits for one message and returns it."""
        raise NotImplementedError

    def settle(self) -> None:
        """In a producer or consumer, when all of them are connected and nothing has been sent."""

    def close(self) -> None:
        """In a producer or consumer, when everything is over."""

    def teardown(self) -> None:
        """After all processes have ended, also after a failure."""

    def producer(self, trial: Trial, index: int, pool: Pool) -> Callable[[int], int | None]:
        """In a producer: what sends `n` events, a whole number of pools, and may return their checksum."""
        put = self.sender(trial, index)
        if trial.kind == "latency":
            return paced(put, trial)
        messages = {"single": "events", "list": "lists", "joined": "joined"}[trial.form]
        return cycled(put, getattr(pool, messages))

    def consumer(self, trial: Trial, index: int) -> Callable[[int], tuple[int, list[int]]]:
        """In a consumer: what receives and touches `n` events: their checksum, and latencies if any."""
        get = self.receiver(trial, index)
        if trial.kind == "latency":
            return timed(get)
        touch = {"single": one_by_one, "list": from_lists, "joined": from_buffers}[trial.form]
        return touch(get, trial)

    def measure(self, trial: Trial) -> dict[str, Any]:
        return run(self, trial)


# The loops. What a contender is charged for besides its own calls is in these lines and no others.


def cycled(put: Callable[[Any], Any], messages: list[Any]) -> Callable[[int], None]:
    def send(n: int) -> None:
        for _ in range(n // POOL):
            for message in messages:
                put(message)

    return send


def one_by_one(get: Callable[[], bytes], trial: Trial) -> Callable[[int], tuple[int, list[int]]]:
    def receive(n: int) -> tuple[int, list[int]]:
        total = 0
        for _ in range(n):
            total += first_word(get())[0]
        return total, []

    return receive


def from_lists(get: Callable[[int], list[bytes]], trial: Trial) -> Callable[[int], tuple[int, list[int]]]:
    def receive(n: int) -> tuple[int, list[int]]:
        total = 0
        while n > 0:
            events = get(n)
            for event in events:
                total += first_word(event)[0]
            n -= len(events)
        return total, []

    return receive


def from_buffers(get: Callable[[], Any], trial: Trial) -> Callable[[int], tuple[int, list[int]]]:
    stride = trial.size // 8

    def receive(n: int) -> tuple[int, list[int]]:
        total = 0
        while n > 0:
            words = np.frombuffer(get(), "<u8")[::stride]
            total += int(words.sum())
            n -= len(words)
        return total, []

    return receive


def paced(put: Callable[[bytes], Any], trial: Trial) -> Callable[[int], int]:
    gap, rest = 1_000_000_000 // trial.rate, bytes(trial.size - 8)
    pack = struct.Struct("<Q").pack

    def send(n: int) -> int:
        total, due = 0, clock()
        for _ in range(n):
            due += gap
            time.sleep(max(0, due - clock()) / 1e9)
            sent = clock()
            put(pack(sent) + rest)
            total += sent
        return total

    return send


def timed(get: Callable[[], bytes]) -> Callable[[int], tuple[int, list[int]]]:
    def receive(n: int) -> tuple[int, list[int]]:
        total, latencies = 0, []
        for _ in range(n):
            event = get()
            now = clock()
            sent = first_word(event)[0]
            total += sent
            latencies.append(now - sent)
        return total, latencies

    return receive


# The procedure.


def _child(contender: Contender, trial: Trial, role: str, index: int, control: Connection, barrier: Any) -> None:
    """A producer or a consumer: connects, settles, then one round for every number that it is sent."""
    try:
        trial.pin(role, index)
        if role == "producer":
            pool = Pool(trial, index)
            send = contender.producer(trial, index, pool)
        else:
            receive = contender.consumer(trial, index)
        control.send("connected")
        control.recv()
        contender.settle()
        control.send("settled")
        while n := control.recv():
            barrier.wait()
            if role == "producer":
                start = clock()
                total = send(n)
                control.send((start, pool.checksum(n) if total is None else total))
            else:
                got, latencies = receive(n)
                control.send((clock(), got, latencies))
        contender.close()
    except BaseException as error:
        control.send(Failed(f"{role} {index}: {type(error).__name__}: {error}"))


class _Crew:
    """The processes of one trial and the words exchanged with them."""

    def __init__(self, contender: Contender, trial: Trial) -> None:
        roles = {"producer": trial.producers, "consumer": 0 if contender.own_workers else trial.consumers}
        barrier = fork.Barrier(sum(roles.values()))
        self.ends: dict[str, list[Connection]] = {role: [] for role in roles}
        self.processes = []
        # Consumers first: several transports want the receiving end to exist before the sending one.
        for role in ("consumer", "producer"):
            for index in range(roles[role]):
                mine, theirs = fork.Pipe()
                process = fork.Process(target=_child, args=(contender, trial, role, index, theirs, barrier))
                process.start()
                theirs.close()
                self.ends[role].append(mine)
                self.processes.append(process)
            self.answers(self.ends[role])

    @property
    def everybody(self) -> list[Connection]:
        return self.ends["producer"] + self.ends["consumer"]

    def tell(self, word: Any) -> None:
        for end in self.everybody:
            end.send(word)

    def answers(self, ends: list[Connection]) -> list[Any]:
        """One word from each, in their order. A death or silence is the contender's failure."""
        found: dict[Connection, Any] = {}
        deadline = time.monotonic() + DEADLINE
        while len(found) < len(ends):
            ready = wait([end for end in ends if end not in found], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Failed(f"no end after {DEADLINE:.0f} s: events lost or stuck")
            for end in ready:
                try:
                    found[end] = end.recv()
                except EOFError:
                    raise Failed("a process died") from None
                if isinstance(found[end], Failed):
                    raise found[end]
        return [found[end] for end in ends]

    def dismiss(self) -> None:
        self.tell(0)
        for process in self.processes:
            process.join(DEADLINE)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _round(crew: _Crew, trial: Trial, tally: Tally | None, n: int) -> tuple[float, list[int]]:
    """Sends `n` events per producer; how long that took, and the latencies if any."""
    before = tally.totals() if tally else (0, 0, 0)
    crew.tell(n)
    # All of them at once: a consumer's failure must not be reported as the producer's silence.
    answers = crew.answers(crew.everybody)
    sent, received = answers[: trial.producers], answers[trial.producers :]
    expected, count = sum(total for _, total in sent), n * trial.producers
    if tally:
        deadline = time.monotonic() + DEADLINE
        while (now := tally.totals())[0] - before[0] < count:
            if time.monotonic() > deadline:
                raise Failed(f"{now[0] - before[0]:,} of {count:,} events arrived in {DEADLINE:.0f} s")
            time.sleep(0.0005)
        time.sleep(0.02)  # what comes twice comes late
        now = tally.totals()
        if now[0] - before[0] != count:
            raise Failed(f"{now[0] - before[0]:,} events arrived, {count:,} were sent")
        end, got = now[2], now[1] - before[1]
        latencies = tally.latencies() if trial.kind == "latency" else []
    else:
        latencies = [latency for _, _, some in received for latency in some]
        end, got = max(end for end, _, _ in received), sum(total for _, total, _ in received)
    if got != expected:
        raise Failed(f"sum of the events is {got}, not {expected}: lost, repeated or torn")
    return (end - min(start for start, _ in sent)) / 1e9, latencies


def run(contender: Contender, trial: Trial) -> dict[str, Any]:
    """One measurement: the figures of `throughput` or `spread`."""
    os.environ[ENVIRONMENT] = json.dumps(asdict(trial))
    tally = Tally(trial, create=True) if contender.own_workers else None
    crew = None
    try:
        contender.setup(trial)
        crew = _Crew(contender, trial)
        crew.tell("settle")
        crew.answers(crew.everybody)
        if trial.kind == "latency":
            _round(crew, trial, tally, WARM_EVENTS)
            _, latencies = _round(crew, trial, tally, int(trial.rate * trial.seconds))
            result = spread(latencies)
        else:
            # The warm-up finds the rate: rounds grow until one is long enough, and that one counts. The
            # first never does: it waits for whatever starts late, and says nothing about the rate.
            n = POOL
            _round(crew, trial, tally, n)
            while (took := _round(crew, trial, tally, n)[0]) < trial.seconds / 2:
                n = math.ceil(n * min(8.0, trial.seconds / took) / POOL) * POOL
            result = throughput(n * trial.producers, took)
        crew.dismiss()
        return result
    finally:
        if crew:
            crew.kill()
        contender.teardown()


def throughput(events: int, seconds: float) -> dict[str, Any]:
    return {"value": events / seconds, "events": events, "seconds": seconds}


def spread(latencies_ns: list[int]) -> dict[str, Any]:
    """Percentiles in microseconds, nearest rank: a figure that was measured, not one in between."""
    ordered = sorted(latencies_ns)
    if not ordered:
        raise Failed("no latency was measured")

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e3

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0), "events": len(ordered)}
