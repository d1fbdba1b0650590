"""What is known of the shards: samples, and their averages over a window of time.

[net-mesh: ShardMetrics and ShardMetricsCollector. There, reading takes the figures away, so that a dashboard can make
busy shards look idle; here reading changes nothing, and a figure weighs by the time that it stands for, so that it does
not matter how often somebody reads or how often the supervisor samples]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

FILL, BUSY, PUSH, FLUSH, RATE, IN_FLIGHT = range(6)


class ShardSample(NamedTuple):
    """One shard, since its last sample. A shard whose worker is down is not sampled: its figures are not those of load.

    fill_ratio: how full its fullest lane is, 0 to 1.
    busy: share of the time that the worker spent in the handler, 0 to 1.
    push_wait: seconds that producers were blocked on its lanes, per accepted event.
    flush_latency: seconds from push to handled, 99th percentile.
    rate: events handled per second.
    in_flight: events accepted and not handled.
    alone: all that the shard holds is one slot that exceeds a fair share: neither moves nor shards can relieve it.
    """

    shard: int
    fill_ratio: float = 0.0
    busy: float = 0.0
    push_wait: float = 0.0
    flush_latency: float = 0.0
    rate: float = 0.0
    in_flight: float = 0.0
    alone: bool = False


class Averages(NamedTuple):
    """Arrays indexed by shard id. `values` has one column per figure; `covered` is the time in seconds that they rest
    on."""

    values: np.ndarray
    covered: np.ndarray
    alone: np.ndarray


class SampleWindow:
    """Samples of the last `seconds`, averaged by time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ticks: deque[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = deque()
        self._born = np.zeros(0)
        self._last = np.zeros(0)
        self._alone = np.zeros(0, bool)
        self._averages: tuple[float, float, Averages] | None = None  # of the last question, which is asked often

    def open(self, shard: int, now: float) -> None:
        """A shard's life begins: nothing that was sampled under its id before counts."""
        self._averages = None
        self._grow(shard + 1)
        self._born[shard] = self._last[shard] = now
        self._alone[shard] = False

    def add(self, samples: Iterable[ShardSample], now: float) -> None:
        """Each sample stands for the time since the last one of its shard. One that stands for no time, or whose
        figures are not finite, is passed over.
        """
        self._averages = None
        rows = np.array(list({each[0]: each for each in samples}.values()), float).reshape(-1, 8)
        if rows.size:
            self._grow(int(rows[:, 0].max()) + 1)
            rows = rows[np.isfinite(rows).all(axis=1)]
            rows = rows[self._last[rows[:, 0].astype(int)] < now]
        if rows.size:
            shards = rows[:, 0].astype(int)
            self._ticks.append((now, shards, self._last[shards], rows[:, 1:7]))
            self._last[shards] = now
            self._alone[shards] = rows[:, 7] != 0
        while self._ticks and self._ticks[0][0] <= now - self.seconds:
            self._ticks.popleft()

    def averages(self, now: float) -> Averages:
        if self._averages is None or self._averages[:2] != (now, self.seconds):
            self._averages = now, self.seconds, self._averaged(now)
        return self._averages[2]

    def _averaged(self, now: float) -> Averages:
        values, covered = np.zeros((len(self._born), 6)), np.zeros(len(self._born))
        for until, shards, since, figures in self._ticks:
            since = np.maximum(np.maximum(since, self._born[shards]), now - self.seconds)
            weight = np.clip(min(until, now) - since, 0, None)
            values[shards] += figures * weight[:, None]
            covered[shards] += weight
        np.divide(values, covered[:, None], out=values, where=covered[:, None] > 0)
        return Averages(values, covered, self._alone.copy())

    def _grow(self, size: int) -> None:
        more = size - len(self._born)
        if more > 0:
            self._born = np.concatenate([self._born, np.zeros(more)])
            self._last = np.concatenate([self._last, np.zeros(more)])
            self._alone = np.concatenate([self._alone, np.zeros(more, bool)])
