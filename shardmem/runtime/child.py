"""How a process of ours starts, is told what to do, reports, and ends. There are three kinds; whoever starts one calls
`launch`.

standard input    one line of JSON, the orders; a supervisor's stays open as long as its parent wants the engine
a pipe            lines of JSON, what the child reports; the orders say which descriptor it is
exit code         ExitCode
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from shardmem.runtime import streams

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from shardmem.runtime.handler import HandlerRef


class ExitCode(enum.IntEnum):
    """Of supervisors, workers and the command line alike."""

    OK = 0  # as asked: a stop that was ordered included
    FAILED = 1
    CONFIG = 2  # usage or configuration
    BOOT = 3  # a worker cannot start
    ALREADY = 4  # another process holds the role


@dataclass(frozen=True)
class Kind:
    """module: its `main()` is what runs. lifeline: standard input stays open, and its end means that the parent is
    gone; such a child has a session of its own, so that a terminal's Ctrl-C reaches it only through its parent."""

    module: str
    lifeline: bool


KINDS = {
    "worker": Kind("shardmem.runtime.worker", lifeline=False),
    "source": Kind("shardmem.sources.process", lifeline=False),
    "supervisor": Kind("shardmem.supervisor.embedded", lifeline=True),
}


# ---- orders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Orders:
    def to_json(self, reports: int) -> bytes:
        """One line. reports: the descriptor that the child writes its reports to."""
        return json.dumps({**asdict(self), "reports": reports}).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> tuple[Self, int]:
        """(the orders, the descriptor for reports)."""
        from shardmem.runtime.handler import HandlerRef  # the command line knows exit codes and needs no numpy for them

        members = json.loads(line)
        reports = members.pop("reports")
        if "handler" in members:
            members["handler"] = HandlerRef(**members["handler"])
        return cls(**members), reports


@dataclass(frozen=True)
class SourceOrders(_Orders):
    """source: the table [source]. settings: log_format, log_level, state (the table [state]), keep_state. directory:
    where state, positions and status are kept."""

    engine: str
    source: dict[str, Any]
    settings: dict[str, Any]
    directory: str


@dataclass(frozen=True)
class WorkerOrders(_Orders):
    """settings: Config.worker_settings(). ended: how the last life of the shard ended, if it did not end in good order.
    forgiven: attempts of earlier lives do not count. descriptors: its soft limit of them. spare: it imports
    the handler, and waits for its real orders."""

    handler: HandlerRef
    engine: str
    shard: int
    settings: dict[str, Any]
    ended: str | None = None
    forgiven: bool = False
    descriptors: int | None = None
    spare: bool = False


@dataclass(frozen=True)
class SupervisorOrders(_Orders):
    """settings: the fields of Config that are neither handler nor schema. workers: how many it starts with; none where
    some may live already. keep_unfinished: events that are not handled at the end stay in shared memory. tell_shards:
    report shards that are created and removed; somebody has to read it."""

    handler: HandlerRef
    settings: dict[str, Any]
    schema: str
    workers: int
    keep_unfinished: bool
    tell_shards: bool = False


_AnyOrders = TypeVar("_AnyOrders", bound=_Orders)


def read_line() -> bytes | None:
    """In the child: its orders as they came. None: the parent was killed before it had said everything."""
    line = sys.stdin.buffer.readline()
    return line if line.endswith(b"\n") else None


def read_orders(kind: type[_AnyOrders], line: bytes | None = None) -> tuple[_AnyOrders, Reports] | None:
    """In the child. line: what was read already. None: as `read_line`."""
    if line is None and (line := read_line()) is None:
        return None
    orders, descriptor = kind.from_json(line)
    os.set_inheritable(descriptor, False)
    return orders, Reports(descriptor)


# ---- start -------------------------------------------------------------------------------------------------------

_SECRET = "SHARDMEM_HTTP_TOKEN"  # the supervisor's: a handler, and what that starts, has no use for it

