"""Worker processes that are started before their supervisor has imported what it needs itself.

Both import for longer than all else takes at the start of an engine, and on two cores they do so side by side. Such a
worker has no shard yet: it waits for its orders, as a spare does. This file imports next to nothing.
"""

from __future__ import annotations

from shardmem.runtime.child import Child


class Prestarted:
    """So many, or none where a limit is met: what they leave would not do for the supervisor, and whoever needs one
    hears of the limit when it is started. What is not taken ends with `close`."""

    def __init__(self, count: int = 0) -> None:
        self._waiting: list[Child] = []
        try:
            for _ in range(count):
                self._waiting.append(Child("worker"))
        except OSError:
            self.close()

    def take(self) -> Child | None:
        while self._waiting:
            child = self._waiting.pop(0)
            if child.poll() is None:
                return child
            child.close()
        return None

    def close(self) -> None:
        self.keep(0)

    def keep(self, count: int) -> None:
        """No more than these."""
        while len(self._waiting) > count:
            child = self._waiting.pop()
            child.kill()  # it has nothing yet that could be lost
            child.wait()
            child.close()
