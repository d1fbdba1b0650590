"""An engine under load adds workers, one without load removes them, and every decision says why."""

from __future__ import annotations

import time

import numpy as np
import pytest

import shardmem
from shardmem.policy import LeastSlots, ScalingPolicy
from support.autoscale_load import Backwards, Slow, quick
from support.elastic_load import ROW, SLOTS

QUICK = {"metrics_window": 0.5, "cooldown": 0.5, "scale_down_delay": 1.0}


def active(engine: shardmem.Engine) -> list[int]:
    return [shard["id"] for shard in engine.status()["shards"] if shard["state"] == "active"]


def until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def block(number: int) -> np.ndarray:
    rows = np.zeros(100, ROW)
    rows["key"], rows["number"] = np.arange(100) * 7, number
    return rows


def test_load_adds_workers_and_rest_removes_them_after_the_delay():
    with (
        shardmem.Engine(
            handler=Slow,
            dtype=ROW,
            key="key",
            min_shards=1,
            max_shards=3,
            slots=SLOTS,
            lane_bytes=1 << 15,
            batch_rows=200,
            policy=QUICK,
        ) as engine,
        engine.producer() as producer,
    ):
        number, deadline = 0, time.monotonic() + 40
        while len(active(engine)) < 3:
            assert time.monotonic() < deadline, engine.status()["decisions"]
            producer.send(block(number))
            number += 1
        ups = [each for each in engine.status()["decisions"] if each["kind"] == "up"]
        assert ups and all(each["reason"] and each["count"] >= 1 for each in ups)
        producer.flush()

        until(lambda: active(engine) and len(active(engine)) == 1, 40, "the workers were not removed again")

        assert any(each["kind"] == "down" for each in engine.status()["decisions"])
        producer.send(block(number))
        producer.flush(10)
    accounting = engine.status()["accounting"]
    assert 100 * (number + 1) == accounting["accepted"] == accounting["handled"]


def test_without_auto_scale_the_policy_only_reports_what_it_would_do():
    with (
        shardmem.Engine(
            handler=Slow,
            dtype=ROW,
            key="key",
            min_shards=1,
            max_shards=3,
            slots=SLOTS,
            lane_bytes=1 << 15,
            batch_rows=200,
            policy=QUICK,
            auto_scale=False,
        ) as engine,
        engine.producer() as producer,
    ):
        number, deadline = 0, time.monotonic() + 30
        while not any(each["advice"] == "up" for each in engine.status()["decisions"]):
            assert time.monotonic() < deadline, engine.status()["decisions"]
            producer.send(block(number))
            number += 1
        assert [0] == active(engine) and not engine.status()["auto_scale"]


def test_a_scale_by_hand_stands_until_it_is_handed_back_to_the_policy():
    with shardmem.Engine(
        handler=Slow, dtype=ROW, key="key", min_shards=1, max_shards=3, slots=SLOTS, policy=QUICK
    ) as engine:
        engine.scale_to(3)
        until(
            lambda: any(
                each["cause"] == "manual" and "set by hand; otherwise down" in each["reason"]
                for each in engine.status()["decisions"]
            ),
            20,
            "the policy never said what it would do",
        )
        assert 3 == len(active(engine))

        engine.scale_to("auto")

        until(lambda: len(active(engine)) == 1, 30, "the policy did not take over")


@pytest.mark.parametrize(
    "strategy, expected", [(LeastSlots(), [32, 32]), ("least_slots", [32, 32]), (Backwards(), [0, 64])]
)
def test_the_strategy_that_is_named_places_the_slots(strategy, expected):
    with shardmem.Engine(handler="json:loads", shards=1, max_shards=2, slots=64, strategy=strategy) as engine:
        engine.scale_to(2)
        assert expected == [shard["slots"] for shard in engine.status()["shards"]]


@pytest.mark.parametrize(
    "settings, part",
    [
        ({"policy": "eager"}, "is not one of default, high_throughput, conservative"),
        ({"strategy": "no such"}, "is not one of least_load, least_slots and not module:Class"),
        ({"strategy": "nomodule:Thing"}, "cannot be loaded"),
        ({"policy": {"busy_threshold": 7}}, "busy_threshold must be above 0 and at most 1"),
        ({"policy": {"busyness": 1}}, "policy.busyness is not a setting"),
        ({"auto_scale": "perhaps"}, "neither true nor false"),
    ],
)
def test_a_policy_or_strategy_that_cannot_be_is_refused_at_the_start(settings, part):
    with pytest.raises(shardmem.ConfigError) as caught:
        with shardmem.Engine(handler="json:loads", **settings):
            pass
    assert part in str(caught.value)


def test_a_policy_object_brings_its_limits_with_it():
    with shardmem.Engine(handler="json:loads", policy=ScalingPolicy(min_shards=2, max_shards=3)) as engine:
        assert [0, 1] == active(engine) and 3 == engine.status()["engine"]["max_shards"]


def test_one_hot_key_is_isolated_and_the_other_shards_are_even():
    """60 % of the traffic on one key of a fresh engine with four shards."""
    with (
        shardmem.Engine(handler=quick, dtype=ROW, key="key", shards=4, slots=1024) as engine,
        engine.producer() as producer,
    ):
        chance = np.random.default_rng(5)
        rows = np.zeros(4096, ROW)
        for _ in range(300):
            rows["key"] = np.where(chance.random(4096) < 0.6, 12345, chance.integers(0, 100_000, 4096))
            producer.send(rows)
        producer.flush(30)
        until(lambda: engine.status()["hot_slots"], 10, "the hot slot was not noticed")

        engine.rebalance()

        before = {shard["id"]: shard["handled"] for shard in engine.status()["shards"]}
        for _ in range(300):
            rows["key"] = np.where(chance.random(4096) < 0.6, 12345, chance.integers(0, 100_000, 4096))
            producer.send(rows)
        producer.flush(30)
        load = {shard["id"]: shard["handled"] - before[shard["id"]] for shard in engine.status()["shards"]}
        hot = engine.status()["hot_slots"][0]["shard"]
        others = [count for shard, count in load.items() if shard != hot]
        assert max(others) <= 1.4 * min(others), load  # it is time that is even, as it was measured
