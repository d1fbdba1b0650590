"""The workers of an engine: started, watched, started again. When, is the policy's to say (policy/restarts.py).

A shard whose worker died keeps everything: its state, its slots, its holds, its lanes. Producers go on filling them,
other shards notice nothing, a handoff waits, and the next worker resumes at the head. It is started when the kernel
says that the last one is dead, and not before: its lease is free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from shardmem.config import Config
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import point
from shardmem.policy import Restarts, WorkerDeath
from shardmem.runtime.child import ExitCode, Report
from shardmem.runtime.handler import HandlerRef
from shardmem.status.findings import RECENT_S
from shardmem.supervisor.history import History
from shardmem.supervisor.process import AdoptedWorker, WorkerProcess

LEASE_POLL = 0.02

log = logging.getLogger("shardmem.workers")


@dataclass
class WorkerBaseline:
    """What is known of a shard's dead workers."""

    crashes: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # CLOCK_MONOTONIC of the last of them
    last_exit: str | None = None
    restart_at: float | None = None  # CLOCK_MONOTONIC
    given_up: str | None = None  # why
    logged_reason: bool = False  # and the worker has logged it itself, with its traceback
    ended_at: float | None = None  # since then no worker was ready
    forgiven: bool = False  # failures of events in earlier lives do not count for the next one
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
        *,
        is_stopping: Callable[[int], bool],
        changed: Callable[[], None],
        history: History,
    ) -> None:
        self._control, self._inboxes, self._config, self._handler = control, inboxes, config, handler
        self.is_stopping, self._changed = is_stopping, changed
        self._history = history
        self._loop = asyncio.get_running_loop()
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
            if past.crashes
        }

    def given_up(self) -> dict[int, str]:
        """Shards that are, and why."""
        return {shard: past.given_up for shard, past in sorted(self._pasts.items()) if past.given_up is not None}

    def have_logged_reason(self) -> bool:
        """Whether one that was given up has logged the reason."""
        return any(past.logged_reason for past in self._pasts.values() if past.given_up is not None)

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
        past.restart_at, past.given_up = time.monotonic() + delay, None
        self._cancel(past)
        past.timer = self._loop.call_later(delay, self._spawn, shard)

    def adopt(self, shard: int) -> bool:
        """The worker of an earlier supervisor, if it lives."""
        if not self._control.worker_alive(shard):
            return False
        self._pasts.setdefault(shard, WorkerBaseline())
        self._living[shard] = AdoptedWorker(
            self._loop, self._control, self._inboxes[shard].segment.name, shard, self._exited
        )
        return True

    def _spawn(self, shard: int) -> None:
        past = self._pasts[shard]
        if self.is_stopping(shard):
            past.restart_at = None
            return
        if self._control.worker_alive(shard):
            past.timer = self._loop.call_later(LEASE_POLL, self._spawn, shard)
            return
        config, handler = self._launch_config.setdefault(shard, (self._config, self._handler))
        try:
            self._living[shard] = WorkerProcess(
                self._loop,
                config.name,
                shard,
                handler,
                spare=None,
                settings=config.worker_settings(),
                ended=past.last_exit,
                forgiven=past.forgiven,
                on_report=self._reported,
                on_exit=self._exited,
            )
        except OSError as error:
            self._died(
                shard,
                WorkerDeath(f"no process could be started: {error}", ready=True, in_hand=False, seconds=0.0),
                None,
            )
            return
        past.restart_at, past.forgiven = None, False
        point("spawn.started")

    def expect(self, shards: Iterable[int]) -> None:
        """Somebody begins to wait for a ready worker of these."""
        self._ready_since_wait.difference_update(shards)

    def is_ready(self, shard: int) -> bool:
        """Whether it has had a ready worker since somebody began to wait for one; that one may be dead by now. Not
        whether one is ready at this moment: while workers die in turn that never comes, and nothing that was begun
        would go on."""
        worker = self.of(shard)
        return shard in self._ready_since_wait or (worker is not None and worker.alive and worker.ready)

    def why_not_ready(self, shard: int, since: float, boot_timeout: float) -> str | None:
        """Why a shard that was started at `since` cannot get a ready worker; None: it has, or may yet."""
        if self.is_ready(shard):
            return None
        past = self._pasts.get(shard)
        if past is not None and past.given_up is not None:
            return f"shard {shard} cannot start: {past.given_up}"
        if time.monotonic() - since > boot_timeout:
            worker = self.of(shard)
            pid = worker.pid if worker is not None else self._control.view_shard(shard).pid
            return (
                f"shard {shard} (pid {pid}) was not ready within boot_timeout={boot_timeout:g} s; its "
                f"handler may hang in import or in open()"
            )
        return None

    async def ready(self, shards: list[int], give_up: Callable[[], bool]) -> str | None:
        """The first boot: waits until each of these shards has had a ready worker; None then, or why one cannot get
        one."""
        self.expect(shards)
        since, late = time.monotonic(), shards
        while not give_up():
            late = [shard for shard in late if not self.is_ready(shard)]
            if not late:
                return None
            for shard in late:
                if (reason := self.why_not_ready(shard, since, self._config.boot_timeout)) is not None:
                    return reason
            await asyncio.sleep(0.005)
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
        """A shard that was given up gets another chance, with what is in force now."""
        self._restarts.forget(shard)
        self._launch_config.pop(shard, None)
        self._control.set_shard_state(shard, "active")
        self.start(shard, forgiven=True)

    @property
    def launch_config(self) -> tuple[Config, HandlerRef]:
        """What the workers of new shards are started with."""
        return self._config, self._handler

    def launch_with(self, config: Config, handler: HandlerRef) -> None:
        """Shards that have workers keep what theirs were started with, until they are renewed."""
        self._config, self._handler = config, handler

    def reconfigure(self, config: Config) -> None:
        """The limits of restarts as they are now."""
        self._restarts.most, self._restarts.window = config.max_restarts, config.restart_window

    def stop_starting(self) -> None:
        for past in self._pasts.values():
            self._cancel(past)
            past.restart_at = None

    def _cancel(self, past: WorkerBaseline) -> None:
        if past.timer is not None:
            past.timer.cancel()
            past.timer = None

    def _reported(self, worker: WorkerProcess, report: Report) -> None:
        if worker.ready:
            self._ready_since_wait.add(worker.shard)
        past = self._pasts.get(worker.shard)
        if report.get("ready") and past is not None and past.ended_at is not None:
            seconds, past.ended_at = time.monotonic() - past.ended_at, None
            text = f"worker pid {worker.pid} is ready, {seconds:.2g} s after the last one ended"
            self._history.note("worker_started", f"{text}; crashes of this shard so far: {past.crashes}", worker.shard)
        self._changed()

    def _exited(self, worker: WorkerProcess | AdoptedWorker) -> None:
        self._changed()
        shard = worker.shard
        if self._living.get(shard) is not worker:
            return
        if self.is_stopping(shard):
            if worker.failure:
                self._give_up(shard, worker.failure, worker)
            elif worker.exit_code and not worker.killed:
                log.warning(
                    "shard %d: worker pid %d had been told to end, and did so by %s",
                    shard,
                    worker.pid,
                    worker.how_it_ended(),
                    extra={"shard": shard},
                )
        elif (
            worker.exit_code == ExitCode.ALREADY
        ):  # somebody else holds the shard: when that one is dead, as the kernel says
            log.warning(
                "shard %d: %s", shard, worker.failure or f"worker pid {worker.pid} had lost it", extra={"shard": shard}
            )
            self.start(shard)
        elif worker.failure:
            self._give_up(shard, worker.failure, worker)
        elif worker.stopped_as_ordered and not worker.stop_reason:
            self.start(shard)
        else:
            view = self._control.view_shard(shard)
            how = worker.how_it_ended()
            if worker.stop_reason:
                how = f"{worker.stop_reason}; {how}"
            elif worker.exit_code == 0:
                how += " though nobody had told it to end; perhaps somebody sent it TERM"
            its_words = view.pid == worker.pid
            in_hand = its_words and view.batch_since_ns != 0
            # its word in shared memory comes before its report, and it may have been killed between the two
            ready = worker.ready or (its_words and self._control.worker_phase(shard) == "ready")
            self._died(shard, WorkerDeath(how, ready, in_hand, time.monotonic() - worker.spawned_at, view.rows), worker)

    def _died(self, shard: int, life: WorkerDeath, worker: WorkerProcess | AdoptedWorker | None) -> None:
        past = self._pasts[shard]
        past.crashes, past.last_exit, past.ended_at = past.crashes + 1, life.how, time.monotonic()
        past.recent.append(past.ended_at)
        verdict = self._restarts.ended(shard, life, time.monotonic())
        if verdict.delay is None:
            self._give_up(shard, verdict.reason, worker)
            return
        text = (
            f"worker{f' pid {worker.pid}' if worker is not None else ''} ended: {life.how}"
            f"{', with a batch in hand' if life.in_hand else ''}; the next one starts in {verdict.delay:.3g} s"
        )
        self._history.note("worker_died", text, shard)
        self.start(shard, verdict.delay)

    def _give_up(self, shard: int, reason: str, worker: WorkerProcess | AdoptedWorker | None) -> None:
        past = self._pasts[shard]
        past.restart_at, past.given_up, past.ended_at = None, reason, time.monotonic()
        past.logged_reason = worker is not None and bool(worker.failure)
        self._history.note("shard_failed", reason, shard, logged=past.logged_reason)
        self._control.set_shard_state(shard, "failed")
        if not past.logged_reason:  # it has not said so itself, and cannot any more
            self._control.note_shard(shard, reason)
