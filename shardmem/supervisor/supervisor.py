"""The supervisor: creates the shared memory, spawns one worker per shard, watches them, drains and removes.

One event loop, no threads, except for what may wait for the quarantine's file (quarantine.py). The data path never waits for
it: it only writes words that producers and workers read.

    starting ──▶ running ──TERM──▶ draining ──▶ stopped     everything handled, segments removed, exit 0
                    └────INT, QUIT, second TERM────▶ stopped     events stay in shared memory for the next run
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from shardmem.client.quarantine import QuarantineAccess
from shardmem.config import Config, quarantine_file
from shardmem.errors import AlreadyRunning, ConfigError, HandlerError, LayoutMismatch, SegmentCorrupt, ShardmemError
from shardmem.http.server import Api
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import lib, point
from shardmem.policy import DecisionKind, Limits
from shardmem.runtime import logs
from shardmem.runtime.child import ExitCode
from shardmem.runtime.handler import HandlerRef
from shardmem.status.observer import Observer
from shardmem.supervisor.commands import Commands
from shardmem.supervisor.configured import policy_of, strategy_of
from shardmem.supervisor.handoffs import Handoffs
from shardmem.supervisor.history import History
from shardmem.supervisor.notify import Notify
from shardmem.supervisor.planner import Planner
from shardmem.supervisor.replacements import Replacements
from shardmem.supervisor.shards import DRAIN_POLL, Shards
from shardmem.supervisor.sources import Sources
from shardmem.supervisor.stuck import Stuck
from shardmem.supervisor.takeover import check_directory, check_fit, find_shards, take_role
from shardmem.supervisor.workers import Workers

SOURCE_GRACE = 5.0  # seconds for sources to end, when all that they pushed has been handled
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP)
TICK = 0.25
STOP_GRACE = 5.0

log = logging.getLogger("shardmem.supervisor")


class Supervisor:
    """Runs one engine. `run` returns when it has ended; `outcome` is then the last status document."""

    def __init__(
        self,
        config: Config,
        handler: HandlerRef,
        *,
        keep_unfinished: bool = True,
        on_ready: Callable[[dict[str, Any]], None] = lambda status: None,
        read_again: Callable[[], tuple[Config, HandlerRef]] | None = None,
        notify: Notify | None = None,
    ) -> None:
        self.config, self._handler, self.notify = config, handler, notify or Notify()
        self._keep_unfinished, self._on_ready = keep_unfinished, on_ready
        self.outcome: dict[str, Any] | None = None
        self.error: ShardmemError | None = None
        self._inboxes: dict[int, InboxSegment] = {}
        self.busy = asyncio.Lock()  # scale, drain and rebalance, one at a time
        self.planner: Any = None  # from the moment that all workers are ready
        self._changed = asyncio.Event()
        self._stop_requested = self._stop_now = False
        self._tasks: set[asyncio.Task] = set()
        self._following: asyncio.Task | None = None
        self._complaint: str | None = None
        self._is_ready = False
        self.replacements = Replacements(self, read_again)
        self._api = Api(config.name, config.http_port, config.http_token)

    # ---- the whole life --------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Exit code: 0 as asked, 1 failed, 2 configuration, 3 a worker cannot boot, 4 already running."""
        self._loop = asyncio.get_running_loop()
        try:
            self._open()
        except AlreadyRunning as error:
            return self._give_up(error, ExitCode.ALREADY)
        except (ConfigError, LayoutMismatch) as error:
            return self._give_up(error, ExitCode.CONFIG)
        except ShardmemError as error:
            return self._give_up(error, ExitCode.FAILED)
        except OSError as error:
            return self._give_up(ShardmemError(f"cannot open engine {self.config.name!r}: {error}"), ExitCode.FAILED)
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        self.workers = Workers(
            self.control,
            self._inboxes,
            self.config,
            self._handler,
            told_to_end=self._told_to_end,
            changed=self._news,
            history=self.history,
        )
        self.shards = Shards(
            self.control, self._observer, self._inboxes, self.workers, lambda: self._stop_now, self.history
        )
        self.shards.handoffs = self.handoffs = Handoffs(self.control, self.shards.give_orders, self.history)
        self._stuck = Stuck(self.control, self.workers, self.history)
        self.take_limits()
        tending = _noted("looking after the workers", self._tend())
        self.commands = Commands(self)
        try:
            booted = await self._boot()
            if booted and not self._stop_now:
                self.shards.planner = self.planner = Planner(
                    self.control, self._observer, self._policy, self._strategy, self._found.states
                )
                if self._found.running:
                    self.planner.recall()
                self._in_background(
                    "going on with what an earlier supervisor had begun",
                    self.commands.resume(self._found, self.handoffs.take_up()),
                )
                await self._api.start(self.commands.by_name(), self._observer, self.quarantine)
                self.control.set_state("running")
                self._note_start()
                self._attempt(self._post)
                self.notify.ready()
                self._is_ready = True
                sources = Sources(self.config)
                sources.start()
                self._on_ready(self._observer.status())
                await self._watch()
                self.notify.stopping()
                sources.stop(self._stop_now)
                if not self._stop_now:
                    await self._drain()
                await sources.ended(SOURCE_GRACE)
                await self._api.stop()
            self._stop_now |= not booted  # one that did not get ready may never listen
            await self._stop_workers(gently=not self._stop_now)
            return self._finish(booted)
        finally:
            tending.cancel()
            self._api.close()
            for number in SIGNALS:
                self._loop.remove_signal_handler(number)
            self._lease.release()
            self.notify.close()

    @property
    def stopping(self) -> bool:
        return self._stop_requested

    def request_stop(self, now: bool = False) -> None:
        """Drain and stop; asked a second time, or with `now`, stop without draining."""
        if self._stop_requested or now:
            self._stop_now = True
        self._stop_requested = True
        self._changed.set()

    # ---- opening -----------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Create the segments, or take up those of an earlier supervisor."""
        check_directory(self.config)
        self.control, self._lease, fresh = take_role(self.config)
        lib.sm_supervisor_enter(self.control.address, os.getpid(), lib.sm_now_ns())
        logs.incarnate(self.control.view_engine().incarnation)
        self._observer = Observer(self.control)
        self.quarantine = QuarantineAccess(
            self.config.name,
            quarantine_file(self.config.directory, self.config.name),
            lambda: self.config.quarantine_limit,
        )
        self.history = History(
            lambda text: lib.sm_post(self.control.address, lib.SM_BOARD_EVENTS, text, len(text)), lib.SM_BOARD_BYTES
        )
        try:
            self._policy, self._strategy = policy_of(self.config), strategy_of(self.config)
            if not fresh:
                check_fit(self.control, self.config)
                self.history.take_up(*self._observer.history(), self._observer.status())
            self._found = find_shards(self.control, self.config)
            self._inboxes = self._found.inboxes
            self._api.bind()
        except BaseException:
            if fresh:
                self._remove_segments()
            self._lease.release()
            raise
        self._left = None if fresh else sum(self._observer.in_flight().values())
        if not fresh:
            log.info(
                "engine %s: took up shared memory of an earlier %s, %d events in flight",
                self.config.name,
                "supervisor" if self._found.running else "run",
                self._left,
            )

    def _note_start(self) -> None:
        shards = f"{len(self._inboxes)} shards, {self.control.slots} slots"
        if self._found.running:
            kept = f"workers of shards {self._adopted} went on" if self._adopted else "no worker was alive"
            self.history.note(
                "took_over",
                f"supervisor pid {os.getpid()} took over from one that was gone: {shards}; {kept}, "
                f"{self._left:,} events in flight",
            )
        else:
            left = "" if self._left is None else f"; {self._left:,} events were left of an earlier run"
            self.history.note("started", f"the engine is running: {shards}, supervisor pid {os.getpid()}{left}")

    # ---- running -------------------------------------------------------------------------------------------------------------

    async def _boot(self) -> bool:
        """Adopt the workers that live and start the others. With none alive this is a start like the first: until each is
        ready, and False, with the reason in `error`, if one cannot be.
        """
        found = self._found
        if found.running:
            self.workers.recall(self._observer.board()["lives"])
        self._adopted = adopted = [shard for shard in found.inboxes if self.workers.adopt(shard)]
        point("takeover.adopted")
        for shard in found.inboxes.keys() - set(adopted) - set(found.stopped) - set(found.useless):
            self.workers.start(shard, forgiven=not found.running)
        if adopted and found.running:
            return True
        wanted = [shard for shard in found.inboxes if shard not in found.stopped and shard not in found.useless]
        if (reason := await self.workers.ready(wanted, lambda: self._stop_now)) is not None:
            self.error = HandlerError(reason)
            return False
        self.shards.activate(wanted if not found.running else [])
        return not self._stop_now

    async def boot(self, shards: list[int]) -> None:
        """New shards join. Raises HandlerError."""
        await self.shards.boot(shards)

    def _told_to_end(self, shard: int) -> bool:
        return (
            self._stop_now or self.control.shard_state(shard) in ("none", "stopped") or self.control.state == "stopped"
        )

    def _news(self) -> None:
        self._changed.set()
        self.handoffs.news()

    def _failure(self) -> HandlerError | None:
        """Of the shards as they are now: one that failed and was started again by a reload is no reason to end badly."""
        failed = self.workers.given_up().items()
        return next((HandlerError(f"shard {shard} stopped: {reason}") for shard, reason in failed), None)

    def _in_background(self, what: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """A task whose failure goes to the log: nobody else waits for it."""
        task = _noted(what, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def take_limits(self) -> None:
        config = self.config
        self._stuck.limits = Limits(config.stall_timeout, config.batch_deadline, config.boot_timeout)
        self.workers.take(config)

    async def _tend(self) -> None:
        """As long as there are workers, while the engine drains too."""
        while True:
            lib.sm_supervisor_beat(self.control.address, lib.sm_now_ns())
            try:
                self._stuck.look()
            except Exception:
                log.exception("a look after the workers failed; the next one is soon")
            if self._is_ready:  # before that there is nothing to say
                self.notify.tick(self._observer.status)
            await asyncio.sleep(TICK)

    async def _watch(self) -> None:
        due = 0.0
        while not self._stop_requested:
            now = time.monotonic()
            if now >= due:
                due = now + TICK
                self._attempt(self._decide, self._post)
            await self._wait_for_change(max(0.0, due - time.monotonic()))
        if self._tasks:  # a handoff runs forward; it does not take long
            await asyncio.wait(self._tasks, timeout=STOP_GRACE)

    def _attempt(self, *work: Callable[[], None]) -> None:
        try:
            for each in work:
                each()
        except Exception as error:  # the strategy may be the user's: what was decided before stands, and workers go on
            if str(error) != self._complaint:
                log.exception("no decision can be made")
            self._complaint = str(error)

    def _decide(self) -> None:
        decision, moves = self.planner.tick(self.handoffs.moving)
        for shard, (quarantined, broken) in self.planner.sampler.aside.items():
            self.history.look(shard, quarantined, broken)
        if self.config.elastic and (self._following is None or self._following.done()):
            if decision.kind is not DecisionKind.NONE or (moves and self.planner.following):
                if decision.kind is not DecisionKind.NONE:
                    log.info("%s %s: %s", decision.kind, decision.count or "", decision.reason)
                self._following = self._in_background(
                    "the policy's last decision", self.commands.follow(decision, moves)
                )
        if (old := self.replacements.due()) is not None:
            self._in_background(f"recycling shard {old[0]}", self.replacements.recycle(*old))

    def _post(self) -> None:
        """What is known here and not in any word, for whoever reads the status. Without the lives, if all is too much."""
        board = {**self.planner.describe(), "limits": asdict(self._stuck.limits), "http": self._api.http}
        for extra in ({"lives": self.workers.describe()}, {}):
            text = json.dumps({**board, **extra}).encode()
            if len(text) <= lib.SM_BOARD_BYTES:
                lib.sm_post(self.control.address, lib.SM_BOARD_DECISIONS, text, len(text))
                return

    async def _wait_for_change(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        self._changed.clear()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            if self.planner is not None:
                self._in_background("the reload", self.replacements.reload())
        elif number not in (signal.SIGTTIN, signal.SIGTTOU):
            self.request_stop(now=number != signal.SIGTERM)
        elif self.planner is not None:
            step = 1 if number == signal.SIGTTIN else -1
            self._in_background("a signal's order", self._step(step))

    async def _step(self, step: int) -> None:
        """One shard more or fewer, asked for by signal: nobody waits for an answer, so the log gets it."""
        try:
            done = await self.commands.scale({"shards": self.planner.mapper.active_shard_count() + step})
            log.info("%s by signal: %d shards run", "one more" if step > 0 else "one fewer", len(done["shards"]))
        except ShardmemError as error:
            log.warning("%s by signal: %s", "one more" if step > 0 else "one fewer", error)

    # ---- ending ----------------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Refuse new events, wait for the sends in progress, then for empty lanes."""
        # E1/E2: a producer that saw "running" had its mark odd by then, and it changes once that send is over.
        self.control.set_state("draining")
        left = sum(self._observer.in_flight().values())
        self.history.note(
            "draining", f"asked to stop: producers are refused, {left:,} events in flight are handled first"
        )
        started, limit = time.monotonic(), self.config.drain_timeout

        def give_up() -> bool:
            return self._stop_now or limit is not None and time.monotonic() - started > limit

        inside = await self.handoffs.settle_marks(give_up=give_up)
        if inside and not self._stop_now:
            self.error = ShardmemError(
                f"drain_timeout={limit:g} s is over and a producer (seat {inside[0]}, pid "
                f"{self.control.view_seat(inside[0]).pid}) is still inside a send: it is stopped, or starved"
            )
            self._stop_now = True
        while not self._stop_now:
            in_flight = self._observer.in_flight()
            waiting = {
                shard: count
                for shard, count in in_flight.items()
                if count and self.control.shard_state(shard) != "failed"
            }
            if not waiting:
                return
            if limit is not None and time.monotonic() - started > limit:
                self.error = self._failure() or ShardmemError(
                    f"drain_timeout={limit:g} s is over and shards still hold events: {waiting}"
                )
                self._stop_now = True
                return
            await self._wait_for_change(DRAIN_POLL)

    async def _stop_workers(self, gently: bool) -> None:
        """Told to end after the batch in hand, and given the time that takes; killed after a grace if stopping now."""
        if not gently:
            self.control.set_state("stopped")
        self.workers.stop_starting()
        for shard, inbox in self._inboxes.items():
            if self.control.shard_state(shard) != "failed":
                self.control.set_shard_state(shard, "stopped")
            inbox.wake()
        deadline = None
        while living := self.workers.living():
            if self._stop_now and deadline is None:
                deadline = time.monotonic() + STOP_GRACE
                for worker in living:
                    worker.signal(signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                for worker in living:
                    if not worker.killed:
                        log.warning(
                            "shard %d (pid %d) did not end within %g s of being told to stop now: killed",
                            worker.shard,
                            worker.pid,
                            STOP_GRACE,
                            extra={"shard": worker.shard},
                        )
                        worker.kill()
            await self._wait_for_change(0.05)

    def _finish(self, booted: bool) -> int:
        self.error = self.error or self._failure()
        status = self._observer.status()
        for shard in status["shards"]:
            self.history.look(shard["id"], shard["quarantined"], shard["broken_lanes"])
        left = status["accounting"]["in_flight"]
        self.history.note(
            "stopped",
            f"stopped with {left:,} events not handled" + (f": {self.error}" if self.error else ""),
            logged=self.error is not None,
        )
        self.outcome = self._observer.status()
        self.control.set_state("stopped")
        broken = {shard["id"]: shard["broken_lanes"] for shard in self.outcome["shards"] if shard["broken_lanes"]}
        if broken and self.error is None:
            self.error = SegmentCorrupt(
                f"lanes were found corrupt and not read to their end (shard: seats of their producers) "
                f"{broken}; {left} events in flight"
            )
        # by positions: a damaged count would keep segments in which nothing is left
        unread = any(lane.head != lane.tail for inbox in self._inboxes.values() for lane in inbox.lanes())
        if unread and self._keep_unfinished:
            log.warning(
                "engine %s stopped with %d events not handled; they stay in shared memory for the next run",
                self.config.name,
                left,
            )
        else:
            self._remove_segments()
        self._observer.close()
        if self.error is not None:
            if booted or not self.workers.have_said_why():
                log.error("%s", self.error)
            return ExitCode.BOOT if not booted else ExitCode.FAILED
        return ExitCode.OK

    def _remove_segments(self) -> None:
        for inbox in self._inboxes.values():
            inbox.segment.unlink()
        self.control.segment.unlink()
        if self.config.state_dir is None:  # then state lasts as long as the memory whose events it reflects
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.config.worker_settings()["state_file"] + suffix)

    def _give_up(self, error: ShardmemError, code: int) -> int:
        self.error = error
        log.error("%s", error)
        return code


def _noted(what: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
    def ended(task: asyncio.Task) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", what, error, exc_info=None if isinstance(error, ShardmemError) else error)

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task
