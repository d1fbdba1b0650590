"""Strategies: where they lead, how few moves they need, and that they come to rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmem.policy import NOBODY, HotSlot, LeastLoad, LeastSlots, Move, Pinned, ShardCoordinator, View, first_table
from shardmem.policy.placement import fault_of

from .policy_tools import owners, settled, sums

EVEN = st.sampled_from(
    [LeastSlots(), LeastSlots(absolute_limit=1), LeastSlots(absolute_limit=7), LeastSlots(relative_limit=0.02)]
)
BY_LOAD = st.sampled_from(
    [LeastLoad(), LeastLoad(absolute_limit=1), LeastLoad(absolute_limit=7), LeastLoad(tolerance=0.02)]
)


@st.composite
def views(draw, rates=st.booleans()):
    slots, shards = draw(st.integers(1, 120)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = draw(
        st.sampled_from(
            [
                rng.integers(0, shards, slots),
                rng.integers(0, shards + 4, slots),
                np.zeros(slots, int),
                np.arange(slots) % shards,
            ]
        )
    )
    measured = draw(
        st.sampled_from(
            [
                np.full(slots, 3.0),
                rng.lognormal(0, 1.5, slots),
                rng.pareto(1.0, slots),
                np.zeros(slots),
                rng.lognormal(0, 1, slots) * (rng.random(slots) < 0.2),
            ]
        )
    )
    return View.of(
        table,
        range(shards),
        rates=measured if draw(rates) else None,
        eager=draw(st.booleans()),
        busy={shard: float(rng.random()) for shard in range(shards)} if draw(st.booleans()) else {},
    )


class Answers:
    """A strategy of somebody else's."""

    def __init__(self, answer):
        self.answer = answer

    def rebalance(self, view):
        return [].no_such if self.answer is None else self.answer


@pytest.mark.parametrize(
    "answer, why",
    [
        ([Move(1, 1, 7)], "shards that take slots are 0, 1"),
        ([Move(1, 1, -1)], "shards that take slots"),
        ([Move(1, 0, 0)], "belongs to shard 1"),
        ([Move(4, 0, 1)], "slots 0 to 3"),
        ([Move(-1, 1, 0)], "slots 0 to 3"),
        ([Move(2, 1, 0)], "slot 2 is locked"),
        ([Move(1, 1, 0), Move(1, 1, 0)], "there twice"),
        ([(1, 1)], "raised TypeError"),
        (5, "raised TypeError"),
        (None, "raised AttributeError"),
    ],
)
def test_a_move_that_cannot_be_carried_out_is_left_out_of_the_plan_and_its_strategy_named(answer, why):
    """A slot that was given to a shard which was not there had no owner, and the next push raised NotRunning."""
    table = ShardCoordinator(4, [0, 1], Answers(answer), owners=[0, 1, 0, 1])
    table.depart([2], 1)
    table.rebalance()
    (complaint,) = table.complaints
    assert complaint.startswith("strategy Answers: rebalance ") and why in complaint
    table.strategy = Answers([(1, 1, 0)])
    assert [Move(1, 1, 0)] == table.rebalance() and [] == table.complaints


@settings(max_examples=100, deadline=None)
@given(
    views(),
    EVEN | BY_LOAD | st.builds(Pinned, st.dictionaries(st.integers(0, 130), st.integers(0, 13), max_size=5), BY_LOAD),
)
def test_plans_of_our_own_strategies_can_be_carried_out(view, strategy):
    seen: set[int] = set()
    for move in strategy.rebalance(view):
        assert "" == fault_of(move, view, seen)
        seen.add(move.slot)


# ---- all of them -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    views(),
    EVEN | BY_LOAD | st.builds(Pinned, st.dictionaries(st.integers(0, 130), st.integers(0, 13), max_size=5), BY_LOAD),
)
def test_from_every_start_every_strategy_comes_to_rest_and_leaves_nothing_on_a_draining_shard(view, strategy):
    view, _ = settled(strategy, view, rounds=20 * len(view.owners) + 20)
    assert not len(view.leaving)


