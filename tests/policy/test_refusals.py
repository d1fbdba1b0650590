"""A refusal changes nothing: whatever is asked of mapper and planner, in whatever state they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmem.policy import (
    DirectlyAsked,
    LeastSlots,
    Plan,
    ScalingError,
    ScalingPolicy,
    ShardState,
    Strategy,
    Undecided,
    View,
)
from shardmem.supervisor.planner import Planner, ShardFact

from .policy_sim import ArrayWords

ROOM, SLOTS = 7, 16

CALLS = st.tuples(
    st.sampled_from(
        ["add", "force", "down", "drain", "activate", "abandon", "replace", "succeed", "fail", "recover", "cordon"]
    ),
    st.integers(0, ROOM),
    st.integers(0, ROOM),
)


def planner(states: dict[int, str], **limits: Any) -> Planner:
    policy = ScalingPolicy(**{"min_shards": 1, "max_shards": 5, "cooldown": 1.0, **limits})
    takers = [shard for shard, state in states.items() if state != ShardState.DRAINING]
    owners = [takers[slot % len(takers)] for slot in range(SLOTS)]
    made = Planner(ArrayWords(owners, ROOM, False), policy, LeastSlots(), states, now=0.0, room=ROOM)
    made.begin(0.0)
    return made


def do(made: Planner, what: str, first: int, second: int, now: float) -> None:
    mapper = made.mapper
    if what == "add":
        mapper.scale_up_provisioning(first, now)
    elif what == "force":
        mapper.scale_up_provisioning_force(first, now)
    elif what == "down":
        for shard in mapper.scale_down(first, now):
            made.drained(shard)
    elif what == "drain":
        made.drain({first, second}, now)
    elif what == "activate":
        made.joined(first, now)
    elif what == "abandon":
        made.abandon(first, now)
    elif what == "replace":
        mapper.replace(first, now)
    elif what == "succeed":
        made.succeed(first, second, now)
    elif what == "fail":
        mapper.fail(first, now)
    elif what == "recover":
        mapper.recover(first, now)
    elif first in made.table.cordoned:
        made.table.uncordon(first)
    else:
        made.table.cordon(first)


def all_of(made: Planner) -> Any:
    """Everything that a later decision could depend on."""
    mapper, table = made.mapper, made.table
    return copy.deepcopy(
        (
            {shard: (mapper.shard_state(shard), mapper.drains(shard)) for shard in range(ROOM + 1)},
            mapper.joining_shard_ids(),
            mapper.scale_down_delay,
            table.shards,
            table.draining,
            table.cordoned,
            table.pins,
            table.owners.tolist(),
            table.in_motion(),
            [table.life(shard) for shard in range(ROOM + 1)],
            made.wishes,
            made.handoffs.slots_in_flight(),
        )
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_a_refusal_changes_nothing(calls: list[tuple[str, int, int]], shards: int, least: int) -> None:
    made = planner(dict.fromkeys(range(shards), "active"), min_shards=min(least, shards))
    for step, (what, first, second) in enumerate(calls):
        before, now = all_of(made), step * 0.4
        try:
            do(made, what, first, second, now)
        except ScalingError:
            assert all_of(made) == before, f"{what} {first} {second}"
        else:
            made.advance(now)


def test_a_drained_successor_leaves_the_slots_of_the_old_shard_to_the_strategy() -> None:
    made = planner(dict.fromkeys(range(3), "active"))
    successor = made.mapper.replace(0, 1.0)
    made.succeed(0, successor, 1.0)
    made.drain([successor], 1.0)
    for step in range(20):
        made.advance(1.0 + step)
        for slot in range(SLOTS):  # workers drain at once
            made._words.drained[slot] = made._words.numbers[slot]
    assert set(made.table.owners.tolist()) == {1, 2}


def test_shards_are_not_drained_when_all_others_are_cordoned() -> None:
    made = planner(dict.fromkeys(range(3), "active"))
    made.table.cordon(1)
    with pytest.raises(ScalingError, match="nobody would take the slots of shards 0, 2: all others are cordoned"):
        made.drain([0, 2], 1.0)
    made.drain([0], 1.0)


def test_a_successor_on_its_way_is_not_one_shard_more() -> None:
    made = planner(dict.fromkeys(range(4), "active"))
    made.mapper.replace(0, 1.0)
    assert made.mapper.joining_shard_ids() == []
    added = made.mapper.scale_up_provisioning_force(1, 1.0)
    assert made.mapper.joining_shard_ids() == added
    with pytest.raises(ScalingError, match="max_shards=5"):
        made.mapper.scale_up_provisioning_force(1, 1.0)


def test_pins_cordon_and_wishes_follow_a_shard_to_its_successor() -> None:
    made = planner(dict.fromkeys(range(3), "active"))
    made.table.cordon(0)
    made.table.pins.update({1: 0, 2: 2})
    made.wishes.move([5], 0)
    successor = made.mapper.replace(0, 1.0)
    made.succeed(0, successor, 1.0)
    assert made.table.cordoned == {successor} and made.table.pins == {1: successor, 2: 2}
    assert made.wishes.moves == {5: successor}


def test_a_strategy_that_thinks_holds_up_neither_what_is_asked_by_hand_nor_a_drain_for_long() -> None:
    made, thinking = planner(dict.fromkeys(range(3), "active")), Thinks()
    made.table._asked = thinking
    made.learn(dict.fromkeys(range(3), ShardFact()), 1.0)
    made.wishes.eager = True
    made.wishes.move([0], 1)
    made.advance(2.0)
    assert made.handoffs.slots_in_flight() == 1 and not made.runner.is_even and made.wishes.eager
    made.drain([2], 3.0)
    made.advance(3.0)
    assert made.handoffs.slots_in_flight() == 1, "its plan may come any moment"
    thinking.seconds = 11.0
    made.advance(4.0)
    assert not made.table.resting_slots_of(2), "they leave"
    assert len(made.table.complaints) == 1 and "thinking for 11.0 s" in made.table.complaints[0]


class Thinks(DirectlyAsked):
    seconds = 1.0

    def plan(self, strategy: Strategy, view: View) -> Plan:
        raise Undecided(self.seconds)
