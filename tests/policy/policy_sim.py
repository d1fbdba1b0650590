"""A whole engine without processes: the planner, its mapper, coordinator, runner and carrier that run in production, on
a memory of arrays. Workers, producers and load are simulated: fluid queues, a virtual clock, everything from one seed.

Nothing is decided here. Workers act on what the words say, as real ones do: a source drains a slot of phase `draining`,
a target restores one of phase `releasing`. News of it may be lost or come twice: then only the next tick looks.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shardmem.policy import (
    HandoffState,
    LeastLoad,
    ScalingDecision,
    ScalingError,
    ScalingPolicy,
    ShardSample,
    ShardState,
    Strategy,
)
from shardmem.supervisor.planner import Planner, ShardFact

TICK = 0.25
NOBODY = -1
SEATS = 8
PHASES = [str(each) for each in HandoffState]


class SimulatedMove(NamedTuple):
    phase: str
    source: int
    target: int
    drained: bool
    restored: bool


class ArrayWords:
    """The words of shared memory that handoffs are made of."""

    def __init__(self, owners: list[int], room: int, stateful: bool) -> None:
        slots = len(owners)
        self.slot_words = np.array(owners, np.int64)
        self.phases = np.zeros(slots, np.int8)
        self.sources = np.zeros(slots, np.int64)
        self.targets = np.zeros(slots, np.int64)
        self.numbers, self.drained, self.restored = (np.zeros(slots, np.int64) for _ in range(3))
        self.holds = np.zeros(room, np.int64)
        self.send_marks = np.zeros(SEATS, np.int64)
        self.seats_alive = np.ones(SEATS, bool)
        self.stateful = stateful
        self.on_arrival: Callable[[int], None] = lambda slot: None

    def begin(self, slot: int, source: int, target: int, seconds: float) -> None:
        assert self.holds[target] > 0, "the hold is there before the first row can come"
        self.numbers[slot] += 1
        self.phases[slot], self.sources[slot], self.targets[slot] = 1, source, target
        self.slot_words[slot] = target

    def set_phase(self, slot: int, phase: HandoffState, seconds: float) -> None:
        self.phases[slot] = PHASES.index(str(phase))
        if phase is HandoffState.NONE:
            self.on_arrival(slot)

    def set_slot(self, slot: int, shard: int) -> None:
        self.slot_words[slot] = shard

    def set_holds(self, shard: int, holds: int) -> None:
        assert holds >= 0
        self.holds[shard] = holds

    def view(self, slot: int) -> SimulatedMove:
        return SimulatedMove(
            PHASES[self.phases[slot]],
            int(self.sources[slot]),
            int(self.targets[slot]),
            bool(self.drained[slot] == self.numbers[slot]),
            bool(self.restored[slot] == self.numbers[slot]),
        )

    def moving(self) -> list[int]:
        return np.flatnonzero(self.phases).tolist()

    def owners(self) -> np.ndarray:
        return self.slot_words.copy()

    def marks(self) -> list[int]:
        return self.send_marks.tolist()

    def seat_alive(self, seat: int) -> bool:
        return bool(self.seats_alive[seat])

    def is_stateful(self) -> bool:
        return self.stateful

    def wake(self, shard: int) -> None:
        pass  # simulated workers look by themselves


@dataclass
class Chances:
    """Per second and shard, or of the engine."""

    death: float = 0.002
    fail: float = 0.0005
    hang: float = 0.001
    join: float = 0.05  # of the engine
    leave: float = 0.05  # of the engine
    move: float = 0.05  # of the engine: by hand
    replace: float = 0.02  # of the engine
    hot: float = 0.1  # of the engine
    swing: float = 0.02  # of the engine: the whole load changes
    boot_failure: float = 0.2
    stopped_producer: float = 0.02  # of the engine
    killed_supervisor: float = 0.01  # of the engine
    lost_news: float = 0.2


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
    stateful: bool = True
    elastic: bool = True
    slow_measure: float = 0.0

    def __post_init__(self) -> None:
        self.random, self.numbers = random.Random(self.seed), np.random.default_rng(self.seed)
        self.now, self.ticks = 0.0, 0
        self.room = self.policy.max_shards + 16
        owners = [slot % self.shards for slot in range(self.slots)]
        self.words = ArrayWords(owners, self.room, self.stateful)
        self.words.on_arrival = self._arrive
        self.planner = self._new_planner(dict.fromkeys(range(self.shards), "active"))
        shape = self.numbers.lognormal(0, 1, self.slots)
        self.rates = shape / shape.sum() * self.work * self.shards * self.power
        self.costs = np.ones(self.slots)  # work of an event, in those of an ordinary one
        self.measured = self.rates / self.power
        self.handler = np.array(owners)  # who works on a slot; NOBODY: its events are held
        self.queued = np.zeros(self.room)  # work in lanes, not of held slots
        self.held = np.zeros(self.slots)  # work of slots on their way, at the target
        self.arrived = self.served = self.unaccepted = 0.0
        self.busy = np.zeros(self.room)
        self.dead: dict[int, float] = {}  # until when
        self.failed: dict[int, float] = {}  # until somebody reloads it
        self.hung: dict[int, tuple[float, float]] = {}  # in a batch: since, until
        self.booting: dict[int, tuple[float, bool]] = {}  # ready or given up: when
        self.successors: dict[int, int] = {}  # new -> old
        self.stopped: dict[int, float] = {}  # seats inside a send: until when
        self.moved = self.ups = self.downs = 0
        self.calm = False
        self.decisions: list[ScalingDecision] = []
        self.cost: list[float] = []  # seconds of each control tick, by the real clock
        self.waited_at_most = 0
        self.moves_of_slot = np.zeros(self.slots, int)

    def _new_planner(self, states: dict[int, str], board: dict[str, Any] | None = None) -> Planner:
        planner = Planner(
            self.words,
            self.policy,
            self.strategy,
            states,
            now=self.now,
            room=self.room,
            automatic=self.elastic,
            on_moved=self._on_moved,
        )
        planner.runner.max_in_flight, planner.runner.max_per_pair = self.max_in_flight, self.max_per_pair
        if board is not None:
            planner.recall(board)
        planner.begin(self.now)
        return planner

    @property
    def table(self) -> Any:
        return self.planner.table

    @property
    def mapper(self) -> Any:
        return self.planner.mapper

    def _on_moved(self, finished: Any) -> None:
        self.moved += len(finished.slots)
        self.moves_of_slot[list(finished.slots)] += 1

    # ---- one tick ----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.now += TICK
        self.ticks += 1
        if not self.calm:
            self._fate()
        self._flow()
        for _ in range(3):  # workers look more often than the supervisor ticks
            if self._work() and (self.calm or self.random.random() >= self.chances.lost_news):
                self.planner.progress(self.now)
        self._producers()
        self._lives()
        samples = self._samples()
        measured = self.rates * self.costs / self.power
        if not self.calm:
            measured = self.numbers.poisson(self.rates * TICK) / TICK * self.costs / self.power
        self.measured += (measured - self.measured) * (
            1.0
            if self.calm and not self.slow_measure
            else 1 - np.exp(-TICK / self.slow_measure)
            if self.slow_measure
            else 0.2
        )

        began = time.perf_counter()
        self.planner.learn(self._facts(), self.now)
        decision = self.planner.tick(samples, self.measured, self.now)
        self.cost.append(time.perf_counter() - began)
        self._scale(decision)
        self.decisions.append(decision)
        self._finish_drains()
        self.waited_at_most = max(self.waited_at_most, len(self.planner.handoffs.late(self.now)))
        self._check()

    def rest(self, seconds: float = 30.0, within: float = 600.0) -> None:
        """No more faults, and the load stays as it is: until nothing has been decided or moved for `seconds`."""
        self.calm = True
        self.dead = dict.fromkeys(self.dead, self.now)
        self.failed = dict.fromkeys(self.failed, self.now)
        self.hung = {shard: (since, self.now) for shard, (since, _) in self.hung.items()}
        self.stopped = dict.fromkeys(self.stopped, self.now)
        self.planner.wishes.following = True
        quiet, end = 0.0, self.now + within
        while quiet < seconds:
            assert self.now < end, (
                f"no rest within {within} s: {self.planner.runner.planned} moves planned, "
                f"{self.planner.handoffs.slots_in_flight()} slots on their way, {self.decisions[-1].reason}"
            )
            moved, decided = self.moved, self.ups + self.downs
            self.tick()
            still = moved == self.moved and decided == self.ups + self.downs
            left = self.planner.handoffs.slots_in_flight() or self.mapper.draining_shard_ids() or self.booting
            quiet = quiet + TICK if still and not left else 0.0

    def stop(self, within: float = 120.0) -> None:
        """Producers are refused, and the supervisor only sees handoffs to their end, as in the drain of a stop. What
        has failed stays so."""
        end = self.now + within
        self.rates[:] = 0.0
        self.stopped = dict.fromkeys(self.stopped, self.now)
        while self.now < end:
            self.now += TICK
            self._flow()
            self._work()
            self._producers()
            self.dead = {shard: until for shard, until in self.dead.items() if until > self.now}
            self.hung = {shard: times for shard, times in self.hung.items() if times[1] > self.now}
            self.planner.learn(self._facts(), self.now)
            self.planner.finish(self.now)

    # ---- what happens to them ----------------------------------------------------------------------------------------

    def _fate(self) -> None:
        chance = self.chances
        there = self.mapper.active_shard_ids() + self.mapper.draining_shard_ids()
        for shard in self._chosen(there, chance.death):
            self.dead.setdefault(shard, self.now + self.random.uniform(0.3, 4.0))
            self.hung.pop(shard, None)
        for shard in self._chosen(there, chance.fail):
            self.failed.setdefault(shard, self.now + self.random.uniform(2.0, 30.0))
            self.hung.pop(shard, None)
        for shard in self._chosen(there, chance.hang):
            if shard not in self.dead and shard not in self.failed:
                self.hung.setdefault(shard, (self.now, self.now + self.random.uniform(1.0, 20.0)))
        if self._happens(chance.join):
            self._by_hand(lambda: self._provision(self.mapper.scale_up_provisioning_force(self._some(3), self.now)))
        if self._happens(chance.leave) and (active := self.mapper.active_shard_ids()):
            self._by_hand(lambda: self.planner.drain([self.random.choice(active)], self.now))
        if self._happens(chance.move) and (active := self.mapper.active_shard_ids()):
            slots = self.random.sample(range(self.slots), min(self._some(12), self.slots))
            self.planner.wishes.move(slots, self.random.choice(active))
        if self._happens(chance.replace) and (active := self.mapper.active_shard_ids()):
            self._by_hand(lambda: self._replace(self.random.choice(active)))
        if self._happens(chance.stopped_producer):
            seat = self.random.randrange(SEATS)
            self.stopped.setdefault(seat, self.now + self.random.uniform(0.5, 6.0))
            self.words.send_marks[seat] |= 1
        if self._happens(chance.hot):
            fair = self.rates.sum() / max(1, self.mapper.active_shard_count())
            self.rates[self.random.randrange(self.slots)] = fair * self.random.choice([0.0, 0.3, 0.7, 1.0, 2.5])
        if self._happens(chance.swing):
            share = self.random.uniform(0.3, 0.9) * max(1, self.mapper.active_shard_count())
            self.rates *= share * self.power / self.rates.sum()
        if self._happens(chance.killed_supervisor):
            self.take_over()

    def _happens(self, rate: float) -> bool:
        return self.random.random() < rate * TICK

    def _some(self, most: int) -> int:
        return self.random.randint(1, most)

    def _chosen(self, shards: list[int], rate: float) -> list[int]:
        return [shard for shard in shards if self.random.random() < rate * TICK]

    def _by_hand(self, what: Any) -> None:
        before = self._picture()
        try:
            what()
        except ScalingError:
            assert before == self._picture(), "a refusal changes nothing"

    def _picture(self) -> Any:
        mapper = self.mapper
        return (
            {shard: mapper.shard_state(shard) for shard in mapper.all_shard_ids()},
            self.table.shards,
            self.table.draining,
        )

    def take_over(self) -> None:
        """The supervisor is killed; the next one finds what is in memory, and what had been noted of shards."""
        states = {}
        for shard in self.mapper.all_shard_ids():
            state = self.mapper.shard_state(shard)
            states[shard] = "draining" if self.mapper.drains(shard) else str(state)
            if state is ShardState.FAILED and not self.mapper.drains(shard):
                states[shard] = "active"
        board = json.loads(json.dumps(self.planner.describe(self.now)))
        self.planner = self._new_planner(states, board)
        self.successors.clear()

    def _scale(self, decision: ScalingDecision) -> None:
        if decision.kind == "up":
            made = self.mapper.scale_up_provisioning(decision.count, self.now)
            assert len(made) == decision.count, "a decision is carried out as a whole"
            self.ups += decision.count
            self._provision(made)
        elif decision.kind == "down":
            gone = self.mapper.scale_down(decision.count, self.now, self.table.cordoned)
            assert len(gone) == decision.count
            self.downs += decision.count
            for shard in gone:
                self.table.drain_shard(shard)

    def _provision(self, shards: list[int]) -> None:
        for shard in shards:
            assert self.queued[shard] == 0 and not (self.handler == shard).any(), "an id is free when all is gone"
            fails = not self.calm and self.random.random() < self.chances.boot_failure
            self.booting[shard] = self.now + self.random.uniform(0.1, 0.6), fails

    def _replace(self, shard: int) -> None:
        successor = self.mapper.replace(shard, self.now)
        self.successors[successor] = shard
        self._provision([successor])

    def _lives(self) -> None:
        self.dead = {shard: until for shard, until in self.dead.items() if until > self.now}
        self.failed = {shard: until for shard, until in self.failed.items() if until > self.now}
        self.hung = {shard: times for shard, times in self.hung.items() if times[1] > self.now}
        for shard, (at, fails) in list(self.booting.items()):
            if at > self.now:
                continue
            del self.booting[shard]
            old = self.successors.pop(shard, None)
            if fails or (old is not None and self.mapper.shard_state(old) is not ShardState.ACTIVE):
                self.planner.abandon(shard, self.now)
            elif old is not None:
                self.planner.succeed(old, shard, self.now)
            elif self.mapper.active_shard_count() < self.policy.max_shards:
                self.planner.joined(shard, self.now)
                self.planner.wishes.eager = True
            else:
                self.planner.abandon(shard, self.now)

    def _finish_drains(self) -> None:
        held = {shard: int(np.ceil(self.queued[shard])) for shard in self.mapper.draining_shard_ids()}
        for shard in self.mapper.finalize_draining(held, self.now, self.table.shard_slot_counts(coming=True)):
            self.planner.left(shard)
            self.mapper.remove_specific_stopped_shard(shard)
            self.dead.pop(shard, None), self.hung.pop(shard, None), self.failed.pop(shard, None)

    # ---- workers and producers ---------------------------------------------------------------------------------------

    def _facts(self) -> dict[int, ShardFact]:
        return {
            shard: ShardFact(
                alive=shard not in self.dead and shard not in self.failed,
                failed="its handler is broken" if shard in self.failed else None,
                in_hand=self.now - self.hung[shard][0] if shard in self.hung else 0.0,
            )
            for shard in self.mapper.all_shard_ids()
            if self.mapper.shard_state(shard) is not ShardState.PROVISIONING
        }

    def _work(self) -> bool:
        """What live workers do about handoffs between two batches; whether any has something to say."""
        words = self.words
        able = np.ones(self.room, bool)
        able[[*self.dead, *self.failed, *self.hung]] = False
        drained = (words.phases == 2) & able[words.sources] & (words.drained != words.numbers)
        drained &= (self.queued[words.sources] <= self.power * TICK) | (self.numbers.random(self.slots) < 0.3)
        assert (self.handler[drained] == words.sources[drained]).all(), "only who handles a slot can hand it over"
        self.handler[drained] = NOBODY
        words.drained[drained] = words.numbers[drained]
        restored = (words.phases == 3) & able[words.targets] & (words.restored != words.numbers)
        assert (self.handler[restored] == NOBODY).all(), "never two owners"
        words.restored[restored] = words.numbers[restored]
        return bool(drained.any() or restored.any())

    def _arrive(self, slot: int) -> None:
        """The hold has fallen: the target handles what has waited."""
        assert self.handler[slot] == NOBODY, "the source has given it up before"
        target = int(self.words.slot_words[slot])
        self.handler[slot] = target
        self.queued[target] += self.held[slot]
        self.held[slot] = 0.0

    def _producers(self) -> None:
        for seat, until in list(self.stopped.items()):
            if until <= self.now:
                self.words.send_marks[seat] += 1
                del self.stopped[seat]

    # ---- events ------------------------------------------------------------------------------------------------------

    def _flow(self) -> None:
        heading = self.words.slot_words
        waiting = (self.handler != heading) | (self.words.phases != 0)
        there = self.queued + np.bincount(heading, self.held, self.room)
        work = self.rates * self.costs * TICK
        offered = np.bincount(heading, work, self.room)
        room = np.minimum(1.0, np.maximum(self.queue - there, 0.0) / np.maximum(offered, 1e-9))
        new = work * room[heading]
        self.arrived += new.sum()  # the producers keep the rest for later, or for themselves
        self.unaccepted += work.sum() - new.sum()
        self.held[waiting] += new[waiting]
        self.queued += np.bincount(heading[~waiting], new[~waiting], self.room)
        able = np.full(self.room, self.power * TICK)
        able[[*self.dead, *self.failed, *self.hung]] = 0.0
        done = np.minimum(self.queued, able)
        self.queued -= done
        self.queued[self.queued < 1e-6] = 0.0
        self.served += done.sum()
        self.busy = done / (self.power * TICK)
        self.busy[list(self.hung)] = 1.0

    def _samples(self) -> list[ShardSample]:
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
            )
            for shard in self.planner.measurable(self.now)
        ]

    # ---- what has to hold --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        mapper, table, words = self.mapper, self.table, self.words
        assert len(mapper.all_shard_ids()) <= self.room
        states = {shard: mapper.shard_state(shard) for shard in mapper.all_shard_ids()}
        for shard in table.shards:
            assert states.get(shard) in (ShardState.ACTIVE, ShardState.FAILED, ShardState.PROVISIONING)
        assert abs(self.arrived - self.served - self.queued.sum() - self.held.sum()) < 1e-6 * self.arrived + 1.0, (
            "an event is lost"
        )
        owner, heading = table.owners, table.view().owners
        moving = owner != heading
        in_flight = self.planner.handoffs.slots_in_flight()
        assert in_flight == moving.sum() == (words.phases != 0).sum(), "the table and memory are of one mind"
        shown = table.view(without=()).owners
        assert (words.slot_words[shown >= 0] == shown[shown >= 0]).all()
        assert (self.handler[~moving] == owner[~moving]).all(), "the table is who handles it"
        mine = self.handler[moving]
        assert ((mine == words.sources[moving]) | (mine == NOBODY)).all()
        assert (self.held[~moving] == 0).all(), "nothing is held of a slot that is not on its way"
        expected = np.bincount(words.targets[words.phases != 0], minlength=self.room)
        assert (words.holds == expected).all(), "each target knows how many slots it waits for"
        assert (words.drained <= words.numbers).all() and (words.restored <= words.numbers).all()