@settings(max_examples=150, deadline=None)
@given(views(), EVEN | BY_LOAD, st.integers(0, 2**32))
def test_a_strategy_comes_to_rest_when_only_some_of_each_plan_is_carried_out(view, strategy, seed):
    rng = np.random.default_rng(seed)
    for _ in range(40 * len(view.owners) + 40):
        plan = strategy.rebalance(view)
        if not plan:
            break
        view = view.after([move for move in plan if rng.random() < 0.6] or plan[:1])
    assert [] == strategy.rebalance(view), f"seed {seed}"


@settings(max_examples=150, deadline=None)
@given(views(), EVEN | BY_LOAD, st.data())
def test_what_is_on_its_way_stays_and_is_counted_where_it_goes(view, strategy, data):
    locked = data.draw(st.sets(st.integers(0, len(view.owners) - 1)))
    view.locked[list(locked)] = True
    result, moves = settled(strategy, view, rounds=20 * len(view.owners) + 20)
    assert not locked & {move.slot for move in moves}


@pytest.mark.parametrize("strategy", [LeastSlots(), LeastLoad(), Pinned({3: 9})])
def test_without_a_shard_to_go_to_nothing_moves(strategy):
    assert [] == strategy.rebalance(View.of([0, 0, 1], [], rates=[1.0, 2.0, 3.0]))


def test_strategies_give_the_same_answer_for_the_same_view():
    rng = np.random.default_rng(7)
    table, rates = rng.integers(0, 9, 512), rng.lognormal(0, 1, 512)
    for strategy in (LeastSlots(), LeastLoad()):
        assert strategy.rebalance(View.of(table, range(9), rates=rates)) == strategy.rebalance(
            View.of(table, range(9), rates=rates)
        )


# ---- by count --------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(views(rates=st.just(False)), EVEN)
def test_by_count_the_end_is_even_and_no_slot_moves_that_need_not(view, strategy):
    start = sums(view)
    leaving = len(view.leaving)
    view, moves = settled(strategy, view, rounds=20 * len(view.owners) + 20)
    counts = sums(view)
    assert max(counts) - min(counts) <= 1
    assert len({move.slot for move in moves}) == len(moves), "each moves once"
    least, total = sum(counts) // len(counts), int(sum(counts))
    over = sorted((count - least for count in start), reverse=True)
    needed = sum(max(0, each - (place < total % len(counts))) for place, each in enumerate(over))
    assert len(moves) == max(needed, leaving) or len(moves) == leaving + needed


def test_by_count_limits_hold_and_the_fullest_gives_first():
    view = View.of(owners(10, 30, 2, 0), range(4))
    assert [1, 1, 1] == [move.source for move in LeastSlots(absolute_limit=3).rebalance(view)]
    assert 4 == len(LeastSlots(absolute_limit=30, relative_limit=0.1).rebalance(view))
    assert 1 == len(LeastSlots(absolute_limit=30, relative_limit=0.001).rebalance(view))


def test_what_has_to_leave_goes_first():
    view = View.of(owners(30, 5, 3), [0, 1])
    assert [2, 2, 2] == [move.source for move in LeastSlots(absolute_limit=3).rebalance(view)]
    rated = View.of(owners(30, 5, 3), [0, 1], rates=[1.0] * 38)
    assert [Move(35, 2, 1), Move(36, 2, 1), Move(37, 2, 1)] == LeastLoad(absolute_limit=3).rebalance(rated)


@pytest.mark.parametrize("options", [{"absolute_limit": 0}, {"relative_limit": 0.0}, {"relative_limit": 1.5}])
@pytest.mark.parametrize("strategy", [LeastSlots, LeastLoad])
def test_limits_that_make_no_sense_are_refused(strategy, options):
    with pytest.raises(ValueError, match="_limit is"):
        strategy(**options)


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"quiet": -0.1}, {"quiet": 1.0}])
def test_tolerances_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="tolerance is|quiet is"):
        LeastLoad(**options)


def test_allocate_takes_the_emptiest():
    view = View.of([0, 0, 1, NOBODY], range(3), rates=[1.0, 1.0, 5.0, 1.0])
    assert 2 == LeastSlots().allocate(3, view) == LeastLoad().allocate(3, view)
    view = View.of([0, 0, 1, NOBODY], range(2), rates=[1.0, 1.0, 5.0, 1.0])
    assert (1, 0) == (LeastSlots().allocate(3, view), LeastLoad().allocate(3, view))


