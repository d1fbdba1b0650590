"""Workers that live and do nothing. What counts as stuck is the policy's to say (policy/condition.py); here is what is
done.

    seen once ─▶ seen again: stacks to its standard error ─▶ TERM ──grace──▶ KILL ─▶ (the kernel says dead) ─▶ next life

It is looked at twice before anything is done: a host that was suspended, or a process group that was stopped, wakes up
with old heartbeats everywhere. One that moves again at any step is left alone. Nothing is taken from it as long as it
lives.
"""

from __future__ import annotations

import logging
import signal
import time
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

log = logging.getLogger("shardmem.workers")


@dataclass
class _Case:
    worker: WorkerProcess | AdoptedWorker
    looks: int = 0
    kill_at: float = 0.0


class Stuck:
    """`look` is called four times a second."""

    def __init__(self, control: ControlSegment, workers: Workers, history: History, config: Config) -> None:
        self._control, self._workers, self._history = control, workers, history
        self._cases: dict[int, _Case] = {}
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

    def _why(self, worker: WorkerProcess | AdoptedWorker) -> str | None:
        if self._workers.is_stopping(worker.shard) and not _is_stopped(worker.pid):
            return None  # its handler's close() may take the time that it takes, without a sign
        view, now = self._control.view_shard(worker.shard), now_ns()
        if view.pid != worker.pid:  # it has not come to say anything yet: the words are its predecessor's
            return stuck(Facts("", "booting", True, now / 1e9 - worker.spawned_at, None), self.limits)
        in_hand = (now - view.batch_since_ns) / 1e9 if view.batch_since_ns else None
        return stuck(
            Facts("", name_of(PHASES, view.phase), True, (now - view.heartbeat_ns) / 1e9, in_hand), self.limits
        )

    def _proceed(self, case: _Case, why: str) -> None:
        worker, now = case.worker, time.monotonic()
        case.looks += 1
        if case.looks == 2:
            why += "; the process is stopped, as by SIGSTOP" if _is_stopped(worker.pid) else ""
            text = f"worker pid {worker.pid} is stuck: {why}; its stacks go to its standard error, then it is ended"
            self._history.note("stuck", text, worker.shard)
            # Before it enters its shard it may not have the handler yet, and would die of the signal.
            if self._control.view_shard(worker.shard).pid == worker.pid:
                worker.signal(signal.SIGUSR2)
        elif case.looks == 3:
            worker.terminate(f"it was stuck: {why}")
            case.kill_at = now + min(GRACE, max(1.0, self.limits.stall))
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
