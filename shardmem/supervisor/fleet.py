"""The running engine as its supervisor has it: shared memory, workers, shards, handoffs, the planner and the history.

Made whole in one call, from memory that was taken over (takeover.py). Whatever changes the engine holds `change_lock`.
"""

from __future__ import annotations

import asyncio

from shardmem.client.quarantine import QuarantineAccess
from shardmem.config import Config, quarantine_file
from shardmem.memory.engine_segment import InboxSegment
from shardmem.memory.native import lib
from shardmem.policy import ScalingPolicy, Strategy
from shardmem.runtime.handler import HandlerRef
from shardmem.supervisor.handoffs import Handoffs
from shardmem.supervisor.life import Life
from shardmem.supervisor.planner import Planner
from shardmem.supervisor.shards import Shards
from shardmem.supervisor.stuck import Stuck
from shardmem.supervisor.takeover import Takeover
from shardmem.supervisor.workers import Workers


class Fleet:
    """config: as it is now; a reload changes it by `reconfigure`. change_lock: scale, drain, rebalance, recycling and reload,
    one at a time.
    """

    def __init__(
        self,
        config: Config,
        handler: HandlerRef,
        takeover: Takeover,
        policy: ScalingPolicy,
        strategy: Strategy,
        life: Life,
    ) -> None:
        self._config, self._life = config, life
        self.change_lock = asyncio.Lock()
        self.control, self.observer, self.history = takeover.control, takeover.observer, takeover.history
        self.inboxes: dict[int, InboxSegment] = takeover.inboxes
        self.quarantine = QuarantineAccess(
            config.name, quarantine_file(config.directory, config.name), lambda: self._config.quarantine_limit
        )
        self.handoffs = Handoffs(self.control, self.give_orders, self.history)
        self.planner = Planner(self.control, self.observer, policy, strategy, takeover.states)
        self.workers = Workers(
            self.control,
            self.inboxes,
            config,
            handler,
            is_stopping=self._is_stopping,
            changed=self._news,
            history=self.history,
        )
        self.shards = Shards(
            self.control,
            self.observer,
            self.inboxes,
            self.workers,
            self.handoffs,
            self.planner,
            self.history,
            give_up=lambda: life.is_stopping_now,
        )
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
            lib.sm_give_orders(self.control.address, shard, inbox.address)

    def _is_stopping(self, shard: int) -> bool:
        return (
            self._life.is_stopping_now
            or self.control.shard_state(shard) in ("none", "stopped")
            or self.control.state == "stopped"
        )

    def _news(self) -> None:
        self._life.wake()
        self.handoffs.news()

    def has_unread_lanes(self) -> bool:
        """By positions: a damaged count would keep segments in which nothing is left."""
        return any(lane.head != lane.tail for inbox in self.inboxes.values() for lane in inbox.lanes())
