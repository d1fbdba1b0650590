"""How many shards a load needs, and what to do about it. [net-mesh: ShardMapper::evaluate_scaling]

There the shards vote, and a majority decides; so one hot shard of many is ignored, an event per window keeps shards for
ever, and nobody asks for how long. Here:

- Overloaded is a shard over any threshold. If the average shard is not, the room exists and slots have to move:
  rebalance. Only when it does not, or nothing can be moved, more shards: as many as bring the busy share below its
  threshold, and one for every two shards that are saturated, whose real demand nobody can measure.
- Too many is judged by the work there is, not by the number of events: what is busy now, on as few shards as bear it
  comfortably; and by the most that was needed at any time within `scale_down_delay`.
- A shard that is one slot and nothing else, and overloaded, is left out of both: no number of shards relieves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.policy.scaling import DecisionKind, ScalingDecision, ScalingPolicy
from shardmem.policy.signals import BUSY, FILL, FLUSH, PUSH, RATE

_NAMED = 8  # shards named in a reason; the rest are counted


@dataclass(frozen=True)
class Load:
    """The shards and their averages. `voters` are the active ones with samples enough; arrays are in their order."""

    active: int
    provisioning: int
    voters: np.ndarray
    values: np.ndarray
    alone: np.ndarray
    draining_busy: float = 0.0  # work of draining shards: it moves to the active ones
    failed: int = 0  # shards that may come back: they hold their place, and another would get none of their slots

    @property
    def unheard(self) -> int:
        """Active shards without samples: taken for well used, neither idle nor overloaded."""
        return self.active - len(self.voters)


@dataclass(frozen=True)
class Diagnosis:
    """The shards of a load, told apart. Masks are in the order of the voters."""

    fill: np.ndarray
    busy: np.ndarray
    push: np.ndarray
    flush: np.ndarray
    stuck: np.ndarray  # overloaded by one slot alone: no change of the shards helps
    saturated: np.ndarray  # among the overloaded: demand is more than can be measured

    @property
    def overloaded(self) -> np.ndarray:
        overloaded: np.ndarray = (self.fill | self.busy | self.push | self.flush) & ~self.stuck
        return overloaded


def judge(policy: ScalingPolicy, load: Load) -> Diagnosis:
    values = load.values
    working = values[:, BUSY] >= policy.underutilized_threshold
    fill = values[:, FILL] > policy.fill_ratio_threshold
    busy = values[:, BUSY] > policy.busy_threshold
    push = working & (values[:, PUSH] > policy.push_latency_threshold)
    flush = working & (values[:, FLUSH] > policy.flush_latency_threshold)
    stuck = load.alone & (fill | busy | push | flush)
    saturated = (fill | push | flush | (values[:, BUSY] > (1 + policy.busy_threshold) / 2)) & ~stuck
    return Diagnosis(fill, busy, push, flush, stuck, saturated)


def needed(policy: ScalingPolicy, load: Load) -> int:
    """How many shards this load needs at this moment: at least as many as there are, unless they are too many."""
    total = load.active + load.provisioning
    verdict = judge(policy, load)
    if verdict.overloaded.any():
        return max(total, _enough(policy, load, verdict))
    rest = ~verdict.stuck
    if not rest.any():
        return total
    busy, fill = load.values[rest, BUSY], load.values[rest, FILL]
    if max(busy.mean(), fill.mean()) >= policy.underutilized_threshold:
        return total
    bearing = max(1, _round_up((busy.sum() + load.draining_busy) / policy.comfortable))
    return min(total, bearing + int(verdict.stuck.sum()) + load.unheard)


def _enough(policy: ScalingPolicy, load: Load, verdict: Diagnosis) -> int:
    """Shards that bring an overloaded engine below the thresholds, as far as can be told."""
    work = float(load.values[~verdict.stuck, BUSY].sum()) + load.draining_busy
    by_work = _round_up(work / policy.busy_threshold) + int(verdict.stuck.sum()) + load.unheard
    return max(by_work, load.active + math.ceil(int(verdict.saturated.sum()) / 2), load.active + 1)


def _round_up(value: float) -> int:
    return math.ceil(value - 1e-9)  # sums of shares are not exact: 0.8 / 0.8 is one shard


def decide(
    policy: ScalingPolicy,
    load: Load,
    *,
    now: float,
    most_needed: int,
    watched: float,
    cooldown_left: float,
    moves: int | None = None,
    delay: float | None = None,
) -> ScalingDecision:
    """The decision.

    delay: the scale_down_delay in force; None: the policy's.

    most_needed: the largest `needed` within the last `scale_down_delay`.
    watched: for how many seconds the load has been observed.
    cooldown_left: seconds until the next change is allowed, at most 0 if it is.
    moves: how many slots the strategy would still move or is moving; None if not known.
    """
    delay = policy.scale_down_delay if delay is None else delay
    decision = _wanted(policy, load, now, most_needed, watched, moves, delay)
    if decision.kind in (DecisionKind.UP, DecisionKind.DOWN) and cooldown_left > 0:
        decision = decision.against(
            "cooldown",
            f"{cooldown_left:.3g} s of the cooldown of {policy.cooldown:g} s are left; then: {decision.reason}",
        )
    if not policy.auto_scale and decision.kind is not DecisionKind.NONE:
        count = f" {decision.count}" if decision.count else ""
        decision = decision.against(
            "auto_scale_off", f"auto_scale is off; otherwise {decision.kind}{count}: {decision.reason}"
        )
    return decision


_Answer = Callable[[DecisionKind, int, str, str], ScalingDecision]


def _wanted(
    policy: ScalingPolicy, load: Load, now: float, most_needed: int, watched: float, moves: int | None, delay: float
) -> ScalingDecision:
    verdict = judge(policy, load)
    total = load.active + load.provisioning
    evidence = _evidence(load, verdict, most_needed)

    def answer(kind: DecisionKind, count: int, cause: str, reason: str) -> ScalingDecision:
        return ScalingDecision(kind, count, cause, reason, now, evidence)

    none, up, down = DecisionKind.NONE, DecisionKind.UP, DecisionKind.DOWN
    if total + load.failed < policy.min_shards:
        return answer(
            up,
            policy.min_shards - total - load.failed,
            "below_min",
            f"{_shards(total)}, and min_shards is {policy.min_shards}",
        )
    if load.active > policy.max_shards:
        return answer(
            down,
            load.active - policy.max_shards,
            "above_max",
            f"{_shards(load.active)} active, and max_shards is {policy.max_shards}",
        )
    if not len(load.voters):
        return answer(
            none,
            0,
            "no_samples",
            f"no samples of the last {policy.metrics_window:g} s from {_shards(load.active)} active",
        )
    if verdict.overloaded.any():
        return _more(policy, load, verdict, moves, answer)
    now_needed = max(needed(policy, load), policy.min_shards)
    if now_needed < load.active and not load.provisioning:
        return _fewer(policy, load, now_needed, max(most_needed, policy.min_shards), watched, delay, answer)
    if verdict.stuck.any():
        return answer(
            none,
            0,
            "hot_slot",
            f"{_named(load.voters[verdict.stuck])} overloaded by a single slot each; no slot "
            f"can be split, so neither moves nor shards help: spread its events over more keys",
        )
    return answer(none, 0, "steady", f"{_shards(load.active)} at {load.values[:, BUSY].mean():.0%} busy on average")


def _more(policy: ScalingPolicy, load: Load, verdict: Diagnosis, moves: int | None, answer: _Answer) -> ScalingDecision:
    """Some shard is overloaded: slots move, or shards are added, or neither would help."""
    total = load.active + load.provisioning
    trouble = _trouble(policy, load, verdict)
    rest = ~verdict.stuck
    busy, fill = load.values[rest, BUSY].mean(), load.values[rest, FILL].mean()
    late_only = verdict.overloaded & ~verdict.busy & ~verdict.fill
    mean = f"the mean of {rest.sum()} is {busy:.0%} busy and {fill:.0%} full"
    room = (
        busy < policy.busy_threshold
        and fill < policy.fill_ratio_threshold
        and 2 * late_only.sum() <= rest.sum()
        and not verdict.overloaded[rest].all()
    )
    if room and moves != 0:
        return answer(DecisionKind.REBALANCE, 0, "uneven", f"{trouble}; {mean}, so moving slots is enough")
    idle = (
        rest
        & (load.values[:, BUSY] < policy.underutilized_threshold)
        & (load.values[:, FILL] < policy.fill_ratio_threshold)
    )
    if room and idle.any():
        return answer(
            DecisionKind.NONE,
            0,
            "nothing_to_move",
            f"{trouble}; {_named(load.voters[idle])} would have room, but the "
            f"strategy moves nothing there, so another shard would stay idle too",
        )
    count = _enough(policy, load, verdict) - total
    if count <= 0:
        return answer(
            DecisionKind.NONE, 0, "provisioning", f"{trouble}; {_shards(load.provisioning)} on the way already"
        )
    why = "and the strategy has nothing to move" if room else mean
    decision = answer(DecisionKind.UP, count, "overloaded", f"{trouble}; {why}: {total} + {count} shards")
    if total + load.failed >= policy.max_shards:
        return decision.against("at_max_shards", f"{trouble}; {why}; but max_shards={policy.max_shards} is reached")
    allowed = policy.max_shards - total - load.failed
    if count > allowed:
        return answer(
            DecisionKind.UP, allowed, "overloaded", f"{decision.reason}, of which max_shards allows {allowed}"
        )
    return decision


def _fewer(
    policy: ScalingPolicy, load: Load, now_needed: int, keep: int, watched: float, delay: float, answer: _Answer
) -> ScalingDecision:
    """`now_needed` shards would do, and `keep` were needed within the last `delay` seconds."""
    mean = (
        f"{_shards(load.active)} are {load.values[:, BUSY].mean():.0%} busy on average at "
        f"{load.values[:, RATE].sum():,.0f} events/s; {now_needed} would do"
    )
    if watched < policy.scale_down_delay:
        return answer(DecisionKind.DOWN, load.active - now_needed, "underused", mean).against(
            "scale_down_delay",
            f"{mean}, but the load has been watched for {watched:.3g} s of the scale_down_delay of "
            f"{policy.scale_down_delay:g} s",
        )
    if keep < load.active:
        return answer(
            DecisionKind.DOWN,
            load.active - keep,
            "underused",
            f"{mean}, and no more than {keep} were needed in the last {delay:g} s",
        )
    longer = (
        "" if delay == policy.scale_down_delay else " (longer than scale_down_delay: shards that went were missed soon)"
    )
    return answer(DecisionKind.DOWN, load.active - now_needed, "underused", mean).against(
        "scale_down_delay", f"{mean}, but {keep} were needed within the last {delay:g} s{longer}"
    )


def _evidence(load: Load, verdict: Diagnosis, most_needed: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "active": load.active,
        "provisioning": load.provisioning,
        "sampled": len(load.voters),
        "overloaded": load.voters[verdict.overloaded].tolist(),
        "hot_slot": load.voters[verdict.stuck].tolist(),
        "most_needed": most_needed,
    }
    if len(load.voters):
        for name, column in (("fill_ratio", FILL), ("busy", BUSY)):
            found[f"{name}_mean"] = round(float(load.values[:, column].mean()), 4)
        for name, column in (("fill_ratio", FILL), ("busy", BUSY), ("push_wait", PUSH), ("flush_latency", FLUSH)):
            found[f"{name}_max"] = round(float(load.values[:, column].max()), 6)
        found["rate"] = round(float(load.values[:, RATE].sum()), 3)
    return found


def _trouble(policy: ScalingPolicy, load: Load, verdict: Diagnosis) -> str:
    """Which shards are over which threshold, with the worst figure of each."""
    parts = []
    for mask, column, what in (
        (verdict.fill, FILL, f"fuller than {policy.fill_ratio_threshold:.0%}"),
        (verdict.busy, BUSY, f"busier than {policy.busy_threshold:.0%}"),
        (verdict.push, PUSH, f"blocking producers more than {policy.push_latency_threshold:g} s an event"),
        (verdict.flush, FLUSH, f"later than {policy.flush_latency_threshold:g} s"),
    ):
        mask = mask & ~verdict.stuck
        if mask.any():
            worst = load.values[mask, column].max()
            parts.append(
                f"{_named(load.voters[mask])} {what} ({f'{worst:.0%}' if column in (FILL, BUSY) else f'{worst:.3g} s'})"
            )
    return "; ".join(parts)


def _named(shards: np.ndarray) -> str:
    names = ", ".join(str(int(each)) for each in shards[:_NAMED])
    more = f" and {len(shards) - _NAMED} more" if len(shards) > _NAMED else ""
    return f"shard{'s' * (len(shards) > 1)} {names}{more}"


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}"
