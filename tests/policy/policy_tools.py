"""Short ways to say what tests of policies say often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from shardmem.policy import Move, ScalingDecision, ScalingPolicy, ShardMapper, ShardSample, Strategy, View

TICK = 0.25


def policy(**changes: Any) -> ScalingPolicy:
    return ScalingPolicy(
        **{"max_shards": 16, "cooldown": 2.0, "scale_down_delay": 10.0, "metrics_window": 1.0, **changes}
    )


def watch(
    mapper: ShardMapper,
    start: float,
    seconds: float,
    sample: Callable[[int, float], ShardSample],
    *,
    every: float = TICK,
) -> float:
    """Feed what `sample(shard, now)` says of each shard; the time then."""
    now = start
    for _ in range(round(seconds / every)):
        now += every
        mapper.collect_metrics([sample(shard, now) for shard in mapper.all_shard_ids()], now)
    return now


def load(**figures: Any) -> Callable[[int, float], ShardSample]:
    """The same for every shard."""
    return lambda shard, now: ShardSample(shard, **figures)


def loads(*each: ShardSample | dict[str, Any] | float) -> Callable[[int, float], ShardSample]:
    """By shard: a busy share, or figures by name."""
    figures = [value if isinstance(value, dict) else {"busy": value} for value in each]
    return lambda shard, now: ShardSample(shard, **figures[shard])


def settled(strategy: Strategy, view: View, rounds: int = 500) -> tuple[View, list[Move]]:
    """Rounds of the strategy until it has no more moves; fails if that does not come, or if a move makes no sense."""
    made: list[Move] = []
    for _ in range(rounds):
        plan = list(strategy.rebalance(view))
        if not plan:
            return view, made
        assert len({move.slot for move in plan}) == len(plan), f"a slot moves twice in {plan}"
        for move in plan:
            assert move.source == view.owners[move.slot], f"{move} is not from its owner"
            assert move.source != move.target and move.target in view.shards, f"{move} does not lead to another shard"
            assert not view.locked[move.slot], f"{move} is of a slot that is on its way"
        view = view.after(plan)
        made += plan
    raise AssertionError(f"no rest after {rounds} rounds and {len(made)} moves")


def owners(*counts: int) -> list[int]:
    """That many slots of shard 0, of shard 1, and so on."""
    return [shard for shard, count in enumerate(counts) for _ in range(count)]


def sums(view: View, rates: Sequence[float] | None = None) -> list[float]:
    """For each shard what its slots sum up to; without rates, how many they are."""
    rates = view.rates if rates is None else np.asarray(rates)
    return np.bincount(
        view.places[view.places >= 0], None if rates is None else rates[view.places >= 0], len(view.shards)
    ).tolist()


def story(decisions: Iterable[ScalingDecision]) -> list[tuple[str, int, str]]:
    return [(str(each.kind), each.count, each.cause) for each in decisions]
