"""Processes that tests start: `python programs.py NAME`. Orders come as lines of JSON on standard input."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recorder import payload, records
from rig import PATIENCE, Log, drained, sleeps_in_futex, wait_until

import shardmem
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import PAGE
from shardmem.memory.native import arm_point, ffi

NOT_REACHED, UNHAPPY = 7, 8


def order() -> dict[str, Any]:
    line = sys.stdin.buffer.readline()
    return json.loads(line) if line else {}


def reply(**what: Any) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()


class Source:
    """Events of one test-level producer: keys drawn at random, numbers rising per key."""

    def __init__(self, producer: int, log: Log, keys: int = 8, seed: int | None = None) -> None:
        self.id, self._log = producer, log
        self._random = random.Random(producer if seed is None else seed)
        self._numbers = [0] * keys

    def take(self, count: int) -> tuple[list[int], list[int]]:
        keys = [self._random.randrange(len(self._numbers)) for _ in range(count)]
        numbers = []
        for key in keys:
            numbers.append(self._numbers[key])
            self._numbers[key] += 1
        return keys, numbers

    def push(
        self, producer: shardmem.Producer, method: str, count: int, filler: int, timeout: float | None = None
    ) -> None:
        """One call, logged before and after."""
        keys, numbers = self.take(1 if method == "push" else count)
        self._log.rows("offered", self.id, keys, numbers)
        options = {} if timeout is None else {"timeout": timeout}
        if method == "send":
            producer.send(records(self.id, keys, numbers), **options)
        else:
            payloads = [
                payload(self.id, key, number, self._random.randrange(filler + 1)) for key, number in zip(keys, numbers)
            ]
            if method == "push":
                producer.push(keys[0], payloads[0], **options)
            elif method == "push_many":
                producer.push_many(keys, payloads, **options)
            else:
                producer.push_columns(
                    np.array(keys), b"".join(payloads), np.cumsum([0, *map(len, payloads)]), **options
                )
        self._log.rows("accepted", self.id, keys, numbers)


def forked(work: Callable[[], None]) -> int:
    """Runs `work` in a forked child and ends it there, with 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    code = UNHAPPY
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap(pid: int, timeout: float = PATIENCE) -> int:
    """Its exit code, negative for a signal. A child that does not end is killed and counts as killed by SIGALRM."""
    pidfd = os.pidfd_open(pid)
    ended = select.select([pidfd], [], [], timeout)[0]
    os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if ended else -signal.SIGALRM


# ---- killed and stopped inside a send --------------------------------------------------------------------------------


def nursery() -> None:
    """Forks children of a warm process and has each one killed, or stopped, at a named point of a send.

    After each, another producer and the next holder of the seat must go on.
    """
    first = order()
    directory, method = Path(first["directory"]), first["method"]
    with shardmem.connect(first["engine"], spin_us=0) as producer, Log(directory) as log:
        own = Source(first["first"], log)
        own.push(producer, method, 3, 40)
        reply(ready=True)
        while orders := order():
            how = kill_at_random
            if "point" in orders:
                how = kill_children if orders["signal"] == signal.SIGKILL else stop_children
            reply(**how(producer, own, directory, method, **orders))


def kill_at_random(producer: Any, own: Source, directory: Path, method: str, first: int, count: int) -> dict[str, Any]:
    """Some children at a time, each killed at a moment of its own: while it attaches, opens a lane, pushes or waits."""
    chance, alive, codes = random.Random(method), [], []
    for number in range(first, first + count):

        def work() -> None:
            source = Source(number, Log(directory))
            while True:
                source.push(producer, method, chance.randint(1, 40), 300)

        alive.append(forked(work))
        if len(alive) == 3:
            time.sleep(chance.random() ** 2 * 0.02)
            victim = alive.pop(chance.randrange(3))
            os.kill(victim, signal.SIGKILL)
            codes.append(reap(victim))
            own.push(producer, method, 2, 40, timeout=PATIENCE)
    for victim in alive:
        os.kill(victim, signal.SIGKILL)
        codes.append(reap(victim))
    producer.flush(PATIENCE)
    return {"codes": codes}


