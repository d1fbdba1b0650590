"""Loads that made earlier policies move and scale for nothing: the planner of production against a fluid simulation.

The figures of version 0774122 under the same loads were 607 moves a minute (hot slot every 3 s), 10 scale-ups in 400 s
(long batch), 49 in 600 s (bimodal), and costly slots that were never parted.
"""

from __future__ import annotations

import numpy as np
import pytest

from shardmem.policy import ScalingPolicy

from .policy_sim import TICK, Chances, World

MEASURED_OVER = 10.0  # seconds that the load of a slot is averaged over, as by the sampler


def world(shards: int, slots: int, work: float, **options) -> World:
    policy = ScalingPolicy(max_shards=options.pop("max_shards", shards), min_shards=options.pop("min_shards", shards))
    calm = World(1, shards, slots, policy, work=work, chances=Chances(), slow_measure=MEASURED_OVER, **options)
    calm.calm = True
    return calm


def ticks(seconds: float) -> range:
    return range(int(seconds / TICK))


def unaccepted(each: World) -> float:
    return each.unaccepted / (each.arrived + each.unaccepted)


def jumping(elastic: bool) -> World:
    """60 % of the load is on one slot, another one every three seconds."""
    each, draw = world(4, 256, 0.6, elastic=elastic), np.random.default_rng(3)
    shape, total = each.rates / each.rates.sum(), each.rates.sum()
    for tick in ticks(300):
        if tick % int(3 / TICK) == 0:
            hot = draw.integers(256)
            each.rates = shape * 0.4 * total
            each.rates[hot] += 0.6 * total
        each.tick()
    return each


def test_a_hot_slot_that_jumps_is_not_chased():
    """Chasing it without limit was 584 moves a minute, with 18.4 % not accepted; at rest it is 20.6 %."""
    each = jumping(elastic=True)
    assert each.moved / 5 <= 60 and unaccepted(each) <= 0.185, (each.moved / 5, unaccepted(each))
    assert unaccepted(jumping(elastic=False)) > unaccepted(each)


def test_a_long_batch_is_no_load():
    """Twelve seconds in one batch, once a minute, on one of four shards: neither shards nor moves would relieve it."""
    each = world(4, 256, 0.4, max_shards=8)
    for tick in ticks(400):
        if tick % int(60 / TICK) == int(20 / TICK):
            each.hung[1] = each.now, each.now + 12
        each.tick()
    assert each.ups <= 2 and each.moved < 100, (each.ups, each.moved)


def test_load_that_comes_back_every_forty_seconds_keeps_its_shards():
    """4.5 workers' worth and 0.3, in turn: they went and came back 49 times."""
    each = world(2, 256, 0.1, max_shards=8, min_shards=1)
    shape = each.rates / each.rates.sum()
    for tick in ticks(600):
        each.rates = shape * each.power * (4.5 if int(tick * TICK / 40) % 2 else 0.3)
        each.tick()
    assert each.ups < 20 and unaccepted(each) <= 0.066, (each.ups, unaccepted(each))


def test_costly_slots_are_parted():
    """Four slots of 0.375 workers each on one shard of four: 13.1 % was not accepted, for ever."""
    each = world(4, 64, 0.3)
    each.rates[:] = each.rates.mean()
    costly = [1, 5, 9, 13]
    each.rates[costly], each.costs[costly] = each.power * 0.375 / 20, 20
    for _ in ticks(120):
        each.tick()
    loads = np.bincount(each.handler, each.rates * each.costs / each.power, 4)
    assert loads.max() - loads.min() < 0.1 and unaccepted(each) < 0.01, loads


def test_a_failed_shard_is_no_reason_to_grow_and_none_to_stay():
    each = world(4, 256, 0.6, max_shards=8, min_shards=1)
    for tick in ticks(120):
        if tick == int(10 / TICK):
            each.failed[1] = 1e9
        if tick == int(60 / TICK):
            each.rates *= 0.03
        each.tick()
    assert 0 == each.ups and 1 == each.mapper.active_shard_count()
    assert [1] == each.mapper.failed_shard_ids() and (each.handler == 1).any(), "it keeps its slots"


def test_one_hot_key_keeps_no_idle_workers():
    each = world(6, 256, 0.2, max_shards=8, min_shards=1)
    each.rates[17] = 1.5 * each.power
    for _ in ticks(200):
        each.tick()
    assert 6 > each.mapper.active_shard_count() and "hot_slot" == each.decisions[-1].cause


@pytest.mark.parametrize("load", [0.2, 0.5])
def test_a_load_that_does_not_change_moves_nothing_after_a_while(load):
    each = world(4, 256, load)
    for _ in ticks(120):
        each.tick()
    moved = each.moved
    for _ in ticks(60):
        each.tick()
    assert moved == each.moved
