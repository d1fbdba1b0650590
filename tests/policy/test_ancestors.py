"""Every fault of the ancestors that a policy can have: their rule goes wrong in the scenario, ours does not.

Numbers as in the list of faults: N of net-mesh, R of atomr-cluster-sharding.
"""

from __future__ import annotations

import numpy as np
import pytest

from shardmem.policy import (
    HandoffCoordinator,
    HandoffState,
    LeastLoad,
    LeastSlots,
    RebalanceRunner,
    ScalingError,
    ShardCoordinator,
    ShardMapper,
    ShardSample,
    ShardState,
    View,
    first_table,
)
from shardmem.policy.handoff import Drain as DrainAction
from shardmem.policy.handoff import Finished, Release, Respawn

from .policy_ancestors import Counted, Counter, Drain, Gate, Ids, LeastShard, Votes, emptiest
from .policy_tools import load, loads, owners, policy, settled, sums, watch

# ---- scaling ---------------------------------------------------------------------------------------------------------


def test_N1_idle_shards_are_kept_for_the_whole_scale_down_delay():
    assert -2 == Votes(scale_down_delay=3600).decide([(0.0, 0.0, 0)] * 4)

    mapper = ShardMapper(4, policy(scale_down_delay=3600.0))
    now = watch(mapper, 0, 60, load())

    decision = mapper.evaluate_scaling(now)
    assert ("none", "scale_down_delay") == (decision.kind, decision.cause)
    assert ("down", 3) == (decision.advice.kind, decision.advice.count)
    now = watch(mapper, now, 3600, load(), every=5.0)
    assert ("down", 3) == (mapper.evaluate_scaling(now).kind, mapper.evaluate_scaling(now).count)


def test_N1_a_peak_within_the_delay_is_what_the_engine_shrinks_to():
    mapper = ShardMapper(8, policy(scale_down_delay=60.0))
    now = watch(mapper, 0, 30, load(busy=0.01))
    now = watch(mapper, now, 5, load(busy=0.25))  # two shards' worth
    now = watch(mapper, now, 50, load(busy=0.01))

    decision = mapper.evaluate_scaling(now)

    assert ("down", 4) == (decision.kind, decision.count), decision.reason
    assert "no more than 4 were needed" in decision.reason


def test_N2_pushes_that_cost_what_pushes_cost_are_no_reason_to_grow():
    assert 2 == Votes().decide([(0.0, 20.0, 1000)] * 4)

    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 5, load(busy=0.4, push_wait=200e-9, rate=1e6))

    assert "none" == mapper.evaluate_scaling(now).kind


def test_N2_a_latency_in_another_unit_than_seconds_is_refused():
    with pytest.raises(ScalingError, match="push_latency_threshold.*unit is seconds"):
        policy(push_latency_threshold=5e-9)


def test_N3_a_decision_of_four_makes_four_shards():
    assert 1 == Gate(cooldown=2.0).add(4, now=0.0)

    mapper = ShardMapper(8, policy())
    now = watch(mapper, 0, 5, load(fill_ratio=0.95, busy=1.0))
    decision = mapper.evaluate_scaling(now)
    assert ("up", 4) == (decision.kind, decision.count)

    made = mapper.scale_up_provisioning(decision.count, now)

    assert [8, 9, 10, 11] == made
    assert all(mapper.activate(shard, now + 0.1) for shard in made)
    assert 12 == mapper.active_shard_count()
    with pytest.raises(ScalingError) as caught:
        mapper.scale_up_provisioning(1, now + 0.1)
    assert "in_cooldown" == caught.value.kind


def test_N4_a_push_that_races_the_drain_delays_it_until_it_is_handled_and_no_longer():
    theirs = Drain()
    theirs.push()
    theirs.length = 0  # handled
    assert not theirs.done(elapsed=3600)

    mapper = ShardMapper(2, policy())
    mapper.drain_specific(1, 0.0)

    assert [] == mapper.finalize_draining({1: 1}, 0.5)
    assert [] == mapper.finalize_draining({}, 0.5), "not knowing is not zero"
    assert [1] == mapper.finalize_draining({1: 0}, 0.6)
    assert ShardState.STOPPED is mapper.shard_state(1)


def test_N5_reading_the_metrics_does_not_make_a_busy_engine_look_idle():
    counter = Counter(events=1000)
    assert 1000 == counter.read()
    assert -2 == Votes().decide([(0.0, 0.0, counter.read())] * 4)

    mapper = ShardMapper(4, policy(scale_down_delay=5.0))
    now = watch(mapper, 0, 60, load(busy=0.6, rate=1e5))
    before = mapper.evaluate_scaling(now)
    for _ in range(50):
        read = mapper.metrics(now)
        mapper.weights()
        mapper.collect_metrics([], now)
        mapper.collect_metrics([ShardSample(shard) for shard in range(4)], now)  # the second sample of the same moment

    assert before == mapper.evaluate_scaling(now)
    assert "none" == before.kind
    assert 0.6 == pytest.approx(read[0].busy) and 1e5 == pytest.approx(read[0].rate)


