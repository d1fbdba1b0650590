"""A shard waits because what is downstream is away: that is no load, and nothing that was asked waits for it."""

from __future__ import annotations

from shardmem.policy import DecisionKind, LeastLoad, ScalingPolicy, ShardSample
from shardmem.supervisor.planner import Planner, ShardFact

from .policy_sim import ArrayWords

SLOTS, ROOM, TICK, AWAY = 64, 6, 0.25, "ConnectionError: the sink is away"


def planner(shards: int) -> Planner:
    owners, states = [slot % shards for slot in range(SLOTS)], dict.fromkeys(range(shards), "active")
    made = Planner(
        ArrayWords(owners, ROOM, False), ScalingPolicy(max_shards=4), LeastLoad(), states, now=0.0, room=ROOM
    )
    made.begin(0.0)
    return made


def kinds(made: Planner, waiting: set[int], first: int, ticks: int) -> set[DecisionKind]:
    """What the policy says while the lanes of all shards are full."""
    found = set()
    for tick in range(first, first + ticks):
        now = tick * TICK
        made.learn({shard: ShardFact(waits=AWAY if shard in waiting else None) for shard in (0, 1)}, now)
        full = [ShardSample(shard, fill_ratio=1.0, push_wait=0.1) for shard in made.measurable(now)]
        found.add(made.tick(full, None, now).kind)
    return found


def test_full_lanes_of_shards_that_wait_are_no_need_for_more_shards() -> None:
    made = planner(2)
    assert {DecisionKind.NONE} == kinds(made, {0, 1}, 1, 100)
    assert DecisionKind.UP in kinds(made, set(), 101, 20), "what has piled up is, when it can be handled"


def test_slots_are_even_without_those_of_a_shard_that_waits_and_are_evened_out_when_it_does_not() -> None:
    made = planner(2)
    made.mapper.scale_up_provisioning_force(1, 0.5)
    made.joined(2, 0.5)
    made.wishes.eager = True
    for now, waits in ((1.0, AWAY), (2.0, AWAY)):
        made.learn({0: ShardFact(waits=waits), 1: ShardFact(waits=waits), 2: ShardFact()}, now)
        made.advance(now)
        assert made.runner.is_even and not made.handoffs.slots_in_flight() and made.wishes.eager
    made.learn(dict.fromkeys(range(3), ShardFact()), 3.0)
    made.advance(3.0)
    assert made.handoffs.slots_in_flight() and not made.runner.is_even


def test_what_is_asked_by_hand_of_a_shard_that_waits_begins_and_says_what_it_waits_for() -> None:
    made = planner(2)
    made.learn({0: ShardFact(waits=AWAY), 1: ShardFact()}, 1.0)
    made.wishes.move([0], 1)
    made.advance(1.0)
    made.progress(1.1)
    (late,) = made.waits(2.0, [0])
    assert f"shard 0 to drain 1 slots; it waits and tries again: {AWAY}" == late.waiting_for