def kill_children(
    producer: Any, own: Source, directory: Path, method: str, point: str, first: int, count: int, signal: int
) -> dict[str, Any]:
    chance, codes, rows = random.Random(f"{point} {method}"), [], 100 if point == "send.waiting" else 25
    for number in range(first, first + count):
        passes = chance.randint(1, 3) if point == "send.waiting" else chance.randint(1, 40)

        def work() -> None:
            source = Source(number, Log(directory))
            arm_point(point, passes, signal)
            for _ in range(3000):
                source.push(producer, method, rows, 300)
            os._exit(NOT_REACHED)

        codes.append(reap(forked(work)))
        own.push(producer, method, 2, 40, timeout=PATIENCE)
    last = Source(first + count, Log(directory))
    codes.append(reap(forked(lambda: [last.push(producer, method, 25, 300, timeout=PATIENCE) for _ in range(20)])))
    producer.flush(PATIENCE)
    return {"codes": codes}


def stop_children(
    producer: Any, own: Source, directory: Path, method: str, point: str, first: int, count: int, signal: int
) -> dict[str, Any]:
    from signal import SIGCONT
    from signal import signal as handle_signal

    chance, codes, rows = random.Random(f"{point} {method}"), [], 100 if point == "send.waiting" else 25
    for number in range(first, first + 2 * count, 2):
        passes = chance.randint(1, 3)

        def work() -> None:
            source, continued = Source(number, Log(directory)), []
            handle_signal(SIGCONT, lambda *_: continued.append(True))
            arm_point(point, passes, signal)
            for _ in range(3000):
                source.push(producer, method, rows, 300)
                if continued:
                    break
            for _ in range(10):
                source.push(producer, method, 25, 300)

        pid = forked(work)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return {"codes": [NOT_REACHED]}
        other = Source(number + 1, Log(directory))
        codes.append(reap(forked(lambda: [other.push(producer, method, 25, 300, timeout=PATIENCE) for _ in range(20)])))
        for _ in range(20):
            own.push(producer, method, 25, 300, timeout=PATIENCE)
        producer.flush(PATIENCE)
        os.kill(pid, SIGCONT)
        codes.append(reap(pid))
    return {"codes": codes}


def stopped_inside_send() -> None:
    """Stops itself inside a send; when continued, says how the send ended."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(1, log)
        source.push(producer, "push", 1, 10)
        arm_point(orders["point"], 1, signal.SIGSTOP)
        reply(pid=os.getpid())
        try:
            source.push(producer, "push", 1, 10)
            reply(ended="accepted")
        except shardmem.NotRunning:
            reply(ended="NotRunning")


def pusher() -> None:
    """Pushes ten events and waits to be killed."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        for _ in range(10):
            source.push(producer, "push", 1, 10)
        reply(seat=producer.seat)
        order()


def push_keys() -> None:
    """Pushes the same key in each way."""
    orders = order()
    text = bytes.fromhex(orders["key"]).decode("utf-8", "surrogateescape")
    kinds = {"str": str, "str_": np.str_, "Text": type("Text", (str,), {})}
    key = kinds[orders["kind"]](text)
    with shardmem.connect(orders["engine"]) as producer:
        accepted = producer.push(key, b"") + producer.push_many([key, key], [b"", bytearray(b"x")])
        producer.flush(PATIENCE)
    reply(accepted=accepted)


def push_until_over() -> None:
    """Pushes without a pause until the engine accepts nothing any more."""
    orders = order()
    methods = ["push", "push_many", "push_columns"]
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        reply(ready=True)
        try:
            for call in range(1_000_000):
                source.push(producer, methods[call % 3], 10, 50)
        except shardmem.NotRunning:
            reply(ended="NotRunning")


