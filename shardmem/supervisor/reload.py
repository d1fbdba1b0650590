"""A reload: every worker anew, with what the configuration says now.

What has failed is started again at once, before anything else: a reload that is under way may wait for it. What waits,
because what is downstream is away, cannot hand over its rows, nor can another to which slots are on their way from it:
their workers are started again in their place, and that may be what ends the waiting. All others are replaced
(replacements.py), a few at a time. One reload runs; those that are asked for meanwhile are one, which comes after it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from shardmem.config import Config
from shardmem.errors import HandlerError, NotRunning, ShardmemError
from shardmem.policy import ShardState
from shardmem.runtime.handler import HandlerRef
from shardmem.supervisor.configured import policy_of
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life
from shardmem.supervisor.notify import Notify
from shardmem.supervisor.replacements import Replacements
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
    "http_address",
    "http_allowed_hosts",
    "http_token",
)
AT_ONCE, TAKES_LONG = 3, 1.0  # replacements, when one takes longer than so many seconds
LOOK = 0.1  # seconds between two looks for what has failed meanwhile, or has booted

log = logging.getLogger("shardmem.reload")


class Reload:
    """read_again: the configuration as it is now; None: there is no file to read."""

    def __init__(
        self,
        fleet: Fleet,
        life: Life,
        notify: Notify,
        replacements: Replacements,
        read_again: Callable[[], tuple[Config, HandlerRef]] | None,
        sources: Sources,
    ) -> None:
        self._fleet, self._life, self._notify, self._replacements = fleet, life, notify, replacements
        self._sources = sources
        self._read_again, self._in_force = read_again, fleet.workers.launch_config
        self._running = asyncio.Lock()
        self._next: asyncio.Task[dict[str, Any]] | None = None
        self._revived: dict[int, tuple[Config, HandlerRef]] = {}  # started again for the next one, and with what
        self._left: dict[int, int] = {}  # shards that the one under way has not come to, and which with that id
        self._owed: dict[int, int] = {}  # those that it is about, or a task that an error has left

    async def run(self) -> dict[str, Any]:
        """Raises ConfigError, HandlerError: then the workers that were not replaced yet go on as they are."""
        self._notify.reloading()
        try:
            config, handler, _ = self._wanted()
            self._revive(config, handler)
            if self._next is None:
                self._next = asyncio.create_task(self._run())
            return await asyncio.shield(self._next)
        finally:
            if not self._life.is_stopping:
                self._notify.ready()

    @property
    def owed(self) -> list[list[int]]:
        """[shard, which with that id]: what a supervisor that takes over has to renew still."""
        return [[shard, generation] for shard, generation in {**self._owed, **self._left}.items()]

    async def resume(self, owed: Iterable[Iterable[int]]) -> None:
        """The reload that an earlier supervisor had begun, as far as it had not come. Raises as `run`."""
        there = {shard: self._fleet.control.view_shard(shard).generation for shard in self._fleet.inboxes}
        left = {shard: generation for shard, generation in owed if there.get(shard) == generation}
        if left:
            await self._run(left)

    def _wanted(self) -> tuple[Config, HandlerRef, list[str]]:
        """What the configuration says now, as far as it can change, and what cannot. Raises ConfigError."""
        old, (_, handler) = self._fleet.config, self._in_force
        config, handler = (old, handler) if self._read_again is None else self._read_again()
        fixed = [key for key in FIXED if getattr(config, key) != getattr(old, key)]
        keep = {
            key: getattr(old, key)
            for key in (*fixed, *(("dtype", "key") if "schema" in fixed else ()))
            if key != "schema"
        }
        config = dataclasses.replace(config, **keep)
        policy_of(config)
        return config, handler, fixed

    def _revive(self, config: Config, handler: HandlerRef) -> None:
        workers = self._fleet.workers
        for shard in self._fleet.shards.in_state("failed"):
            workers.launch_with(config, handler)
            workers.expect([shard])
            workers.renew(shard)
            self._revived[shard] = config, handler

    async def _run(self, only: dict[int, int] | None = None) -> dict[str, Any]:
        async with self._running:
            if only is None:
                self._next = None
            started = time.monotonic()
            config, handler, fixed = self._wanted()
            if fixed:
                log.warning(
                    "these settings cannot change while the engine runs, and stay as they are: %s", ", ".join(fixed)
                )
            fleet, workers = self._fleet, self._fleet.workers
            workers.launch_with(config, handler)
            try:
                reloaded = await self._renew_all(config, handler, only)
            except ShardmemError:
                workers.launch_with(*self._in_force)
                raise
            finally:
                self._left = {}
            self._in_force = config, handler
            fleet.reconfigure(config, policy_of(config))
            await self._sources.change(config)
        done = [
            f"shard {new} took the place of {old}" if new != old else f"shard {new} was started again"
            for each in reloaded
            for old, new in [(each["from"], each["to"])]
        ]
        kept = f"; not changed while it runs: {', '.join(fixed)}" if fixed else ""
        fleet.history.note("reload", f"in {time.monotonic() - started:.2g} s: {', '.join(done)}{kept}")
        return {"reloaded": reloaded, "not_applied": fixed}

    async def _renew_all(
        self, config: Config, handler: HandlerRef, only: dict[int, int] | None
    ) -> list[dict[str, int]]:
        """What has failed first, what is in the middle of a long batch last. Raises at the first that cannot be
        renewed: those that come after it go on with what they have.
        """
        fleet, shards, blocked = self._fleet, self._fleet.shards, self._fleet.planner.blocked()
        # successors of a reload that was given up, or of recycling, were started with what was in force then
        await fleet.conditions.until(lambda: not shards.succeeding)
        revived = [shard for shard, what in self._revived.items() if what == (config, handler)]
        self._revived.clear()
        order = [*revived, *sorted(shards.in_state("active", "failed"), key=lambda shard: shard in blocked)]
        order += [shard for shard in fleet.planner.mapper.draining_shard_ids() if self._waits(shard)]
        order += fleet.planner.mapper.joining_shard_ids()
        self._left = {shard: fleet.control.view_shard(shard).generation for shard in order}
        if only is not None:
            self._left = {shard: life for shard, life in self._left.items() if only.get(shard) == life}
        running: set[asyncio.Task[dict[str, int] | None]] = set()
        reloaded: list[dict[str, int]] = []
        began = 0.0
        try:
            while self._left or running:
                # what fails meanwhile waits for nobody: others may wait for it
                urgent = [shard for shard in self._left if shard in revived or shard in shards.in_state("failed")]
                # one that cannot boot is the last that is tried, so the next begins when it has
                goes_on = not shards.succeeding and time.monotonic() - began > TAKES_LONG and len(running) < AT_ONCE
                if urgent or self._left and (goes_on or not running):
                    shard, began = (urgent or list(self._left))[0], time.monotonic()
                    running.add(asyncio.create_task(self._renew(shard, self._left.pop(shard), shard in revived)))
                done, running = await asyncio.wait(
                    running, timeout=0 if urgent else LOOK, return_when=asyncio.FIRST_COMPLETED
                )
                reloaded += _results(done)
        finally:
            for task in running:  # they go on; of one that fails now the history tells
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return reloaded

    async def _renew(self, shard: int, generation: int, is_revived: bool) -> dict[str, int] | None:
        """None: it was on its way out, and needs no other worker."""
        fleet = self._fleet

        def has_failed() -> bool:
            return is_same() and fleet.control.shard_state(shard) == "failed"

        def is_active() -> bool:  # the word follows with the next step
            return is_same() and fleet.planner.mapper.shard_state(shard) is ShardState.ACTIVE

        def is_same() -> bool:
            return fleet.control.view_shard(shard).generation == generation

        self._owed[shard] = generation
        try:
            if is_revived and is_same():
                return await self._started(shard)
            await fleet.conditions.until(lambda: not fleet.shards.is_joining(shard) or self._waits(shard))
            if is_same() and self._waits(shard) and not has_failed():
                return await self._restarted(shard)
            if not is_active() and not has_failed():
                return None
            if not has_failed():
                try:
                    successor = await self._replacements.replace(shard, lambda: is_same() and self._waits(shard))
                    if is_same() and self._waits(shard):  # it has begun to since
                        await self._restarted(shard)
                    return {"from": shard, "to": successor}
                except ShardmemError:
                    if not is_active() and not has_failed():
                        return None
                    if not has_failed():  # meanwhile
                        raise
            # a failed shard has no worker to hand anything over: the next one starts where it ended
            fleet.workers.expect([shard])
            fleet.workers.renew(shard)
            return await self._started(shard)
        except NotRunning:
            raise
        except ShardmemError as error:
            text = f"reload stopped at shard {shard}, which goes on with what it had: {error}"
            raise HandlerError(text) if isinstance(error, HandlerError) else ShardmemError(text) from error
        finally:
            self._owed.pop(shard, None)

    def _waits(self, shard: int) -> bool:
        """Whether it cannot hand over what it has until what is downstream is back, here or where slots come from."""
        planner = self._fleet.planner
        waiting = planner.waiting()
        is_opening = self._fleet.workers.waits_to_open(shard) is not None  # one that joins is in no plan yet
        return (
            is_opening
            or shard in waiting
            or any(each.target == shard and each.source in waiting for each in planner.table.in_motion())
        )

    async def _restarted(self, shard: int) -> dict[str, int]:
        control, workers = self._fleet.control, self._fleet.workers
        before = control.view_shard(shard).incarnation
        workers.restart(shard)
        await self._fleet.conditions.until(
            lambda: control.view_shard(shard).incarnation != before or shard in workers.failed()
        )
        workers.expect([shard])
        return await self._started(shard)

    async def _started(self, shard: int) -> dict[str, int]:
        """When a shard that is started again is ready. Raises HandlerError."""
        workers, since, limit = self._fleet.workers, time.monotonic(), self._fleet.config.boot_timeout
        await self._fleet.conditions.until(
            lambda: (
                workers.is_ready(shard)
                or workers.waits_to_open(shard) is not None
                or workers.why_not_ready(shard, since, limit) is not None
            )
        )
        if workers.waits_to_open(shard) is not None:  # it is another worker, and it will be ready by itself
            return {"from": shard, "to": shard}
        if (reason := workers.why_not_ready(shard, since, limit)) is not None:
            raise HandlerError(reason)
        return {"from": shard, "to": shard}


def _results(done: Iterable[asyncio.Task[dict[str, int] | None]]) -> list[dict[str, int]]:
    """Raises what the first that failed raised."""
    errors = [error for task in done if (error := task.exception()) is not None]
    if errors:
        raise errors[0]
    return [each for task in done if (each := task.result()) is not None]
