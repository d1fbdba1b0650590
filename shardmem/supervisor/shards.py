"""Shards that come and go. Every step looks at each of them, does what can be done now, and waits for nothing.

    create ─▶ joining ─worker ready▶ active ─drained by planner▶ draining ─slots, sends, lanes gone▶ ending ─▶ gone
                 └─worker cannot boot▶ gone, and `check_joined` says why

The planner decides who drains and where slots go; here the inbox, the worker and the words of the shard follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shardmem.errors import HandlerError, ShardmemError, Superseded
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.handoff_table import HandoffTable
from shardmem.memory.inbox_segment import InboxSegment, LaneView
from shardmem.memory.native import point
from shardmem.memory.words import Retired, now_ns, waiting_of
from shardmem.policy import ShardState
from shardmem.status.observer import Observer
from shardmem.supervisor.carrier import Marks
from shardmem.supervisor.history import History
from shardmem.supervisor.planner import Planner, ShardFact
from shardmem.supervisor.recovery import next_generation
from shardmem.supervisor.workers import Workers

FULL_WEIGHT = 1000  # of a shard that is idle; keyless events are drawn by weight
WEIGHT_STEP = 20  # smaller changes are not written: each makes producers read all weights again


@dataclass
class _Joining:
    since: float
    replaces: int | None
    begun_before: bool = False  # by an earlier supervisor


class Shards:
    """All shards of one engine."""

    def __init__(
        self,
        control: ControlSegment,
        observer: Observer,
        inboxes: dict[int, InboxSegment],
        workers: Workers,
        table: HandoffTable,
        planner: Planner,
        history: History,
        *,
        boot_timeout: Callable[[], float],
    ) -> None:
        self.control, self._observer, self.inboxes, self.workers = control, observer, inboxes, workers
        self._table, self._planner, self._history, self._boot_timeout = table, planner, history, boot_timeout
        self._joining: dict[int, _Joining] = {}
        self._marks: dict[int, Marks] = {}  # of draining shards: sends that may have chosen them while they were active
        self._ending: set[int] = set()  # told to stop
        self._begun_before: set[int] = set()
        self._failures: dict[int, ShardmemError] = {}  # of shards that were to join
        self._weights: dict[int, int] = {}

    def in_state(self, *states: str) -> list[int]:
        return [shard for shard in self.control.known_shards() if self.control.shard_state(shard) in states]

    # ---- more --------------------------------------------------------------------------------------------------------

    def create(self, count: int, *, force: bool = True) -> list[int]:
        """New shards, provisioning, without slots; their workers are started. Ids are the lowest free.

        Raises ScalingError, OutOfMemory: then there is none.
        """
        mapper, now = self._planner.mapper, time.monotonic()
        grow = mapper.scale_up_provisioning_force if force else mapper.scale_up_provisioning
        return self._create(grow(count, now), None)

    def create_successor(self, shard: int) -> int:
        """One new shard to replace this one. Raises the same."""
        return self._create([self._planner.mapper.replace(shard, time.monotonic())], shard)[0]

    def _create(self, added: list[int], replaces: int | None) -> list[int]:
        made = []
        try:
            for shard in added:
                generation = next_generation(self.control, shard)
                self.inboxes[shard] = InboxSegment.create(self.control, shard, generation)
                made.append(shard)
                self.control.set_shard_generation(shard, generation)
                # a successor has weight 0 until it succeeds: who takes over knows by that whether it has
                self._set_weight(shard, FULL_WEIGHT if replaces is None else 0)
                self.control.set_shard_state(shard, "provisioning")
        except BaseException:
            for shard in made:
                self.abandon(shard)
            for shard in added[len(made) :]:
                self._planner.abandon(shard, time.monotonic())
            raise
        point("spawn.created")
        self.workers.expect(added)
        for shard in added:
            self._failures.pop(shard, None)
            self._joining[shard] = _Joining(time.monotonic(), replaces)
            self.workers.start(shard)
        return added

    def is_joining(self, shard: int) -> bool:
        return shard in self._joining

    @property
    def booting(self) -> list[int]:
        """Shards whose workers are not ready, and may yet be."""
        restarted = [shard for shard, fact in self.facts().items() if not fact.alive and fact.failed is None]
        return [*self._joining, *restarted]

    @property
    def succeeding(self) -> list[int]:
        """Shards that join to replace others."""
        return [shard for shard, joining in self._joining.items() if joining.replaces is not None]

    def revoke(self, shard: int, why: str) -> None:
        """A shard that joins is not wanted any more. One that an earlier supervisor began may have slots: then it has
        to join first.
        """
        if not self._planner.table.shard_slot_counts(coming=True).get(shard):
            self._failures[shard] = Superseded(why)
            self.abandon(shard)

    def check_joined(self, shards: Iterable[int]) -> None:
        """Raises why the first that was to join has not: HandlerError, its worker cannot start; Superseded, nobody
        wants it any more.
        """
        for shard in shards:
            if shard in self._failures:
                raise self._failures[shard]

    def gone(self, shards: Iterable[int]) -> Callable[[], bool]:
        """Whether all of these are, also when another has got the number of one since. What is returned raises
        HandlerError when one fails on its way out: it waits until it is started again, and then goes on.
        """
        inboxes = {shard: self.inboxes[shard] for shard in shards}

        def are_gone() -> bool:
            left = [shard for shard, inbox in inboxes.items() if self.inboxes.get(shard) is inbox]
            for shard in left:
                if self._planner.mapper.shard_state(shard) is ShardState.FAILED:
                    reason = self.workers.failed().get(shard) or self.control.shard_error(shard)
                    raise HandlerError(
                        f"shard {shard} failed while it was being drained: {reason}. 'shardmem reload "
                        f"{self.control.engine}' starts it again, and the drain goes on"
                    )
            return not left

        return are_gone

    def activate(self, shards: list[int]) -> None:
        """Shards of the first boot, whose workers are ready."""
        for shard in shards:
            if self.control.shard_state(shard) == "provisioning":
                self.control.set_shard_state(shard, "active")

    def abandon(self, shard: int) -> None:
        """A new shard whose worker did not get ready: nothing was ever sent to it."""
        self._joining.pop(shard, None)
        self.control.set_shard_state(shard, "stopped")
        self.workers.forget(shard)
        self._bury(shard, [])

    # ---- one step ----------------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        for shard in list(self._joining):
            self._join(shard, now)
        for shard in self._planner.mapper.draining_shard_ids():
            self._drain(shard, now)
        for shard in list(self._ending):
            self._end(shard, now)

    @property
    def has_work(self) -> bool:
        """Whether something is on its way that no event tells of."""
        return bool(self._joining or self._ending or self._planner.mapper.draining_shard_ids())

    def leaving(self) -> dict[int, int]:
        """Shards on their way out, and the events that wait in the lanes of each."""
        draining = [*self._planner.mapper.draining_shard_ids(), *self._ending]
        return {shard: int(sum(lane.waiting for lane in self.inboxes[shard].lanes())) for shard in draining}

    def facts(self) -> dict[int, ShardFact]:
        """What is known of each shard's worker."""
        failed, clock = self.workers.failed(), now_ns()
        facts = {}
        for shard in self.inboxes:
            if self._planner.mapper.shard_state(shard) in (None, ShardState.PROVISIONING, ShardState.STOPPED):
                continue
            worker, view = self.workers.of(shard), self.control.view_shard(shard)
            alive = worker is not None and worker.alive and worker.ready
            in_hand = (clock - view.batch_since_ns) / 1e9 if alive and view.batch_since_ns else 0.0
            waits = self.workers.waits_to_open(shard)
            if alive and waiting_of(view)[0] is not None:
                waits = self.control.shard_error(shard)
            facts[shard] = ShardFact(alive, failed.get(shard), max(0.0, in_hand), waits)
        return facts

    def weigh(self) -> None:
        """Keyless events follow the measured load."""
        weights, cordoned = self._planner.mapper.weights(), self._planner.table.cordoned
        for shard, share in weights.items():
            weight = 0 if shard in cordoned else max(1, round(share * FULL_WEIGHT))
            known = self._weights.get(shard, -1)
            if abs(weight - known) >= WEIGHT_STEP or (weight == 0) != (known == 0):
                self._set_weight(shard, weight)

    def _set_weight(self, shard: int, weight: int) -> None:
        self._weights[shard] = weight
        self.control.set_shard_weight(shard, weight)

    # ---- joining -----------------------------------------------------------------------------------------------------

    def _join(self, shard: int, now: float) -> None:
        joining = self._joining[shard]
        if joining.replaces is None and self.workers.waits_to_open(shard):
            return  # a successor is given up, because the one that it is to replace works
        if (reason := self.workers.why_not_ready(shard, joining.since, self._boot_timeout())) is not None:
            if self._planner.table.shard_slot_counts(coming=True).get(shard):
                return  # begun by an earlier supervisor, and slots have moved: it is tried for ever
            self._failures[shard] = HandlerError(reason)
            if joining.begun_before:  # otherwise whoever wanted it says so
                self._history.note("not_done", f"{reason}; nothing had moved to it, so it is given up", shard)
            self.abandon(shard)
        elif self.workers.is_ready(shard):
            del self._joining[shard]
            try:
                self._joined(shard, joining, now)
            except ShardmemError as error:  # what it was made for is not wanted any more
                self._failures[shard] = Superseded(str(error))
                self.abandon(shard)

    def _joined(self, shard: int, joining: _Joining, now: float) -> None:
        if joining.replaces is None:
            self._planner.joined(shard, now)
            self.control.set_shard_state(shard, "active")
            if joining.begun_before:
                self._history.note("shard_added", "begun by the earlier supervisor, it has joined", shard)
            return
        self._planner.succeed(joining.replaces, shard, now)
        self.control.set_shard_state(shard, "active")
        self.control.set_shard_state(joining.replaces, "draining")
        self._set_weight(shard, FULL_WEIGHT)

    # ---- leaving -----------------------------------------------------------------------------------------------------

    def _drain(self, shard: int, now: float) -> None:
        """No keyless events any more; and when the planner has moved every slot away and its lanes are empty, its
        end."""
        if self.control.shard_state(shard) != "draining":
            self.control.set_shard_state(shard, "draining")
        if shard not in self._marks:
            self._marks[shard] = Marks(self._table)
        slots = self._planner.table.shard_slot_counts(coming=True)
        if slots.get(shard) or self._marks[shard].inside():
            return
        left = sum(lane.waiting for lane in self.inboxes[shard].lanes())
        if self._planner.mapper.finalize_draining({shard: int(left)}, now, slots):
            self._stop(shard, now)

    def _stop(self, shard: int, now: float) -> None:
        """Nothing is left in its lanes, and nothing can come."""
        self._marks.pop(shard, None)
        self.control.set_shard_state(shard, "stopped")
        self.inboxes[shard].wake()
        self._ending.add(shard)

    def _end(self, shard: int, now: float) -> None:
        # a damaged slot word has given it a slot, or sent events here, since its lanes were found empty
        worker, is_needed = self.workers.of(shard), any(lane.waiting for lane in self.inboxes[shard].lanes())
        is_needed |= bool(self._planner.table.shard_slot_counts(coming=True).get(shard))
        if self.control.shard_state(shard) == "draining":  # its stragglers are being handled
            if not is_needed:
                self.control.set_shard_state(shard, "stopped")
                self.inboxes[shard].wake()
            return
        if worker is not None and worker.alive:
            return  # one that does not end is stuck, and ended (stuck.py)
        if is_needed:
            self.control.set_shard_state(shard, "draining")
            self.workers.start(shard)
            return
        self._ending.discard(shard)
        self.workers.forget(shard)
        lanes = self.inboxes[shard].lanes()
        self._history.look(shard, sum(lane.quarantined for lane in lanes))
        self._bury(shard, lanes)
        if shard in self._begun_before:
            self._begun_before.discard(shard)
            self._history.note("shard_removed", "its removal, begun by the earlier supervisor, is done", shard)

    def _bury(self, shard: int, lanes: list[LaneView]) -> None:
        """Its counts are kept, its inbox goes, its number is free. Killed anywhere in here, a later supervisor goes
        on."""
        inbox = self.inboxes.pop(shard)
        self.control.retire(shard, inbox.generation, Retired.of(lanes))
        point("remove.retired")
        inbox.segment.unlink()
        point("remove.unlinked")
        self._observer.forget(shard)
        self._history.forget(shard)
        inbox.close()
        self.control.set_shard_state(shard, "none")
        self._weights.pop(shard, None)
        mapper = self._planner.mapper
        if mapper.shard_state(shard) is ShardState.PROVISIONING:
            self._planner.abandon(shard, time.monotonic())
        else:
            self._planner.left(shard)
            mapper.remove_specific_stopped_shard(shard)

    # ---- an inbox that is no more ------------------------------------------------------------------------------------

    def renew_inbox(self, shard: int, last_known: list[LaneView]) -> int:
        """A shard without a worker gets an empty inbox, which its next worker and the producers find by its generation.
        last_known: the lanes of the old one. How many events that only the old one held are lost: they count as shed.
        Raises OutOfMemory, SegmentError; then nothing has changed."""
        old, generation = self.inboxes[shard], next_generation(self.control, shard)
        new = InboxSegment.create(self.control, shard, generation)
        counts = Retired.of(last_known)
        gone = max(0, sum(lane.in_flight for lane in last_known))
        self.control.retire(shard, old.generation, counts._replace(shed=counts.shed + gone))
        self.inboxes[shard] = new
        self.control.set_shard_generation(shard, generation)
        self._observer.forget(shard)
        old.segment.unlink()
        old.close()
        return gone

    # ---- what an earlier supervisor had begun ------------------------------------------------------------------------

    def resume(self, joining: list[int], draining: list[int], stopped: list[int], never_started: list[int]) -> None:
        now = time.monotonic()
        for shard in never_started:
            self.abandon(shard)
        self.workers.expect(joining)
        for shard in joining:
            self._joining[shard] = _Joining(now, None, begun_before=True)
        self._begun_before.update(draining, stopped)
        for shard in stopped:
            self._planner.mapper.finalize_draining({shard: 0}, now)
            self._stop(shard, now)
