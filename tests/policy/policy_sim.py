"""An engine without processes: a virtual clock, a schedule drawn from a seed, and the policies that run the real one.

Shards are queues of events that are worked off at a constant rate; events are a fluid, so thousands of shards cost
little. Workers die and come back, hang and go on; producers stop in the middle of a push; workers fail to start;
somebody adds and drains shards by hand; slots turn hot and cold; the whole load rises and falls. News arrives late,
twice, or never.

After each tick it is checked that nobody has two owners, that nothing is lost (arrived = served + queued + held), that
the bounds hold, and that the books of mapper, coordinator and handoffs agree with who really handles what.
"""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardmem.policy import (
    Allocate,
    Deadlines,
    Drain,
    Finished,
    HandoffCoordinator,
    HandoffState,
    LeastLoad,
    RebalanceRunner,
    Release,
    Reroute,
    Respawn,
    ScalingError,
    ScalingPolicy,
    ShardCoordinator,
    ShardMapper,
    ShardSample,
    ShardState,
    Strategy,
)

TICK = 0.25
NOBODY = -1


@dataclass
class Chances:
    """Per second and shard, or per handoff."""

    death: float = 0.002
    hang: float = 0.001
    join: float = 0.05  # of the engine
    leave: float = 0.05  # of the engine
    hot: float = 0.1  # of the engine
    swing: float = 0.02  # of the engine: the whole load changes
    boot_failure: float = 0.2
    stopped_producer: float = 0.002
    said_twice: float = 0.1


