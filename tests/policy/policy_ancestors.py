"""The rules of the two ancestors where they misbehave, as short as they can be told, so that the tests can show that
each scenario is one that goes wrong. N: net-mesh 0.34, R: atomr-cluster-sharding 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Votes:
    """N1, N2, N6, N7: the shards vote, the majority decides, in one look and without regard to time."""

    lowest: int = 1
    highest: int = 8
    fill: float = 0.7
    push_ns: float = 5.0
    idle: float = 0.1
    scale_down_delay: float = 10.0  # nobody reads it

    def decide(self, shards: list[tuple[float, float, int]]) -> int:
        """shards: (fill, mean push latency in ns, events in the window). How many to add, or to remove if negative."""
        full = sum(fill > self.fill or push > self.push_ns for fill, push, _ in shards)
        idle = sum(fill < self.idle and events == 0 for fill, _, events in shards)
        if full > len(shards) // 2 and len(shards) < self.highest:
            return min(max(1, full // 2), self.highest - len(shards))
        if idle > len(shards) // 2 and len(shards) > self.lowest:
            return -min(max(1, idle // 2), len(shards) - self.lowest)
        return 0


class Gate:
    """N3: shards are added one at a time through a gate that closes for the cooldown after each."""

    def __init__(self, cooldown: float) -> None:
        self.cooldown, self.last = cooldown, float("-inf")

    def add(self, count: int, now: float) -> int:
        added = 0
        for _ in range(count):
            if now - self.last >= self.cooldown:
                self.last, added = now, added + 1
        return added


@dataclass
class Drain:
    """N4: done when empty and nothing was pushed since the drain began; what was pushed is never forgotten."""

    length: int = 0
    pushes: int = 0

    def push(self) -> None:
        self.length, self.pushes = self.length + 1, self.pushes + 1

    def done(self, elapsed: float) -> bool:
        return self.length == 0 and self.pushes == 0 and elapsed > 0.1


@dataclass
class Counter:
    """N5: reading takes the figures away."""

    events: int = 0

    def read(self) -> int:
        found, self.events = self.events, 0
        return found


def emptiest(hash64: int, fills: list[float]) -> int:
    """N8: the hash chooses among the shards whose weight (100 x fill) is within 0.1 of the least."""
    least = min(100 * fill for fill in fills)
    table = [shard for shard, fill in enumerate(fills) if 100 * fill <= least + 0.1]
    return table[hash64 * len(table) >> 64]


class Ids:
    """Ids only ever go up, and the last is reserved."""

    def __init__(self, start: int = 0) -> None:
        self.next = start

    def take(self) -> int | None:
        if self.next >= 65535:
            return None
        self.next += 1
        return self.next - 1


@dataclass
class LeastShard:
    """R1, R2, R3, R8: only owners of something are counted; the first k of the fullest go, all to one target."""

    limit: int = 3
    threshold: int = 1
    owner: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, *counts: int, **options: int) -> LeastShard:
        made, slot = cls(**options), 0
        for region, count in enumerate(counts):
            for _ in range(count):
                made.owner[slot], slot = region, slot + 1
        return made

    def counts(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for region in self.owner.values():
            found[region] = found.get(region, 0) + 1
        return found

    def target(self) -> int | None:
        counts = self.counts()
        return min(counts, key=lambda region: (counts[region], region)) if counts else None

    def candidates(self) -> list[int]:
        counts = self.counts()
        if not counts or max(counts.values()) - min(counts.values()) < self.threshold:
            return []
        fullest = {region for region, count in counts.items() if count == max(counts.values())}
        return sorted(slot for slot, region in self.owner.items() if region in fullest)[: self.limit]

    def tick(self, stuck: frozenset[int] = frozenset()) -> int:
        """R5: those under way (here: stuck) are skipped and not replaced. How many moved."""
        moving = [slot for slot in self.candidates() if slot not in stuck]
        target = self.target()
        for slot in moving:
            self.owner[slot] = target
        return len(moving)


class Counted:
    """R4, R7: a handoff that is over when the last entity has reported; nothing else ends it."""

    def __init__(self) -> None:
        self.state, self.remaining = "idle", 0

    def begin(self, entities: int) -> bool:
        if self.state not in ("idle", "started"):
            return False
        self.state, self.remaining = "handing off", entities
        return True

    def entity_stopped(self) -> None:
        self.remaining = max(0, self.remaining - 1)
        if self.remaining == 0:
            self.state = "stopped"
