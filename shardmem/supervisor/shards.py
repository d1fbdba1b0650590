"""Shards that come and go: created with an inbox and a worker, drained, counted, removed (commands.py says who asks)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shardmem.errors import HandlerError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import lib, point
from shardmem.status.observer import Observer
from shardmem.supervisor.history import History
from shardmem.supervisor.workers import Workers

if TYPE_CHECKING:
    from shardmem.supervisor.handoffs import Handoffs
    from shardmem.supervisor.planner import Planner

DRAIN_POLL = 0.005


class Shards:
    """All shards of one engine. planner: None until the first workers are ready."""

    planner: Planner | None = None
    handoffs: Handoffs

    def __init__(
        self,
        control: ControlSegment,
        observer: Observer,
        inboxes: dict[int, InboxSegment],
        workers: Workers,
        give_up: Callable[[], bool],
        history: History,
    ) -> None:
        self.control, self._observer, self.inboxes, self.workers = control, observer, inboxes, workers
        self._give_up, self._history = give_up, history

    def in_state(self, *states: str) -> list[int]:
        return [shard for shard in self.control.known_shards() if self.control.shard_state(shard) in states]

    def give_orders(self, shard: int) -> None:
        inbox = self.inboxes.get(shard)
        if inbox is not None:
            lib.sm_give_orders(self.control.address, shard, inbox.address)

    # ---- more --------------------------------------------------------------------------------------------------------------

    def create(self, count: int) -> list[int]:
        """New shards, provisioning, without slots; ids are the lowest free. Raises ScalingError, OutOfMemory: then none."""
        now = time.monotonic()
        return self._create(self.planner.mapper.scale_up_provisioning_force(count, now), 1000)

    def create_successor(self, shard: int) -> int:
        """One new shard to replace this one. Raises the same."""
        return self._create([self.planner.mapper.replace(shard, time.monotonic())], 0)[0]

    def _create(self, added: list[int], weight: int) -> list[int]:
        address, made = self.control.address, []
        try:
            for shard in added:
                generation = self.control.view_shard(shard).generation + 1
                self.inboxes[shard] = InboxSegment.create(self.control, shard, generation)
                made.append(shard)
                lib.sm_set_shard_generation(address, shard, generation)
                lib.sm_set_shard_weight(address, shard, weight)
                self.control.set_shard_state(shard, "provisioning")
        except BaseException:
            for shard in made:
                self.abandon(shard)
            for shard in added[len(made) :]:
                self._forget(shard)
            raise
        point("spawn.created")
        return added

    async def boot(self, shards: list[int]) -> None:
        """Start the workers of these shards and wait until they are ready and active. Raises HandlerError."""
        for shard in shards:
            self.workers.start(shard)
        if (reason := await self.workers.ready(shards, self._give_up)) is not None:
            raise HandlerError(reason)
        if not self._give_up():
            self.activate(shards)

    def activate(self, shards: list[int]) -> None:
        for shard in shards:
            if self.control.shard_state(shard) == "provisioning":
                self.control.set_shard_state(shard, "active")
                if self.planner is not None:
                    self.planner.mapper.activate(shard, time.monotonic())

    def abandon(self, shard: int) -> None:
        """A new shard whose worker did not get ready: nothing was ever sent to it."""
        self.control.set_shard_state(shard, "stopped")
        self.workers.forget(shard)
        self._bury(shard, 0, 0, 0, 0)

    def is_used(self, shard: int) -> bool:
        """Whether a slot is here, or on its way."""
        owners, _ = self.control.slot_table()
        return bool((owners == shard).any()) or self.moving_at(shard)

    # ---- fewer -------------------------------------------------------------------------------------------------------------

    def moving_at(self, shard: int) -> bool:
        """Whether a slot is on its way to or from this shard."""
        return any(shard in (handoff["from"], handoff["to"]) for handoff in self._observer.handoffs())

    def status(self) -> dict[str, Any]:
        return self._observer.status()

    async def pause(self) -> None:
        await asyncio.sleep(DRAIN_POLL)

    async def remove(self, shard: int) -> None:
        """A draining shard without slots: wait for its lanes, stop its worker, count it, remove its inbox."""
        await self.handoffs.settle_marks()  # keyless events that saw it active are in its lanes now
        inbox = self.inboxes[shard]
        while any(lane.waiting for lane in inbox.lanes()):
            if self.control.shard_state(shard) == "failed":
                raise HandlerError(
                    f"shard {shard} failed while it was being drained: {self.control.shard_error(shard)}"
                )
            await self.pause()
        await self.finish_removal(shard)

    async def finish_removal(self, shard: int) -> None:
        """Nothing is left in its lanes, and nothing can come: its worker ends, its counts are kept, its inbox goes."""
        inbox = self.inboxes[shard]
        self.control.set_shard_state(shard, "stopped")
        inbox.wake()
        while (worker := self.workers.of(shard)) is not None and worker.alive:
            await self.pause()
        self.workers.forget(shard)
        lanes = inbox.lanes()
        quarantined = sum(lane.quarantined for lane in lanes)
        self._history.look(shard, quarantined)
        self._bury(
            shard,
            sum(lane.accepted for lane in lanes),
            sum(lane.handled for lane in lanes),
            quarantined,
            sum(lane.shed for lane in lanes),
        )

    def _bury(self, shard: int, accepted: int, handled: int, quarantined: int, shed: int) -> None:
        """Its counts are kept, its inbox goes, its number is free. Killed anywhere in here, a later supervisor goes on."""
        inbox = self.inboxes.pop(shard)
        # damaged ones are beyond all bounds
        counts = (count & (1 << 64) - 1 for count in (accepted, handled, quarantined, shed))
        lib.sm_retire(self.control.address, shard, inbox.generation, *counts)
        point("remove.retired")
        inbox.segment.unlink()
        point("remove.unlinked")
        self._observer.forget(shard)
        self._history.forget(shard)
        inbox.close()
        self.control.set_shard_state(shard, "none")
        self._forget(shard)

    def _forget(self, shard: int) -> None:
        mapper, now = self.planner.mapper, time.monotonic()
        if mapper.shard_state(shard) == "provisioning":
            mapper.abandon(shard, now)
        else:
            mapper.finalize_draining({shard: 0}, now)
        mapper.remove_specific_stopped_shard(shard)
        self.planner.sampler.forget(shard)
