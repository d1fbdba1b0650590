"""The supervisor: creates the shared memory, spawns one worker per shard, watches them, drains and removes.

One event loop, no threads. The data path never waits for it: it only writes words that producers and workers read.

    starting ──▶ running ──TERM──▶ draining ──▶ stopped     everything handled, segments removed, exit 0
                    └────INT, QUIT, second TERM────▶ stopped     events stay in shared memory for the next run
"""
from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from typing import Any, Callable

from shardmem.config import Config
from shardmem.errors import AlreadyRunning, ConfigError, HandlerError, LayoutMismatch, NotRunning, SegmentCorrupt, ShardmemError
from shardmem.control.api import Api
from shardmem.control.chosen import policy_of, strategy_of
from shardmem.control.commands import Commands
from shardmem.control.handoffs import Handoffs
from shardmem.control.pilot import Pilot
from shardmem.control.process import WorkerProcess
from shardmem.memory import lease
from shardmem.memory.control import Control, Inbox
from shardmem.memory.native import lib
from shardmem.memory.segment import control_name, path_of
from shardmem.policy import DecisionKind, first_table
from shardmem.runtime.handler import HandlerRef
from shardmem.runtime.snapshot import Observer
from shardmem.runtime.worker import EXIT_BOOT

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_WORKER_BOOT, EXIT_ALREADY = 0, 1, 2, 3, 4
NO_SHARD = 0xffff
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU)
TICK = 0.25
DRAIN_POLL = 0.005
STOP_GRACE = 5.0

log = logging.getLogger("shardmem.supervisor")


