"""Which worker has lived long enough: after so many batches, at that age, or with that much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

YOUNG = (
    30.0  # seconds in which a worker is not replaced for its memory: a limit that none can keep would replace for ever
)
GROWN = 2  # times what it began with: where that is above the limit already, only growth can be undone by a fresh one


@dataclass(frozen=True)
class Recycling:
    """None: whatever it is. rss: bytes."""

    batches: int | None = None
    age: float | None = None
    rss: int | None = None

    @property
    def wanted(self) -> bool:
        return any(limit is not None for limit in (self.batches, self.age, self.rss))

    def in_vain(self, base: int) -> bool:
        """Whether even a fresh worker, which takes `base` bytes, is above the limit."""
        return self.rss is not None and base >= self.rss

    def due(self, batches: int, age: float, rss: int, base: int = 0, watched: float = math.inf) -> str | None:
        """Why this worker is to be replaced, in its life so far; None: it is not. base: what it took when it was fresh,
        `watched` seconds ago; 0 if that is not known."""
        if self.batches is not None and batches >= self.batches:
            return f"it has handled {batches:,} batches (recycle_batches={self.batches:,})"
        if self.age is not None and age >= self.age:
            return f"it has lived for {age:,.0f} s (recycle_age={self.age:,.0f} s)"
        if self.rss is not None and rss >= (GROWN * base if self.in_vain(base) else self.rss) and watched >= YOUNG:
            return f"it takes {rss:,} bytes of memory (recycle_rss={self.rss:,})"
        return None
