"""A worker is replaced without a pause: a fresh one on a shard of its own takes over the slots, and the old one is
removed.

    create ──▶ ready ──▶ active, the old one draining ──▶ every slot moves ──▶ the old one is removed
      └──────────▶ cannot boot: given up, and the old one has noticed nothing

It is a handoff like any other, so nothing is lost, repeated or reordered, and the state of slots travels. For the time
of it there is one shard more than `max_shards`. The successor has weight 0 until the old one drains: a supervisor that
takes over knows by that whether the replacement had begun (takeover.py). Recycling and reload are replacements, one
after the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from shardmem.config import Config
from shardmem.errors import HandlerError, NotRunning, ShardmemError
from shardmem.policy import Recycling, ShardState
from shardmem.policy.recycling import GROWN
from shardmem.runtime.handler import HandlerRef
from shardmem.supervisor.configured import policy_of
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life
from shardmem.supervisor.notify import Notify
from shardmem.supervisor.sources import Sources

# What shared memory, its users or the mapper were made with. All else takes effect when the worker is replaced.
FIXED = (
    "name",
    "schema",
    "slots",
    "lane_bytes",
    "max_producers",
    "backpressure",
    "shards",
    "min_shards",
    "max_shards",
    "auto_scale",
    "strategy",
    "state_dir",
    "http_port",
    "http_token",
)
AT_ONCE, TAKES_LONG = 3, 1.0  # replacements, when one takes longer than so many seconds
AFTER_A_FAILURE = 60.0  # seconds until a worker that could not be replaced is looked at again

log = logging.getLogger("shardmem.replace")


@dataclass(frozen=True)
class _Age:
    """Of a worker, as it was first seen. batches: of its shard by then. base: bytes of memory; 0: it was no fresh
    one."""

    incarnation: int
    batches: int
    base: int
    seen: float


class Replacements:
    """read_again: the configuration as it is now; None: there is no file to read."""

    def __init__(
        self,
        fleet: Fleet,
        life: Life,
        notify: Notify,
        read_again: Callable[[], tuple[Config, HandlerRef]] | None,
        sources: Sources,
    ) -> None:
        self._fleet, self._life, self._notify, self._read_again = fleet, life, notify, read_again
        self._sources = sources
        self._lives: dict[int, _Age] = {}
        self._began, self._not_before = time.monotonic(), 0.0
        self._replacing = 0
        self._reloading = asyncio.Lock()  # a reload waits for the last one, and nothing else waits for either
        self._warned_rss: int | None = None  # the recycle_rss that is known to be too small

    async def replace(self, shard: int) -> int:
        """The shard that has taken its place. Raises HandlerError when its worker cannot boot; nothing has changed
        then."""
        fleet = self._fleet
        is_gone, successor = fleet.shards.gone([shard]), fleet.shards.create_successor(shard)
        self._replacing += 1
        try:
            await fleet.conditions.until(lambda: not fleet.shards.is_joining(successor))
            fleet.shards.check_joined([successor])
            fleet.step_soon()
            await fleet.conditions.until(is_gone)
        finally:
            self._replacing -= 1
        return successor

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

    # ---- reload ------------------------------------------------------------------------------------------------------

    async def reload(self) -> dict[str, Any]:
        """Every worker anew, with what the configuration says now. Raises ConfigError, HandlerError: then the workers
        that were not replaced yet go on as they are.
        """
        self._notify.reloading()
        try:
            return await self._reload()
        finally:
            if not self._life.is_stopping:
                self._notify.ready()

    async def _reload(self) -> dict[str, Any]:
        fleet, started = self._fleet, time.monotonic()
        old, workers = fleet.config, fleet.workers
        config, handler = (old, workers.launch_config[1]) if self._read_again is None else self._read_again()
        fixed = [key for key in FIXED if getattr(config, key) != getattr(old, key)]
        if fixed:
            log.warning(
                "these settings cannot change while the engine runs, and stay as they are: %s", ", ".join(fixed)
            )
        keep = {
            key: getattr(old, key)
            for key in (*fixed, *(("dtype", "key") if "schema" in fixed else ()))
            if key != "schema"
        }
        config = dataclasses.replace(config, **keep)
        policy = policy_of(config)
        async with self._reloading:
            before = workers.launch_config
            workers.launch_with(config, handler)
            try:
                reloaded = await self._renew_all()
            except ShardmemError:
                workers.launch_with(*before)
                raise
            fleet.reconfigure(config, policy)
            await self._sources.change(config)
        done = [
            f"shard {new} took the place of {old}" if new != old else f"shard {new} was started again"
            for each in reloaded
            for old, new in [(each["from"], each["to"])]
        ]
        kept = f"; not changed while it runs: {', '.join(fixed)}" if fixed else ""
        fleet.history.note("reload", f"in {time.monotonic() - started:.2g} s: {', '.join(done)}{kept}")
        return {"reloaded": reloaded, "not_applied": fixed}

    async def _renew_all(self) -> list[dict[str, int]]:
        """What has failed first, what is in the middle of a long batch last. One after the other, but none waits for
        one that takes long. Raises at the first that cannot be renewed: those that come after it go on with what they
        have.
        """
        fleet, shards, blocked = self._fleet, self._fleet.shards, self._fleet.planner.blocked()
        # successors of a reload that was given up, or of recycling, were started with what was in force then
        await fleet.conditions.until(lambda: not shards.succeeding)
        order = shards.in_state("failed") + sorted(shards.in_state("active"), key=lambda shard: shard in blocked)
        order += fleet.planner.mapper.joining_shard_ids()
        lives = {shard: fleet.control.view_shard(shard).generation for shard in order}
        running: set[asyncio.Task[dict[str, int] | None]] = set()
        reloaded: list[dict[str, int]] = []

        async def settled(timeout: float | None, every: str = asyncio.FIRST_COMPLETED) -> None:
            nonlocal running
            done, running = await asyncio.wait(running, timeout=timeout, return_when=every)
            errors = [error for task in done if (error := task.exception()) is not None]
            reloaded.extend([each for task in done if task.exception() is None and (each := task.result()) is not None])
            if errors:
                raise errors[0]

        try:
            for shard in order:
                running.add(asyncio.create_task(self._renew(shard, lives[shard])))
                await settled(TAKES_LONG)
                while len(running) >= AT_ONCE:
                    await settled(None)
            while running:
                await settled(None)
        finally:
            for task in running:  # they go on; of one that fails now the history tells
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return reloaded

    async def _renew(self, shard: int, generation: int) -> dict[str, int] | None:
        """None: it was on its way out, and needs no other worker."""
        fleet = self._fleet

        def has_failed() -> bool:
            return is_same() and fleet.control.shard_state(shard) == "failed"

        def is_active() -> bool:  # the word follows with the next step
            return is_same() and fleet.planner.mapper.shard_state(shard) is ShardState.ACTIVE

        def is_same() -> bool:
            return fleet.control.view_shard(shard).generation == generation

        try:
            await fleet.conditions.until(lambda: not fleet.shards.is_joining(shard))
            if not is_active() and not has_failed():
                return None
            if not has_failed():
                try:
                    return {"from": shard, "to": await self.replace(shard)}
                except ShardmemError:
                    if not is_active() and not has_failed():
                        return None
                    if not has_failed():  # meanwhile
                        raise
            # a failed shard has no worker to hand anything over: the next one starts where it ended
            fleet.workers.renew(shard)
            since, limit = time.monotonic(), fleet.config.boot_timeout
            fleet.workers.expect([shard])
            await fleet.conditions.until(
                lambda: fleet.workers.is_ready(shard) or fleet.workers.why_not_ready(shard, since, limit) is not None
            )
            if (reason := fleet.workers.why_not_ready(shard, since, limit)) is not None:
                raise HandlerError(reason)
            return {"from": shard, "to": shard}
        except NotRunning:
            raise
        except ShardmemError as error:
            text = f"reload stopped at shard {shard}, which goes on with what it had: {error}"
            raise HandlerError(text) if isinstance(error, HandlerError) else ShardmemError(text) from error


def _rss(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0