def test_N6_one_hot_shard_of_eight_is_answered_by_moving_slots():
    assert 0 == Votes().decide([(0.999, 0.0, 1000)] + [(0.0, 0.0, 10)] * 7)

    mapper = ShardMapper(8, policy())
    now = watch(mapper, 0, 5, loads({"busy": 1.0, "fill_ratio": 0.999}, *[0.3] * 7))

    decision = mapper.evaluate_scaling(now)
    assert ("rebalance", "uneven") == (decision.kind, decision.cause)
    assert "shard 0 fuller than 70% (100%)" in decision.reason
    assert [0] == decision.evidence["overloaded"]


def test_N7_a_trickle_does_not_keep_shards():
    assert 0 == Votes().decide([(0.0, 0.0, 1)] * 4)

    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 15, load(busy=0.0001, rate=10.0))

    assert ("down", 3) == (mapper.evaluate_scaling(now).kind, mapper.evaluate_scaling(now).count)


def test_N8_a_small_difference_of_fill_moves_a_small_share_of_the_keyless_events():
    fills = [0.0152 + 0.0011 * shard for shard in range(8)]
    hashes = [(draw * 0x9E3779B97F4A7C15) % 2**64 for draw in range(4000)]
    assert {0} == {emptiest(each, fills) for each in hashes}

    mapper = ShardMapper(8, policy())
    watch(mapper, 0, 2, loads(*[{"fill_ratio": fill} for fill in fills]))

    counts = np.bincount([mapper.select_shard(each) for each in hashes], minlength=8) / len(hashes)
    assert counts.min() > 0.10 and counts.max() < 0.15