@dataclass
class World:
    seed: int
    shards: int
    slots: int
    policy: ScalingPolicy
    strategy: Strategy = field(default_factory=LeastLoad)
    chances: Chances = field(default_factory=Chances)
    work: float = 0.5  # busy share at the start
    power: float = 10_000.0  # events per second that a worker can do
    queue: float = 10_000.0  # events that the lanes of a shard hold; producers wait when they are full
    max_in_flight: int = 256
    max_per_pair: int = 64

    def __post_init__(self) -> None:
        self.random, self.numbers = random.Random(self.seed), np.random.default_rng(self.seed)
        self.now, self.ticks = 0.0, 0
        self.room = self.policy.max_shards + 16
        owners = [slot % self.shards for slot in range(self.slots)]
        self.table = ShardCoordinator(self.slots, range(self.shards), self.strategy, owners=owners)
        self.mapper = ShardMapper(self.shards, self.policy, room=self.room, on_created=self.table.add_shard)
        self.handoffs = HandoffCoordinator(self.table, Deadlines(reroute=1.0, drain=5.0, release=2.0))
        self.runner = RebalanceRunner(
            self.table, self.handoffs, max_in_flight=self.max_in_flight, max_per_pair=self.max_per_pair
        )
        shape = self.numbers.lognormal(0, 1, self.slots)
        self.rates = shape / shape.sum() * self.work * self.shards * self.power
        self.measured = self.rates.copy()
        self.handler = np.array(owners)  # who works on a slot; NOBODY: its events are held
        self.queued = np.zeros(self.room)  # events in lanes, not of held slots
        self.held = np.zeros(self.slots)  # events of slots on their way, at the target
        self.arrived = self.served = 0.0
        self.busy = np.zeros(self.room)
        self.life = [0] * self.room  # incarnations
        self.dead: dict[int, float] = {}  # until when
        self.hung: dict[int, float] = {}
        self.news: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self.told = 0
        self.moved = 0
        self.calm = False
        self.decisions: list[Any] = []
        self.cost: list[float] = []  # seconds of each control tick, by the real clock
        self.moves_of: dict[int, tuple[tuple[int, ...], int, int]] = {}
        self.stuck_at_most = 0

    # ---- one tick ----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.now += TICK
        self.ticks += 1
        self._deliver()
        if not self.calm:
            self._fate()
        self._flow()
        samples = self._samples()
        self.measured += (self._counted() - self.measured) * (1.0 if self.calm else 0.2)
        busy = self.busy_by_shard()

        began = time.perf_counter()
        self.mapper.collect_metrics(samples, self.now)
        decision = self.mapper.evaluate_scaling(self.now, moves=self.runner.moves if self.ticks > 1 else None)
        self._scale(decision)
        actions = self.runner.step(self.now, rates=self.measured, busy=busy, eager=decision.kind == "rebalance")
        self.cost.append(time.perf_counter() - began)

        assert [] == self.table.complaints
        self.decisions.append(decision)
        for action in actions:
            assert not isinstance(action, Allocate), "every slot has had an owner from the start"
            self.moved += len(action.slots)
            self._obey(self.handoffs.begin(action.slots, action.source, action.target, self.now))
        self._finish_drains()
        self.stuck_at_most = max(self.stuck_at_most, len(self.handoffs.late(self.now)))
        self._check()

    def rest(self, seconds: float = 30.0, within: float = 400.0) -> None:
        """No more faults, and the load stays as it is: until nothing has been decided or moved for `seconds`."""
        self.calm = True
        self.dead = dict.fromkeys(self.dead, self.now)
        self.hung = dict.fromkeys(self.hung, self.now)
        quiet, end = 0.0, self.now + within
        while quiet < seconds:
            assert self.now < end, (
                f"no rest within {within} s: {self.runner.planned} moves planned, "
                f"{self.handoffs.slots_in_flight()} slots on their way, {self.decisions[-1].reason}"
            )
            moved, decided = self.moved, len([each for each in self.decisions if each.count])
            self.tick()
            still = moved == self.moved and decided == len([each for each in self.decisions if each.count])
            quiet = (
                quiet + TICK
                if still and not self.handoffs.slots_in_flight() and not self.mapper.draining_shard_ids()
                else 0.0
            )

    # ---- what happens to them ----------------------------------------------------------------------------------------

    def _fate(self) -> None:
        chance = self.chances
        there = self.mapper.active_shard_ids() + self.mapper.draining_shard_ids()
        for shard in self._chosen(there, chance.death):
            if shard not in self.dead:
                self.dead[shard] = self.now + self.random.uniform(0.3, 4.0)
                self.life[shard] += 1
                self._obey(self.handoffs.source_died(shard, self.now))
                self._obey(self.handoffs.target_died(shard, self.now))
        for shard in self._chosen(there, chance.hang):
            self.hung[shard] = self.now + self.random.uniform(1.0, 20.0)
        if self.random.random() < chance.join * TICK:
            self._scale_by_hand("scale_up_provisioning_force", self.random.randint(1, 3))
        if self.random.random() < chance.leave * TICK and self.mapper.active_shard_ids():
            self._scale_by_hand("drain_specific", self.random.choice(self.mapper.active_shard_ids()))
        if self.random.random() < chance.hot * TICK:
            fair = self.rates.sum() / self.mapper.active_shard_count()
            self.rates[self.random.randrange(self.slots)] = fair * self.random.choice([0.0, 0.3, 0.7, 1.0, 2.5])
        if self.random.random() < chance.swing * TICK:
            self.rates *= (
                self.random.uniform(0.3, 0.9) * self.mapper.active_shard_count() * self.power / self.rates.sum()
            )

    def _chosen(self, shards: list[int], rate: float) -> list[int]:
        return [shard for shard in shards if self.random.random() < rate * TICK]

    def _scale_by_hand(self, method: str, value: int) -> None:
        try:
            found = getattr(self.mapper, method)(value, self.now)
        except ScalingError as error:
            assert error.kind in ("at_max_shards", "at_min_shards")
        else:
            if method == "drain_specific":
                self.table.drain_shard(value)
            else:
                self._provision(found)

    def _scale(self, decision: Any) -> None:
        if decision.kind == "up":
            made = self.mapper.scale_up_provisioning(decision.count, self.now)
            assert len(made) == decision.count, "a decision is carried out as a whole"
            self._provision(made)
        elif decision.kind == "down":
            gone = self.mapper.scale_down(decision.count, self.now)
            assert len(gone) == decision.count
            for shard in gone:
                self.table.drain_shard(shard)

    def _provision(self, shards: list[int]) -> None:
        for shard in shards:
            assert self.queued[shard] == 0 and not (self.handler == shard).any(), (
                "an id is used again only when all is gone"
            )
            self.life[shard] += 1
            fails = not self.calm and self.random.random() < self.chances.boot_failure
            self._say(self.random.uniform(0.1, 0.6), "abandon" if fails else "ready", shard, self.life[shard])

    def _finish_drains(self) -> None:
        held = {shard: int(np.ceil(self.queued[shard])) for shard in self.mapper.draining_shard_ids()}
        for shard in self.mapper.finalize_draining(held, self.now, self.table.shard_slot_counts(coming=True)):
            self.table.remove_shard(shard)
            self.dead.pop(shard, None), self.hung.pop(shard, None)
        self.mapper.remove_stopped_shards()

    # ---- news --------------------------------------------------------------------------------------------------------

    def _say(self, after: float, kind: str, *what: Any) -> None:
        self.told += 1
        heapq.heappush(self.news, (self.now + after, self.told, kind, what))
        if not self.calm and self.random.random() < self.chances.said_twice:
            self.told += 1
            heapq.heappush(self.news, (self.now + after + self.random.uniform(0, 3), self.told, kind, what))

    def _deliver(self) -> None:
        for shard, until in list(self.dead.items()):
            if until <= self.now:
                del self.dead[shard]
                self._obey(self.handoffs.respawned(shard, self.now))
        self.hung = {shard: until for shard, until in self.hung.items() if until > self.now}
        while self.news and self.news[0][0] <= self.now:
            _, _, kind, what = heapq.heappop(self.news)
            getattr(self, f"_on_{kind}")(*what)

    def _on_ready(self, shard: int, life: int) -> None:
        if life == self.life[shard] and self.mapper.shard_state(shard) is ShardState.PROVISIONING:
            self.mapper.activate(shard, self.now)

    def _on_abandon(self, shard: int, life: int) -> None:
        if life == self.life[shard] and self.mapper.shard_state(shard) is ShardState.PROVISIONING:
            self.mapper.abandon(shard, self.now)
            self.mapper.remove_specific_stopped_shard(shard)

    def _on_marks(self, handoff: int) -> None:
        self._obey(self.handoffs.marks_settled(handoff, self.now))

    def _on_drained(self, handoff: int, slots: tuple[int, ...], shard: int, life: int) -> None:
        if life != self.life[shard]:
            return  # of a worker that has died before it could say so
        if shard in self.hung:
            self._say(self.hung[shard] - self.now, "drained", handoff, slots, shard, life)
            return
        for slot in slots:
            if self.handoffs.state(slot) is HandoffState.DRAINING and self.handler[slot] == shard:
                self.handler[slot] = NOBODY
        self._obey(self.handoffs.drained(handoff, self.now, slots))

    def _on_released(self, handoff: int, slots: tuple[int, ...], shard: int, life: int) -> None:
        if life != self.life[shard]:
            return
        if shard in self.hung:
            self._say(self.hung[shard] - self.now, "released", handoff, slots, shard, life)
            return
        self._obey(self.handoffs.released(handoff, self.now, slots))

    def _obey(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Reroute):
                assert action.source != action.target, "never to where it is"
                assert (self.handler[list(action.slots)] == action.source).all(), (
                    "only who handles a slot can hand it over"
                )
                self.moves_of[action.handoff] = action.slots, action.source, action.target
                if not self.calm and self.random.random() < self.chances.stopped_producer:
                    self.handoffs.waiting_for_marks(action.handoff, [self.random.randrange(8)])
                    self._say(self.random.uniform(2.0, 6.0), "marks", action.handoff)
                else:
                    self._say(self.random.uniform(0.0, 0.05), "marks", action.handoff)
            elif isinstance(action, Drain):
                assert action.shard not in self.dead
                first = action.slots if self.random.random() < 0.7 else action.slots[:1]
                wait = self.queued[action.shard] / self.power + self.random.uniform(0.0, 0.1)
                for part, after in ((first, wait), (action.slots, wait * 2)):
                    self._say(after, "drained", action.handoff, part, action.shard, self.life[action.shard])
            elif isinstance(action, Release):
                assert action.shard not in self.dead
                numbers = list(action.slots)
                assert np.isin(self.handler[numbers], [NOBODY, action.shard]).all(), "never two owners"
                self.handler[numbers] = action.shard
                self.queued[action.shard] += self.held[numbers].sum()
                self.held[numbers] = 0.0
                self._say(
                    self.random.uniform(0.0, 0.1),
                    "released",
                    action.handoff,
                    action.slots,
                    action.shard,
                    self.life[action.shard],
                )
            elif isinstance(action, Finished):
                assert (action.slots, action.source, action.target) == self.moves_of.pop(action.handoff)
                assert (self.handler[list(action.slots)] == action.target).all()
            else:
                assert isinstance(action, Respawn) and action.shard in self.dead, "only the dead are waited for as such"

    # ---- events ------------------------------------------------------------------------------------------------------

    def _flow(self) -> None:
        heading = self.table.view().owners
        waiting = self.handler != heading
        there = self.queued + np.bincount(heading, self.held, self.room)
        offered = np.bincount(heading, self.rates * TICK, self.room)
        new = (
            self.rates
            * TICK
            * np.minimum(1.0, np.maximum(self.queue - there, 0.0) / np.maximum(offered, 1e-9))[heading]
        )
        self.arrived += new.sum()  # the producers keep the rest for later, or for themselves
        self.held[waiting] += new[waiting]
        self.queued += np.bincount(heading[~waiting], new[~waiting], self.room)
        able = np.full(self.room, self.power * TICK)
        able[[*self.dead, *self.hung]] = 0.0
        done = np.minimum(self.queued, able)
        self.queued -= done
        self.queued[self.queued < 1e-6] = 0.0
        self.served += done.sum()
        self.busy = done / (self.power * TICK)
        self.busy[list(self.hung)] = 1.0

    def busy_by_shard(self) -> dict[int, float]:
        shards = self.mapper.all_shard_ids()
        return dict(zip(shards, self.busy[shards].tolist()))

    def _counted(self) -> np.ndarray:
        return self.rates if self.calm else self.numbers.poisson(self.rates * TICK) / TICK

    def _samples(self) -> list[ShardSample]:
        alone = {hot.shard for hot in self.table.hot_slots() if hot.alone}
        fill, busy, queued = (self.queued / self.queue).tolist(), self.busy.tolist(), self.queued.tolist()
        return [
            ShardSample(
                shard,
                fill[shard],
                busy[shard],
                0.0,
                queued[shard] / self.power,
                busy[shard] * self.power,
                queued[shard],
                shard in alone,
            )
            for shard in self.mapper.active_shard_ids() + self.mapper.draining_shard_ids()
            if shard not in self.dead
        ]

    # ---- what has to hold --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        active, draining = set(self.mapper.active_shard_ids()), set(self.mapper.draining_shard_ids())
        assert (
            self.policy.min_shards <= len(active)
            and len(self.mapper.all_shard_ids()) - len(draining) <= self.policy.max_shards
        )
        assert set(self.table.shards) == active
        assert set(self.table.shard_slot_counts()) == active | draining
        assert abs(self.arrived - self.served - self.queued.sum() - self.held.sum()) < 1e-6 * self.arrived + 1.0, (
            "an event is lost"
        )
        owner, heading = self.table.owners, self.table.view().owners
        moving = owner != heading
        slots = [slot for each, _, _ in self.moves_of.values() for slot in each]
        assert len(slots) == len(set(slots)) == self.handoffs.slots_in_flight() == moving.sum(), "one move per slot"
        assert moving[slots].all()
        assert (self.handler[~moving] == owner[~moving]).all(), "the table is who handles it"
        mine = self.handler[moving]
        assert ((mine == owner[moving]) | (mine == heading[moving]) | (mine == NOBODY)).all()
        assert (self.held[~moving] == 0).all(), "nothing is held of a slot that is not on its way"