# numpy's OpenBLAS starts a thread for each core when it is imported, and each turns for 2^26 cycles before it sleeps,
# after every call again: in a start of supervisor and two workers that was a quarter of what two cores can do. 2^20 is
# 0.4 ms. The name is OpenBLAS's own; what the environment says already stands.
_OPENBLAS = {"OPENBLAS_THREAD_TIMEOUT": "20"}


def let_threads_sleep() -> None:
    """In a process of ours that imports numpy later."""
    for name, value in _OPENBLAS.items():
        os.environ.setdefault(name, value)


def _environment(keeps_secret: bool) -> dict[str, str]:
    """Of a child."""
    return _OPENBLAS | {name: value for name, value in os.environ.items() if keeps_secret or name != _SECRET}


_PROGRAM = "; ".join(
    (
        "import sys",
        "from importlib import util",
        "sys.path[:1] = sys.path[:1] if sys.path[0] else []",
        "sys.path += [{root!r}] * ({root!r} not in sys.path)",
        "spec = util.spec_from_file_location('shardmem', {root!r} + '/shardmem/__init__.py')",
        "sys.modules['shardmem'] = module = util.module_from_spec(spec)",
        "spec.loader.exec_module(module)",
        "from {module} import main",
        "sys.exit(main())",
    )
)


def python_command(kind: str) -> list[str]:
    """Runs `main()` of a kind of child in a fresh interpreter, and of this very package.

    Not `python -m`: that puts the current directory first on the path, and there may be a `shardmem` folder in it that
    is not this package. Nor by its directory put first: that is site-packages, and then a package there that is named
    like a module of the standard library (asyncio, typing: PyPI has them) would be taken for it.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-c", _PROGRAM.format(root=root, module=KINDS[kind].module)]


def begin() -> None:
    """The first act of a process of ours: whatever its parent was doing, it stands on its own feet."""
    streams.settle()
    if not faulthandler.is_enabled():  # where it was when it crashed
        faulthandler.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it would hide how our own children end
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Child:
    """A process that `start` has started, with its end of the reports. Raises OSError when there is none to be had.

    That it has ended is the kernel's word through its pidfd, also in a program that ignores SIGCHLD or takes the exit
    status of every child. Its exit code is then what it said last, and if it said nothing it was killed.
    """

    def __init__(self, kind: str) -> None:
        self._lifeline = KINDS[kind].lifeline
        self.returncode: int | None = None
        self._asking = threading.Lock()
        with streams.occupied():
            read_end, self._write_end = os.pipe()
            try:
                # by exec, never by fork: a fork of a process with threads or open handles inherits their locks
                self._popen = subprocess.Popen(
                    python_command(kind),
                    stdin=subprocess.PIPE,
                    pass_fds=(self._write_end,),
                    start_new_session=self._lifeline,
                    env=_environment(keeps_secret=self._lifeline),
                )
            except BaseException:
                os.close(read_end)
                os.close(self._write_end)
                raise
            os.close(self._write_end)
            self.pid, self.reports = self._popen.pid, ReportReader(read_end)
            assert self._popen.stdin is not None
            self.stdin = self._popen.stdin
            try:
                self.pidfd = os.pidfd_open(self.pid)
            except ProcessLookupError:  # it has ended, and somebody took its status
                self.pidfd = -1
            except BaseException:
                self._popen.kill()
                self._popen.wait()
                self.stdin.close()
                self.reports.close()
                raise

    def order(self, orders: WorkerOrders | SupervisorOrders | SourceOrders) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died already; whoever waits for it hears of that
            self.stdin.write(orders.to_json(self._write_end))
            self.stdin.flush()
            if not self._lifeline and not getattr(orders, "spare", False):
                self.stdin.close()

    def poll(self) -> int | None:
        """Its exit code, or minus the number of the signal; None while it lives."""
        with self._asking:
            if self.returncode is None and (self.pidfd < 0 or _is_readable(self.pidfd, 0.0)):
                self._ended()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same. Raises subprocess.TimeoutExpired."""
        if self.returncode is None and self.pidfd >= 0 and not _is_readable(self.pidfd, timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._popen.args, timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Through the pidfd: a number that was given to another process cannot be hit."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """This end of what connects it. One that waits for orders ends with that; another may live on, unwatched."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        self.reports.close()
        pidfd, self.pidfd = getattr(self, "pidfd", -1), -1
        if pidfd >= 0:
            os.close(pidfd)

    def __del__(self) -> None:
        if getattr(self, "pidfd", -1) >= 0:
            os.close(self.pidfd)

    def _ended(self) -> None:
        try:
            status = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED) if self.pidfd >= 0 else None
        except ChildProcessError:
            status = None
        if status is None:
            said = self.reports.exit_code()
            self.returncode = -signal.SIGKILL if said is None else said
        else:
            self.returncode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._popen.returncode = self.returncode