def test_N8_four_to_five_shards_moves_no_more_than_a_fifth_of_the_slots():
    slots = range(1000)
    assert (
        sum(slot * 4 // 1000 != slot * 5 // 1000 for slot in slots) > 400
    )  # a table that is stretched over more shards

    for strategy, rates in ((LeastSlots(), None), (LeastLoad(), None), (LeastLoad(), [10.0] * 1000)):
        _, moves = settled(strategy, View.of(first_table(1000, range(4)), range(5), rates=rates))
        assert 180 <= len(moves) <= 200 and {4} == {move.target for move in moves}


def test_ids_are_used_again_and_never_run_out():
    theirs = Ids()
    assert None is [theirs.take() for _ in range(65536)][-1]

    mapper = ShardMapper(1, policy(), room=3)
    for now in range(70_000):
        assert [1] == mapper.scale_up_provisioning_force(1, now)
        mapper.abandon(1, now)
        mapper.remove_specific_stopped_shard(1)


# ---- rebalancing -----------------------------------------------------------------------------------------------------

STARTS = [(3, 2), (5, 1), (7, 6), (10, 9), (10, 0), (0, 0, 12), (1, 1, 1, 9)]


def test_R1_their_rule_collapses_or_swings_for_ever():
    theirs = LeastShard.of(3, 2)
    for _ in range(60):
        theirs.tick()
    assert {1: 5} == theirs.counts()
    for start in ((5, 1), (7, 6), (10, 9)):
        theirs = LeastShard.of(*start)
        assert sum(theirs.tick() for _ in range(60)) > 60


def test_R2_a_threshold_of_two_still_swings():
    theirs = LeastShard.of(5, 1, threshold=2)
    assert sum(theirs.tick() for _ in range(60)) > 60


def test_R3_their_newcomer_never_gets_anything():
    theirs = LeastShard.of(10, 0)
    assert 0 == sum(theirs.tick() for _ in range(60)) and 0 == theirs.target()
    assert None is LeastShard().target()


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize("limit", [1, 2, 3, None])
@pytest.mark.parametrize("load", ["by count", "by load"])
def test_R1_R2_R3_ours_reaches_the_optimum_from_every_start_and_stays(start, limit, load):
    strategy = (LeastSlots if load == "by count" else LeastLoad)(absolute_limit=limit, relative_limit=1.0)
    rates = [1.0] * sum(start) if load == "by load" else None
    view = View.of(owners(*start), range(len(start)), rates=rates, eager=True)

    view, moves = settled(strategy, view)

    counts = sums(view, [1.0] * sum(start))
    assert max(counts) - min(counts) <= 1
    excess = sum(start) // len(start)
    assert len(moves) <= sum(max(0, count - excess) for count in start)
    for _ in range(60):
        assert [] == strategy.rebalance(view)


def test_R3_an_empty_table_is_filled():
    table = ShardCoordinator(64, range(4))
    actions = RebalanceRunner(table, HandoffCoordinator(table)).step(0.0)

    for action in actions:
        for slot in action.slots:
            assert action.shard == table.allocate(slot, action.shard)

    assert dict.fromkeys(range(4), 16) == table.shard_slot_counts()


def test_R4_a_handoff_with_nothing_to_drain_completes_without_the_source():
    theirs = Counted()
    theirs.begin(0)
    assert "handing off" == theirs.state and not theirs.begin(0)

    table = ShardCoordinator(4, range(2), owners=[0, 0, 0, 0])
    handoffs = HandoffCoordinator(table)
    (reroute,) = handoffs.begin([2], 0, 1, 0.0)
    (release,) = handoffs.marks_settled(reroute.handoff, 0.001, left=0)
    assert isinstance(release, Release) and 1 == release.shard
    (finished,) = handoffs.released(reroute.handoff, 0.002)
    assert isinstance(finished, Finished) and 1 == table.shard_for(2)
    assert handoffs.begin([2], 1, 0, 0.003), "and it may move again"
    assert [] == handoffs.begin([], 0, 1, 0.0), "no slots, no handoff"


def test_R5_stuck_handoffs_do_not_stop_the_others():
    theirs = LeastShard.of(20, 10)
    assert 0 == sum(theirs.tick(stuck=frozenset({0, 1, 2})) for _ in range(60))

    # shard 0 hands over nothing any more: its worker hangs. 1 is full, 2 is empty
    table = ShardCoordinator(60, range(3), LeastSlots(absolute_limit=3), owners=owners(30, 30, 0))
    handoffs = HandoffCoordinator(table)
    runner = RebalanceRunner(table, handoffs, max_in_flight=3)
    now = 0.0
    for _ in range(600):
        now += 1.0
        for action in runner.step(now):
            (reroute,) = handoffs.begin(action.slots, action.source, action.target, now)
            handoffs.marks_settled(reroute.handoff, now)
            if action.source != 0:
                handoffs.drained(reroute.handoff, now)
                handoffs.released(reroute.handoff, now)

    counts = table.shard_slot_counts()
    assert 15 == counts[1] == counts[2], "what can move has moved"
    assert {0} == {late.source for late in handoffs.late(now)} and 3 == handoffs.slots_in_flight()
    assert all(late.waiting_for.startswith("shard 0 to drain") for late in handoffs.late(now))


def test_R7_a_dead_source_is_started_again_and_drains():
    theirs = Counted()
    theirs.begin(2)
    assert "handing off" == theirs.state  # and nothing that can happen to a dead one changes it

    table = ShardCoordinator(4, range(2), owners=[0, 0, 0, 0])
    handoffs = HandoffCoordinator(table)
    (reroute,) = handoffs.begin([2, 3], 0, 1, 0.0)
    handoffs.marks_settled(reroute.handoff, 0.0)

    assert [Respawn(0, (reroute.handoff,))] == handoffs.source_died(0, 1.0)
    assert "dead" in handoffs.late(100.0)[0].waiting_for
    assert [DrainAction(reroute.handoff, (2, 3), 0)] == handoffs.respawned(0, 100.0)
    assert [] == handoffs.late(100.0), "the deadline begins again"
    handoffs.drained(reroute.handoff, 100.1)
    handoffs.released(reroute.handoff, 100.1)
    assert [0, 0, 1, 1] == [table.shard_for(slot) for slot in range(4)]


def test_R8_nothing_moves_to_where_it_is():
    theirs = LeastShard(owner=dict.fromkeys(range(4), 0))
    assert 0 == theirs.target() == theirs.owner[0]

    class Stubborn:
        def allocate(self, slot, view):
            return view.shards[0]

        def rebalance(self, view):
            from shardmem.policy import Move

            return [Move(slot, int(owner), int(owner)) for slot, owner in enumerate(view.owners)]

    table = ShardCoordinator(4, range(2), Stubborn(), owners=[0, 0, 0, 0])
    assert [] == table.rebalance() and "is there already" in table.complaints[0]
    with pytest.raises(ScalingError, match="is there already"):
        table.depart([1], 0)


def test_R9_the_limits_of_a_strategy_are_used():
    view = View.of(owners(60, 0), range(2))
    assert 3 == len(LeastSlots(absolute_limit=3).rebalance(view))
    assert 6 == len(LeastSlots(relative_limit=0.1).rebalance(view))
    assert 1 == len(LeastSlots(relative_limit=0.001).rebalance(view))
    assert 3 == len(LeastLoad(absolute_limit=3).rebalance(View.of(owners(60, 0), range(2), rates=[1.0] * 60)))


def test_a_hot_shard_beyond_help_is_not_answered_with_more_and_more_shards():
    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 15, loads({"busy": 1.0, "fill_ratio": 1.0, "alone": True}, 0.35, 0.35, 0.35))

    decision = mapper.evaluate_scaling(now)

    assert ("none", "hot_slot") == (decision.kind, decision.cause)
    assert "no slot can be split" in decision.reason


def test_handoff_states_have_the_names_of_the_ancestor_where_they_mean_the_same():
    assert {"IDLE", "STOPPED", "STARTED"} < set(HandoffState.__members__)