class Supervisor:
    """Runs one engine. `run` returns when it has ended; `outcome` is then the last status document."""

    def __init__(self, config: Config, handler: HandlerRef, *, keep_unfinished: bool = True,
                 on_ready: Callable[[dict[str, Any]], None] = lambda status: None) -> None:
        self.config, self._handler = config, handler
        self._keep_unfinished, self._on_ready = keep_unfinished, on_ready
        self.outcome: dict[str, Any] | None = None
        self.error: ShardmemError | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._inboxes: dict[int, Inbox] = {}
        self.busy = asyncio.Lock()  # scale, drain and rebalance, one at a time
        self.pilot: Any = None  # from the moment that all workers are ready
        self._changed = asyncio.Event()
        self._stop_requested = self._stop_now = False

    # ---- the whole life --------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Exit code: 0 as asked, 1 failed, 2 configuration, 3 a worker cannot boot, 4 already running."""
        self._loop = asyncio.get_running_loop()
        try:
            self._open()
        except AlreadyRunning as error:
            return self._give_up(error, EXIT_ALREADY)
        except (ConfigError, LayoutMismatch) as error:
            return self._give_up(error, EXIT_CONFIG)
        except ShardmemError as error:
            return self._give_up(error, EXIT_FAILED)
        except OSError as error:
            return self._give_up(ShardmemError(f"cannot open engine {self.config.name!r}: {error}"), EXIT_FAILED)
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        self.handoffs = Handoffs(self.control, self._give_orders, lambda: any(w.stateful for w in self._workers.values()))
        self.commands = Commands(self)
        api = Api(self.config.name, self.commands.by_name())
        try:
            booted = await self._boot()
            if booted and not self._stop_now:
                await self.handoffs.finish_what_was_begun()
                self.pilot = Pilot(self.control, self._observer, self._policy, self._strategy, self.shards_in("active"))
                await api.start()
                self.control.set_state("running")
                log.info("engine %s is running: %d shards, %d slots", self.config.name, len(self._inboxes), self.control.slots)
                self._on_ready(self._observer.status())
                await self._watch()
                await api.stop()
                if not self._stop_now:
                    await self._drain()
            self._stop_now |= not booted  # one that did not get ready may never listen
            await self._stop_workers(gently=not self._stop_now)
            return self._finish(booted)
        finally:
            for number in SIGNALS:
                self._loop.remove_signal_handler(number)
            self._lease.release()

    def request_stop(self, now: bool = False) -> None:
        """Drain and stop; asked a second time, or with `now`, stop without draining."""
        if self._stop_requested or now:
            self._stop_now = True
        self._stop_requested = True
        self._changed.set()

    # ---- opening -----------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Create the segments, or take up those of a run that ended with events in them."""
        fresh = self._take_role()
        lib.sm_supervisor_enter(self.control.address, os.getpid(), lib.sm_now_ns())
        self._observer = Observer(self.control)
        try:
            self._policy, self._strategy = policy_of(self.config), strategy_of(self.config)
            if not fresh:
                self._check_fit()
            self._complete_shards()
        except BaseException:
            if fresh:
                self._remove_segments()
            self._lease.release()
            raise

    def _take_role(self) -> bool:
        """The supervisor's lease on the control segment of this name; True if the segment is fresh."""
        config = self.config
        while True:
            fresh = False
            try:
                self.control = Control.create(config.name, config.schema, slots=config.slots, max_shards=config.most_shards,
                                              max_producers=config.max_producers, lane_bytes=config.lane_bytes,
                                              backpressure=config.backpressure)
                fresh = True
            except FileExistsError:
                try:
                    self.control = Control.attach(config.name, wait=1.0)
                except NotRunning:
                    # A second without a format: whoever began it was killed in the act, or is slower than that; then it
                    # finds below that the name is no longer its own.
                    if lease.is_free(control_name(config.name), lease.SUPERVISOR):
                        try:
                            os.unlink(path_of(control_name(config.name)))
                        except FileNotFoundError:
                            pass
                    continue
            held = lease.Lease.take(self.control.segment, lease.SUPERVISOR)
            if held is None:
                pid = self.control.view_engine().pid
                self.control.close()
                raise AlreadyRunning(f"engine {config.name!r} is already run by process {pid}; choose another name, or stop "
                                     f"it with 'shardmem stop {config.name}'")
            if self.control.segment.is_current():
                self._lease = held
                return fresh
            held.release()
            self.control.close()

    def _complete_shards(self) -> None:
        """Every shard has an inbox and every slot a shard. Also finishes what a killed supervisor had begun."""
        control = self.control
        known = control.known_shards()
        for shard in known:
            self._inboxes[shard] = control.open_inbox(shard)
            control.set_shard_state(shard, "provisioning")
        owners, _ = control.slot_table()
        unowned = [slot for slot in range(control.slots) if owners[slot] == NO_SHARD]
        if unowned:  # the table is written last, so as long as it has gaps the shards may have too
            for shard in set(range(self.config.start_shards)) - set(known):
                self._inboxes[shard] = Inbox.create(control, shard, 1)
                lib.sm_set_shard_generation(control.address, shard, 1)
                lib.sm_set_shard_weight(control.address, shard, 1000)
                control.set_shard_state(shard, "provisioning")
            table = first_table(control.slots, sorted(self._inboxes))
            for slot in unowned:
                lib.sm_set_slot(control.address, slot, table[slot])
        elif len(known) != self.config.start_shards:
            log.warning("engine %s: %d shards were asked for; shared memory of an earlier run has %d and keeps them",
                        self.config.name, self.config.start_shards, len(known))

    def _check_fit(self) -> None:
        control, config = self.control, self.config
        wanted = dict(schema=config.schema, slots=config.slots, lane_bytes=config.lane_bytes,
                      max_producers=config.max_producers)
        different = [f"{key} is {getattr(control, key)} there and {value} here"
                     for key, value in wanted.items() if getattr(control, key) != value]
        if control.max_shards < config.start_shards:
            different.append(f"max_shards is {control.max_shards} there and {config.start_shards} shards are to start here")
        if different:
            raise ConfigError(f"shared memory of engine {config.name!r} is left from an earlier run and does not fit: "
                              f"{'; '.join(different)}. Run it once more with the old settings to drain it, or choose "
                              f"another name")
        in_use = [shard for shard in control.known_shards() if control.worker_alive(shard)]
        if in_use:
            pids = ", ".join(str(control.view_shard(shard).pid) for shard in in_use)
            raise AlreadyRunning(f"engine {config.name!r} has lost its supervisor but still has live workers (pids {pids}); "
                                 f"end them with kill, then start again: the events stay in shared memory")
        control.set_state("starting")
        log.info("engine %s: took up shared memory of an earlier run, %d events in flight", config.name,
                 sum(self._observer.in_flight().values()))

    # ---- running -------------------------------------------------------------------------------------------------------------

    async def _boot(self) -> bool:
        """Spawn the workers and wait until each is ready. False: one is not; `error` says why."""
        try:
            await self.spawn(list(self._inboxes))
        except HandlerError as error:
            self.error = error
            return False
        return not self._stop_now

    async def spawn(self, shards: list[int]) -> None:
        """Start the workers of these shards and wait until they are ready and active. Raises HandlerError."""
        for shard in shards:
            self._workers[shard] = WorkerProcess(
                self._loop, self.config.name, shard, self._handler, batch_rows=self.config.batch_rows,
                spin_us=self.config.spin_us, state_file=self.config.state_file, on_report=self._on_report,
                on_exit=self._on_exit)
        workers = [self._workers[shard] for shard in shards]
        deadline = time.monotonic() + self.config.boot_timeout
        while not self._stop_now and not all(worker.ready for worker in workers):
            ended = [worker for worker in workers if not worker.alive]
            if ended:
                reason = ended[0].failure or ended[0].how_it_ended()
                raise HandlerError(f"shard {ended[0].shard} cannot start: {reason}")
            if time.monotonic() > deadline:
                slow = [worker for worker in workers if not worker.ready]
                raise HandlerError(f"shard {slow[0].shard} (pid {slow[0].pid}) was not ready within boot_timeout="
                                   f"{self.config.boot_timeout:g} s; its handler may hang in import or in open()")
            await self._wait_for_change(min(TICK, max(0.0, deadline - time.monotonic())))
        for shard in shards:
            if self._workers[shard].alive:
                self.control.set_shard_state(shard, "active")
                if self.pilot is not None:
                    self.pilot.mapper.activate(shard, time.monotonic())

    def _give_orders(self, shard: int) -> None:
        inbox = self._inboxes.get(shard)
        if inbox is not None:
            lib.sm_give_orders(self.control.address, shard, inbox.address)

    # ---- shards that come and go (see commands.py for who asks) --------------------------------------------------------------

    def shards_in(self, *states: str) -> list[int]:
        return [shard for shard in self.control.known_shards() if self.control.shard_state(shard) in states]

    def create_shards(self, count: int) -> list[int]:
        """New shards, provisioning, without slots; ids are the lowest free. Raises ScalingError, OutOfMemory: then none."""
        address, now = self.control.address, time.monotonic()
        added = self.pilot.mapper.scale_up_provisioning_force(count, now)
        made = []
        try:
            for shard in added:
                generation = self.control.view_shard(shard).generation + 1
                self._inboxes[shard] = Inbox.create(self.control, shard, generation)
                made.append(shard)
                lib.sm_set_shard_generation(address, shard, generation)
                lib.sm_set_shard_weight(address, shard, 1000)
                self.control.set_shard_state(shard, "provisioning")
        except BaseException:
            for shard in made:
                self.abandon_shard(shard)
            for shard in added[len(made):]:
                self._forget_shard(shard)
            raise
        return added

    def _forget_shard(self, shard: int) -> None:
        mapper, now = self.pilot.mapper, time.monotonic()
        if mapper.shard_state(shard) == "provisioning":
            mapper.abandon(shard, now)
        else:
            mapper.finalize_draining({shard: 0}, now)
        mapper.remove_specific_stopped_shard(shard)
        self.pilot.sampler.forget(shard)

    def abandon_shard(self, shard: int) -> None:
        """A new shard whose worker did not get ready: nothing was ever sent to it."""
        worker, inbox = self._workers.pop(shard, None), self._inboxes.pop(shard)
        if worker is not None and worker.alive:
            worker.kill()
        inbox.segment.unlink()
        self._observer.forget(shard)
        inbox.close()
        lib.sm_retire(self.control.address, shard, inbox.generation, 0, 0, 0, 0)
        self.control.set_shard_state(shard, "none")
        self._forget_shard(shard)

    def status(self) -> dict[str, Any]:
        return self._observer.status()

    def moving_at(self, shard: int) -> bool:
        """Whether a slot is on its way to or from this shard."""
        return any(shard in (handoff["from"], handoff["to"]) for handoff in self.status()["handoffs"])

    async def pause(self) -> None:
        await asyncio.sleep(DRAIN_POLL)

    async def remove_shard(self, shard: int) -> None:
        """A draining shard without slots: wait for its lanes, stop its worker, count it, remove its inbox."""
        await self.handoffs.settle_marks()  # keyless events that saw it active are in its lanes now
        inbox = self._inboxes[shard]
        while any(lane.in_flight for lane in inbox.lanes() if not lane.broken):
            if self.control.shard_state(shard) == "failed":
                raise HandlerError(f"shard {shard} failed while it was being drained: {self.control.shard_error(shard)}")
            await asyncio.sleep(DRAIN_POLL)
        self.control.set_shard_state(shard, "stopped")
        inbox.wake()
        while self._workers[shard].alive:
            await asyncio.sleep(DRAIN_POLL)
        lanes = inbox.lanes()
        lib.sm_retire(self.control.address, shard, inbox.generation, sum(lane.accepted for lane in lanes),
                      sum(lane.handled for lane in lanes), sum(lane.quarantined for lane in lanes),
                      sum(lane.shed for lane in lanes))
        inbox.segment.unlink()
        self._observer.forget(shard)
        del self._inboxes[shard], self._workers[shard]
        inbox.close()
        self.control.set_shard_state(shard, "none")
        self._forget_shard(shard)

    async def _watch(self) -> None:
        following: asyncio.Task | None = None
        due = 0.0
        while not self._stop_requested:
            now = time.monotonic()
            if now >= due:
                due = now + TICK
                lib.sm_supervisor_beat(self.control.address, lib.sm_now_ns())
                decision, moves = self.pilot.tick(self.handoffs.moving)
                if self.config.elastic and (following is None or following.done()):
                    if following is not None and following.exception() is not None:
                        log.error("the policy's last decision failed: %s", following.exception())
                        following = None
                    if decision.kind is not DecisionKind.NONE or (moves and self.pilot.following):
                        if decision.kind is not DecisionKind.NONE:
                            log.info("%s %s: %s", decision.kind, decision.count or "", decision.reason)
                        following = asyncio.create_task(self.commands.follow(decision, moves))
                text = json.dumps(self.pilot.describe()).encode()
                if len(text) <= lib.SM_BOARD_BYTES:
                    lib.sm_post(self.control.address, text, len(text))
            await self._wait_for_change(max(0.0, due - time.monotonic()))
        if following is not None and not following.done():  # a handoff runs forward; it does not take long
            await asyncio.wait([following], timeout=STOP_GRACE)

    async def _wait_for_change(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        self._changed.clear()

    def _on_signal(self, number: int) -> None:
        if number not in (signal.SIGTTIN, signal.SIGTTOU):
            self.request_stop(now=number != signal.SIGTERM)
        elif self.pilot is not None:
            step = 1 if number == signal.SIGTTIN else -1
            self._by_signal = asyncio.create_task(self._step(step))

    async def _step(self, step: int) -> None:
        """One shard more or fewer, asked for by signal: nobody waits for an answer, so the log gets it."""
        try:
            done = await self.commands.scale({"shards": self.pilot.mapper.active_shard_count() + step})
            log.info("%s by signal: %d shards run", "one more" if step > 0 else "one fewer", len(done["shards"]))
        except ShardmemError as error:
            log.warning("%s by signal: %s", "one more" if step > 0 else "one fewer", error)

    def _on_report(self, worker: WorkerProcess, report: dict[str, Any]) -> None:
        self._changed.set()
        self.handoffs.news()

    def _on_exit(self, worker: WorkerProcess) -> None:
        self._changed.set()
        orderly = self.control.shard_state(worker.shard) == "stopped" or self._stop_now
        if orderly and (worker.exit_code == 0 or worker.killed):
            return
        if worker.ready:
            reason = worker.failure or f"its worker (pid {worker.pid}) ended: {worker.how_it_ended()}"
            log.error("shard %d stopped: %s", worker.shard, reason)
            self.error = self.error or HandlerError(f"shard {worker.shard} stopped: {reason}")
            if not worker.failure:
                text = f"worker pid {worker.pid} ended: {worker.how_it_ended()}".encode()
                lib.sm_shard_note(self.control.address, worker.shard, text, len(text))
        self.control.set_shard_state(worker.shard, "failed")

    # ---- ending ----------------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Refuse new events, wait for the sends in progress, then for empty lanes."""
        # E1/E2: a producer that saw "running" had its mark odd by then, and it changes once that send is over.
        self.control.set_state("draining")
        started, limit = time.monotonic(), self.config.drain_timeout

        def give_up() -> bool:
            return self._stop_now or limit is not None and time.monotonic() - started > limit

        inside = await self.handoffs.settle_marks(give_up=give_up)
        if inside and not self._stop_now:
            self.error = ShardmemError(f"drain_timeout={limit:g} s is over and a producer (seat {inside[0]}, pid "
                                       f"{self.control.view_seat(inside[0]).pid}) is still inside a send: it is stopped, or starved")
            self._stop_now = True
        while not self._stop_now:
            in_flight = self._observer.in_flight()
            waiting = {shard: count for shard, count in in_flight.items()
                       if count and self.control.shard_state(shard) != "failed"}
            if not waiting:
                return
            if limit is not None and time.monotonic() - started > limit:
                self.error = self.error or ShardmemError(f"drain_timeout={limit:g} s is over and shards still hold events: "
                                                         f"{waiting}")
                self._stop_now = True
                return
            lib.sm_supervisor_beat(self.control.address, lib.sm_now_ns())
            await self._wait_for_change(DRAIN_POLL)

    async def _stop_workers(self, gently: bool) -> None:
        """Told to end after the batch in hand, and given the time that takes; killed after a grace if stopping now."""
        if not gently:
            self.control.set_state("stopped")
        for shard, worker in self._workers.items():
            if self.control.shard_state(shard) != "failed":
                self.control.set_shard_state(shard, "stopped")
            self._inboxes[shard].wake()
        deadline = None
        while any(worker.alive for worker in self._workers.values()):
            if self._stop_now and deadline is None:
                deadline = time.monotonic() + STOP_GRACE
                for worker in self._workers.values():
                    worker.signal(signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                for worker in self._workers.values():
                    if worker.alive and not worker.killed:
                        log.warning("shard %d (pid %d) did not end within %g s of being told to stop now: killed",
                                    worker.shard, worker.pid, STOP_GRACE)
                        worker.kill()
            await self._wait_for_change(0.05)

    def _finish(self, booted: bool) -> int:
        self.outcome = self._observer.status()
        left = self.outcome["accounting"]["in_flight"]
        self.control.set_state("stopped")
        broken = {shard["id"]: shard["broken_lanes"] for shard in self.outcome["shards"] if shard["broken_lanes"]}
        if broken and self.error is None:
            self.error = SegmentCorrupt(f"lanes were found corrupt and not read to their end (shard: seats of their producers) "
                                        f"{broken}; {left} events in flight")
        if left and self._keep_unfinished:
            log.warning("engine %s stopped with %d events not handled; they stay in shared memory for the next run",
                        self.config.name, left)
        else:
            self._remove_segments()
        self._observer.close()
        if self.error is not None:
            log.error("%s", self.error)
            boot = not booted and any(w.exit_code == EXIT_BOOT for w in self._workers.values())
            return EXIT_WORKER_BOOT if boot or not booted else EXIT_FAILED
        return EXIT_OK

    def _remove_segments(self) -> None:
        for inbox in self._inboxes.values():
            inbox.segment.unlink()
        self.control.segment.unlink()

    def _give_up(self, error: ShardmemError, code: int) -> int:
        self.error = error
        log.error("%s", error)
        return code
