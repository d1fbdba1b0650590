"""A worker as its supervisor sees it: spawned by exec, watched by pidfd, its reports read from a pipe."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.words import waiting_of
from shardmem.runtime.child import KINDS, Child, Report, WorkerOrders

LEASE_POLL = 0.05


class _Signalled:
    """What can be done to a worker, whoever started it. _pidfd None: its process cannot be seen from here."""

    killed = False
    stop_reason: str | None = None  # why it was told to end
    _pidfd: int | None

    @property
    def alive(self) -> bool:
        raise NotImplementedError

    def signal(self, number: int) -> None:
        """Through the pidfd: a number that was reused by another process cannot be hit."""
        if self.alive and self._pidfd is not None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def terminate(self, reason: str) -> None:
        self.stop_reason = reason
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        self.killed = True
        self.signal(signal.SIGKILL)


class WorkerProcess(_Signalled):
    """One worker process. All callbacks come from the event loop that is passed in. spare: one that waits for its
    orders; None: it is started. Raises OSError: there is no process to be had."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        orders: WorkerOrders,
        spare: Child | None,
        *,
        on_report: Callable[[WorkerProcess, Report], None],
        on_exit: Callable[[WorkerProcess], None],
    ) -> None:
        self.shard = orders.shard
        self.spawned_at = time.monotonic()
        self.exit_code: int | None = None
        self.failure: str | None = None
        self.final = False  # it failed by what another life would do again
        self.taken = False  # another one has its shard
        self.ready = self.stopped_as_ordered = self.waits_to_open = False
        self._loop, self._on_report, self._on_exit = loop, on_report, on_exit
        self._child = spare or Child("worker")
        self._child.order(orders)
        self._reports, self.pid, self._pidfd = self._child.reports, self._child.pid, self._child.pidfd
        loop.add_reader(self._reports, self._read)
        loop.add_reader(self._pidfd, self._exited)

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def how_it_ended(self) -> str:
        """For people: "exit code 1", or "killed by SIGKILL, perhaps out of memory"."""
        assert self.exit_code is not None
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        if self.killed:
            return "killed by the supervisor"
        number = -self.exit_code
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"killed by {name}" + (", perhaps out of memory" if number == signal.SIGKILL else "")

    def _read(self) -> None:
        for report in self._reports.read():
            self.ready |= bool(report.get("ready"))
            self.waits_to_open = not self.ready and (self.waits_to_open or bool(report.get("waits_to_open")))
            self.final |= bool(report.get("final"))
            self.taken |= bool(report.get("taken"))
            self.failure = report.get("failed") or report.get("boot_failed") or self.failure
            self._on_report(self, report)
        if self._reports.ended:
            self._close_reports()

    def _close_reports(self) -> None:
        if self._reports.fileno() >= 0:
            self._loop.remove_reader(self._reports)
            self._reports.close()

    def _exited(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        self.exit_code, self._pidfd = self._child.wait(), None
        self._read()  # what it said last
        self._close_reports()
        self._child.close()
        self._on_exit(self)


def pidfd_of_worker(control: ControlSegment, inbox: str, shard: int) -> int | None:
    """Of the process that has the shard, and no other: its number may have been given to another since, or mean another
    here. None: it cannot be seen from here, or it has taken the lease and has not come to write its words."""
    pid = control.view_shard(shard).pid
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):  # the number is what shared memory says
        return None
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command, open(f"/proc/{pid}/maps", "rb") as maps:
            itself = KINDS["worker"].module.encode() in command.read() and inbox.encode() in maps.read()
    except OSError:
        itself = False
    if itself and control.worker_alive(shard) and control.view_shard(shard).pid == pid:
        return pidfd
    os.close(pidfd)
    return None


class AdoptedWorker(_Signalled):
    """A worker that an earlier supervisor started: it has no pipe to this one, and it is not its child.

    What it says is in its words. That it lives is the kernel's word: it holds the lease of its shard. Its pidfd brings
    the news of its death, unless its process cannot be seen from here (another pid namespace): then the lease is looked
    at, and it cannot be sent signals. pidfd: of `pidfd_of_worker`; it is closed here.
    """

    exit_code: int | None = None  # is told to its parent only
    taken = False  # it had the shard when it was adopted

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: ControlSegment,
        shard: int,
        pidfd: int | None,
        on_exit: Callable[[AdoptedWorker], None],
    ) -> None:
        view = control.view_shard(shard)
        self.shard, self.pid, self.spawned_at, self._alive = shard, view.pid, view.entered_ns / 1e9, True
        self._loop, self._control, self._incarnation, self._on_exit = loop, control, view.incarnation, on_exit
        self._pidfd = pidfd
        if self._pidfd is not None:
            loop.add_reader(self._pidfd, self._exited)
        else:
            loop.call_later(LEASE_POLL, self._poll)

    @property
    def alive(self) -> bool:
        return self._alive

    @property
    def _phase(self) -> str:
        """Of this life, until the next one enters."""
        same = self._control.view_shard(self.shard).incarnation == self._incarnation
        return self._control.worker_phase(self.shard) if same else "none"

    @property
    def ready(self) -> bool:
        return self._phase in ("ready", "stopped", "halted")

    @property
    def waits_to_open(self) -> bool:
        waiting, _ = waiting_of(self._control.view_shard(self.shard))
        return self._phase == "booting" and waiting is not None

    @property
    def failure(self) -> str | None:
        failed = self._phase in ("failed", "halted")
        return self._control.shard_error(self.shard) or "it said that it failed" if failed else None

    @property
    def final(self) -> bool:
        return self._phase == "halted"

    @property
    def stopped_as_ordered(self) -> bool:
        """It ended in good order: the earlier supervisor had told it to."""
        return self._phase == "stopped"

    def how_it_ended(self) -> str:
        return (
            "killed by the supervisor"
            if self.killed
            else "how it ended is not known, because it was started by an earlier supervisor"
        )

    def _poll(self) -> None:
        if self._control.worker_alive(self.shard):
            self._loop.call_later(LEASE_POLL, self._poll)
        else:
            self._exited()

    def _exited(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._alive = False
        self._on_exit(self)
