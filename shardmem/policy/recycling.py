"""Which worker has lived long enough: after so many batches, at that age, or with that much memory."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recycling:
    """None: whatever it is. rss: bytes."""

    batches: int | None = None
    age: float | None = None
    rss: int | None = None

    @property
    def wanted(self) -> bool:
        return any(limit is not None for limit in (self.batches, self.age, self.rss))

    def due(self, batches: int, age: float, rss: int) -> str | None:
        """Why this worker is to be replaced, in its life so far; None: it is not."""
        if self.batches is not None and batches >= self.batches:
            return f"it has handled {batches:,} batches (recycle_batches={self.batches:,})"
        if self.age is not None and age >= self.age:
            return f"it has lived for {age:,.0f} s (recycle_age={self.age:,.0f} s)"
        if self.rss is not None and rss >= self.rss:
            return f"it takes {rss:,} bytes of memory (recycle_rss={self.rss:,})"
        return None
