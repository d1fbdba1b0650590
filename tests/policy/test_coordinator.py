"""The table of slots: one owner each, and what is on its way."""

from __future__ import annotations

import pytest

from shardmem.policy import LeastLoad, LeastSlots, Move, Pinned, ScalingError, ShardCoordinator

from .policy_tools import owners


def refused(kind, call, *args) -> str:
    with pytest.raises(ScalingError) as caught:
        call(*args)
    assert kind == caught.value.kind
    return str(caught.value)


def test_the_first_allocation_stands():
    table = ShardCoordinator(4, [0, 1])
    assert None is table.shard_for(0)
    assert 1 == table.allocate(0, 1) == table.allocate(0, 0) == table.shard_for(0) == table.heading_for(0)
    assert 0 == table.allocate(1), "the strategy: least slots as long as nothing is measured"
    assert (
        {0: 1, 1: 0} == table.allocations()
        and [2, 3] == table.without_owner()
        and {0: 1, 1: 1} == table.shard_slot_counts()
    )
    assert [1] == table.slots_of(0)
    refused("unknown_shard", table.allocate, 2, 7)
    refused("wrong_state", ShardCoordinator(2, []).allocate, 0)
    for slot in (-1, 4):
        with pytest.raises(ValueError, match="slots are 0 to 3"):
            table.shard_for(slot)


def test_shards_without_slots_are_known_and_counted():
    assert {0: 3, 4: 0} == ShardCoordinator(3, [4, 0], owners=[0, 0, 0]).shard_slot_counts()
    with pytest.raises(ValueError, match="there are 4 slots, and owners of 3"):
        ShardCoordinator(4, [0], owners=[0, 0, 0])


def test_a_slot_on_its_way_belongs_to_its_source_and_is_not_moved_again():
    table = ShardCoordinator(6, range(3), LeastSlots(relative_limit=1.0), owners=[0] * 6)
    table.depart([0, 1], 1)

    assert (0, 1) == (table.shard_for(0), table.heading_for(0)) and {0: 6, 1: 0, 2: 0} == table.shard_slot_counts()
    assert [Move(0, 0, 1), Move(1, 0, 1)] == table.in_motion()
    assert [Move(2, 0, 2), Move(3, 0, 2)] == table.rebalance(), "planned as if they had arrived"
    assert "on its way from shard 0 to 1" in refused("wrong_state", table.depart, [5, 0], 2)
    assert None is not table.shard_for(5) and [Move(0, 0, 1), Move(1, 0, 1)] == table.in_motion(), "all or none"
    table.arrive([0, 1])
    assert {0: 4, 1: 2, 2: 0} == table.shard_slot_counts() and [] == table.in_motion()


def test_departures_that_make_no_sense_are_refused():
    table = ShardCoordinator(4, range(2), owners=[0, 0, 1, -1])
    refused("unknown_shard", table.depart, [0], 9)
    assert "there already" in refused("wrong_state", table.depart, [0, 2], 1)
    assert "no owner" in refused("wrong_state", table.depart, [3], 1)
    table.drain_shard(1)
    refused("unknown_shard", table.depart, [0], 1)


def test_a_draining_shard_gives_all_and_takes_none_and_can_only_go_when_empty():
    table = ShardCoordinator(8, range(2), LeastSlots(relative_limit=1.0), owners=owners(4, 4))
    table.drain_shard(1)
    assert (0,) == table.shards
    assert "owns 4 slots" in refused("wrong_state", table.remove_shard, 1)
    plan = table.rebalance()
    assert [(slot, 1, 0) for slot in range(4, 8)] == plan
    table.depart([move.slot for move in plan], 0)
    refused("wrong_state", table.remove_shard, 1)
    assert "4 are on their way to it" in refused("wrong_state", table.remove_shard, 0)
    table.arrive([move.slot for move in plan])
    table.remove_shard(1)
    refused("unknown_shard", table.drain_shard, 1)
    assert {0: 8} == table.shard_slot_counts()


def test_the_last_shard_keeps_its_slots_until_there_is_another():
    table = ShardCoordinator(4, [0], owners=[0] * 4)
    table.drain_shard(0)
    assert [] == table.rebalance()
    table.add_shard(1)
    assert 4 == len(ShardCoordinator(4, [1], LeastSlots(relative_limit=1.0), owners=[0] * 4).rebalance())


def test_the_death_of_a_worker_changes_nothing():
    assert not [name for name in vars(ShardCoordinator) if "died" in name or "deallocate" in name]


def test_shards_out_of_bounds_neither_give_nor_take_and_the_others_are_balanced_without_them():
    table = ShardCoordinator(30, range(4), LeastSlots(relative_limit=1.0), owners=owners(20, 10, 0, 0))
    plan = table.rebalance(without={0, 3})
    assert {(1, 2)} == {move[1:] for move in plan} and 5 == len(plan)
    table.depart([0], 1)
    assert 0 not in {move.slot for move in table.rebalance(without={0})}


# ---- a strategy of the user's ----------------------------------------------------------------------------------------


class Users:
    def __init__(self, *moves, allocate=0):
        self.moves, self.to = moves, allocate

    def allocate(self, slot, view):
        return self.to

    def rebalance(self, view):
        return [Move(*each) for each in self.moves]


def test_moves_that_make_no_sense_are_left_out_of_the_plan_and_named():
    strategy = Users((0, 0, 1), (0, 0, 1), (1, 1, 0), (2, 0, 0), (3, 0, 7), (99, 0, 1), (4, 0, 1))
    table = ShardCoordinator(8, range(2), strategy, owners=[0] * 8)
    table.depart([4], 1)
    assert [Move(0, 0, 1)] == table.rebalance()
    assert 6 == len(table.complaints) and all("Users" in each for each in table.complaints)


def test_a_strategy_that_forgets_a_draining_shard_or_raises_does_not_stop_its_drain():
    class Broken(Users):
        def rebalance(self, view):
            raise ZeroDivisionError("oops")

    for strategy, complaints in ((Users(allocate=1), 0), (Broken(allocate=1), 1), (Users(allocate=9), 4)):
        table = ShardCoordinator(4, range(2), strategy, owners=[2] * 4)
        plan = table.rebalance()
        assert 4 == len(plan) and {2} == {move.source for move in plan} and {move.target for move in plan} <= {0, 1}
        assert complaints == len(table.complaints)


def test_hot_slots_are_those_of_the_last_plan():
    table = ShardCoordinator(8, range(2), Pinned({}, LeastLoad()), owners=[0, 1] * 4)
    assert [] == table.hot_slots()
    table.rebalance(rates=[90.0] + [1.0] * 7)
    (hot,) = table.hot_slots()
    assert (0, 0, False) == (hot.slot, hot.shard, hot.alone)


def test_rates_are_of_all_slots():
    with pytest.raises(ValueError, match=r"8 slots, and rates of shape \(3,\)"):
        ShardCoordinator(8, range(2), owners=[0, 1] * 4).rebalance(rates=[1.0] * 3)


def test_an_empty_table_is_proposed_as_a_whole_and_gaps_as_the_strategy_says():
    assert {3: [0, 2], 5: [1, 3]} == ShardCoordinator(4, [5, 3]).propose()
    assert {1: [1, 2]} == ShardCoordinator(4, range(2), owners=[0, -1, -1, 0]).propose()
    assert {1: [0, 1]} == ShardCoordinator(2, range(2), Users(allocate=1)).propose()
    assert {} == ShardCoordinator(2, []).propose()
