"""The policies of a whole engine under everything that can happen to one. A failure names its seed."""

from __future__ import annotations

import statistics
from contextlib import contextmanager

import numpy as np
import pytest

from shardmem.policy import LeastLoad, LeastSlots

from .policy_sim import Chances, World
from .policy_tools import policy


@contextmanager
def told(world):
    try:
        yield world
    except BaseException as error:
        error.args = (
            f"seed {world.seed}, {world.shards} shards, {world.slots} slots, tick {world.ticks} ({world.now:g} s): "
            f"{' '.join(map(str, error.args))}",
        )
        raise


def small(seed, strategy=LeastLoad(), **chances):
    harsh = {
        "death": 0.05,
        "hang": 0.02,
        "join": 0.1,
        "leave": 0.1,
        "hot": 0.2,
        "swing": 0.05,
        "stopped_producer": 0.1,
        "fail": 0.01,
        "killed_supervisor": 0.05,
    }
    return World(
        seed,
        shards=6,
        slots=128,
        strategy=strategy,
        chances=Chances(**{**harsh, **chances}),
        max_in_flight=24,
        max_per_pair=8,
        policy=policy(min_shards=2, max_shards=12, cooldown=1.0, scale_down_delay=8.0),
    )


@pytest.mark.parametrize("seed", range(16))
def test_a_small_engine_survives_everything_and_comes_to_rest(seed):
    with told(small(seed, LeastSlots() if seed % 4 == 3 else LeastLoad())) as world:
        for _ in range(320):
            world.tick()
        world.take_over()
        world.rest()
        assert world.moved > 20
        assert 0 == world.planner.runner.planned
        even(world)


@pytest.mark.parametrize("seed", range(8))
def test_a_stop_at_any_moment_leaves_nothing_but_what_waits_for_a_failed_shard(seed):
    with told(small(seed, fail=0.05)) as world:
        for _ in range(60 + 20 * seed):
            world.tick()
        world.stop()
        out = world.planner.unreachable()
        assert set(world.failed) <= out
        waiting = {each.target for each in world.table.in_motion()} | set(np.flatnonzero(world.queued > 1e-6).tolist())
        assert waiting <= out, "nobody handles these"


def test_a_replacement_that_a_killed_supervisor_had_begun_is_gone_on_with():
    world = World(1, 3, 48, policy(min_shards=3, max_shards=4), LeastSlots(), Chances(*[0.0] * 13))
    world.hung[0] = 0.0, 1e9  # it hands over nothing
    mine = set(world.table.slots_of(0))
    world._replace(0)
    while world.mapper.draining_shard_ids() != [0]:
        world.tick()
    world.take_over()
    world.hung.clear()
    world.rest(5.0)
    assert mine == set(world.table.slots_of(3)) and len(mine) == 16


def even(world):
    """No shard has more than a fair share and a bit, except for what a slot cannot be divided into."""
    if isinstance(world.strategy, LeastSlots):
        counts = list(world.table.shard_slot_counts().values())
        assert max(counts) - min(counts) <= 1
        return
    loads = np.bincount(world.handler, world.rates, world.room)
    hot = world.strategy.hot_slots(world.table.view(rates=world.rates))
    hosts = {each.shard: world.rates[each.slot] for each in hot}
    others = [shard for shard in world.table.shards if shard not in hosts]
    fair = (loads.sum() - sum(hosts.values())) / max(1, len(others))
    rest = np.delete(world.rates, [each.slot for each in hot])
    for shard in world.table.shards:
        limit = hosts.get(shard, 0.0) * 1.2 if shard in hosts else 0.0
        assert loads[shard] <= max(limit, fair * 1.2 + min(rest.max(), fair / 2)), f"shard {shard}"


def test_a_thousand_shards_and_sixteen_thousand_slots():
    world = World(
        seed=2024,
        shards=1000,
        slots=16_384,
        chances=Chances(hot=1.0, join=0.3, leave=0.3),
        policy=policy(min_shards=900, max_shards=1100, cooldown=2.0, scale_down_delay=10.0),
    )
    with told(world):
        for _ in range(120):
            world.tick()
        assert world.moved > 500
        world.rest(seconds=12.0)
        even(world)
    cost = sorted(1000 * each for each in world.cost)
    print(
        f"\ncontrol tick at 1,000 shards and 16,384 slots: median {statistics.median(cost):.1f} ms, "
        f"90 % {cost[len(cost) * 9 // 10]:.1f} ms, worst {cost[-1]:.1f} ms of {len(cost)} ticks; {world.moved:,} slots "
        "moved"
    )


def test_the_same_seed_is_the_same_history():
    first, second = small(5), small(5)
    for _ in range(120):
        first.tick(), second.tick()
    assert first.moved == second.moved and (first.handler == second.handler).all()
    assert [each.reason for each in first.decisions] == [each.reason for each in second.decisions]


def test_a_failure_names_its_seed():
    with pytest.raises(AssertionError, match="seed 77, 6 shards, 128 slots, tick 0"):
        with told(small(77)):
            raise AssertionError("something")


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_grows_with_its_load_and_shrinks_when_it_goes(seed):
    with told(
        World(seed, shards=1, slots=128, policy=policy(max_shards=8, cooldown=1.0, scale_down_delay=8.0), work=0.1)
    ) as world:
        world.calm = True
        for _ in range(20):
            world.tick()
        assert 1 == world.mapper.active_shard_count()
        world.rates *= 40.0  # four shards' worth
        for _ in range(160):
            world.tick()
        peak = world.mapper.active_shard_count()
        assert 5 <= peak <= 8
        assert world.queued.max() < world.queue / 2, "it has caught up"
        world.rates /= 40.0
        world.rest(seconds=20.0)
        assert 1 == world.mapper.active_shard_count()
        kinds = [str(each.kind) for each in world.decisions if each.count]
        assert kinds == sorted(kinds, reverse=True), "up, then down, and never back and forth"


@pytest.mark.parametrize("seed", range(4))
def test_a_hot_slot_is_left_alone_and_not_answered_with_shards(seed):
    world = World(seed, shards=4, slots=256, work=0.2, policy=policy(min_shards=4, max_shards=8, cooldown=1.0))
    with told(world):
        world.calm = True
        world.rates[17] = 1.5 * world.power
        for _ in range(240):
            world.tick()
        assert 4 == world.mapper.active_shard_count()
        (hot,) = world.table.hot_slots()
        assert (17, True) == (hot.slot, hot.alone)
        loads = np.bincount(world.handler, world.rates, 4)
        others = np.delete(loads, hot.shard)
        assert others.max() / others.min() < 1.22 and "hot_slot" == world.decisions[-1].cause
        assert "rebalance" in {str(each.kind) for each in world.decisions}
