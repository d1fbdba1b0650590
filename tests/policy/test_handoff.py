"""Handoffs one by one, and in any order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardmem.policy import (
    Allocate,
    BeginHandoff,
    Deadlines,
    Drain,
    Finished,
    HandoffCoordinator,
    HandoffError,
    HandoffState,
    LeastLoad,
    LeastSlots,
    RebalanceRunner,
    Release,
    Reroute,
    Respawn,
    ScalingError,
    ShardCoordinator,
)

from .policy_tools import owners

REROUTING, DRAINING = HandoffState.REROUTING, HandoffState.DRAINING
IDLE, STOPPED, STARTED = HandoffState.NONE, HandoffState.RELEASING, HandoffState.NONE


def made(*counts, **options):
    table = ShardCoordinator(sum(counts), range(len(counts)), owners=owners(*counts))
    return table, HandoffCoordinator(table, **options)


def states(handoffs, *slots):
    return [handoffs.state(slot) for slot in slots]


def test_a_handoff_from_begin_to_started_with_the_time_of_each_phase():
    table, handoffs = made(4, 0)
    assert [Reroute(1, (0, 2), 0, 1)] == handoffs.begin([0, 2, 0], 0, 1, 10.0)
    assert [REROUTING, IDLE] == states(handoffs, 0, 1) and 1 == table.heading_for(0) and 0 == table.shard_for(0)
    assert [Drain(1, (0, 2), 0)] == handoffs.marks_settled(1, 10.5)
    assert DRAINING is handoffs.state(0)
    assert [Release(1, (0, 2), 1)] == handoffs.drained(1, 12.5)
    assert STOPPED is handoffs.state(0) and 0 == table.shard_for(0)
    finished = Finished(1, (0, 2), 0, 1, {"reroute": 0.5, "drain": 2.0, "release": 0.25})
    assert [finished] == handoffs.released(1, 12.75)
    assert [STARTED, IDLE] == states(handoffs, 0, 1) and 1 == table.shard_for(0) and 0 == handoffs.slots_in_flight()


def test_slots_that_are_drained_early_are_released_early():
    table, handoffs = made(3, 0)
    handoffs.begin([0, 1, 2], 0, 1, 0.0)
    handoffs.marks_settled(1, 0.0)
    assert [Release(1, (1,), 1)] == handoffs.drained(1, 1.0, [1])
    assert [DRAINING, STOPPED] == states(handoffs, 0, 1)
    assert [] == handoffs.released(1, 2.0, [1]) and STARTED is handoffs.state(1)
    assert [Release(1, (0, 2), 1)] == handoffs.drained(1, 3.0)
    assert [] == handoffs.released(1, 4.0, [2])
    (finished,) = handoffs.released(1, 5.0)
    assert {"reroute": 0.0, "drain": 3.0, "release": 2.0} == finished.seconds


def test_news_of_a_phase_that_is_over_changes_nothing():
    table, handoffs = made(1, 0)
    handoffs.begin([0], 0, 1, 0.0)
    handoffs.marks_settled(1, 0.0)
    assert [] == handoffs.marks_settled(1, 1.0)
    handoffs.drained(1, 1.0)
    assert [] == handoffs.drained(1, 2.0) == handoffs.marks_settled(1, 2.0)
    handoffs.released(1, 3.0)
    assert [] == handoffs.released(1, 4.0) == handoffs.drained(1, 4.0) == handoffs.marks_settled(1, 4.0)
    handoffs.waiting_for_marks(1, [3])


def test_events_that_cannot_be_are_errors():
    table, handoffs = made(3, 1, 0)
    with pytest.raises(HandoffError, match=r"shard 0 does not own slots \[3\]"):
        handoffs.begin([0, 3], 0, 2, 0.0)
    for source, target in ((0, 0), (0, 9)):
        with pytest.raises(ScalingError):
            handoffs.begin([0], source, target, 0.0)
    with pytest.raises(HandoffError, match="no handoff 1"):
        handoffs.drained(1, 0.0)
    handoffs.begin([0], 0, 1, 0.0)
    with pytest.raises(HandoffError, match="may still push"):
        handoffs.drained(1, 0.0)
    with pytest.raises(HandoffError, match="not drained"):
        handoffs.released(1, 0.0)
    with pytest.raises(ScalingError, match="on its way"):
        handoffs.begin([1, 0], 0, 2, 0.0)
    handoffs.marks_settled(1, 0.0)
    assert [] == handoffs.released(1, 0.0), "nothing is drained yet"
    with pytest.raises(HandoffError, match=r"slots \[2\] are not in handoff 1"):
        handoffs.drained(1, 0.0, [2])
    assert [IDLE] == states(handoffs, 1) and 1 == handoffs.slots_in_flight()


def test_a_late_handoff_names_whom_it_waits_for():
    table, handoffs = made(2, 0, deadlines=Deadlines(reroute=1.0, drain=10.0, release=5.0))
    handoffs.begin([0, 1], 0, 1, 0.0)
    assert [] == handoffs.late(1.0)
    assert "pushes in progress" == handoffs.late(1.5)[0].waiting_for
    handoffs.waiting_for_marks(1, {7, 3})
    (late,) = handoffs.late(1.5)
    assert (REROUTING, 1.5, "a push in progress by the producers of seat 3, 7") == (
        late.state,
        late.seconds,
        late.waiting_for,
    )
    handoffs.marks_settled(1, 2.0)
    assert [] == handoffs.late(12.0), "each phase has a deadline of its own"
    assert "shard 0 to drain 2 slots" == handoffs.late(12.5)[0].waiting_for
    handoffs.source_died(0, 13.0)
    assert "its worker is dead" in handoffs.late(13.0)[0].waiting_for
    handoffs.respawned(0, 14.0)
    handoffs.drained(1, 15.0)
    assert "shard 1 to release 2 slots" == handoffs.late(21.0)[0].waiting_for
    (waiting,) = handoffs.waits(21.0, [1])
    assert (STOPPED, 6.0, 1, (0, 1)) == (waiting.state, waiting.seconds, waiting.shard, waiting.slots)
    assert [] == handoffs.waits(21.0, [])


def test_a_dead_worker_is_not_told_anything_until_it_is_back():
    table, handoffs = made(4, 0)
    assert [] == handoffs.source_died(0, 0.0) == handoffs.respawned(0, 0.0)
    handoffs.begin([0, 1], 0, 1, 0.0)
    assert [Respawn(0, (1,))] == handoffs.source_died(0, 0.1)
    assert [Respawn(0, (1,))] == handoffs.marks_settled(1, 0.2)
    assert [Respawn(1, (1,))] == handoffs.target_died(1, 0.3)
    assert [Drain(1, (0, 1), 0)] == handoffs.respawned(0, 0.4)
    assert [Respawn(1, (1,))] == handoffs.drained(1, 0.5, [0])
    assert [Release(1, (0,), 1)] == handoffs.respawned(1, 0.6)
    assert [Respawn(0, (1,))] == handoffs.source_died(0, 0.7)
    assert [Drain(1, (1,), 0)] == handoffs.respawned(0, 0.8), "what it has handed over stays handed over"
    assert [Release(1, (1,), 1)] == handoffs.drained(1, 0.9)
    assert [] == handoffs.source_died(0, 0.95), "nothing waits for it any more"
    assert 1 == len(handoffs.released(1, 1.0))


@pytest.mark.parametrize(
    "state, action",
    [
        (REROUTING, Reroute(1, (1, 2), 0, 1)),
        (DRAINING, Drain(1, (1, 2), 0)),
        (STOPPED, Release(1, (1, 2), 1)),
        (STARTED, Release(1, (1, 2), 1)),
    ],
)
def test_a_successor_finishes_what_it_finds(state, action):
    table = ShardCoordinator(4, range(2), owners=[0, 1, 1, 0])  # the slot words name the target
    handoffs = HandoffCoordinator(table)
    assert [action] == handoffs.resume([1, 2], 0, 1, state, 5.0)
    assert (0, 1) == (table.shard_for(1), table.heading_for(1))
    handoffs.marks_settled(1, 6.0)
    handoffs.drained(1, 6.0)
    assert 1 == len(handoffs.released(1, 6.0)) and 1 == table.shard_for(1)


def test_a_new_shard_with_the_id_of_a_dead_one_is_not_dead():
    table, handoffs = made(4, 0)
    handoffs.target_died(1, 0.0)
    runner = RebalanceRunner(table, handoffs)
    assert [] == runner.step(0.0), "nothing begins to move to a shard that cannot take it"
    table.remove_shard(1)
    table.add_shard(1)
    assert [1] == [action.target for action in runner.step(1.0)]


# ---- the runner ------------------------------------------------------------------------------------------------------


def carry_out(table, handoffs, actions, now, ends=lambda action: True):
    for action in actions:
        if isinstance(action, Allocate):
            for slot in action.slots:
                table.allocate(slot, action.shard)
            continue
        (reroute,) = handoffs.begin(action.slots, action.source, action.target, now)
        if ends(action):
            handoffs.marks_settled(reroute.handoff, now)
            handoffs.drained(reroute.handoff, now)
            handoffs.released(reroute.handoff, now)


def test_the_runner_bounds_what_is_in_flight_altogether_and_per_pair():
    table, handoffs = made(64, 0, 0)
    runner = RebalanceRunner(table, handoffs, max_in_flight=8, max_per_pair=5)
    table.strategy = LeastSlots(relative_limit=1.0)
    actions = runner.step(0.0)
    assert 8 == sum(len(action.slots) for action in actions) and all(len(action.slots) <= 5 for action in actions)
    assert {(0, 1), (0, 2)} == {(action.source, action.target) for action in actions} and len(actions) == 2
    assert actions == runner.step(0.0), "it changes nothing by itself"
    carry_out(table, handoffs, actions, 0.0, ends=lambda action: False)
    assert [] == runner.step(0.1) and 42 - 8 == runner.planned and runner.moves == runner.planned + 8
    table, handoffs = made(64, 0, 0)
    table.strategy = LeastSlots(relative_limit=1.0)
    assert [5, 5] == [len(action.slots) for action in RebalanceRunner(table, handoffs, max_per_pair=5).step(0.0)]
    for kwargs in ({"max_in_flight": 0}, {"max_per_pair": 0}):
        with pytest.raises(ValueError):
            RebalanceRunner(table, handoffs, **kwargs)


def test_handoffs_past_their_deadline_leave_room_for_others_and_their_pair_gets_no_more():
    table, handoffs = made(40, 40, 0, 0)
    table.strategy = LeastSlots(relative_limit=1.0)
    runner = RebalanceRunner(table, handoffs, max_in_flight=10, max_per_pair=10)
    carry_out(table, handoffs, runner.step(0.0), 0.0, ends=lambda action: False)
    for step in range(1, 400):
        carry_out(table, handoffs, runner.step(step * 1.0), step * 1.0, ends=lambda action: True)
    assert 10 == handoffs.slots_in_flight()
    late = handoffs.late(400.0)
    counts = table.shard_slot_counts()
    assert 10 == sum(len(each.slots) for each in late) and 70 <= sum(counts.values()) - 10
    assert [] == runner.step(400.0), "nothing that could move is left"


def test_a_producer_stopped_in_the_middle_of_a_push_holds_new_handoffs_back_and_is_named():
    table, handoffs = made(8, 0)
    runner = RebalanceRunner(table, handoffs, max_in_flight=1)
    carry_out(table, handoffs, runner.step(0.0), 0.0, ends=lambda action: False)
    handoffs.waiting_for_marks(1, [5])
    assert [] == runner.step(2.0) and "producer of seat 5 is stopped" in runner.held_back
    handoffs.waiting_for_marks(1, [])
    assert runner.step(2.0) and not runner.held_back


def test_a_plan_that_takes_several_rounds_is_carried_through_though_the_rest_is_small():
    rates = [1.0] * 1000
    table = ShardCoordinator(1000, range(2), LeastLoad(), owners=owners(1000, 0))
    handoffs = HandoffCoordinator(table)
    runner = RebalanceRunner(table, handoffs, max_in_flight=16)
    for step in range(100):
        carry_out(table, handoffs, runner.step(float(step), rates=rates), float(step))
    counts = table.shard_slot_counts()
    assert abs(counts[0] - counts[1]) <= 50, "within a quarter of the tolerance, not just within it"
    even = ShardCoordinator(1000, range(2), LeastLoad(), owners=owners(540, 460))
    assert [] == RebalanceRunner(even, HandoffCoordinator(even)).step(0.0, rates=rates), (
        "that alone is no reason to begin"
    )
    assert RebalanceRunner(even, HandoffCoordinator(even)).step(0.0, rates=rates, eager=True)


# ---- any order of anything -------------------------------------------------------------------------------------------


class Slots(RuleBasedStateMachine):
    """Shards come, drain and die; handoffs are slow, stuck, partly done and told twice. Beside it a plain record of who
    handles what, kept by the actions: it is what the workers would do.
    """

    @initialize(
        shards=st.integers(1, 4),
        kind=st.sampled_from([LeastSlots(), LeastLoad(), LeastSlots(absolute_limit=2)]),
        in_flight=st.integers(1, 20),
        pair=st.integers(1, 10),
        bare=st.booleans(),
    )
    def start(self, shards, kind, in_flight, pair, bare):
        self.slots, self.now = 40, 0.0
        self.rates = [1.0 + slot % 5 for slot in range(self.slots)]
        self.table = ShardCoordinator(
            self.slots, range(shards), kind, owners=None if bare else [slot % shards for slot in range(self.slots)]
        )
        self.handoffs = HandoffCoordinator(self.table, Deadlines(1.0, 2.0, 2.0))
        self.runner = RebalanceRunner(self.table, self.handoffs, max_in_flight=in_flight, max_per_pair=pair)
        self.handler = [self.table.shard_for(slot) for slot in range(self.slots)]  # None: nobody, events wait
        self.draining, self.dead = set(), set()
        self.moves = {}  # handoff -> [slots that have not arrived, source, target, phase]
        self.stuck = set()

    def obey(self, actions):
        for action in actions:
            if isinstance(action, Reroute):
                assert action.source != action.target
                assert all(self.handler[slot] == action.source for slot in action.slots)
                assert not any(slot in each[0] for each in self.moves.values() for slot in action.slots)
                self.moves[action.handoff] = [action.slots, action.source, action.target, "reroute"]
            elif isinstance(action, Drain):
                assert action.shard not in self.dead and action.shard == self.moves[action.handoff][1]
                self.moves[action.handoff][3] = "drain"
            elif isinstance(action, Release):
                assert action.shard not in self.dead and action.shard == self.moves[action.handoff][2]
                assert all(self.handler[slot] in (None, action.shard) for slot in action.slots)
                for slot in action.slots:
                    self.handler[slot] = action.shard
            elif isinstance(action, Respawn):
                assert action.shard in self.dead
            elif isinstance(action, Finished):
                left, source, target, _ = self.moves.pop(action.handoff)
                assert () == left and (source, target) == (action.source, action.target)

    def some(self, data, phase):
        found = [number for number, each in self.moves.items() if each[3] == phase and number not in self.stuck]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(step=st.sampled_from([0.1, 0.7, 3.0]))
    def time_passes(self, step):
        self.now += step

    @rule(eager=st.booleans())
    def step(self, eager):
        actions = self.runner.step(self.now, rates=self.rates, eager=eager)
        assert [] == self.table.complaints
        for action in actions:
            if isinstance(action, Allocate):
                for slot in action.slots:
                    assert self.handler[slot] is None and action.shard == self.table.allocate(slot, action.shard)
                    self.handler[slot] = action.shard
            else:
                assert isinstance(action, BeginHandoff) and action.target not in self.draining
                self.obey(self.handoffs.begin(action.slots, action.source, action.target, self.now))

    @rule(data=st.data(), left=st.sampled_from([None, None, 0]))
    def marks_settle(self, data, left):
        if (number := self.some(data, "reroute")) is not None:
            slots, source, *_ = self.moves[number]
            self.moves[number][3] = "drain"
            if left == 0:
                for slot in slots:
                    self.handler[slot] = None
            self.obey(self.handoffs.marks_settled(number, self.now, left))

    @rule(data=st.data())
    def drained(self, data):
        if (number := self.some(data, "drain")) is not None and self.moves[number][1] not in self.dead:
            slots, source, *_ = self.moves[number]
            part = data.draw(st.none() | st.sets(st.sampled_from(slots), min_size=1)) if slots else None
            for slot in slots if part is None else part:
                if self.handler[slot] == source:
                    self.handler[slot] = None
            self.obey(self.handoffs.drained(number, self.now, part))

    @rule(data=st.data())
    def released(self, data):
        if (number := self.some(data, "drain")) is not None:
            slots, source, target, _ = self.moves[number]
            part = [slot for slot in slots if self.handler[slot] == target]
            self.moves[number][0] = tuple(slot for slot in slots if slot not in part)
            self.obey(self.handoffs.released(number, self.now, part))
            assert all(self.table.shard_for(slot) == target for slot in part), "each is its target's at once"

    @rule(data=st.data())
    def one_gets_stuck(self, data):
        if self.moves and len(self.stuck) < 5:
            self.stuck.add(data.draw(st.sampled_from(sorted(self.moves))))

    @rule()
    def they_go_on(self):
        self.stuck.clear()

    @rule(shard=st.integers(0, 6))
    def dies(self, shard):
        if shard in self.table.shards or shard in self.draining:
            self.dead.add(shard)
            before = self.table.allocations()
            self.obey(self.handoffs.source_died(shard, self.now))
            self.obey(self.handoffs.target_died(shard, self.now))
            assert before == self.table.allocations()

    @rule()
    def comes_back(self):
        for shard in sorted(self.dead):
            self.dead.discard(shard)
            self.obey(self.handoffs.respawned(shard, self.now))

    @rule(shard=st.integers(0, 6))
    def joins(self, shard):
        if shard not in self.table.shards and shard not in self.draining:
            self.table.add_shard(shard)

    @precondition(lambda self: len(self.table.shards) > 1)
    @rule(data=st.data())
    def drains(self, data):
        shard = data.draw(st.sampled_from(self.table.shards))
        self.table.drain_shard(shard)
        self.draining.add(shard)

    @rule()
    def goes(self):
        for shard in sorted(self.draining):
            held = shard in self.handler or any(shard in each[1:3] for each in self.moves.values())
            try:
                self.table.remove_shard(shard)
            except ScalingError:
                assert held
            else:
                assert not held
                self.draining.discard(shard)
                self.dead.discard(shard)

    @invariant()
    def one_owner_and_one_move_per_slot(self):
        if not hasattr(self, "table"):
            return
        moving = [slot for each in self.moves.values() for slot in each[0]]
        assert len(moving) == len(set(moving)) == self.handoffs.slots_in_flight()
        assert set(moving) == {move.slot for move in self.table.in_motion()}
        for slot in range(self.slots):
            if slot not in moving:
                assert self.handler[slot] == self.table.shard_for(slot)
        for slots, source, target, phase in self.moves.values():
            for slot in slots:
                assert self.table.shard_for(slot) == source and self.table.heading_for(slot) == target
                state = self.handoffs.state(slot)
                assert (state is REROUTING) == (phase == "reroute")
                assert (
                    self.handler[slot]
                    in {REROUTING: [source], DRAINING: [source], STOPPED: [None, target], STARTED: [target]}[state]
                )

    def teardown(self):
        """Whatever has happened: when all live and nothing is stuck, it comes to rest, even, and stays there."""
        if not hasattr(self, "table"):
            return
        self.stuck.clear()
        self.comes_back()
        for _ in range(600):
            self.now += 0.25
            self.step(True)
            for number in list(self.moves):
                if self.moves[number][3] == "reroute":
                    self.moves[number][3] = "drain"
                    self.obey(self.handoffs.marks_settled(number, self.now))
                slots, source, target, _ = self.moves[number]
                for slot in slots:
                    if self.handler[slot] == source:
                        self.handler[slot] = None
                self.obey(self.handoffs.drained(number, self.now))
                self.moves[number][0] = ()
                self.obey(self.handoffs.released(number, self.now))
            self.goes()
            if not self.runner.step(self.now, rates=self.rates, eager=True) and not self.moves:
                break
        else:
            raise AssertionError("no rest")
        assert not self.draining and None not in self.handler
        loads = dict.fromkeys(self.table.shards, 0.0)
        for slot, shard in enumerate(self.handler):
            loads[shard] += self.rates[slot] if isinstance(self.table.strategy, LeastLoad) else 1.0
        assert max(loads.values()) - min(loads.values()) <= (5.0 if isinstance(self.table.strategy, LeastLoad) else 1.0)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_a_handoff_of_a_failed_shard_waits_and_names_the_failure_until_it_is_started_again():
    table, handoffs = made(2, 0)
    handoffs.begin([0, 1], 0, 1, 0.0)
    handoffs.failed(0, "its handler raised ValueError", 0.1)
    assert [Respawn(0, (1,))] == handoffs.marks_settled(1, 0.2)
    assert (
        "it has failed and has to be started again: its handler raised ValueError" in handoffs.waits(1.0)[0].waiting_for
    )
    assert {0} == handoffs.load(1.0)[2], "nothing else is planned for it"
    assert [Drain(1, (0, 1), 0)] == handoffs.respawned(0, 5.0)
    assert "failed" not in handoffs.waits(5.0)[0].waiting_for and set() == handoffs.load(5.0)[2]


def test_slots_arrive_one_by_one_and_can_move_again_before_the_others():
    table, handoffs = made(2, 0, 0)
    handoffs.begin([0, 1], 0, 1, 0.0)
    handoffs.marks_settled(1, 0.0)
    handoffs.drained(1, 0.1, [0])
    handoffs.released(1, 0.2, [0])
    assert 1 == table.shard_for(0) and 0 == table.shard_for(1) and 1 == handoffs.slots_in_flight()
    assert [Reroute(2, (0,), 1, 2)] == handoffs.begin([0], 1, 2, 0.3)
