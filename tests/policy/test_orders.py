"""A strategy is asked for plans that can be carried out: where slots move by order alone, orders do not wait for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shardmem.policy import LeastSlots, Move, ScalingPolicy, View
from shardmem.supervisor.planner import Planner, ShardFact

from .policy_sim import ArrayWords

SLOTS, ROOM = 16, 4


class Counted(LeastSlots):
    asked = 0

    def rebalance(self, view: View) -> list[Move]:
        type(self).asked += 1
        return super().rebalance(view)


def planner(owners: Sequence[int], *, automatic: bool) -> Planner:
    Counted.asked = 0
    states = dict.fromkeys((0, 1), "active")
    policy = ScalingPolicy(max_shards=4)
    made = Planner(
        ArrayWords(list(owners), ROOM, False), policy, Counted(), states, now=0.0, room=ROOM, automatic=automatic
    )
    made.begin(0.0)
    made.learn({shard: ShardFact() for shard in (0, 1)}, 0.0)
    return made


def test_an_order_does_not_ask_a_strategy_that_may_move_nothing_and_a_tick_does() -> None:
    made = planner([0] * SLOTS, automatic=False)
    made.wishes.moves = {3: 1}
    made.advance(0.1)
    assert [3] == [move.slot for move in made.table.in_motion()] and Counted.asked == 0
    made.tick([], None, 0.2)
    assert Counted.asked == 1, "for those who look at what it thinks"


@pytest.mark.parametrize("why", ["automatic", "eager", "a pin", "a drain"])
def test_it_is_asked_at_once_for_what_can_be_carried_out(why: str) -> None:
    made = planner([0] * SLOTS if why != "a drain" else [0, 1] * (SLOTS // 2), automatic=why == "automatic")
    made.wishes.eager = why == "eager"
    if why == "a pin":
        made.pin([5], 1)
    if why == "a drain":
        made.drain({1}, 0.0)
    made.advance(0.1)
    assert Counted.asked == 1 and made.table.in_motion()
