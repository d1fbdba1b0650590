"""What process tests share: engines that record, programs that run as processes of their own, waiting with a
deadline."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import shardmem
from shardmem.memory.native import lib, points
from support.checker import EVENT, Logs, accounting, check
from support.programs import MainFunction, command_of, name_of

TESTS = Path(__file__).parents[1]
PATIENCE = 20.0  # a wait that lasts longer has failed; the machine may be busy
SEND_POINTS = [name for name in points() if name.startswith("send.")] + ["ring.taken"]
SMALL_LANE = 4096


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """What the condition returns once it is true. For what cannot be awaited otherwise."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:g} s still not: {what}")
        time.sleep(0.002)
    return found


class Log:
    """The log of one process that produces, as checker.Logs reads it. A row is in the file when its call returns."""

    def __init__(self, directory: Path) -> None:
        self._files = {
            name: os.open(directory / f"{name}-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for name in ("offered", "accepted", "refused")
        }

    def rows(self, name: str, producer: int, keys: Any, numbers: Any) -> None:
        rows = np.empty(len(keys), EVENT)
        rows["producer"], rows["key"], rows["number"] = producer, keys, numbers
        os.write(self._files[name], rows.tobytes())

    @property
    def descriptors(self) -> list[int]:
        return list(self._files.values())

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Rig:
    """A directory in which handlers record, and engines that use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "RECORD_DIR": str(directory)}
        self.defaults: dict[str, Any] = {}

    def engine(self, name: str | None, handler: Any = "support.recorder:Recorder", **settings: Any) -> shardmem.Engine:
        """Not started yet."""
        os.environ["RECORD_DIR"] = str(self.directory)
        settings = {**self.defaults, **settings}
        settings.setdefault("max_producers", 8)
        settings.setdefault("drain_timeout", 10)  # a lost event makes a test fail, not hang
        return shardmem.Engine(name, handler=handler, **settings)

    def logs(self) -> Logs:
        return Logs.read(self.directory)

    @contextlib.contextmanager
    def hold(self, shard: int | None = None) -> Iterator[Callable[[], None]]:
        """No handler (of this shard) gets past its gate until the block ends, or what is yielded is called."""
        with self.locked("gate" if shard is None else f"gate-{shard}") as release:
            yield release

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Callable[[], None]]:
        gate = os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            yield lambda: fcntl.flock(gate, fcntl.LOCK_UN)
        finally:
            os.close(gate)

    def wait_held(self, shard: int) -> None:
        """Until the handler of the shard has a batch in hand and stands at the gate."""
        wait_until((self.directory / f"waits-{shard}").exists, f"handler of shard {shard} has a batch in hand")

    def tell(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def arm(self, who: int | str, point: str, passes: int, number: int) -> Path:
        """The worker of a shard (handlers.counting.Lingering) or the supervisor (arming.Arming) sends itself the signal
        at that point, once. The file that tells it so is gone when it has read it."""
        self.tell("arming", f"{point} {passes} {number:d}")
        return (self.directory / "arming").replace(self.directory / f"arm-{who}")  # whole, when it is there


def drained(engine: shardmem.Engine | shardmem.Client) -> dict[str, Any]:
    """Waits until nothing is in flight; the status then."""

    def status() -> dict[str, Any] | None:
        document = engine.status()
        return None if document["accounting"]["in_flight"] else document

    return wait_until(status, "everything handled")


def expect_clean(rig: Rig, status: dict[str, Any], duplicates: int = 0, producers: Iterable[int] | None = None) -> Logs:
    """No violation in the logs (of these producers), and the status, of a drained engine, says what handlers wrote
    down."""
    logs = rig.logs()
    assert check(logs if producers is None else logs.of(producers), duplicates) == []
    assert accounting(status, drained=True) == []
    if not duplicates:
        assert status["accounting"]["handled"] == len(logs.handled)
    return logs


def handled_numbers(logs: Logs, producer: int) -> list[int]:
    return sorted(logs.handled["number"][logs.handled["producer"] == producer].tolist())


class Program:
    """A program of `support.programs` as a process: its orders and its replies are lines of JSON."""

    def __init__(
        self, main: MainFunction, rig: Rig | None = None, *, prefix: Sequence[str] = (), **orders: Any
    ) -> None:
        if rig is not None:
            orders["directory"] = str(rig.directory)
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error::ResourceWarning", *command_of(main)],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env=rig.environment if rig else None,
        )
        self.say(**orders)

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, **orders: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(orders).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Its next line."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self._fail(f"said nothing for {timeout:g} s")
        line = self.process.stdout.readline()
        if not line:
            self._fail("ended without a reply")
        return json.loads(line)

    def ask(self, timeout: float = PATIENCE, **orders: Any) -> Any:
        self.say(**orders)
        return self.hear(timeout)

    def end(self, timeout: float = PATIENCE, stderr: str | None = "") -> int:
        """Closes its standard input and waits. stderr: what it must have printed there; None: anything."""
        try:
            _, said = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._fail(f"did not end within {timeout:g} s")
        if stderr is not None:
            assert said.decode() == stderr
        return self.process.returncode

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def _fail(self, what: str) -> NoReturn:
        self._kill_group()
        self.process.wait()
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)  # its children may hold the other end
        said = self.process.stderr.read() or b""
        raise AssertionError(
            f"program {self.process.args[-1]} {what} (code {self.process.returncode}): {said.decode()}"
        )

    def _kill_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_group()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def run_program(
    main: MainFunction, rig: Rig | None = None, *, timeout: float = PATIENCE, stderr: str | None = "", **orders: Any
) -> Any:
    """Runs it to its end; its one reply. stderr as in Program.end; the rest as of Program."""
    with Program(main, rig, **orders) as program:
        reply = program.hear(timeout)
        code = program.end(timeout, stderr)
        assert code == 0, f"program {name_of(main)} ended with code {code} after saying {reply}"
    return reply


def slot_of(key: int, slots: int = 1024) -> int:
    return lib.sm_hash_int(key & (1 << 64) - 1) & (slots - 1)


def keys_of_shard(shard: int, shards: int, count: int, slots: int = 1024) -> list[int]:
    """The smallest integer keys that a fresh engine routes to the shard."""
    found, key = [], 0
    while len(found) < count:
        if slot_of(key, slots) % shards == shard:
            found.append(key)
        key += 1
    return found


def is_stopped(pid: int) -> bool:
    """By SIGSTOP."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def sleeps_in_futex(pid: int, thread: int | None = None) -> bool:
    """Whether a thread (the main one) of a process waits in the kernel to be woken by another process or thread."""
    with open(f"/proc/{pid}/task/{thread or pid}/syscall") as file:
        return file.read().split()[0] == {"x86_64": "202", "aarch64": "98"}[os.uname().machine]


def process_is_gone(pid: int) -> bool:
    """Ended, and reaped by whoever its parent is by now (or a zombie that nobody here can reap)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def segments_of(name: str) -> list[str]:
    return sorted(entry for entry in os.listdir("/dev/shm") if name in entry)
