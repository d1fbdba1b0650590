"""How often the supervisor looks: four times a second while anything flows, is under way or is wrong; seldom in an
engine at rest, which is to cost nothing.

What comes to an engine at rest is told: by the worker that gets the first event, by the kernel when one dies, by
whoever gives an order. What nobody tells of, such as memory that somebody cuts short, waits for the next look.
"""

from __future__ import annotations

import asyncio
import time

TICK = 0.25  # seconds between two looks
REST = 2.0  # the same at rest
CALM = 3.0  # seconds of nothing until it is at rest; a worker that has slept for so long says that events come again


class Pace:
    def __init__(self) -> None:
        self._busy_at, self._news = time.monotonic(), asyncio.Event()

    @property
    def interval(self) -> float:
        return REST if time.monotonic() - self._busy_at > CALM else TICK

    def stir(self) -> None:
        """Something flows, or is under way."""
        if self.interval > TICK:
            self._news.set()
        self._busy_at = time.monotonic()

    async def wait(self, longest: float) -> None:
        """Until the next look, which is soon when something stirs. For one at a time."""
        clock = asyncio.get_running_loop().call_later(min(self.interval, longest), self._news.set)
        try:
            await self._news.wait()
        finally:
            clock.cancel()
        self._news.clear()