def push_at_a_pace() -> None:
    """Bursts of small calls with pauses between them, until a line comes; then waits until all is handled."""
    orders = order()
    chance, methods = random.Random(orders["producer"]), ["push", "push_many", "push_columns"]
    with shardmem.connect(orders["engine"], wait=PATIENCE) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        reply(ready=True)
        while not select.select([sys.stdin], [], [], chance.expovariate(1 / orders["pause"]))[0]:
            for _ in range(chance.randint(1, 8)):
                source.push(producer, chance.choice(methods), chance.randint(1, 30), 100)
        producer.flush(orders["patience"])
    reply(pushed=sum(source._numbers))


def push_until_told() -> None:
    """Pushes without a pause until the next line comes, then flushes; or until an error, which is its reply."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        source.push(producer, "push_many", 20, 20)
        reply(seat=producer.seat, pid=os.getpid())
        try:
            while not select.select([sys.stdin], [], [], 0)[0]:
                source.push(producer, "push_many", 20, 20)
            producer.flush(PATIENCE)
        except shardmem.ShardmemError as error:
            reply(error=type(error).__name__, text=str(error))
        else:
            reply(error=None)
        order()


def vandal() -> None:
    """Flips bits of one producer's lanes, in frames and in the words that the producer writes, until each is found
    broken."""
    orders = order()
    control = ControlSegment.attach(orders["engine"])
    draw, geometry, flips = random.Random(orders["seed"]), control.geometry, 0
    inboxes = [control.open_inbox(shard) for shard in control.known_shards()]
    lanes = [
        ffi.buffer(
            ffi.cast("uint8_t *", inbox.address) + geometry.lanes_offset + geometry.lane_stride * orders["seat"],
            geometry.lane_stride,
        )
        for inbox in inboxes
    ]
    until = time.monotonic() + PATIENCE
    started = time.monotonic()
    while time.monotonic() - started < orders["seconds"] or not all(
        lane.broken for inbox in inboxes for lane in inbox.lanes() if lane.seat == orders["seat"]
    ):
        for memory in lanes:
            at = draw.randrange(PAGE, geometry.lane_stride) if draw.randrange(4) else draw.randrange(32)
            memory[at] = bytes([memory[at][0] ^ 1 << draw.randrange(8)])
            flips += 1
        os.sched_yield()
        if time.monotonic() > until:
            break
    reply(flips=flips)


def push_some() -> None:
    """Pushes so many blocks and waits until they are handled."""
    orders = order()
    methods = ["push_many", "push_columns"]
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        for call in range(orders["blocks"]):
            source.push(producer, methods[call % 2], orders["rows"], 50)
        producer.flush(40)
        reply(pushed=orders["blocks"] * orders["rows"])


def wait_for_engine() -> None:
    orders = order()
    reply(waiting=True)
    with shardmem.connect(orders["engine"], wait=PATIENCE) as producer:
        reply(accepted=producer.push(1, payload(1, 1, 0), timeout=PATIENCE))


# ---- forks and threads -----------------------------------------------------------------------------------------------


def prefork() -> None:
    """A producer made before the forks is used in every child and in the parent at once."""
    orders = order()
    directory, methods = Path(orders["directory"]), orders["methods"]
    with shardmem.connect(orders["engine"]) as producer, Log(directory) as log:
        source = Source(0, log)
        source.push(producer, methods[0], 1, 10)
        ready_read, ready_write = os.pipe()

        def work(number: int) -> None:
            os.close(ready_write)
            with Log(directory) as mine:
                source = Source(number, mine)
                os.read(ready_read, 1)  # all at once: returns when the parent has closed its end
                for call in range(orders["calls"]):
                    source.push(producer, methods[call % len(methods)], 20, 50)
                producer.flush(PATIENCE)

        pids = [forked(lambda: work(number)) for number in range(1, orders["children"] + 1)]
        os.close(ready_write)
        os.close(ready_read)
        for call in range(orders["calls"]):
            source.push(producer, methods[call % len(methods)], 20, 50)
        producer.flush(PATIENCE)
        reply(codes=[reap(pid) for pid in pids])


def threads() -> None:
    """A pool of threads pushes through one producer while one more pushes blocks."""
    orders = order()
    directory = Path(orders["directory"])
    failures: list[str] = []
    with shardmem.connect(orders["engine"]) as producer:
        start = threading.Barrier(orders["threads"] + 1)

        def work(number: int, method: str, calls: int, count: int) -> None:
            try:
                source = Source(number, log)
                start.wait()
                for _ in range(calls):
                    source.push(producer, method, count, 40)
            except BaseException as error:
                failures.append(repr(error))

        with Log(directory) as log:
            pool = [
                threading.Thread(target=work, args=(number, orders["small"], orders["calls"], 1))
                for number in range(orders["threads"])
            ]
            pool.append(
                threading.Thread(target=work, args=(orders["threads"], orders["block"], orders["blocks"], 2000))
            )
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
            producer.flush(PATIENCE)
    reply(failures=failures)


def first_calls_together() -> None:
    """Threads make the first calls of a new producer at the same moment, so that they open its lanes together."""
    orders = order()
    sys.setswitchinterval(1e-5)
    with Log(Path(orders["directory"])) as log:
        for turn in range(orders["turns"]):
            with shardmem.connect(orders["engine"]) as producer:
                start = threading.Barrier(orders["threads"])

                def work(number: int) -> None:
                    source = Source(number, log)
                    start.wait()
                    source.push(producer, orders["method"], orders["count"], 20)
                    source.push(producer, orders["method"], 1, 20)

                pool = [
                    threading.Thread(target=work, args=(turn * orders["threads"] + number,))
                    for number in range(orders["threads"])
                ]
                for thread in pool:
                    thread.start()
                for thread in pool:
                    thread.join()
                producer.flush(PATIENCE)
    reply(done=True)


def fork_inside_send() -> None:
    """Forks again and again while another thread holds the sender; every child pushes."""
    orders = order()
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads; that is what is tested
    directory, codes, done = Path(orders["directory"]), [], threading.Event()
    with shardmem.connect(orders["engine"]) as producer, Log(directory) as log:
        records_engine = producer.schema.is_records
        source = Source(0, log)

        def work() -> None:
            while not done.is_set():
                source.push(producer, "send" if records_engine else "push_columns", 20000, 0)

        thread = threading.Thread(target=work)
        thread.start()
        for number in range(1, orders["children"] + 1):
            time.sleep(random.Random(number).random() * 0.01)  # somewhere inside one of the thread's calls

            def child() -> None:
                mine = Source(number, Log(directory))
                for _ in range(3):
                    mine.push(producer, orders["method"], 3, 10)
                producer.close()

            codes.append(reap(forked(child), 5.0))
            if codes[-1]:
                break
        done.set()
        thread.join()
        producer.flush(PATIENCE)
    reply(codes=codes)


def threads_in_a_forked_child() -> None:
    """The first calls in a forked child come from several threads at once."""
    orders = order()
    directory, codes = Path(orders["directory"]), []
    with shardmem.connect(orders["engine"]) as producer:
        with Log(directory) as log:
            Source(0, log).push(producer, "push", 1, 10)
        for child in range(orders["children"]):

            def work() -> None:
                sys.setswitchinterval(1e-5)
                failures: list[BaseException] = []
                start = threading.Barrier(orders["threads"])
                with Log(directory) as log:

                    def push(number: int) -> None:
                        try:
                            source = Source(number, log)
                            start.wait()
                            for _ in range(20):
                                source.push(producer, "push", 1, 10)
                        except BaseException as error:
                            failures.append(error)

                    pool = [
                        threading.Thread(target=push, args=(1 + child * orders["threads"] + number,))
                        for number in range(orders["threads"])
                    ]
                    for thread in pool:
                        thread.start()
                    for thread in pool:
                        thread.join()
                    held = sum(
                        each["pid"] == os.getpid() and each["alive"] for each in status(orders["engine"])["producers"]
                    )
                    if failures or held != 1:
                        print(f"{held} seats are held by one process; {failures}", file=sys.stderr)
                        os._exit(UNHAPPY)

            codes.append(reap(forked(work)))
    reply(codes=codes)


def status(engine: str) -> dict[str, Any]:
    with shardmem.Client(engine) as client:
        return client.status()


def close_while_blocked() -> None:
    """One thread closes the producer while another is blocked in a push on a full lane."""
    orders = order()
    ended: list[str] = []
    producer = shardmem.connect(orders["engine"], spin_us=0)
    while True:
        try:
            producer.push(0, bytes(500), timeout=0)
        except shardmem.Backpressure:
            break

    def work() -> None:
        try:
            producer.push(0, bytes(500))
            ended.append("accepted")
        except shardmem.ShardmemError as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: sleeps_in_futex(os.getpid(), thread.native_id), "the thread waits for room")
    producer.close()
    thread.join(PATIENCE)
    reply(ended=ended)


# ---- waiting ---------------------------------------------------------------------------------------------------------


def interrupted() -> None:
    """Is blocked in a call until a signal comes; says how long after the signal the call ended."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer:
        arrived: list[float] = []

        def on_signal(number: int, frame: Any) -> None:
            arrived.append(time.monotonic())
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, on_signal)
        rows = records(1, list(range(2000)), list(range(2000))) if producer.schema.is_records else None
        many = [payload(1, 0, number, 50) for number in range(2000)]
        try:
            reply(pid=os.getpid())
            if orders["method"] == "send":
                producer.send(rows)
            elif orders["method"] == "push_many":
                producer.push_many([0] * 2000, many)
            elif orders["method"] == "push_columns":
                producer.push_columns(np.zeros(2000, "i8"), b"".join(many), np.cumsum([0, *map(len, many)]))
            else:
                for each in many:
                    producer.push(0, each)
                if orders["method"] == "flush":
                    producer.flush()
            reply(ended="by itself")
        except KeyboardInterrupt:
            reply(ended="KeyboardInterrupt", after=time.monotonic() - arrived[0])


