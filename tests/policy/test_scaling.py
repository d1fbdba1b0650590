"""Policies, and how many shards a load needs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmem.errors import ConfigError
from shardmem.policy import (
    DecisionHistory,
    InvalidPolicy,
    ScalingDecision,
    ScalingError,
    ScalingErrorKind,
    ScalingPolicy,
    ShardMapper,
    ShardSample,
    ShardState,
)

from .policy_tools import load, loads, policy, watch

HOT = {"busy": 1.0, "fill_ratio": 0.95}


def decide(mapper, now, **options) -> tuple[str, int, str]:
    decision = mapper.evaluate_scaling(now, **options)
    assert decision.reason and decision.at == now
    return str(decision.kind), decision.count, decision.cause


# ---- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2, 3, 64, 100_000])
def test_presets_are_valid_for_any_number_of_processors(cpus):
    for preset in (ScalingPolicy.default, ScalingPolicy.high_throughput, ScalingPolicy.conservative):
        made = preset(cpus)
        assert 1 <= made.min_shards <= made.max_shards <= 65535
        assert made.underutilized_threshold < made.comfortable < made.busy_threshold
        assert made.metrics_window <= made.scale_down_delay
    assert ScalingPolicy.default(cpus).cooldown < ScalingPolicy.conservative(cpus).cooldown


def test_one_error_names_every_fault_of_a_policy():
    with pytest.raises(InvalidPolicy) as caught:
        ScalingPolicy(
            min_shards=0,
            max_shards=-1,
            fill_ratio_threshold=float("nan"),
            busy_threshold=1.5,
            underutilized_threshold=-0.1,
            push_latency_threshold=5e-9,
            flush_latency_threshold="1",
            cooldown=0,
            scale_down_delay=-1,
            metrics_window=float("inf"),
            auto_scale="yes",
        )

    error = caught.value
    assert ScalingErrorKind.INVALID_POLICY is error.kind
    assert isinstance(error, ScalingError) and isinstance(error, ConfigError)
    named = {fault.split()[0] for fault in error.faults}
    assert named == {field.name for field in dataclasses.fields(ScalingPolicy)}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"min_shards": 5, "max_shards": 4}, "max_shards=4 is less than min_shards=5"),
        ({"min_shards": 2.0}, "min_shards must be a whole number"),
        ({"max_shards": True}, "max_shards must be a whole number"),
        ({"max_shards": 65536}, "between 1 and 65,535"),
        ({"underutilized_threshold": 0.8}, "idle and overloaded at once"),
        ({"fill_ratio_threshold": 0.2}, "idle and overloaded at once"),
    ],
)
def test_faults_say_the_value_and_the_limit(changes, text):
    with pytest.raises(InvalidPolicy, match=text):
        policy(**changes)


def test_a_policy_cannot_be_changed_only_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy().cooldown = 1.0
    with pytest.raises(InvalidPolicy):
        dataclasses.replace(policy(), cooldown=0)


# ---- up --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figures, word",
    [
        ({"fill_ratio": 0.8}, "fuller"),
        ({"busy": 0.9}, "busier"),
        ({"busy": 0.5, "push_wait": 0.01}, "blocking"),
        ({"busy": 0.5, "flush_latency": 3.0}, "later than 1 s (3 s)"),
    ],
)
def test_each_signal_alone_adds_shards(figures, word):
    mapper = ShardMapper(2, policy())
    now = watch(mapper, 0, 3, load(**figures))

    decision = mapper.evaluate_scaling(now)

    assert "up" == decision.kind and 1 <= decision.count <= 2 and word in decision.reason


@pytest.mark.parametrize("figures", [{"busy": 0.2, "push_wait": 0.01}, {"busy": 0.2, "flush_latency": 3.0}])
def test_a_latency_of_a_worker_that_has_little_to_do_is_not_cured_by_another(figures):
    mapper = ShardMapper(2, policy())
    assert "up" != mapper.evaluate_scaling(watch(mapper, 0, 3, load(**figures))).kind


def test_as_many_shards_as_bring_the_work_below_the_threshold():
    mapper = ShardMapper(10, policy())
    assert ("up", 1, "overloaded") == decide(mapper, watch(mapper, 0, 3, load(busy=0.85)))  # 8.5 / 0.8 = 10.6
    mapper = ShardMapper(10, policy(max_shards=40))
    assert ("up", 5, "overloaded") == decide(
        mapper, watch(mapper, 0, 3, load(busy=1.0))
    )  # saturated: half as many again


def test_what_is_provisioning_counts_as_capacity():
    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 3, load(busy=1.0, fill_ratio=1.0))
    mapper.scale_up_provisioning(1, now)
    now = watch(mapper, now, 3, load(busy=1.0, fill_ratio=1.0))
    assert ("up", 1, "overloaded") == decide(mapper, now)
    mapper.scale_up_provisioning(1, now)
    assert ("none", 0, "provisioning") == decide(mapper, watch(mapper, now, 3, load(busy=1.0, fill_ratio=1.0)))


def test_no_more_than_max_shards_and_the_reason_says_so():
    mapper = ShardMapper(4, policy(max_shards=5))
    now = watch(mapper, 0, 3, load(busy=1.0))
    assert ("up", 1, "overloaded") == decide(mapper, now)
    assert "max_shards allows 1" in mapper.evaluate_scaling(now).reason
    mapper = ShardMapper(4, policy(max_shards=4))
    decision = mapper.evaluate_scaling(watch(mapper, 0, 3, load(busy=1.0)))
    assert ("none", "at_max_shards") == (decision.kind, decision.cause) and "up" == decision.advice.kind


def test_in_the_cooldown_the_decision_is_none_and_what_it_would_be_is_told():
    mapper = ShardMapper(1, policy(cooldown=30.0))
    mapper.scale_up(1, 0.0)
    decision = mapper.evaluate_scaling(watch(mapper, 0, 3, load(busy=1.0)))
    assert ("none", 0, "cooldown") == (decision.kind, decision.count, decision.cause)
    assert ("up", 1) == (decision.advice.kind, decision.advice.count)
    assert "27 s of the cooldown" in decision.reason


def test_without_auto_scale_it_only_says_what_it_would_do():
    mapper = ShardMapper(1, policy(auto_scale=False))
    decision = mapper.evaluate_scaling(watch(mapper, 0, 3, load(busy=1.0)))
    assert ("none", "auto_scale_off") == (decision.kind, decision.cause)
    assert "up" == decision.advice.kind and "otherwise up 1: shard 0 busier" in decision.reason


def test_bounds_are_restored_whatever_the_load():
    mapper = ShardMapper(3, policy(min_shards=5))
    assert ("up", 2, "below_min") == decide(mapper, 10.0)
    mapper.policy = policy(max_shards=2)
    assert ("down", 1, "above_max") == decide(mapper, 10.0)


# ---- rebalance -------------------------------------------------------------------------------------------------------


def test_hot_shards_are_relieved_by_moves_as_long_as_the_average_shard_is_not_overloaded():
    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 3, loads(HOT, HOT, 0.3, 0.3))
    assert ("rebalance", 0, "uneven") == decide(mapper, now)
    mapper = ShardMapper(4, policy())
    assert ("up", 2, "overloaded") == decide(mapper, watch(mapper, 0, 3, loads(HOT, HOT, HOT, 0.5)))


def test_newcomers_that_are_empty_yet_are_filled_before_more_are_ordered():
    mapper = ShardMapper(4, policy(cooldown=1.0))
    now = watch(mapper, 0, 3, load(busy=1.0))
    mapper.scale_up(2, now)
    now = watch(mapper, now, 3, loads(1.0, 1.0, 1.0, 1.0, 0.0, 0.0))
    assert ("rebalance", 0, "uneven") == decide(mapper, now)


def test_when_nothing_can_be_moved_another_shard_is_added():
    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 3, loads(0.9, 0.7, 0.7, 0.7))
    assert "rebalance" == decide(mapper, now)[0] == decide(mapper, now, moves=3)[0]
    assert ("up", 1, "overloaded") == decide(mapper, now, moves=0)


def test_no_shard_is_added_while_an_idle_one_gets_nothing():
    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 3, loads(0.9, 0.7, 0.7, 0.0))
    decision = mapper.evaluate_scaling(now, moves=0)
    assert ("none", "nothing_to_move") == (decision.kind, decision.cause)
    assert "shard 3 would have room" in decision.reason


def test_a_single_shard_that_is_overloaded_needs_another():
    mapper = ShardMapper(1, policy())
    assert ("up", 1, "overloaded") == decide(mapper, watch(mapper, 0, 3, loads(1.0)))


def test_one_slot_that_fills_a_shard_does_not_keep_the_rest_from_shrinking():
    mapper = ShardMapper(4, policy())
    now = watch(mapper, 0, 15, loads({**HOT, "alone": True}, 0.05, 0.05, 0.05))
    assert ("down", 2, "underused") == decide(mapper, now)
    assert [2, 3] == mapper.scale_down(2, now), "the hot one stays"


def test_one_slot_that_is_alone_on_its_shard_and_has_little_to_do_keeps_no_shards():
    mapper = ShardMapper(2, policy())
    assert ("down", 1, "underused") == decide(mapper, watch(mapper, 0, 15, loads({"busy": 0.1, "alone": True}, 0.05)))


# ---- down ------------------------------------------------------------------------------------------------------------


def test_what_stays_is_not_too_busy_and_what_was_added_is_not_too_idle():
    mapper = ShardMapper(4, policy(scale_down_delay=5.0))
    now = watch(mapper, 0, 10, load(busy=0.29))
    kind, count, _ = decide(mapper, now)
    assert ("down", 1) == (kind, count)  # 4 x 0.29 on 3 is 0.39; on 2 it would be 0.58
    mapper.scale_down(count, now)
    now = watch(mapper, now, 10, load(busy=1.16 / 3))
    assert "none" == decide(mapper, now)[0]


def test_a_full_lane_keeps_the_shards():
    mapper = ShardMapper(4, policy(scale_down_delay=5.0))
    assert ("none", 0, "steady") == decide(mapper, watch(mapper, 0, 10, load(busy=0.05, fill_ratio=0.5)))


def test_work_of_draining_shards_is_counted_where_it_goes():
    mapper = ShardMapper(4, policy(scale_down_delay=5.0, cooldown=1.0))
    mapper.drain_specific(3, 0.0)
    now = watch(mapper, 0, 10, loads(0.1, 0.1, 0.1, 1.5))
    assert ("none", 0, "steady") == decide(mapper, now)


def test_a_shard_that_nobody_hears_of_is_neither_idle_nor_overloaded():
    mapper = ShardMapper(3, policy(scale_down_delay=5.0))
    now = 0.0
    for _ in range(40):
        now += 0.25
        mapper.collect_metrics([ShardSample(0), ShardSample(1)], now)  # the worker of 2 is down
    assert ("down", 1, "underused") == decide(mapper, now)
    mapper = ShardMapper(3, policy())
    assert ("none", 0, "no_samples") == decide(mapper, 10.0)


def test_shards_added_by_hand_are_kept_for_the_delay():
    mapper = ShardMapper(1, policy(scale_down_delay=10.0))
    now = watch(mapper, 0, 30, load())
    mapper.scale_up(3, now)
    now = watch(mapper, now, 9, load())
    assert ("none", 0, "scale_down_delay") == decide(mapper, now)
    now = watch(mapper, now, 2, load())
    assert ("down", 3, "underused") == decide(mapper, now)


def test_load_that_swings_around_the_thresholds_does_not_make_the_shards_swing():
    mapper = ShardMapper(2, policy(scale_down_delay=10.0, cooldown=1.0))
    now, changes = 0.0, 0
    for step in range(400):
        total = 1.55 if step % 8 < 4 else 0.65
        now = watch(mapper, now, 0.5, load(busy=min(1.0, total / mapper.active_shard_count())))
        decision = mapper.evaluate_scaling(now)
        if decision.kind == "up":
            mapper.scale_up(decision.count, now)
        elif decision.kind == "down":
            for shard in mapper.scale_down(decision.count, now):
                mapper.finalize_draining({shard: 0}, now + 1)
            mapper.remove_stopped_shards()
        changes += decision.count
    assert changes <= 1


# ---- time, not number ------------------------------------------------------------------------------------------------

shares = st.lists(st.lists(st.integers(0, 14), min_size=3, max_size=3), min_size=24, max_size=60)


@settings(max_examples=40, deadline=None)
@given(shares, st.sampled_from([2, 3, 4]))
def test_decisions_do_not_depend_on_how_often_the_load_is_sampled(series, times):
    once, often = (ShardMapper(3, policy(scale_down_delay=4.0)) for _ in range(2))
    for step, each in enumerate(series, 1):
        sample = [ShardSample(shard, busy=value / 16, rate=value) for shard, value in enumerate(each)]
        once.collect_metrics(sample, step * 0.25)
        for part in range(times - 1, -1, -1):
            often.collect_metrics(sample, step * 0.25 - part / 64)
        first, second = once.evaluate_scaling(step * 0.25), often.evaluate_scaling(step * 0.25)
        assert (first.kind, first.count, first.cause) == (second.kind, second.count, second.cause)


@settings(max_examples=40, deadline=None)
@given(shares, st.lists(st.floats(0, 0.25), max_size=6))
def test_decisions_do_not_depend_on_how_often_anything_is_read(series, reads):
    silent, asked = (ShardMapper(3, policy(scale_down_delay=4.0)) for _ in range(2))
    for step, each in enumerate(series, 1):
        sample = [
            ShardSample(shard, fill_ratio=value / 14, busy=value / 14, rate=value) for shard, value in enumerate(each)
        ]
        for mapper in (silent, asked):
            mapper.collect_metrics(sample, step * 0.25)
        for offset in reads:
            now = step * 0.25 + offset
            asked.metrics(now), asked.evaluate_scaling(now), asked.weights(), asked.select_shard(step)
        assert silent.evaluate_scaling(step * 0.25) == asked.evaluate_scaling(step * 0.25)


def test_a_sample_weighs_by_the_time_it_stands_for():
    mapper = ShardMapper(1, policy(metrics_window=1.0))
    mapper.collect_metrics([ShardSample(0, busy=0.0)], 10.0)
    mapper.collect_metrics([ShardSample(0, busy=1.0)], 10.1)
    mapper.collect_metrics([ShardSample(0, busy=0.5)], 10.5)
    assert 0.5 * 0.0 + 0.1 * 1.0 + 0.4 * 0.5 == pytest.approx(mapper.metrics(10.5)[0].busy)


def test_samples_that_are_no_numbers_or_of_nobody_are_passed_over():
    mapper = ShardMapper(1, policy())
    now = watch(mapper, 0, 3, load(busy=0.5))
    mapper.collect_metrics([ShardSample(0, busy=float("nan")), ShardSample(7, busy=1.0)], now + 0.25)
    assert 0.5 == pytest.approx(mapper.metrics(now + 0.25)[0].busy) and [0] == list(mapper.metrics(now))


def test_a_shard_with_a_used_id_begins_without_a_past():
    mapper = ShardMapper(2, policy(cooldown=0.1))
    now = watch(mapper, 0, 3, loads(0.1, 1.0))
    mapper.drain_specific(1, now)
    assert [1] == mapper.finalize_draining({1: 0}, now + 0.2)
    mapper.remove_stopped_shards()
    assert [1] == mapper.scale_up(1, now + 0.2)
    assert 1 not in mapper.metrics(now + 0.2)


# ---- history ---------------------------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_counts_what_repeats():
    history = DecisionHistory(limit=3)
    for number in range(10):
        history.note(ScalingDecision("none", 0, "steady", f"{number}", float(number)))
    history.note(ScalingDecision("up", 1, "overloaded", "", 10.0))
    assert [("9", 0.0, 10), ("", 10.0, 1)] == [(decision.reason, first, times) for decision, first, times in history]
    for number in range(8):
        history.note(ScalingDecision(("up", "down")[number % 2], 1, "", "", 11.0 + number))
    assert 3 == len(history)


def test_states_and_kinds_are_written_as_their_names():
    assert (
        "active draining up in_cooldown" == f"{ShardState.ACTIVE} {ShardState.DRAINING} "
        f"{ScalingDecision('up', 1, '', '', 0.0).kind} {ScalingErrorKind.IN_COOLDOWN}"
    )
