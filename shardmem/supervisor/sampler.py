"""What the supervisor measures: samples of active shards, loads of slots. Reads shared memory, changes nothing."""

from __future__ import annotations

import math

import numpy as np

from shardmem.memory.words import latency_of, now_ns
from shardmem.policy import ShardSample
from shardmem.status.observer import Observer
from shardmem.status.reading import floor_ns, fullest

SLOT_MEMORY = 10.0  # seconds: a slot's load forgets half of the past in about seven


class Sampler:
    """Differences between readings. `sample` is called once per control tick."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._control = observer, observer.control
        self._last: dict[int, tuple[float, int, int, np.ndarray]] = {}
        self._seats: tuple[int, int] = (0, 0)
        self._slots: tuple[float, np.ndarray] | None = None
        self._decayed, self._covered = np.zeros(self._control.slots), 0.0
        # the largest look of each slot: its part of `_decayed`, and of `_covered`
        self._peak, self._peak_covers = np.zeros(self._control.slots), np.zeros(self._control.slots)
        self.rates = np.zeros(self._control.slots)  # for each slot the share of a worker's time that its events take
        self.is_still = False  # nothing was handled between the last two looks, and nothing waits
        self.quarantine: dict[
            int, tuple[int, list[int]]
        ] = {}  # shard -> events in quarantine, seats whose lanes are broken

    def sample(self, shards: list[int], now: float) -> list[ShardSample]:
        self._sample_slots(now)
        for shard in self._last.keys() - set(shards):  # what is passed over now would be in the next difference
            del self._last[shard]
        blocked = self._blocked_per_event()
        samples = [self._sample_shard(shard, now, blocked) for shard in shards]
        self.is_still = all(sample and not (sample.busy or sample.rate or sample.in_flight) for sample in samples)
        return [sample for sample in samples if sample is not None]

    def _sample_shard(self, shard: int, now: float, blocked: float) -> ShardSample | None:
        view = self._control.view_shard(shard)
        inbox = self._observer.inbox(shard, view.generation)
        if inbox is None:
            return None
        lanes = inbox.lanes()
        self.quarantine[shard] = sum(lane.quarantined for lane in lanes), [lane.seat for lane in lanes if lane.broken]
        clock = now_ns()
        # The batch in hand counts as busy up to now, or a long batch would look like an idle worker.
        busy_ns = view.busy_ns + (clock - view.batch_since_ns if view.batch_since_ns else 0)
        handled = sum(lane.handled for lane in lanes)
        latency = latency_of(view).view("i8")
        last, self._last[shard] = self._last.get(shard), (now, busy_ns, handled, latency)
        if last is None or now <= last[0] or handled < last[2]:
            return None
        elapsed = now - last[0]
        fill = fullest(lanes, self._control.lane_bytes)
        return ShardSample(
            shard,
            fill_ratio=fill,
            busy=min(1.0, max(0.0, (busy_ns - last[1]) / 1e9 / elapsed)),
            push_wait=blocked if fill >= 0.5 else 0.0,
            flush_latency=_p99(latency - last[3]),
            rate=(handled - last[2]) / elapsed,
            in_flight=sum(lane.in_flight for lane in lanes),
        )

    def _blocked_per_event(self) -> float:
        """Seconds that producers were blocked per event since the last call; whose lane it was is told by its fill."""
        views = [view for _, view in self._control.known_seats()]
        now = sum(view.blocked_ns for view in views), sum(view.sequence for view in views)
        last, self._seats = self._seats, now
        return float(max(0, now[0] - last[0]) / 1e9 / max(1, now[1] - last[1]))

    def _sample_slots(self, now: float) -> None:
        """Exponentially decaying averages: what a slot took long ago says little about what it will take. They are of
        the time that they cover, so that in the first seconds they are rough and not low. The largest look of each
        slot is left out: one slow event, such as the first, says nothing of what will come."""
        busy_ns = self._control.busy_by_slot().view("i8")
        last, self._slots = self._slots, (now, busy_ns)
        if last is None or now <= last[0]:
            return
        elapsed = now - last[0]
        keep = math.exp(-elapsed / SLOT_MEMORY)
        shares = (busy_ns - last[1]).clip(min=0) / 1e9 / elapsed
        self._decayed = self._decayed * keep + shares * (1 - keep)
        self._covered = self._covered * keep + 1 - keep
        self._peak, self._peak_covers = self._peak * keep, self._peak_covers * keep
        larger = shares * (1 - keep) >= self._peak
        self._peak[larger], self._peak_covers[larger] = shares[larger] * (1 - keep), 1 - keep
        covered = self._covered - self._peak_covers
        self.rates = np.divide(self._decayed - self._peak, covered, out=np.zeros(len(covered)), where=covered > 1e-9)
        self.rates.clip(min=0, out=self.rates)

    def forget(self, shard: int) -> None:
        self._last.pop(shard, None)
        self.quarantine.pop(shard, None)


def _p99(counts: np.ndarray) -> float:
    total = int(counts.sum())
    return floor_ns(counts, 0.99 * total) / 1e9 if total > 0 else 0.0