# ---- by load ---------------------------------------------------------------------------------------------------------


def test_one_key_at_sixty_percent_of_fresh_four_shards_is_left_alone_and_the_others_are_even():
    rng = np.random.default_rng(1)
    rates = rng.poisson(400, 1024).astype(float)
    rates[321] = rates.sum() * 0.6 / 0.4
    view, moves = settled(LeastLoad(), View.of(first_table(1024, range(4)), range(4), rates=rates))

    host = 321 % 4
    loads = sums(view)
    rest = [load for shard, load in enumerate(loads) if shard != host]
    assert loads[host] == pytest.approx(rates[321])
    assert max(rest) / min(rest) < 1.1
    assert 321 not in {move.slot for move in moves} and {host} == {move.source for move in moves}
    assert [HotSlot(321, host, pytest.approx(0.6, abs=0.01), True)] == LeastLoad().hot_slots(view)


def test_a_hot_slot_is_reported_before_it_is_alone():
    view = View.of(first_table(64, range(4)), range(4), rates=[1000.0] + [10.0] * 63)
    (hot,) = LeastLoad().hot_slots(view)
    assert (0, 0, False) == (hot.slot, hot.shard, hot.alone) and 0.6 < hot.share < 0.62


def test_two_hot_slots_of_one_shard_part_and_each_is_left_alone():
    rates = [10.0] * 64
    rates[0] = rates[4] = 500.0
    view, _ = settled(LeastLoad(), View.of(first_table(64, range(4)), range(4), rates=rates))
    hot = LeastLoad().hot_slots(view)
    assert 2 == len({each.shard for each in hot}) and all(each.alone for each in hot)
    assert np.ptp([load for shard, load in enumerate(sums(view)) if shard not in {each.shard for each in hot}]) <= 20


def test_two_heavy_slots_that_are_no_fair_share_each_part_too():
    rates = [2.0] * 64
    rates[0] = rates[4] = 140.0  # of 404: 0.7 of a fair share when there are two shards' worth of others
    rates[1] = rates[2] = rates[3] = 30.0
    view, _ = settled(LeastLoad(), View.of(first_table(64, range(3)), range(3), rates=rates))
    assert max(sums(view)) <= sum(rates) / 3 * 1.1


def test_slots_without_traffic_stay_with_the_hot_one():
    rates = [0.0] * 64
    rates[0], rates[4], rates[1], rates[2] = 1000.0, 50.0, 50.0, 50.0
    view, moves = settled(LeastLoad(), View.of(first_table(64, range(4)), range(4), rates=rates))
    assert {4} == {move.slot for move in moves if move.source == 0}
    assert LeastLoad().hot_slots(view)[0].alone


def test_a_trickle_on_one_key_does_not_clear_its_shard():
    rates = [0.0] * 64
    rates[0] = 2e-5  # two events per second; 10 us each
    view = View.of(first_table(64, range(4)), range(4), rates=rates, busy={0: 2e-5, 1: 0.0, 2: 0.0, 3: 0.0})
    assert [] == LeastLoad().rebalance(view) and [] == LeastLoad().hot_slots(view)


def test_nothing_switches_as_traffic_grows_from_nothing_to_full():
    """The more of a skewed load there is, the more moves it has caused, and none is ever undone on the way up."""
    rng = np.random.default_rng(5)
    shape = rng.pareto(1.2, 256)
    view, moved = View.of(first_table(256, range(4)), range(4)), []
    for level in np.geomspace(1e-6, 1.0, 60):
        rates = shape * level * 1e5
        loads = np.bincount(view.places, rates, 4) / rates.sum() * 3.0 * level
        view, moves = settled(
            LeastLoad(), View.of(view.owners, range(4), rates=rates, busy=dict(enumerate(loads.tolist())))
        )
        moved += [move.slot for move in moves]
    assert len(moved) < 1.5 * len(set(moved)), "hardly a slot moves twice"
    assert max(sums(view)) <= max(shape.max() * 1e5, shape.sum() * 1e5 / 4 * 1.1)


