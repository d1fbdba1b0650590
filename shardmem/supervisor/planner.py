"""The supervisor's judgement: how many shards, and which slots where. Feeds the pure policy and keeps what it decided.

It decides and remembers; `commands.py` carries out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shardmem.memory.engine_segment import ControlSegment
from shardmem.policy import (
    DecisionHistory,
    DecisionKind,
    Move,
    ScalingDecision,
    ScalingPolicy,
    ShardMapper,
    Strategy,
    View,
    plan_of,
)
from shardmem.status.observer import Observer
from shardmem.supervisor.sampler import Sampler


class Planner:
    """mapper: shards and their lives. strategy: slots and their owners. history: the last decisions, with reasons."""

    def __init__(
        self,
        control: ControlSegment,
        observer: Observer,
        policy: ScalingPolicy,
        strategy: Strategy,
        shards: Mapping[int, str],
    ) -> None:
        self._control, self._observer, self._shards = control, observer, shards
        self.sampler = Sampler(observer)
        self.mapper = self._new_mapper(policy)
        self.strategy = strategy
        self.history = DecisionHistory()
        self.following = policy.auto_scale  # a manual `scale` takes over; `scale auto` hands back

    def _new_mapper(self, policy: ScalingPolicy) -> ShardMapper:
        return ShardMapper(self._shards, policy, now=time.monotonic(), room=self._control.room, drain_grace=0.0)

    def begin(self) -> None:
        """The first workers are ready. What they did while they booted says nothing, so the windows begin here."""
        self.mapper = self._new_mapper(self.mapper.policy)

    def follow(self, following: bool) -> None:
        """Whether the policy's decisions are carried out."""
        self.following = following

    def reconfigure(self, policy: ScalingPolicy) -> None:
        self.mapper.policy = policy

    def recall(self) -> None:
        """What an earlier supervisor of the same run had been told by hand stands."""
        self.following &= self._observer.board()["auto_scale"]

    def tick(self, moving: Iterable[int]) -> tuple[ScalingDecision, list[Move]]:
        """One look: the decision on the number of shards, and the moves that the strategy would begin now."""
        now = time.monotonic()
        self.mapper.collect_metrics(self.sampler.sample(self.mapper.active_shard_ids(), now), now)
        moving = list(moving)
        moves = self.plan(moving)
        decision = self.mapper.evaluate_scaling(now, moves=len(moves) + len(moving))
        if not self.following and decision.kind is not DecisionKind.NONE:
            count = f" {decision.count}" if decision.count else ""
            decision = decision.against(
                "manual", f"the number of shards was set by hand; otherwise {decision.kind}{count}: {decision.reason}"
            )
        self.history.note(decision)
        return decision, moves

    def plan(self, moving: Iterable[int], *, eager: bool = False, shards: Iterable[int] | None = None) -> list[Move]:
        """The strategy's moves for the table as it is, counting slots on their way as arrived."""
        view = self.view(moving, eager=eager, shards=shards)
        return plan_of(self.strategy, view) if view.shards else []

    def view(self, moving: Iterable[int], *, eager: bool = False, shards: Iterable[int] | None = None) -> View:
        owners, _ = self._control.slot_table()
        busy = {shard: sample.busy for shard, sample in self.mapper.metrics(time.monotonic()).items()}
        rates = self.sampler.rates if self.sampler.rates.any() else None
        failed = [shard for shard in self._control.known_shards() if self._control.shard_state(shard) == "failed"]
        taking = [
            shard for shard in (self.mapper.active_shard_ids() if shards is None else shards) if shard not in failed
        ]
        # A failed shard takes nothing, and cannot give: its worker would have to drain it.
        locked = {*moving, *np.flatnonzero(np.isin(owners, failed)).tolist()} if failed else moving
        return View.of(
            owners.astype("i8"),
            taking,
            rates=rates,
            locked=list(locked),
            # with nobody busy at this moment the rates of the last seconds still say what is hot
            busy={shard: busy.get(shard, 0.0) for shard in taking} if any(busy.values()) else {},
            eager=eager,
        )

    def describe(self) -> dict[str, Any]:
        """For status: the policy's state, its last decisions and slots too hot for any shard."""
        view = self.view(())
        hot = self.strategy.hot_slots(view) if view.shards and hasattr(self.strategy, "hot_slots") else []
        now = time.monotonic()
        return {
            "auto_scale": self.following,
            "elastic": self.mapper.policy.auto_scale,
            "decisions": [
                {
                    "kind": str(decision.kind),
                    "count": decision.count,
                    "cause": decision.cause,
                    "reason": decision.reason,
                    "age_s": round(now - decision.at, 3),
                    "since_s": round(now - since, 3),
                    "times": times,
                    "advice": str(decision.advice.kind) if decision.advice else None,
                }
                for decision, since, times in self.history
            ][-16:],
            "hot_slots": [
                {"slot": each.slot, "shard": each.shard, "share": round(each.share, 4), "alone": each.alone}
                for each in hot
            ],
        }
