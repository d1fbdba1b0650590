"""A worker is replaced without a pause: a fresh one on a shard of its own takes over the slots, and the old one is
removed.

    create ──▶ ready ──▶ active, the old one draining ──▶ every slot moves ──▶ the old one is removed
      └──────────▶ cannot boot: given up, and the old one has noticed nothing

It is a handoff like any other, so nothing is lost, repeated or reordered, and the state of slots travels. For the time
of it there is one shard more than `max_shards`. The successor has weight 0 until the old one drains: a supervisor that
takes over knows by that whether the replacement had begun (takeover.py). Recycling is here; a reload (reload.py) is
replacements too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shardmem.errors import HandlerError, ShardmemError
from shardmem.policy import Recycling, ShardState
from shardmem.policy.recycling import GROWN
from shardmem.supervisor.fleet import Fleet

AFTER_A_FAILURE = 60.0  # seconds until a worker that could not be replaced is looked at again


@dataclass(frozen=True)
class _Age:
    """Of a worker, as it was first seen. batches: of its shard by then. base: bytes of memory; 0: it was no fresh
    one."""

    incarnation: int
    batches: int
    base: int
    seen: float


class Replacements:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lives: dict[int, _Age] = {}
        self._began, self._not_before = time.monotonic(), 0.0
        self._replacing = 0
        self._warned_rss: int | None = None  # the recycle_rss that is known to be too small

    async def replace(self, shard: int, unless: Callable[[], bool] = lambda: False) -> int:
        """The shard that has taken its place, or takes it still: `unless` holds. Raises HandlerError when its worker
        cannot boot; nothing has changed then."""
        fleet = self._fleet
        is_gone, successor = fleet.shards.gone([shard]), fleet.shards.create_successor(shard)
        self._replacing += 1
        try:
            await fleet.conditions.until(lambda: not fleet.shards.is_joining(successor))
            fleet.shards.check_joined([successor])
            fleet.step_soon()
            await fleet.conditions.until(lambda: is_gone() or self._has_failed(successor, shard) or unless())
        finally:
            self._replacing -= 1
        return successor

    def _has_failed(self, successor: int, shard: int) -> bool:
        """Raises HandlerError."""
        if self._fleet.planner.mapper.shard_state(successor) is ShardState.FAILED:
            reason = self._fleet.control.shard_error(successor)
            raise HandlerError(f"shard {successor}, which takes the place of shard {shard}, failed: {reason}")
        return False

    # ---- recycling ---------------------------------------------------------------------------------------------------

    def due(self) -> tuple[int, str] | None:
        """A shard whose worker is to be replaced, and why."""
        config, now = self._fleet.config, time.monotonic()
        recycling = Recycling(config.recycle_batches, config.recycle_age, config.recycle_rss)
        if not recycling.wanted or now < self._not_before or self._replacing:
            return None
        control = self._fleet.control
        for shard in self._fleet.shards.in_state("active"):
            if control.worker_phase(shard) != "ready":  # what it imports and restores is part of what it begins with
                continue
            if shard in self._fleet.planner.waiting():  # it could hand over nothing
                continue
            view, life = control.view_shard(shard), self._lives.get(shard)
            rss, entered = _rss(view.pid) if recycling.rss is not None else 0, view.entered_ns / 1e9
            if life is None or life.incarnation != view.incarnation:
                fresh = entered >= self._began
                life = self._lives[shard] = _Age(
                    view.incarnation, view.batches, rss if fresh else 0, now if fresh else entered
                )
                self._warn(recycling, life)
            if (
                why := recycling.due(view.batches - life.batches, now - entered, rss, life.base, now - life.seen)
            ) is not None:
                return shard, why
        return None

    def _warn(self, recycling: Recycling, life: _Age) -> None:
        if recycling.in_vain(life.base) and self._warned_rss != recycling.rss:
            self._warned_rss = recycling.rss
            self._fleet.history.note(
                "not_done",
                f"a fresh worker takes {life.base:,} bytes of memory, and recycle_rss="
                f"{recycling.rss:,}: no other would take less, so one is replaced at {GROWN} times that",
            )

    async def recycle(self, shard: int, why: str) -> None:
        if self._fleet.control.shard_state(shard) != "active":
            return
        try:
            successor = await self.replace(shard)
        except ShardmemError:
            self._not_before = time.monotonic() + AFTER_A_FAILURE
            raise
        self._lives.pop(shard, None)
        text = f"shard {shard} was recycled, because {why}; shard {successor} has its slots"
        self._fleet.history.note("worker_replaced", text, successor)


def _rss(pid: int) -> int:
    import psutil  # not at the start, when workers wait for a core

    try:
        return psutil.Process(pid).memory_info().rss
    except (psutil.Error, ValueError, OverflowError):  # the number is what shared memory says
        return 0