@pytest.mark.parametrize("shape", ["uniform", "lognormal"])
@pytest.mark.parametrize(
    "slots, shards", [(1024, 1), (1024, 2), (1024, 3), (1024, 4), (1024, 7), (1024, 15), (16384, 100)]
)
def test_one_more_shard_moves_no_more_than_its_part_of_the_slots(shape, slots, shards):
    rng = np.random.default_rng(shards)
    rates = np.full(slots, 50.0) if shape == "uniform" else rng.lognormal(0, 1, slots)
    for strategy in (LeastLoad(), LeastSlots()):
        start, _ = settled(strategy, View.of(first_table(slots, range(shards)), range(shards), rates=rates, eager=True))
        end, moves = settled(strategy, View.of(start.owners, range(shards + 1), rates=rates))
        assert len(moves) <= -(-slots // (shards + 1))
        if isinstance(strategy, LeastLoad):
            assert max(sums(end)) <= rates.sum() / (shards + 1) * 1.1


def test_noise_moves_next_to_nothing():
    rng = np.random.default_rng(3)
    base = rng.lognormal(0, 1, 1024)
    view, _ = settled(LeastLoad(), View.of(first_table(1024, range(10)), range(10), rates=base, eager=True))
    moved = 0
    for _ in range(300):
        noisy = base * rng.normal(1, 0.1, 1024).clip(0.1)  # one slot by a tenth, so a shard by two percent
        plan = LeastLoad().rebalance(View.of(view.owners, range(10), rates=noisy))
        moved, view = moved + len(plan), view.after(plan)
    assert moved <= 3


def test_the_end_is_no_worse_than_placing_everything_anew():
    """Against Graham's rule on an empty table, which moves all there is."""
    rng = np.random.default_rng(11)
    for _ in range(60):
        shards, slots = int(rng.integers(2, 12)), 256
        rates = rng.lognormal(0, rng.random() * 2, slots)
        view, _ = settled(LeastLoad(), View.of(rng.integers(0, shards, slots), range(shards), rates=rates, eager=True))
        anew = np.zeros(shards)
        for rate in sorted(rates, reverse=True):
            anew[anew.argmin()] += rate
        assert max(sums(view)) <= anew.max() * 1.05


def test_rates_that_are_no_numbers_count_as_none():
    rates = [1.0] * 16
    rates[0], rates[1], rates[2] = float("nan"), float("inf"), -5.0
    view, _ = settled(LeastLoad(), View.of(owners(16, 0), range(2), rates=rates))
    assert 2 < sums(view, [1.0] * 16)[1] < 14


# ---- pinned ----------------------------------------------------------------------------------------------------------


def test_pinned_slots_go_where_they_are_pinned_and_the_rest_is_balanced_around_them():
    strategy = Pinned({0: 3, 1: 3, 5: 3}, LeastSlots())
    view, moves = settled(strategy, View.of(first_table(16, range(4)), range(4)))
    assert [3, 3, 3] == view.owners[[0, 1, 5]].tolist() and [4.0] * 4 == sums(view)


def test_a_pin_to_a_shard_that_is_not_there_waits_for_it():
    strategy = Pinned({0: 3}, LeastSlots())
    view, _ = settled(strategy, View.of([0] * 9, range(3)))
    assert [3.0, 3.0, 3.0] == sums(view)
    view, _ = settled(strategy, View.of(view.owners, range(4)))
    assert 3 == view.owners[0]
    view, _ = settled(strategy, View.of(view.owners, range(3)))  # it drains
    assert 3 not in view.owners


def test_pinned_allocates_as_pinned_or_as_the_fallback_says():
    view = View.of([NOBODY, NOBODY, 0], range(2))
    assert (0, 1, 1) == (
        Pinned({0: 0}).allocate(0, view),
        Pinned({0: 0}).allocate(1, view),
        Pinned({0: 7}).allocate(0, view),
    )
    assert [] == Pinned({}, LeastSlots()).hot_slots(view)


def test_a_first_table_needs_a_shard():
    assert [5, 9, 5, 9, 5] == first_table(5, [5, 9])
    with pytest.raises(ValueError, match="got none"):
        first_table(4, [])
