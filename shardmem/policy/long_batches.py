"""Shards in the middle of one long batch: what their figures say is not load, and nothing can be taken from them now.

A worker that is in one batch for twelve seconds looks busy all the time and its lanes fill up, but no shard more and no
slot moved would help: it hands nothing over before that batch is done, and then it works off what has piled up. So it
is left out of decisions for as long as the batch takes, and for as long again afterwards. Unless that is how it always
works: a shard that spends most of its time in long batches is measured like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

LONG = (
    0.5  # seconds in one batch: the supervisor looks four times a second, and a batch should be over between two looks
)
MEMORY = 60.0  # seconds that count for what is usual
USUAL = 0.5  # of that time


class LongBatches:
    """Fed with the age of the batch that each worker has in hand."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}  # shard -> when the long batch in hand began
        self._past: dict[int, deque[tuple[float, float]]] = {}  # (began, ended)
        self._until: dict[int, float] = {}  # what has piled up is worked off by then

    def look(self, in_hand: Mapping[int, float], now: float) -> None:
        """in_hand: seconds, of each shard whose worker lives; 0 between batches."""
        for shard in [*self._since]:
            age = in_hand.get(shard, 0.0)
            began = self._since[shard]
            if now - age > began + LONG / 2:  # that batch is over, whether or not another has begun
                self._until[shard] = now + (now - age - began if age else now - began)
                self._past.setdefault(shard, deque(maxlen=256)).append((began, now - age if age else now))
                del self._since[shard]
        for shard, age in in_hand.items():
            if age >= LONG and shard not in self._since:
                self._since[shard] = now - age

    def blocked(self) -> set[int]:
        """Shards that are in a long batch at this moment."""
        return set(self._since)

    def unmeasurable(self, now: float) -> set[int]:
        """Shards whose figures say nothing of their load now."""
        out = self.blocked() | {shard for shard, until in self._until.items() if until > now}
        return {shard for shard in out if not self._is_usual(shard, now)}

    def _is_usual(self, shard: int, now: float) -> bool:
        spent = sum(max(0.0, min(ended, now) - max(began, now - MEMORY)) for began, ended in self._past.get(shard, ()))
        return spent > USUAL * MEMORY

    def forget(self, shards: Iterable[int]) -> None:
        for shard in shards:
            self._since.pop(shard, None)
            self._past.pop(shard, None)
            self._until.pop(shard, None)
