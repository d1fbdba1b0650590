"""What is measured while next to nothing comes is noise: slots are spread by number then, and not by it."""

from __future__ import annotations

import numpy as np
import pytest

from shardmem.policy import LeastLoad, ScalingPolicy, ShardSample
from shardmem.supervisor.planner import LITTLE, Planner, ShardFact

from .policy_sim import ArrayWords

SLOTS, ROOM, TICK = 256, 6, 0.25


def planner(owners: list[int], shards: int = 2) -> Planner:
    states = dict.fromkeys(range(shards), "active")
    made = Planner(
        ArrayWords(owners, ROOM, False), ScalingPolicy(max_shards=4), LeastLoad(), states, now=0.0, room=ROOM
    )
    made.begin(0.0)
    return made


def evened_out(made: Planner, rates: np.ndarray | None, busy: dict[int, float], eager: bool = True) -> list[int]:
    """Slots of each shard when nothing moves any more."""
    made.wishes.eager, made.automatic = eager, True
    made.learn({shard: ShardFact() for shard in busy}, 0.0)
    for tick in range(1, 200):
        now = tick * TICK
        made.tick([ShardSample(shard, busy=share) for shard, share in busy.items()], rates, now)
        words = made.carrier._words
        words.drained[:] = words.numbers
        made.progress(now)
    assert not made.handoffs.slots_in_flight() and made.runner.is_even
    return list(made.table.shard_slot_counts().values())


def one_slot(share: float) -> np.ndarray:
    rates = np.zeros(SLOTS)
    rates[3] = share
    return rates


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("rates", [None, one_slot(0.0), one_slot(LITTLE / 2), np.full(SLOTS, LITTLE / SLOTS / 2)])
def test_slots_of_an_idle_engine_go_by_their_number(rates, eager):
    assert [128, 128] == evened_out(planner([1] * SLOTS), rates, {0: 0.0, 1: 0.001}, eager)


def test_evening_out_what_was_busy_a_moment_ago_goes_by_number():
    """One slot was held for seconds; the average of it says still that it is hot, and that nothing can be moved."""
    assert [128, 128] == evened_out(planner([1] * SLOTS), one_slot(0.4), {0: 0.0, 1: 0.0})


def test_a_newcomer_to_an_idle_engine_gets_its_part_of_the_slots():
    counts = evened_out(planner([0, 1] * (SLOTS // 2), 3), one_slot(0.04), {0: 0.02, 1: 0.0, 2: 0.0})
    assert 85 == counts[2] and [85, 86] == sorted(counts[:2])


def test_what_takes_a_part_of_a_worker_is_load_and_its_slot_gets_room():
    counts = evened_out(planner([1] * SLOTS), one_slot(0.4) + 0.1 / SLOTS, {0: 0.0, 1: 0.5})
    assert 1 == counts[1], "a hot slot is alone"


def test_a_load_about_the_limit_does_not_make_it_switch_with_every_look():
    made = planner([0, 1] * (SLOTS // 2))
    seen = []
    for tick in range(1, 200):
        made.tick([ShardSample(0, busy=LITTLE)], one_slot(LITTLE * (1.1 if tick % 2 else 0.9)), tick * TICK)
        seen.append(made._load({0: LITTLE}, tick * TICK) is not None)
    assert all(seen)


def test_a_shard_that_works_off_what_a_long_batch_has_left_gets_no_slots_by_itself():
    made = planner([0, 1] * (SLOTS // 2))
    rates = np.zeros(SLOTS)
    rates[1::2] = 0.9 / (SLOTS // 2)  # all of them of shard 1: what waits at shard 0 is in no figure

    def tick(now: float, in_hand: float) -> None:
        made.learn({0: ShardFact(in_hand=in_hand), 1: ShardFact()}, now)
        made.tick([ShardSample(shard, busy=busy) for shard, busy in ((1, 0.9),)], rates, now)

    tick(10.0, 10.0)  # one batch for ten seconds
    for step in range(41, 79):
        tick(step * TICK, 0.0)
        assert not made.handoffs.slots_in_flight(), "it works off what has piled up"
    for step in range(79, 90):
        tick(step * TICK, 0.0)
    assert made.handoffs.slots_in_flight()
