"""The work of each stage of the engine's life, from its boot to its end. life.py says when a stage ends and what comes
then."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from shardmem.config import log_file
from shardmem.errors import HandlerError, SegmentCorrupt
from shardmem.http.server import Api
from shardmem.memory.native import point
from shardmem.runtime.child import ExitCode
from shardmem.runtime.log_file import remove as remove_log
from shardmem.status.document import Status
from shardmem.supervisor.background import Background
from shardmem.supervisor.commands import Commands
from shardmem.supervisor.control_loop import ControlLoop
from shardmem.supervisor.draining import Draining
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life, Stage
from shardmem.supervisor.notify import Notify
from shardmem.supervisor.reload import Reload
from shardmem.supervisor.sources import Sources
from shardmem.supervisor.takeover import Takeover
from shardmem.text import plural

STOP_GRACE = 5.0
PUBLISH_GRACE = 15.0  # for messages of handlers; they stay for the next run, if state does
STOP_POLL = 0.05

log = logging.getLogger("shardmem.supervisor")


class Stages:
    def __init__(
        self,
        fleet: Fleet,
        takeover: Takeover,
        life: Life,
        commands: Commands,
        reload: Reload,
        loop: ControlLoop,
        background: Background,
        api: Api,
        notify: Notify,
        sources: Sources,
        *,
        keep_unfinished: bool,
        on_ready: Callable[[Status], None],
        settings: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._fleet, self._takeover, self._life, self._commands = fleet, takeover, life, commands
        self._reload, self._loop, self._background, self._api, self._notify = reload, loop, background, api, notify
        self._on_ready, self._keep_unfinished = on_ready, keep_unfinished
        self._sources, self._settings = sources, settings
        self._draining = Draining(fleet, life, keep_unfinished)

    async def work(self) -> None:
        """Of the stage that the engine is in; returns when that is over."""
        stages = {
            Stage.BOOTING: self._boot,
            Stage.RUNNING: self._run,
            Stage.DRAINING: self._draining.run,
            Stage.STOPPING: self._stop_workers,
        }
        await stages[self._life.stage]()

    # ---- booting ----------------------------------------------------------------------------------------------------

    async def _boot(self) -> None:
        adopted = self._adopt_workers()
        if await self._start_workers(adopted):
            await self._announce(adopted)

    def _adopt_workers(self) -> list[int]:
        workers, takeover = self._fleet.workers, self._takeover
        if takeover.running:
            workers.recall(self._fleet.observer.board()["lives"])
        adopted = [shard for shard in takeover.inboxes if workers.adopt(shard)]
        point("takeover.adopted")
        return adopted

    async def _start_workers(self, adopted: list[int]) -> bool:
        """All that were not adopted. With none alive this is a start like the first: until each is ready. False: one
        cannot be, or the engine is stopping now.
        """
        fleet, takeover = self._fleet, self._takeover
        wanted = [shard for shard in takeover.inboxes if shard not in (*takeover.stopped, *takeover.never_started)]
        fleet.workers.start_all(set(wanted) - set(adopted), forgiven=not takeover.running)
        if adopted and takeover.running:
            return True
        if (reason := await fleet.workers.ready(wanted, lambda: self._life.is_stopping_now)) is not None:
            self._life.fail(HandlerError(reason), ExitCode.BOOT)
        if self._life.is_stopping_now:
            return False
        fleet.shards.activate(wanted if not takeover.running else [])
        return True

    async def _announce(self, adopted: list[int]) -> None:
        fleet, takeover = self._fleet, self._takeover
        board = fleet.observer.board()
        if takeover.running:
            fleet.planner.recall(board)
        fleet.planner.begin(time.monotonic())
        fleet.shards.resume(takeover.joining, takeover.draining, takeover.stopped, takeover.never_started)
        self._api.start(self._commands.by_name(), fleet.observer, fleet.quarantine, self._settings)
        fleet.control.set_state("running")
        self._note_start(adopted)
        self._loop.announce()
        self._notify.ready()
        self._sources.start()
        self._on_ready(fleet.observer.status())
        if not takeover.running:
            fleet.planner.mapper.announce()
        elif board["reload"]:
            self._background.start("the reload of the earlier supervisor", self._reload.resume(board["reload"]))

    def _note_start(self, adopted: list[int]) -> None:
        fleet, left = self._fleet, self._takeover.left
        shards = f"{plural(len(fleet.inboxes), 'shard')}, {plural(fleet.control.slots, 'slot')}"
        if self._takeover.running:
            kept = f"workers of shards {adopted} went on" if adopted else "no worker was alive"
            fleet.history.note(
                "took_over",
                f"supervisor pid {os.getpid()} took over from one that was gone: {shards}; {kept}, "
                f"{plural(left or 0, 'event')} in flight",
            )
        else:
            text = "" if left is None else f"; {plural(left, 'event')} left of an earlier run"
            fleet.history.note("started", f"the engine is running: {shards}, supervisor pid {os.getpid()}{text}")

    # ---- running ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._loop.run()
        self._fleet.control.set_state("draining")  # producers are told now, and not when what is under way has ended
        await self._background.finish(STOP_GRACE)  # a handoff runs forward; it does not take long
        self._notify.stopping()
        self._sources.stop(self._life.is_stopping_now)

    # ---- ending -----------------------------------------------------------------------------------------------------

    async def _stop_workers(self) -> None:
        """Told to end after the batch in hand, and given the time that takes; killed after a grace if stopping now."""
        fleet = self._fleet
        await self._sources.ended(STOP_GRACE)
        await self._api.stop()
        if self._life.is_stopping_now:
            fleet.control.set_state("stopped")
        fleet.workers.stop_starting()
        for shard, inbox in fleet.inboxes.items():
            if fleet.control.shard_state(shard) != "failed":
                fleet.control.set_shard_state(shard, "stopped")
            inbox.wake()
        deadline = None
        while living := fleet.workers.living():
            for worker in living:  # of a shard that has failed one may boot, and is heard of only now
                if worker.shard in fleet.inboxes and fleet.control.shard_state(worker.shard) != "stopped":
                    fleet.control.set_shard_state(worker.shard, "stopped")
                    fleet.inboxes[worker.shard].wake()
            if self._life.is_stopping_now and deadline is None:
                deadline = time.monotonic() + STOP_GRACE
                for worker in living:
                    worker.signal(signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                fleet.stuck.end_now(living)
            await self._life.wait(STOP_POLL)
        await self._sources.publish(PUBLISH_GRACE, self._life.is_stopping_now)

    def finish(self) -> Status | None:
        """The last status document; None: the memory is gone. The segments go, unless events are left in them that the
        next run is to handle."""
        fleet, life = self._fleet, self._life
        if not fleet.control.segment.is_whole:
            self._takeover.remove_segments(fleet.config)
            log.error("%s", life.error)
            return None
        if (failure := self._draining.failure()) is not None:
            life.fail(failure, ExitCode.FAILED if life.has_run else ExitCode.BOOT)
        status = fleet.observer.status()
        for shard in status["shards"]:
            fleet.history.look(shard["id"], shard["quarantined"], shard["broken_lanes"])
        left = self._draining.left()
        text = f"stopped with {left}" if left else "stopped with 0 events not handled"
        fleet.history.note("stopped", text + (f": {life.error}" if life.error else ""), logged=life.error is not None)
        outcome = fleet.observer.status()
        fleet.control.set_state("stopped")
        broken = {shard["id"]: shard["broken_lanes"] for shard in outcome["shards"] if shard["broken_lanes"]}
        if broken:
            life.fail(
                SegmentCorrupt(
                    f"lanes were found corrupt and not read to their end (shard: seats of their producers) "
                    f"{broken}; {outcome['accounting']['in_flight']} events in flight"
                )
            )
        unread = self._draining.has_senders or fleet.has_unread_lanes()
        what = left or "a producer inside a send"
        if self._keep_unfinished and unread and fleet.control.segment.is_current():
            log.warning("engine %s stopped with %s; its memory stays for the next run", fleet.config.name, what)
        else:
            if self._keep_unfinished and unread:
                log.error("engine %s stopped with %s, lost: its memory was removed", fleet.config.name, what)
            self._takeover.remove_segments(fleet.config)
            if fleet.config.state_dir is None and life.error is None:  # as with state: there is no other use for it
                remove_log(log_file(fleet.config.directory, fleet.config.name))
        fleet.observer.close()
        if life.error is not None and (life.has_run or not fleet.workers.have_logged_reason()):
            log.error("%s", life.error)
        return outcome