# ---- engines and their parents ---------------------------------------------------------------------------------------


def parent() -> None:
    """Starts an engine, pushes, says so, and waits for whatever comes."""
    orders = order()
    engine = shardmem.Engine(orders["engine"], handler="recorder:Recorder", shards=2)
    with engine:
        producer = engine.producer()
        with Log(Path(orders["directory"])) as log:
            source = Source(1, log)
            for _ in range(orders["calls"]):
                source.push(producer, "push_many", 50, 20)
        document = engine.status()
        reply(engine=engine.name, pids=[document["supervisor"]["pid"], *(shard["pid"] for shard in document["shards"])])
        while order():
            pass
    reply(ended=True)


def forks_that_outlive_the_block() -> None:
    """A child forked inside the block of an engine is still alive when the block ends."""
    order()
    with shardmem.Engine(handler="recorder:nothing", shards=1) as engine:
        with engine.producer() as producer:
            producer.push(1, b"before")
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
            os.close(read_end)
        began = time.monotonic()
    took = time.monotonic() - began
    os.close(write_end)
    os.waitpid(child, 0)
    reply(took=took)


def child_that_leaves_the_block() -> None:
    """A child forked inside the block of an engine runs off its end, as one that calls sys.exit() does."""
    orders = order()
    codes = []
    with shardmem.Engine(handler="recorder:nothing", shards=1) as engine, engine.producer() as producer:
        producer.push(1, b"before")
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            if orders["how"] == "error":
                sys.stderr.close()
                raise KeyError("of the child")
            if orders["how"] == "push":
                producer.push(1, b"of the child")
            sys.exit(0)
        codes.append(reap(child))
        producer.push(1, b"after")
        producer.flush(PATIENCE)
    reply(codes=codes, handled=engine.status()["accounting"]["handled"])


