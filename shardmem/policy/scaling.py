"""What scaling goes by (`ScalingPolicy`), what it answers (`ScalingDecision`) and why it refuses (`ScalingError`).

[atomr-cluster-sharding: none. net-mesh: the types of the same names]
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

from shardmem.errors import ConfigError, ShardmemError
from shardmem.settings import REQUIRED, setting

MOST_SHARDS = 0xFFFF  # ids are 16 bit, and the highest means "no shard"
PUSH_COSTS = 1e-6  # seconds: an unblocked push takes 0.1 to 1 microsecond
WAKE_COSTS = 1e-4  # seconds: what it may take until a sleeping worker runs


class ScalingErrorKind(str, Enum):
    """[net-mesh: the variants of ScalingError. There, unknown_shard and wrong_state are reported as an invalid
    policy]"""

    INVALID_POLICY = "invalid_policy"
    AT_MAX_SHARDS = "at_max_shards"
    AT_MIN_SHARDS = "at_min_shards"
    IN_COOLDOWN = "in_cooldown"
    SHARD_CREATION_FAILED = "shard_creation_failed"
    UNKNOWN_SHARD = "unknown_shard"
    WRONG_STATE = "wrong_state"

    __str__ = str.__str__


class ScalingError(ShardmemError):
    """A change of the shards was refused, and nothing was changed. `kind` says why in a word, the text in a
    sentence."""

    def __init__(
        self, kind: ScalingErrorKind | str, text: str, *, detail: str | None = None, hint: str | None = None
    ) -> None:
        self.kind = ScalingErrorKind(kind)
        ShardmemError.__init__(self, text, detail=detail, hint=hint)


class InvalidPolicy(ScalingError, ConfigError):
    """The settings of a policy contradict each other or the world; `faults` lists all of them."""

    def __init__(self, faults: Iterable[str]) -> None:
        ConfigError.__init__(self, faults)
        self.kind = ScalingErrorKind.INVALID_POLICY


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """When to add shards and when to take them away. Checked: a wrong one raises InvalidPolicy with every fault.

    Times are in seconds. Signals are averages over `metrics_window`, so it should span a few samples.

    push_latency_threshold is an average. An unblocked push costs 0.1 to 1 us, so 1 ms is a thousandfold: it means that
        lanes overflow, and it is where whoever answers requests begins to notice. A saturated lane of a fast handler
        blocks for less than this per event (one producer, a million events a second: 1 us); that it is saturated shows
        in fill and busy.
    flush_latency_threshold: a batch of a thousand events at 0.1 ms each takes 0.1 s by itself, and the batch before it
        as long again.
    underutilized_threshold: the two latencies count only where the worker is at least this busy: elsewhere another
        worker would not help.
    cooldown is the same whatever the size of the change.
    scale_down_delay: what stays is the most that was needed within it (Kubernetes' horizontal autoscaler calls it a
        stabilisation window).

    [net-mesh: the type of the same name; nanoseconds and microseconds there, seconds here; busy_threshold is new]
    """

    max_shards: int = setting(REQUIRED, "never more active and provisioning", "number")
    min_shards: int = setting(1, "never fewer active", "number")
    fill_ratio_threshold: float = setting(0.7, "a shard whose lanes are fuller than this is overloaded", "share")
    busy_threshold: float = setting(
        0.8, "so is one whose worker is in the handler for a larger share of its time", "share"
    )
    push_latency_threshold: float = setting(
        0.001, "so is one that blocks producers longer per accepted event", "seconds"
    )
    flush_latency_threshold: float = setting(
        1.0, "so is one whose 99th percentile of push to handled is longer", "seconds"
    )
    underutilized_threshold: float = setting(
        0.3, "too many shards are there when mean busy and fill are below", "share"
    )
    cooldown: float = setting(2.0, "pause after a change before the next", "seconds")
    scale_down_delay: float = setting(30.0, "shards go only when they were too many for all of this time", "seconds")
    metrics_window: float = setting(1.0, "what is averaged over: a few samples of a quarter second", "seconds")
    auto_scale: bool = setting(
        True, "false makes every decision none, with what it would have been as advice", "switch"
    )

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise InvalidPolicy(faults)

    @classmethod
    def default(cls, cpus: int) -> ScalingPolicy:
        """One shard up to one per processor. [net-mesh: default_for_cpus]"""
        return cls(max_shards=_bounded(cpus))

    @classmethod
    def high_throughput(cls, cpus: int) -> ScalingPolicy:
        """Grows early and keeps what it has: for engines that must not make producers wait."""
        return cls(
            min_shards=min(4, _bounded(cpus)),
            max_shards=_bounded(2 * cpus),
            fill_ratio_threshold=0.5,
            busy_threshold=0.7,
            push_latency_threshold=0.0001,
            flush_latency_threshold=0.25,
            underutilized_threshold=0.2,
            cooldown=1.0,
            scale_down_delay=60.0,
            metrics_window=0.5,
        )

    @classmethod
    def conservative(cls, cpus: int) -> ScalingPolicy:
        """Changes rarely: for handlers that are dear to start or whose state is dear to move."""
        return cls(
            max_shards=_bounded(cpus),
            fill_ratio_threshold=0.85,
            busy_threshold=0.9,
            push_latency_threshold=0.01,
            flush_latency_threshold=5.0,
            underutilized_threshold=0.2,
            cooldown=15.0,
            scale_down_delay=300.0,
            metrics_window=5.0,
        )

    @property
    def comfortable(self) -> float:
        """The busy share that a scale-down may lead to: half way between too idle and too busy, so neither follows."""
        return (self.underutilized_threshold + self.busy_threshold) / 2


def _bounded(cpus: int) -> int:
    return max(1, min(cpus, MOST_SHARDS))


def _faults(policy: ScalingPolicy) -> Iterator[str]:
    bad = set()
    for each in fields(policy):
        value = getattr(policy, each.name)
        if each.name == "auto_scale":
            fits, expected = isinstance(value, bool), "true or false"
        elif each.name in ("min_shards", "max_shards"):
            fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        else:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            expected = "a finite number"
        if not fits:
            bad.add(each.name)
            yield f"{each.name} must be {expected}, not {value!r}"

    def check(name: str, holds: bool, expected: str) -> Iterator[str]:
        if not holds:
            bad.add(name)
            yield f"{name} must be {expected}, not {getattr(policy, name)!r}"

    for name in ("fill_ratio_threshold", "busy_threshold"):
        if name not in bad:
            yield from check(name, 0 < getattr(policy, name) <= 1, "above 0 and at most 1")
    if "underutilized_threshold" not in bad:
        yield from check("underutilized_threshold", 0 <= policy.underutilized_threshold < 1, "at least 0 and below 1")
    for name, least, why in (
        ("push_latency_threshold", PUSH_COSTS, "a push that waits for nothing costs as much"),
        ("flush_latency_threshold", WAKE_COSTS, "waking a worker costs as much"),
    ):
        if name not in bad:
            yield from check(name, getattr(policy, name) >= least, f"at least {least:g} s ({why}; the unit is seconds)")
    for name in ("cooldown", "scale_down_delay", "metrics_window"):
        if name not in bad:
            yield from check(name, getattr(policy, name) > 0, "above 0 seconds")
    if "min_shards" not in bad:
        yield from check("min_shards", policy.min_shards >= 1, "at least 1")
    if "max_shards" not in bad:
        yield from check("max_shards", 1 <= policy.max_shards <= MOST_SHARDS, f"between 1 and {MOST_SHARDS:,}")
    if not bad & {"min_shards", "max_shards"} and policy.max_shards < policy.min_shards:
        yield f"max_shards={policy.max_shards} is less than min_shards={policy.min_shards}"
    for name in ("busy_threshold", "fill_ratio_threshold"):
        if not bad & {name, "underutilized_threshold"} and policy.underutilized_threshold >= getattr(policy, name):
            yield (
                f"underutilized_threshold={policy.underutilized_threshold:g} must be below {name}="
                f"{getattr(policy, name):g}, or a shard would be idle and overloaded at once"
            )


class DecisionKind(str, Enum):
    """[net-mesh: None, ScaleUp, ScaleDown; rebalance is new]"""

    NONE = "none"
    UP = "up"
    DOWN = "down"
    REBALANCE = "rebalance"

    __str__ = str.__str__


@dataclass(frozen=True)
class ScalingDecision:
    """What to do about the number of shards, and why. [net-mesh: the type of the same name, without reasons]

    kind: none, up, down, or rebalance (there is room enough, in the wrong place: moving slots is cheaper than a
    worker).
    count: how many shards to add or remove, as one change; 0 for none and rebalance.
    cause: the rule that decided, in a word; for counting and for telling decisions apart.
    reason: the same in a sentence, with the figures.
    evidence: the figures by name.
    at: when, in the seconds of the caller's clock.
    advice: what the decision would have been, had not a rule stood against it (auto_scale, cooldown, delay, a limit).
    """

    kind: DecisionKind
    count: int
    cause: str
    reason: str
    at: float
    evidence: Mapping[str, Any] = field(default_factory=dict)
    advice: ScalingDecision | None = None

    def against(self, cause: str, reason: str) -> ScalingDecision:
        """This decision, not carried out because of a rule."""
        return replace(self, kind=DecisionKind.NONE, count=0, cause=cause, reason=reason, advice=self)


class DecisionHistory:
    """The last decisions, oldest first, at most `limit`. One that repeats the last (same kind, count and cause)
    replaces it and is counted: a quiet engine that says "steady" four times a second forgets nothing that matters.
    """

    def __init__(self, limit: int = 64) -> None:
        self._entries: deque[tuple[ScalingDecision, float, int]] = deque(maxlen=limit)

    def note(self, decision: ScalingDecision) -> None:
        first, times = decision.at, 1
        if self._entries:
            last, since, repeats = self._entries[-1]
            if (last.kind, last.count, last.cause) == (decision.kind, decision.count, decision.cause):
                self._entries.pop()
                first, times = since, repeats + 1
        self._entries.append((decision, first, times))

    def __iter__(self) -> Iterator[tuple[ScalingDecision, float, int]]:
        """(latest of its kind, when it was first taken, how often)."""
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
