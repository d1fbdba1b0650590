"""Workers that live and do nothing. What counts as stuck is the policy's to say (policy/condition.py); here is what is
done.

    seen once ─▶ seen again: stacks to its standard error ─▶ TERM ──grace──▶ KILL ─▶ (the kernel says dead) ─▶ next life

The same of one that was told to end, has no batch in hand and does not end: a thread of the handler that is no daemon,
its close() or an exit handler holds it. Nothing is lost with it.

It is looked at twice before anything is done: a host that was suspended, or a process group that was stopped, wakes up
with old heartbeats everywhere. One that moves again at any step is left alone. Nothing is taken from it as long as it
lives.
"""

from __future__ import annotations

import logging
import signal
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from shardmem.config import Config
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import PHASES
from shardmem.memory.words import name_of, now_ns
from shardmem.policy import Facts, Limits, stuck
from shardmem.supervisor.history import History
from shardmem.supervisor.process import AdoptedWorker, WorkerProcess
from shardmem.supervisor.workers import Workers

GRACE = 5.0
CLOSES, FINISHED = 10.0, 3.0  # seconds that the handler's close(), and what comes after it, may take
LAST_GRACE = 1.0  # of one that was told to end

log = logging.getLogger("shardmem.workers")


@dataclass
class _Case:
    worker: WorkerProcess | AdoptedWorker
    looks: int = 0
    kill_at: float = 0.0


class Stuck:
    """`look` is called at the pace of the supervisor."""

    def __init__(self, control: ControlSegment, workers: Workers, history: History, config: Config) -> None:
        self._control, self._workers, self._history = control, workers, history
        self._cases: dict[int, _Case] = {}
        self._told_now: weakref.WeakSet[WorkerProcess | AdoptedWorker] = weakref.WeakSet()
        self._told: dict[WorkerProcess | AdoptedWorker, float] = {}  # to end, and since when it has no batch in hand
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        self.limits = Limits(config.stall_timeout, config.batch_deadline, config.boot_timeout)

    def look(self) -> None:
        cases = {}
        for worker in self._workers.living():
            if not worker.killed and (why := self._why(worker)) is not None:
                case = self._cases.get(worker.shard)
                cases[worker.shard] = case if case is not None and case.worker is worker else _Case(worker)
                self._proceed(cases[worker.shard], why)
        self._cases = cases
        self._told = {worker: since for worker, since in self._told.items() if worker.alive}

    @property
    def any(self) -> bool:
        """Whether some worker is looked at again, or was told to end."""
        return bool(self._cases or self._told)

    def end_now(self, workers: Iterable[WorkerProcess | AdoptedWorker]) -> None:
        """They were told to stop now, and had the time for it: stacks at the first call, killed at the next."""
        for worker in workers:
            if worker.killed:
                continue
            if worker not in self._told_now:
                self._told_now.add(worker)
                self._show_stacks(worker)
                continue
            log.warning(
                "shard %d (pid %d) did not end after it was told to stop now: killed",
                worker.shard,
                worker.pid,
                extra={"shard": worker.shard},
            )
            worker.kill()

    def _why(self, worker: WorkerProcess | AdoptedWorker) -> str | None:
        if self._workers.is_stopping(worker.shard) and not _is_stopped(worker.pid):
            return self._why_not_ended(worker)
        view, now = self._control.view_shard(worker.shard), now_ns()
        if view.pid != worker.pid:  # it has not come to say anything yet: the words are its predecessor's
            return stuck(Facts("", "booting", True, now / 1e9 - worker.spawned_at, None), self.limits)
        in_hand = (now - view.batch_since_ns) / 1e9 if view.batch_since_ns else None
        return stuck(
            Facts("", name_of(PHASES, view.phase), True, (now - view.heartbeat_ns) / 1e9, in_hand), self.limits
        )

    def _why_not_ended(self, worker: WorkerProcess | AdoptedWorker) -> str | None:
        view, now = self._control.view_shard(worker.shard), time.monotonic()
        if view.pid != worker.pid or view.batch_since_ns:
            return None
        is_finished = name_of(PHASES, view.phase) in ("stopped", "failed", "halted")
        waited = now - self._told.setdefault(worker, now)
        if waited < (FINISHED if is_finished else CLOSES):
            return None
        what = "a thread that is no daemon, or an exit handler," if is_finished else "close()"
        return f"it was told to end {waited:.3g} s ago and has nothing left to do; {what} of its handler holds it"

    def _show_stacks(self, worker: WorkerProcess | AdoptedWorker) -> None:
        # Before it enters its shard it may not have the handler yet, and would die of the signal.
        if self._control.view_shard(worker.shard).pid == worker.pid:
            worker.signal(signal.SIGUSR2)

    def _proceed(self, case: _Case, why: str) -> None:
        worker, now = case.worker, time.monotonic()
        case.looks += 1
        if case.looks == 2:
            why += "; the process is stopped, as by SIGSTOP" if _is_stopped(worker.pid) else ""
            text = f"worker pid {worker.pid} is stuck: {why}; its stacks go to its standard error, then it is ended"
            self._history.note("stuck", text, worker.shard)
            self._show_stacks(worker)
        elif case.looks == 3:
            worker.terminate(f"it was stuck: {why}")
            grace = LAST_GRACE if worker in self._told else min(GRACE, max(1.0, self.limits.stall))
            case.kill_at = now + grace
        elif case.looks > 3 and now > case.kill_at:
            log.error(
                "shard %d (pid %d) did not end when told to: killed",
                worker.shard,
                worker.pid,
                extra={"shard": worker.shard},
            )
            worker.kill()


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
