"""The workers of an engine: started, watched, started again. When, is the policy's to say (policy/restarts.py).

A shard whose worker died keeps everything: its state, its slots, its holds, its lanes. Producers go on filling them,
other shards notice nothing, a handoff waits, and the next worker resumes at the head. It is started when the kernel
says that the last one is dead, and not before: its lease is free.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from shardmem.config import Config
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import point
from shardmem.policy import Restarts, WorkerDeath
from shardmem.runtime.child import Child, Report, WorkerOrders, launch
from shardmem.runtime.handler import HandlerRef
from shardmem.status.findings.finding import RECENT_S
from shardmem.supervisor.descriptors import Descriptors
from shardmem.supervisor.history import History
from shardmem.supervisor.prestart import Prestarted
from shardmem.supervisor.process import AdoptedWorker, WorkerProcess, pidfd_of_worker
from shardmem.supervisor.spares import Spares

LEASE_POLL = 0.02
ENTERS = 1.0  # seconds after it has taken its lease a worker has written its words, unless it cannot be seen from here
LOOK = 0.05  # at what no worker tells, while the first ones boot
REFUSED_FIRST, REFUSED_MOST = 0.1, 5.0  # seconds until the system is asked for a process again

log = logging.getLogger("shardmem.workers")


@dataclass
class WorkerBaseline:
    """What is known of a shard's dead workers."""

    crashes: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # CLOCK_MONOTONIC of the last of them
    last_exit: str | None = None
    restart_at: float | None = None  # CLOCK_MONOTONIC
    failed: str | None = None  # why it counts as failed, until a worker is ready
    was: str = "active"  # its state before that
    cannot_boot: str | None = None  # why, since somebody began to wait for it
    logged_reason: bool = False  # and the worker has logged it itself, with its traceback
    refused: int = 0  # starts in a row for which the system had no process
    ended_at: float | None = None  # since then no worker was ready
    forgiven: bool = False  # failures of events in earlier lives do not count for the next one
    is_restarting: bool = False  # its worker has been told to end, and the next one takes its place
    killed: int | None = None  # incarnation of a worker that is as good as dead
    seen_at: float | None = None  # since when somebody has the shard who does not say who it is
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Workers:
    """is_stopping: whether a shard's worker has been told to end, so that its end is no death. changed: called when
    anything is new.
    """

    def __init__(
        self,
        control: ControlSegment,
        inboxes: dict[int, InboxSegment],
        config: Config,
        handler: HandlerRef,
        prestarted: Prestarted,
        *,
        is_stopping: Callable[[int], bool],
        changed: Callable[[], None],
        history: History,
        descriptors: Descriptors,
    ) -> None:
        self._control, self._inboxes, self._config, self._handler = control, inboxes, config, handler
        self.is_stopping, self._tell = is_stopping, changed
        self._history, self._descriptors = history, descriptors
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._spares, self._prestarted = Spares(self._loop, config.spares, self._spare), prestarted
        self._restarts = Restarts(config.max_restarts, config.restart_window)
        self._living: dict[int, WorkerProcess | AdoptedWorker] = {}
        self._pasts: dict[int, WorkerBaseline] = {}
        self._launch_config: dict[
            int, tuple[Config, HandlerRef]
        ] = {}  # what the workers of a shard are started with, reload or not
        self._ready_since_wait: set[int] = set()  # since somebody began to wait for them; perhaps dead by now

    # ---- what there is -----------------------------------------------------------------------------------------------

    def of(self, shard: int) -> WorkerProcess | AdoptedWorker | None:
        return self._living.get(shard)

    def living(self) -> list[WorkerProcess | AdoptedWorker]:
        return [worker for worker in self._living.values() if worker.alive]

    def describe(self) -> dict[str, Any]:
        """For the board: shards of which there is something to say."""
        since = time.monotonic() - RECENT_S
        return {
            str(shard): {
                "crashes": past.crashes,
                "recent": sum(at > since for at in past.recent),
                "last_exit": past.last_exit,
                "restart_at": past.restart_at,
            }
            for shard, past in self._pasts.items()
            if past.crashes or past.refused
        }

    def failed(self) -> dict[int, str]:
        """Shards that nobody should plan with, and why."""
        return {shard: past.failed for shard, past in sorted(self._pasts.items()) if past.failed is not None}

    def have_logged_reason(self) -> bool:
        """Whether one that has failed, or cannot boot, has logged the reason."""
        return any(past.logged_reason for past in self._pasts.values() if past.failed or past.cannot_boot)

    def recall(self, lives: dict[str, Any]) -> None:
        """What an earlier supervisor had written down."""
        for shard, life in lives.items():
            self._pasts[int(shard)] = WorkerBaseline(life["crashes"], last_exit=life["last_exit"])

    # ---- starting ----------------------------------------------------------------------------------------------------

    def start(self, shard: int, delay: float = 0.0, *, forgiven: bool = False) -> None:
        """Its next worker, after the delay and when the kernel says that the last one is dead. forgiven: its handler
        may have been mended since events failed."""
        past = self._pasts.setdefault(shard, WorkerBaseline())
        past.forgiven |= forgiven
        past.restart_at = time.monotonic() + delay
        self._cancel(past)
        past.timer = self._loop.call_later(delay, self._spawn, shard)

    def adopt(self, shard: int) -> bool:
        """The worker of an earlier supervisor, if it lives and has come to say who it is."""
        past = self._pasts.setdefault(shard, WorkerBaseline())
        if not self._control.worker_alive(shard):
            past.seen_at = None
            return False
        pidfd = pidfd_of_worker(self._control, self._inboxes[shard].segment.name, shard)
        if pidfd is None:
            past.seen_at = time.monotonic() if past.seen_at is None else past.seen_at
            if time.monotonic() - past.seen_at < ENTERS:
                return False
        past.seen_at = past.restart_at = None
        self._living[shard] = AdoptedWorker(self._loop, self._control, shard, pidfd, self._exited)
        self._spares.settle(shard)
        return True

    def start_all(self, shards: Collection[int], *, forgiven: bool) -> None:
        """Of a supervisor that begins. What was started for more is not needed."""
        self._prestarted.keep(len(shards))
        for shard in shards:
            self.start(shard, forgiven=forgiven)

    def _spawn(self, shard: int) -> None:
        past = self._pasts[shard]
        past.timer = None  # no start is due any more, which a stop goes by
        if self.is_stopping(shard):
            past.restart_at = None
            return
        if self._control.worker_alive(shard):
            # One that an earlier supervisor started, and that has taken the shard since this one looked, works there:
            # waited for like one that dies, it was in no plan, and a drain stood still beside it.
            is_dying = self._control.view_shard(shard).incarnation == past.killed
            if not is_dying and self.adopt(shard):
                self._changed()
            else:
                past.timer = self._loop.call_later(LEASE_POLL, self._spawn, shard)
            return
        config, handler = self._launch_config.setdefault(shard, (self._config, self._handler))
        try:
            with self._descriptors.lent():
                self._living[shard] = WorkerProcess(
                    self._loop,
                    self._orders(shard, config, handler, ended=past.last_exit, forgiven=past.forgiven),
                    self._spares.take() or self._prestarted.take(),
                    on_report=self._reported,
                    on_exit=self._exited,
                )
        except OSError as error:
            self._refused(shard, error)
            return
        past.restart_at, past.forgiven, past.refused = None, False, 0
        point("spawn.started")

    def _orders(
        self, shard: int, config: Config, handler: HandlerRef, ended: str | None = None, forgiven: bool = False
    ) -> WorkerOrders:
        return WorkerOrders(
            handler, config.name, shard, config.worker_settings(), ended, forgiven, self._descriptors.before
        )

    def _spare(self, shard: int) -> Child:
        return launch("worker", replace(self._orders(shard, self._config, self._handler), spare=True))

    def _refused(self, shard: int, error: OSError) -> None:
        """The system had no process for it. That says nothing of the handler, so it is no crash."""
        past = self._pasts[shard]
        past.refused += 1
        past.last_exit = f"no process could be started: {error.strerror} (errno {error.errno}){_limit_of(error)}"
        if past.refused == 1:
            self._history.note("not_done", f"{past.last_exit}; it is tried again until there is one", shard)
        self.start(shard, min(REFUSED_MOST, REFUSED_FIRST * 2.0 ** min(past.refused - 1, 10)))
        self._changed()

    def expect(self, shards: Iterable[int]) -> None:
        """Somebody begins to wait for a ready worker of these."""
        for shard in shards:
            self._ready_since_wait.discard(shard)
            if (past := self._pasts.get(shard)) is not None:
                past.cannot_boot = None

    def is_ready(self, shard: int) -> bool:
        """Whether it has had a ready worker since somebody began to wait for one; that one may be dead by now. Not
        whether one is ready at this moment: while workers die in turn that never comes, and nothing that was begun
        would go on."""
        worker = self.of(shard)
        return shard in self._ready_since_wait or (worker is not None and worker.alive and worker.ready)

    def waits_to_open(self, shard: int) -> str | None:
        """Why the `open` of its handler asks for another try later; None: it does not. That is no failure."""
        worker = self.of(shard)
        is_waiting = worker is not None and worker.alive and worker.waits_to_open
        return self._control.shard_error(shard) or "it does not say why" if is_waiting else None

    def why_not_ready(self, shard: int, since: float, boot_timeout: float) -> str | None:
        """Why a shard that was started at `since` cannot get a ready worker; None: it has, or may yet."""
        if self.is_ready(shard):
            return None
        past = self._pasts.get(shard)
        if past is not None and past.cannot_boot is not None:
            return f"shard {shard} cannot start: {past.cannot_boot}"
        if time.monotonic() - since > boot_timeout:
            if past is not None and past.refused:
                return f"shard {shard} cannot start: {past.last_exit}"
            worker = self.of(shard)
            pid = worker.pid if worker is not None else self._control.view_shard(shard).pid
            if (reason := self.waits_to_open(shard)) is not None:
                return (
                    f"shard {shard} (pid {pid}) was not ready within boot_timeout={boot_timeout:g} s: its handler "
                    f"waits to be opened: {reason}"
                )
            return (
                f"shard {shard} (pid {pid}) was not ready within boot_timeout={boot_timeout:g} s; its "
                f"handler may hang in import or in open()"
            )
        return None

    async def ready(self, shards: list[int], give_up: Callable[[], bool]) -> str | None:
        """The first boot: waits until each of these shards has had a ready worker, or one whose handler waits to be
        opened; None then, or why one cannot get one."""
        self.expect(shards)
        since, late = time.monotonic(), shards
        while not give_up():
            late = [shard for shard in late if not self.is_ready(shard) and self.waits_to_open(shard) is None]
            if not late:
                return None
            for shard in late:
                if (reason := self.why_not_ready(shard, since, self._config.boot_timeout)) is not None:
                    return reason
            clock = self._loop.call_later(LOOK, self._news.set)
            await self._news.wait()
            clock.cancel()
            self._news.clear()
        return None

    # ---- ending ------------------------------------------------------------------------------------------------------

    def forget(self, shard: int) -> None:
        """It is gone, or never came to be: a worker that still lives is killed, and none is started again."""
        worker = self._living.pop(shard, None)
        if worker is not None and worker.alive:
            worker.kill()
        if (past := self._pasts.pop(shard, None)) is not None:
            self._cancel(past)
        self._restarts.forget(shard)
        self._launch_config.pop(shard, None)

    def renew(self, shard: int) -> None:
        """A shard that has failed gets another chance now, with what is in force now."""
        self._restarts.forget(shard)
        self._launch_config.pop(shard, None)
        worker = self._living.pop(shard, None)
        if worker is not None and worker.alive:  # it boots, with what was in force before
            self._pasts[shard].killed = self._control.view_shard(shard).incarnation
            worker.kill()
        self._recovered(shard)
        self.start(shard, forgiven=True)

    def restart(self, shard: int) -> None:
        """Its worker ends after the batch in hand, and the next one goes on in its place, with what is in force now."""
        self._launch_config.pop(shard, None)
        if (worker := self.of(shard)) is not None and worker.alive:
            self._pasts[shard].is_restarting = True
            worker.signal(signal.SIGTERM)

    @property
    def launch_config(self) -> tuple[Config, HandlerRef]:
        """What the workers of new shards are started with."""
        return self._config, self._handler

    def launch_with(self, config: Config, handler: HandlerRef) -> None:
        """Shards that have workers keep what theirs were started with, until they are renewed."""
        self._config, self._handler = config, handler
        self._spares.close()

    def reconfigure(self, config: Config) -> None:
        """The limits of restarts, and the spares, as they are now."""
        self._spares.keep(config.spares)
        self._restarts.most, self._restarts.window = config.max_restarts, config.restart_window

    def stop_starting(self) -> None:
        self._spares.close()
        for shard, past in self._pasts.items():
            if past.timer is not None:
                self.adopt(shard)  # what has the shard by now ends in good order, like all others
            self._cancel(past)
            past.restart_at = None

    def _cancel(self, past: WorkerBaseline) -> None:
        if past.timer is not None:
            past.timer.cancel()
            past.timer = None

    def _changed(self) -> None:
        self._news.set()
        self._tell()

    def _reported(self, worker: WorkerProcess, report: Report) -> None:
        if worker.ready:
            self._ready_since_wait.add(worker.shard)
            self._spares.settle(worker.shard)
        past = self._pasts.get(worker.shard)
        if report.get("ready") and past is not None and self._living.get(worker.shard) is worker:
            self._recovered(worker.shard)
            past.cannot_boot = None
            if past.ended_at is not None:
                seconds, past.ended_at = time.monotonic() - past.ended_at, None
                text = f"worker pid {worker.pid} is ready, {seconds:.2g} s after the last one ended"
                self._history.note(
                    "worker_started", f"{text}; crashes of this shard so far: {past.crashes}", worker.shard
                )
        self._changed()

    def _exited(self, worker: WorkerProcess | AdoptedWorker) -> None:
        self._changed()
        shard = worker.shard
        if self._living.get(shard) is not worker:
            return
        if self.is_stopping(shard):
            if worker.failure:
                self._fail(shard, worker.failure, worker)
            elif worker.exit_code and not worker.killed:
                log.warning(
                    "shard %d: worker pid %d had been told to end, and did so by %s",
                    shard,
                    worker.pid,
                    worker.how_it_ended(),
                    extra={"shard": shard},
                )
        elif worker.taken:
            # By one that an earlier supervisor had started, and that had not come to take it when this one looked. It
            # was a boot that failed: the engine ended with exit code 3, on a machine on which a boot took seconds.
            if not self.adopt(shard):
                self.start(shard, LEASE_POLL)
        elif self._pasts[shard].is_restarting:
            self._pasts[shard].is_restarting = False
            self.start(shard, forgiven=True)
        elif worker.failure and worker.final:
            self._fail(shard, worker.failure, worker)
        elif worker.stopped_as_ordered and not worker.stop_reason:
            self.start(shard)
        else:
            self._died(shard, self._death_of(worker), worker)

    def _death_of(self, worker: WorkerProcess | AdoptedWorker) -> WorkerDeath:
        view, how = self._control.view_shard(worker.shard), worker.how_it_ended()
        its_words = view.pid == worker.pid
        # its word in shared memory comes before its report, and it may have been killed between the two
        phase = self._control.worker_phase(worker.shard) if its_words else "none"
        if worker.stop_reason:
            how = f"{worker.stop_reason}; {how}"
        elif worker.failure:
            how = worker.failure
        elif worker.exit_code == 0:
            how += " though nobody had told it to end; perhaps somebody sent it TERM"
        by_signal = worker.exit_code in (-signal.SIGKILL, -signal.SIGTERM) or (
            worker.exit_code == 0 and phase == "stopped"
        )
        return WorkerDeath(
            how,
            ready=worker.ready or phase in ("ready", "stopped"),
            in_hand=its_words and view.batch_since_ns != 0,
            seconds=time.monotonic() - worker.spawned_at,
            progress=view.rows,
            outside=by_signal and not worker.stop_reason and not worker.killed,
        )

    def _died(self, shard: int, life: WorkerDeath, worker: WorkerProcess | AdoptedWorker) -> None:
        past = self._pasts[shard]
        past.crashes, past.last_exit, past.ended_at = past.crashes + 1, life.how, time.monotonic()
        past.recent.append(past.ended_at)
        self._spares.died(shard)
        verdict = self._restarts.ended(shard, life, time.monotonic())
        is_news = not life.ready and verdict.failed is None and bool(worker.failure) and past.cannot_boot is None
        if not life.ready and (worker.failure or verdict.failed):
            past.cannot_boot, past.logged_reason = worker.failure or verdict.failed, bool(worker.failure)
        if verdict.failed is not None:
            self._fail(shard, worker.failure or verdict.failed, worker)
        text = (
            f"worker pid {worker.pid} ended: {life.how}{', with a batch in hand' if life.in_hand else ''}; the next "
            f"one starts in {verdict.delay:.3g} s"
        )
        if past.cannot_boot and self._control.shard_state(shard) == "provisioning":  # then there may be no next one
            text = f"worker pid {worker.pid} cannot start: {life.how}"
        self._history.note("shard_failed" if is_news else "worker_died", text, shard, logged=is_news)
        self.start(shard, verdict.delay)

    def _fail(self, shard: int, reason: str, worker: WorkerProcess | AdoptedWorker) -> None:
        past = self._pasts[shard]
        if past.failed is None:
            past.was = self._control.shard_state(shard)
        is_new, past.failed, past.ended_at = past.failed is None, reason, time.monotonic()
        past.restart_at, past.logged_reason = None, bool(worker.failure)
        if is_new:
            self._history.note("shard_failed", reason, shard, logged=past.logged_reason)
        self._control.set_shard_state(shard, "failed")
        if not past.logged_reason:  # it has not said so itself, and cannot any more
            self._control.note_shard(shard, reason)

    def _recovered(self, shard: int) -> None:
        past = self._pasts[shard]
        if past.failed is not None:
            past.failed = None
            self._control.set_shard_state(shard, past.was)


def _limit_of(error: OSError) -> str:
    """Which limit that is, as far as the system says."""
    if error.errno == errno.EAGAIN:
        return ": the limit of processes, RLIMIT_NPROC or pids.max of the cgroup"
    if error.errno == errno.ENOMEM:
        return ": no memory for another process"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f": the limit of descriptors, {'RLIMIT_NOFILE' if error.errno == errno.EMFILE else 'fs.file-max'}"
    return ""