def launch(kind: str, orders: WorkerOrders | SupervisorOrders | SourceOrders) -> Child:
    """A child that has been given its orders. Raises OSError."""
    child = Child(kind)
    child.order(orders)
    return child


# ---- reports -----------------------------------------------------------------------------------------------------


class Report(TypedDict, total=False):
    """What a child says, one or a few members at a time."""

    ready: bool
    waits_to_open: bool  # [worker] the handler's `open` asks for another try later
    status: Any  # [supervisor] the status document
    flows: bool  # [worker] events come again, after a long rest
    prepared: bool  # [worker] a spare that has imported all
    failed: str  # [worker] the handler failed
    final: bool  # [worker] and nothing goes on until somebody reloads
    taken: bool  # [worker] another one has its shard
    boot_failed: str
    drained: list[int]  # slots that were given up
    restored: list[int]  # slots that were taken up
    shard_created: int  # [supervisor]
    shard_removed: int  # [supervisor]
    ended: int  # [supervisor] exit code, the last report of all
    error: str | None
    kind: str | None  # the name of the error's class
    hint: str | None
    need: int  # OutOfMemory: bytes
    free: int


class Reports:
    """The child's end. Its parent may be gone: then nobody needs them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, **report: Unpack[Report]) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps(report).encode() + b"\n")


class ReportReader:
    """The parent's end. ended: the child has closed its end, or `close` was called."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._partial, self.ended = descriptor, b"", False
        self._unread: list[Report] = []
        self._exit_code: int | None = None
        self._filling = threading.Lock()
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> list[Report]:
        """What has come since; does not wait. A child of the child may hold the pipe open, so its end is not waited
        for."""
        self._fill()
        reports, self._unread = self._unread, []
        return reports

    def next(self, timeout: float | None = None) -> Report | None:
        """The next report; None when the child has closed its end, or after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._unread and not self.ended:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            if _is_readable(self._descriptor, left):
                self._fill()
        return self._unread.pop(0) if self._unread else None

    def last(self) -> Report | None:
        """The last report of all: reads until the child has closed its end, and closes this one."""
        last = None
        while (report := self.next()) is not None:
            last = report
        self.close()
        return last

    def exit_code(self) -> int | None:
        """What it said that it ends with; None: it has not said so yet, and once it is dead, it was killed."""
        self._fill()
        return self._exit_code

    def close(self) -> None:
        self.ended = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fill(self) -> None:
        with self._filling:
            while not self.ended:
                try:
                    data = os.read(self._descriptor, 1 << 16)
                except BlockingIOError:
                    return
                self.ended = not data
                *lines, self._partial = (self._partial + data).split(b"\n")
                for report in map(json.loads, lines):
                    self._exit_code = report.get("ended", self._exit_code)
                    self._unread.append(report)


def _is_readable(descriptor: int, timeout: float | None) -> bool:
    """Within so many seconds. Not by select: a program may have more than 1,024 descriptors."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(None if timeout is None else max(0.0, timeout) * 1000))
