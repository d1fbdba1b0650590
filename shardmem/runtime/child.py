"""How a process of ours starts, is told what to do, reports, and ends. There are three kinds; whoever starts one calls
`launch`.

standard input    one line of JSON, the orders; a supervisor's stays open as long as its parent wants the engine
a pipe            lines of JSON, what the child reports; the orders say which descriptor it is
exit code         ExitCode
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

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
    """source: the table [source]. settings: log_format, log_level. directory: where state, positions and status are
    kept."""

    engine: str
    source: dict[str, Any]
    settings: dict[str, Any]
    directory: str


@dataclass(frozen=True)
class WorkerOrders(_Orders):
    """settings: Config.worker_settings(). ended: how the last life of the shard ended, if it did not end in good order.
    forgiven: attempts of earlier lives do not count."""

    handler: HandlerRef
    engine: str
    shard: int
    settings: dict[str, Any]
    ended: str | None = None
    forgiven: bool = False


@dataclass(frozen=True)
class SupervisorOrders(_Orders):
    """settings: the fields of Config that are neither handler nor schema. keep_unfinished: events that are not handled
    at the end stay in shared memory. tell_shards: report shards that are created and removed; somebody has to read
    it."""

    handler: HandlerRef
    settings: dict[str, Any]
    schema: str
    keep_unfinished: bool
    tell_shards: bool = False


_AnyOrders = TypeVar("_AnyOrders", bound=_Orders)


def read_orders(kind: type[_AnyOrders]) -> tuple[_AnyOrders, Reports] | None:
    """In the child. None: the parent was killed before it had said everything."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    orders, descriptor = kind.from_json(line)
    os.set_inheritable(descriptor, False)
    return orders, Reports(descriptor)


# ---- start -------------------------------------------------------------------------------------------------------


def python_command(kind: str) -> list[str]:
    """Runs `main()` of a kind of child in a fresh interpreter.

    Not `python -m`: that puts the current directory first on the path, and there may be a `shardmem` folder in it that
    is not this package (a source tree without the compiled extension, for one).
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path[0] = {root!r}; from {KINDS[kind].module} import main; sys.exit(main())",
    ]


def launch(
    kind: str, orders: WorkerOrders | SupervisorOrders | SourceOrders
) -> tuple[subprocess.Popen[bytes], ReportReader]:
    """A child that has been given its orders, and what it reports. Raises OSError when there is no process to be had.

    By exec, never by fork: a fork of a process with threads or open handles inherits their locks.
    """
    lifeline = KINDS[kind].lifeline
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            python_command(kind), stdin=subprocess.PIPE, pass_fds=(write_end,), start_new_session=lifeline
        )
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already; whoever waits for it hears of that
        process.stdin.write(orders.to_json(write_end))
        process.stdin.flush()
        if not lifeline:
            process.stdin.close()
    return process, ReportReader(read_end)


# ---- reports -----------------------------------------------------------------------------------------------------


class Report(TypedDict, total=False):
    """What a child says, one or a few members at a time."""

    ready: bool
    status: Any  # [supervisor] the status document
    failed: str  # [worker] the handler failed
    boot_failed: str
    traceback: str
    quarantined: int  # sequence of the event
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
            if select.select([self._descriptor], [], [], left)[0]:
                self._fill()
        return self._unread.pop(0) if self._unread else None

    def last(self) -> Report | None:
        """The last report of all: reads until the child has closed its end, and closes this one."""
        last = None
        while (report := self.next()) is not None:
            last = report
        self.close()
        return last

    def close(self) -> None:
        self.ended = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fill(self) -> None:
        while not self.ended:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return
            self.ended = not data
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._unread += map(json.loads, lines)
