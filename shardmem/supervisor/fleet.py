"""The running engine as its supervisor has it: shared memory, workers, shards, the planner and the history.

Made whole in one call, from memory that was taken over (takeover.py). `step` is the one way in which anything goes on:
facts, handoffs, shards, and then whoever waits for one of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from shardmem.client.quarantine import QuarantineAccess
from shardmem.config import Config, quarantine_file
from shardmem.memory.handoff_table import HandoffTable
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import point
from shardmem.policy import DecisionKind, Finished, ScalingDecision, ScalingPolicy, Strategy
from shardmem.runtime.handler import HandlerRef
from shardmem.settings import some
from shardmem.supervisor.changes import Changes, Conditions
from shardmem.supervisor.descriptors import Descriptors
from shardmem.supervisor.life import Life
from shardmem.supervisor.pace import Pace
from shardmem.supervisor.planner import Planner
from shardmem.supervisor.prestart import Prestarted
from shardmem.supervisor.sampler import Sampler
from shardmem.supervisor.shards import Shards
from shardmem.supervisor.stuck import Stuck
from shardmem.supervisor.takeover import Takeover
from shardmem.supervisor.thinking import Thinking
from shardmem.supervisor.workers import Workers

REROUTE_POLL, HANDOFF_POLL, SHARD_POLL = 0.0005, 0.02, 0.005


class Fleet:
    """config: as it is now; a reload changes it by `reconfigure`. conditions: what somebody waits for. changes: what is
    under way, for those who are told what has been done.
    """

    def __init__(
        self,
        config: Config,
        handler: HandlerRef,
        prestarted: Prestarted,
        takeover: Takeover,
        policy: ScalingPolicy,
        strategy: Strategy,
        life: Life,
        *,
        on_created: Callable[[int], None] | None = None,
        on_removed: Callable[[int], None] | None = None,
        descriptors: Descriptors,
    ) -> None:
        self._config, self._life, self._wanted, self._why = config, life, False, ""
        self.conditions, self.changes = Conditions(), Changes()
        self.control, self.observer, self.history = takeover.control, takeover.observer, takeover.history
        self.inboxes: dict[int, InboxSegment] = takeover.inboxes
        self.quarantine = QuarantineAccess(
            config.name, quarantine_file(config.directory, config.name), lambda: self._config.quarantine_limit
        )
        self.table = HandoffTable(self.control, self.give_orders)
        self.sampler = Sampler(self.observer)
        self.planner = Planner(
            self.table,
            policy,
            strategy,
            takeover.states,
            now=time.monotonic(),
            room=self.control.room,
            automatic=config.elastic,
            asked=Thinking(),
            on_created=on_created,
            on_removed=on_removed,
            on_moved=self._moved,
            point=point,
        )
        self.workers = Workers(
            self.control,
            self.inboxes,
            config,
            handler,
            prestarted,
            is_stopping=self._is_stopping,
            changed=self._news,
            history=self.history,
            descriptors=descriptors,
        )
        self.shards = Shards(
            self.control,
            self.observer,
            self.inboxes,
            self.workers,
            self.table,
            self.planner,
            self.history,
            boot_timeout=lambda: self._config.boot_timeout,
        )
        self.pace = Pace()
        self._late: set[tuple[int, str]] = set()  # handoffs and phases that the history has been told of
        self.stuck = Stuck(self.control, self.workers, self.history, config)

    @property
    def config(self) -> Config:
        return self._config

    def reconfigure(self, config: Config, policy: ScalingPolicy) -> None:
        """What takes effect without a new worker."""
        self._config = config
        self.planner.reconfigure(policy)
        self.workers.reconfigure(config)
        self.stuck.reconfigure(config)

    def give_orders(self, shard: int) -> None:
        inbox = self.inboxes.get(shard)
        if inbox is not None:
            self.control.give_orders(shard, inbox.address)

    def _is_stopping(self, shard: int) -> bool:
        return (
            self._life.is_stopping_now
            or self.control.shard_state(shard) in ("none", "stopped")
            or self.control.state == "stopped"
        )

    def _news(self) -> None:
        self._life.wake()

    # ---- one step ----------------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """What has happened since the last one, and what can be done now. Called at every piece of news; cheap."""
        self.planner.learn(self.shards.facts(), now)
        self.shards.step(now)
        if self._wanted:
            self._wanted = False
            self.planner.advance(now)
        else:
            self.planner.progress(now)
        self.conditions.look()

    def finish_handoffs(self, now: float) -> None:
        """The engine stops: handoffs under way go on, because targets keep events of their slots back; none begins."""
        self.planner.learn(self.shards.facts(), now)
        self.planner.finish(now)

    def unreachable(self) -> set[int]:
        """Failed shards, and those that keep events back for a handoff from one that has failed."""
        return self.planner.unreachable()

    def tick(self, now: float) -> ScalingDecision:
        """The same with a look at the load; what the policy says then."""
        self.planner.learn(self.shards.facts(), now)
        samples = self.sampler.sample(self.planner.measurable(now), now)
        rates = self.sampler.rates
        decision = self.planner.tick(samples, rates if rates.any() else None, now)
        # without samples it went by the number of slots: that nothing was measured is not why they moved
        self._why = "" if decision.cause in ("no_samples", "steady", "manual") else f"; {decision.reason}"
        self._wanted = False
        self.shards.step(now)
        self.shards.weigh()
        self._note_late(now)
        self.conditions.look()
        if decision.kind is not DecisionKind.NONE or not self._is_at_rest():
            self.pace.stir()
        return decision

    def _is_at_rest(self) -> bool:
        """Nothing flows, nothing is under way or wrong, and nobody waits."""
        return (
            self.sampler.is_still
            and self.planner.is_at_rest
            and not self.shards.has_work
            and not (self._late or self.stuck.any or self.conditions.any or self.changes.any_open)
        )

    def step_soon(self) -> None:
        """Something is wanted."""
        self._wanted = True
        self._life.wake()

    def even_out(self) -> None:
        """Small differences too, until there is nothing left to even out."""
        self.planner.wishes.eager = True
        self.step_soon()

    @property
    def is_even(self) -> bool:
        """Whether nothing is left to move, as of a step after the last wish."""
        return not self._wanted and self.planner.runner.is_even

    @property
    def patience(self) -> float:
        """Seconds until the next step for what no event tells of: marks of producers, workers of an earlier
        supervisor."""
        if self.planner.handoffs.slots_in_flight():
            return REROUTE_POLL if self.planner.is_rerouting else HANDOFF_POLL
        return SHARD_POLL if self.shards.has_work else math.inf

    def _moved(self, finished: Finished) -> None:
        self.changes.finished(finished)
        if not self.changes.any_open and not self.planner.table.draining:
            count = len(finished.slots)
            self.history.count("moved", count, lambda count: f"{some(count, 'slot')} moved by the strategy{self._why}")

    def _note_late(self, now: float) -> None:
        late = {(each.handoff, str(each.state)): each for each in self.planner.handoffs.late(now)}
        for key, each in late.items():
            if key not in self._late:
                text = f"a handoff of {some(len(each.slots), 'slot')} is late: waiting for {each.waiting_for}"
                self.history.note("late", text)
        self._late = set(late)

    def has_unread_lanes(self) -> bool:
        """By positions: a damaged count would keep segments in which nothing is left."""
        return any(lane.head != lane.tail for inbox in self.inboxes.values() for lane in inbox.lanes())