def fork_without_supervisor() -> None:
    """The supervisor is killed; a child forked inside the block asks for something, and leaves the block."""
    order()
    with shardmem.Engine(handler="recorder:nothing", shards=1, max_shards=2) as engine:
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        wait_until(lambda: not engine.status()["supervisor"]["alive"], "the supervisor is dead")

        def work() -> None:
            try:
                engine.scale_to(2)
            except shardmem.NotRunning:
                return
            os._exit(NOT_REACHED)

        child = reap(forked(work))
        incarnation = engine.status()["supervisor"]["incarnation"]
    reply(child=child, incarnation=incarnation)


def attach_and_end() -> None:
    """Pushes one event and ends as it was told to: without a close, by the hard way, or in a spawned child."""
    orders = order()
    if orders["how"] == "spawn":
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        children = [context.Process(target=push_one, args=(orders["engine"], number)) for number in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        reply(codes=[child.exitcode for child in children])
        return
    producer = push_one(orders["engine"], 0, orders["how"] != "no close")
    reply(codes=[0])
    if orders["how"] == "os._exit":
        os._exit(0)
    del producer


def push_one(engine: str, number: int, close: bool = True) -> shardmem.Producer:
    producer = shardmem.connect(engine)
    producer.push(number, payload(number, number, 0))
    if close:
        producer.close()
    return producer


def own_shared_memory() -> None:
    """Uses shared memory of its own beside a producer, and forgets to remove it."""
    from multiprocessing import resource_tracker, shared_memory

    orders = order()
    with shardmem.connect(orders["engine"]):
        own = shared_memory.SharedMemory(create=True, size=4096)
    reply(name=own.name, tracked=resource_tracker._resource_tracker._pid is not None)
    own.close()


# ---- small memory ----------------------------------------------------------------------------------------------------


def in_small_memory() -> None:
    """Run in a mount namespace of its own. Says what happened at each step with a /dev/shm of a few MB."""
    import ctypes

    orders = order()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={orders['size']}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    told: dict[str, Any] = {}

    def free() -> int:
        space = os.statvfs("/dev/shm")
        return space.f_bavail * space.f_frsize

    def look() -> dict[str, Any]:
        return {
            "free": free(),
            "segments": sorted(os.listdir("/dev/shm")),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    def attempt(step: str, work: Callable[[], Any]) -> None:
        before = look()
        try:
            work()
            said: dict[str, Any] = {"error": None}
        except shardmem.ShardmemError as error:
            said = {
                "error": type(error).__name__,
                "text": str(error),
                "need": getattr(error, "need", None),
                "free": getattr(error, "free", None),
            }
        told[step] = {**said, "before": before, "after": look()}

    def engine(name: str, **settings: Any) -> shardmem.Engine:
        return shardmem.Engine(
            name, handler="recorder:Recorder", shards=1, lane_bytes=65536, **{"max_shards": 1, **settings}
        )

    def leave_free(amount: int) -> None:
        """Fills the rest."""
        with open("/dev/shm/ballast", "wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free() - amount)

    with engine("first") as first, Log(Path(orders["directory"])) as log, first.producer() as producer:
        source = Source(0, log)
        source.push(producer, "push", 1, 10)
        attempt("second engine", engine("second", max_shards=1024).start)
        source.push(producer, "push", 1, 10)
        leave_free(512 * os.stat("/dev/shm/shardmem.first.control").st_blocks)  # for a control segment and no inbox
        attempt("third engine", engine("third").start)
        os.unlink("/dev/shm/ballast")
        leave_free(80000)  # for one lane
        with first.producer() as one, first.producer() as two:
            attempt("lane 1", lambda: one.push(0, payload(1, 0, 0)))
            attempt("lane 2", lambda: two.push(0, payload(2, 0, 0)))

            def again() -> None:
                for _ in range(19):
                    try:
                        two.push(0, payload(2, 0, 0))
                    except shardmem.OutOfMemory:
                        pass
                two.push(0, payload(2, 0, 0))

            attempt("lane 2 again", again)
            source.push(producer, "push", 1, 10)
            os.unlink("/dev/shm/ballast")
            attempt("lane 2 at last", lambda: two.push(0, payload(2, 0, 0)))
        for number in (1, 2):
            log.rows("accepted", number, [0], [0])
        source.push(producer, "push", 1, 10)
        producer.flush(PATIENCE)
        told["status"] = drained(first)
    told["left"] = sorted(os.listdir("/dev/shm"))
    reply(**told)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
