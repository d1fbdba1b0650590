"""What one look at an engine remembers for the next, and the quantiles of its histograms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardmem.memory.inbox_segment import LaneView
from shardmem.memory.words import FLOORS_NS

Counts = npt.NDArray[np.uint64]


def quantile_us(counts: Counts, share: float) -> float | None:
    """A quantile of a latency histogram in microseconds, at most a quarter too low; None when nothing was counted."""
    total = int(counts.sum())
    return floor_ns(counts, max(1, share * total)) / 1000 if total else None


def quantile_rows(sizes: Counts, share: float) -> int | None:
    """A quantile of a histogram of batch sizes, at most twice too high; None when nothing was counted."""
    sums = np.cumsum(sizes)
    return 1 << min(int(np.searchsorted(sums, max(1, share * int(sums[-1])))), len(sums) - 1) if sums[-1] else None


@dataclass(frozen=True)
class Histograms:
    """Of one shard, what is too long for the document. latency: events from push to handled, in the buckets whose
    floors are FLOORS_NS; they waited so many seconds together. batches: of at most 1, 2, 4, 8, ... events, which are so
    many together."""

    latency: Counts
    waited_s: float
    batches: Counts
    events: int


def floor_ns(counts: Counts, rank: float) -> int:
    """Where the bucket begins that holds the event of this rank. The last one, if damaged counts have no such event."""
    return FLOORS_NS[min(int(np.searchsorted(np.cumsum(counts), rank)), len(FLOORS_NS) - 1)]


def fullest(lanes: list[LaneView], lane_bytes: int) -> float:
    """How full the fullest lane is, 0 to 1; lanes that are read no more stay as full as they are, and need no more
    workers."""
    return min(1.0, max((max(0, lane.tail - lane.head) for lane in lanes if not lane.broken), default=0) / lane_bytes)


@dataclass
class ShardReading:
    """What was read of one shard; rates are differences of two."""

    handled: int
    busy_ns: int
    fill: float
    cpu_s: float | None
    pid: int
    latency: Counts

    def latency_since(self, last: ShardReading | None) -> Counts:
        """Nothing when there was no earlier look, or the number is another shard's by now."""
        earlier = last.latency if last is not None and (last.latency <= self.latency).all() else self.latency
        return self.latency - earlier

    def rate_and_busy(self, last: ShardReading | None, elapsed: float, up: float) -> tuple[float, float]:
        """Events/s, and the share of time in the handler: since the last look, or since the worker started."""
        if last is None or elapsed <= 0:
            return 0.0, min(1.0, self.busy_ns / 1e9 / up)
        busy = (self.busy_ns - last.busy_ns) / 1e9 / elapsed
        return max(0, self.handled - last.handled) / elapsed, min(1.0, max(0.0, busy))

    def cores_used(self, last: ShardReading | None, elapsed: float, up: float) -> float | None:
        if self.cpu_s is None:
            return None
        if last is None or elapsed <= 0 or last.cpu_s is None or last.pid != self.pid:
            return self.cpu_s / up
        return max(0.0, self.cpu_s - last.cpu_s) / elapsed


@dataclass
class Reading:
    """What was read of an engine; rates are differences of two."""

    at: float
    shards: dict[int, ShardReading] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)
    blocked_ns: dict[int, int] = field(default_factory=dict)
