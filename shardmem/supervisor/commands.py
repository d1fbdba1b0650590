"""What can be asked of a running engine: scale, drain, move, rebalance, reload, stop, and what to do with the
quarantine. One answer each: what was done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shardmem.errors import ConfigError, NotRunning, ShardmemError, Superseded
from shardmem.http.operations import COMMANDS, LANES
from shardmem.policy import DecisionKind, Finished, ScalingDecision, ShardState
from shardmem.settings import some
from shardmem.slot_ranges import parse_slots, slot_ranges
from shardmem.sources.control import SourcesOf
from shardmem.supervisor.board import Board
from shardmem.supervisor.changes import Change, answer
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life
from shardmem.supervisor.reload import Reload
from shardmem.supervisor.waiting import for_the_sink, late_slots, waiting_for

if TYPE_CHECKING:
    from shardmem.http.application import Command

DEADLINE = 30.0  # seconds for which a command waits, unless it is told otherwise

log = logging.getLogger("shardmem.supervisor")


class Commands:
    """Each takes a body that fits its declaration in operations.py, and returns one. Raises ValueError,
    ShardmemError."""

    def __init__(self, fleet: Fleet, life: Life, reload: Reload, board: Board) -> None:
        self._fleet, self._life, self._reload, self._board = fleet, life, reload, board
        self._replaying = asyncio.Lock()

    def by_name(self) -> dict[str, Command]:
        return {
            each.name: self.stop
            if each.name == "stop"
            else self._while_running(each.name, getattr(self, each.name.replace("/", "_")))
            for each in COMMANDS
        }

    def _while_running(self, name: str, command: Command) -> Command:
        """The API answers while the engine drains, but what is asked then could not end."""

        async def run(wanted: dict[str, Any]) -> Any:
            if self._life.is_stopping:
                raise NotRunning(f"engine {self._fleet.config.name!r} is being stopped")
            with self.noting(f"{name} by hand"):
                return await command(wanted)

        return run

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """What cannot be done is noted, unless it made no sense: that is for whoever asked."""
        try:
            yield
        except ShardmemError as error:
            if not isinstance(error, (ConfigError, NotRunning, Superseded)):
                self._fleet.history.note("not_done", f"{what}: {error}")
            raise

    async def stop(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"now": true}: without draining. Asked again, it goes on draining: whoever asks may not have heard the
        answer."""
        if wanted.get("now") or not self._life.is_stopping:
            self._life.request_stop(now=bool(wanted.get("now")))
        return {"stopping": True}

    # ---- how many shards ---------------------------------------------------------------------------------------------

    async def scale(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shards": n} or {"shards": "auto"}: more or fewer shards, slots evened out; or back to the policy."""
        fleet, planner = self._fleet, self._fleet.planner
        if wanted.get("shards") == "auto":
            if not fleet.config.elastic:
                raise ConfigError(
                    "this engine does not scale by itself: start it with min_shards and max_shards, without shards "
                    "and with auto_scale = true"
                )
            planner.wishes.following = True
            self._board.post()
            return {"auto_scale": True, "done": True, "waiting_for": [], **self._scaled([], [], Change())}
        count, most = wanted["shards"], fleet.control.max_shards
        if not 1 <= count <= min(most, fleet.control.slots):
            raise ConfigError(
                f"shards={count} is outside 1 to {min(most, fleet.control.slots)}: the engine has room for "
                f"{most} shards (max_shards) and {fleet.control.slots} slots"
            )
        added, removed = self._resize(planner.mapper.active_shard_ids(), count)
        planner.wishes.following = False
        joining = planner.mapper.joining_shard_ids()
        work = self._settle(added, removed, "by hand", joining)
        done = await self._finish("scale", work, wanted, [*joining, *removed], so_far=self._shards_now)
        return {"auto_scale": False, **done}

    def _resize(self, active: list[int], count: int) -> tuple[list[int], list[int]]:
        """Says what is wanted, or raises and has changed nothing."""
        fleet, planner = self._fleet, self._fleet.planner
        joining = planner.mapper.joining_shard_ids()
        there = len(active) + len(joining)
        if count >= there:
            # a failed shard may come back, so it holds its place: it is one of those that are wanted, if need be
            free = fleet.control.max_shards - len(planner.mapper.failed_shard_ids()) - there
            return fleet.shards.create(max(0, min(count - there, free))), []
        removed = _last_to_go(active, planner.table.cordoned)[: max(0, len(active) - count)]
        planner.drain(removed, time.monotonic())
        # of what an earlier command began, and nothing has moved to
        for shard in joining[max(0, count - len(active)) :]:
            fleet.shards.revoke(shard, f"{some(count, 'shard')} wanted since, and shard {shard} is not among them")
        return [], removed

    async def scale_by(self, step: int) -> dict[str, Any]:
        mapper = self._fleet.planner.mapper
        return await self.scale({"shards": mapper.active_shard_count() + len(mapper.joining_shard_ids()) + step})

    async def drain(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shard": n}: its slots go to the others, it stops and is removed."""
        fleet, shard = self._fleet, wanted["shard"]
        self._expect_active(shard)
        if fleet.planner.mapper.active_shard_ids() == [shard]:
            raise ConfigError(
                f"shard {shard} is the only one; a draining shard's slots need another (stop the engine, or "
                f"scale up first)"
            )
        fleet.planner.drain([shard], time.monotonic())
        work = self._drained(shard)
        return {"drained": shard, **await self._finish("drain", work, wanted, [shard], so_far=self._shards_now)}

    async def _drained(self, shard: int) -> dict[str, Any]:
        fleet = self._fleet
        with self._change(lambda each: each.source == shard) as change:
            await fleet.conditions.until(fleet.shards.gone([shard]))
        done = self._scaled([], [shard], change)
        text = f"drained by hand in {done['seconds']['total']:.2g} s; {_moved_text(done['moved'])}"
        fleet.history.note("shard_removed", text, shard)
        return done

    async def _settle(
        self, added: list[int], removed: list[int], why: str, joining: Collection[int] = ()
    ) -> dict[str, Any]:
        """Until new shards have joined and the others are gone, and slots are even. joining: shards that earlier
        commands have added, and that are wanted still. Raises HandlerError: one cannot join.
        """
        fleet = self._fleet
        are_gone = fleet.shards.gone(removed)
        with self._change() as change:
            if added or joining:
                await fleet.conditions.until(lambda: not any(map(fleet.shards.is_joining, [*added, *joining])))
                change.mark("spawn")
                fleet.shards.check_joined(added)
            fleet.even_out()
            await fleet.conditions.until(lambda: fleet.is_even and are_gone())
        done = self._scaled(added, removed, change)
        self._note_scaled(done, why)
        return done

    def _scaled(self, added: list[int], removed: list[int], change: Change) -> dict[str, Any]:
        shards = self._fleet.planner.mapper.active_shard_ids()
        return {"shards": shards, "added": added, "removed": removed, **change.summary(), "late": self._later()}

    def _shards_now(self) -> dict[str, Any]:
        return {"shards": self._fleet.planner.mapper.active_shard_ids(), "added": [], "removed": []}

    def _later(self) -> list[str]:
        """What is not even yet, and why."""
        planner = self._fleet.planner
        waiting = planner.waiting()
        blocked = sorted(planner.blocked().difference(waiting))
        later = [f"slots of shard {shard} are evened out when its batch is over" for shard in blocked]
        later += [
            f"slots of shard {shard} are evened out when it no longer waits: {why}" for shard, why in waiting.items()
        ]
        later += late_slots(self._fleet)
        return later + planner.table.complaints[:1]

    def _expect_active(self, shard: int) -> None:
        """Raises ConfigError, with the reason and what helps."""
        mapper = self._fleet.planner.mapper
        if mapper.shard_state(shard) is ShardState.FAILED:
            reason = self._fleet.workers.failed().get(shard, "it has no worker that works")
            raise ConfigError(
                f"shard {shard} has failed and cannot hand anything over: {reason}. Fix the handler, then "
                f"'shardmem reload {self._fleet.config.name}' starts it again"
            )
        if shard not in (active := mapper.active_shard_ids()):
            raise ConfigError(f"shard {shard} is not active; active are {active}")

    async def cordon(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shard": n}: it takes no more slots and no keyless events, and keeps what it has."""
        self._expect_active(wanted["shard"])
        self._fleet.planner.table.cordon(wanted["shard"])
        return self._placement()

    async def uncordon(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shard": n}: it takes slots again."""
        table = self._fleet.planner.table
        if wanted["shard"] not in table.cordoned:
            raise ConfigError(f"shard {wanted['shard']} is not cordoned; cordoned are {sorted(table.cordoned)}")
        table.uncordon(wanted["shard"])
        return self._placement()

    # ---- which slots where -------------------------------------------------------------------------------------------

    async def move(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"slots": "17,40-60" or a list, "to": n}."""
        slots = self._movable(wanted["slots"], wanted["to"])
        self._fleet.planner.wishes.move(slots, wanted["to"])
        self._fleet.step_soon()
        work = self._moved(slots, wanted["to"])
        return await self._finish("move", work, wanted, [], slots)

    def _movable(self, named: str | int | list[int], target: int) -> list[int]:
        """The slots, when all of them can go there. Raises ConfigError."""
        fleet, table = self._fleet, self._fleet.planner.table
        slots = parse_slots(named, fleet.control.slots)
        self._expect_active(target)
        if target in table.cordoned:
            raise ConfigError(f"shard {target} is cordoned and takes no slots; 'uncordon {target}' lets it")
        owners = {owner for slot in slots if (owner := table.shard_for(slot)) is not None}
        for owner in sorted(owners - {target}):
            if fleet.planner.mapper.shard_state(owner) is ShardState.FAILED:
                self._expect_active(owner)
        return slots

    async def _moved(self, slots: list[int], target: int) -> dict[str, Any]:
        fleet, table, wishes = self._fleet, self._fleet.planner.table, self._fleet.planner.wishes
        mine = set(slots)

        def is_over() -> bool:
            return all(table.shard_for(slot) == target or wishes.moves.get(slot) != target for slot in slots)

        before = {slot for slot in slots if table.shard_for(slot) == target}
        with self._change(lambda each: not mine.isdisjoint(each.slots)) as change:
            await fleet.conditions.until(is_over)
        arrived = before.union(slot for each in change.moved if each.target == target for slot in each.slots)
        if elsewhere := [slot for slot in slots if slot not in arrived and table.shard_for(slot) != target]:
            raise Superseded(
                f"slots {slot_ranges(elsewhere)} do not go to shard {target}: {self._why_elsewhere(target)}"
            )
        done = {**change.summary(), "late": []}
        done["moved"] = [each for each in done["moved"] if each["slot"] in mine]
        return self._noted_move(done, "by hand")

    def _why_elsewhere(self, target: int) -> str:
        planner = self._fleet.planner
        if (successor := planner.wishes.succession.get(target)) is not None:
            return f"shard {successor} takes its place and gets them"
        return (
            "another command wants them elsewhere" if target in planner.table.shards else "it takes no slots any more"
        )

    async def rebalance(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """As the strategy says, small differences included, until it has nothing more to say."""
        return await self._finish("rebalance", self._rebalanced(), wanted, [])

    async def _rebalanced(self) -> dict[str, Any]:
        fleet = self._fleet
        with self._change() as change:
            fleet.even_out()
            await fleet.conditions.until(lambda: fleet.is_even)
        if complaints := fleet.planner.table.complaints:
            raise ShardmemError(complaints[0])
        return self._noted_move({**change.summary(), "late": self._later()}, "to even out, by hand")

    async def pin(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"slots": ..., "to": n}: they go there and stay, whatever the strategy says, until `unpin`."""
        slots = self._movable(wanted["slots"], wanted["to"])
        self._fleet.planner.pin(slots, wanted["to"])
        self._fleet.planner.wishes.move(slots, wanted["to"])
        self._fleet.step_soon()
        done = await self._finish("pin", self._moved(slots, wanted["to"]), wanted, [], slots)
        return {**self._placement(), **done}

    async def unpin(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"slots": ...}: the strategy may move them again."""
        self._fleet.planner.pin(parse_slots(wanted["slots"], self._fleet.control.slots), None)
        return self._placement()

    async def moves(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"suspended": true or false}: whether the strategy may move slots. What is asked by hand, drains and pins go
        on."""
        self._fleet.planner.wishes.suspended = wanted["suspended"]
        return self._placement()

    def _placement(self) -> dict[str, Any]:
        self._fleet.step_soon()
        self._board.post()  # before the answer: what was acknowledged stands, whoever is killed then
        planner = self._fleet.planner
        return {
            "cordoned": sorted(planner.table.cordoned),
            "pins": planner.pins(),
            "suspended": planner.wishes.suspended,
        }

    # ---- workers -----------------------------------------------------------------------------------------------------

    async def reload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every worker is replaced by a fresh one, with what the configuration says now."""
        change = Change()

        async def reloaded() -> dict[str, Any]:
            return {**await self._reload.run(), **change.summary(), "late": []}

        return await self._finish("reload", reloaded(), wanted, [], so_far=lambda: {"reloaded": [], "not_applied": []})

    async def quarantine_replay(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"ids": [...]} or {"all": true}, "timeout": seconds: pushed again, as far as there is room in time. One after
        the other: two at once would give the same events back twice."""
        async with self._replaying:
            replay = await asyncio.to_thread(
                self._fleet.quarantine.replay, wanted.get("ids"), wanted.get("timeout", LANES)
            )
        if replay.replayed or replay.left:
            left = f"; {len(replay.left):,} stay: {replay.why}" if replay.left else ""
            self._fleet.history.note(
                "replayed", f"{some(len(replay.replayed), 'event')} of the quarantine given back{left}"
            )
        return asdict(replay)

    async def quarantine_purge(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"ids": [...]} or {"all": true}: gone for good."""
        purged = await asyncio.to_thread(self._fleet.quarantine.purge, wanted.get("ids"))
        if purged:
            self._fleet.history.note("purged", f"{some(purged, 'event')} of the quarantine thrown away")
        return {"purged": purged}

    # ---- sources -----------------------------------------------------------------------------------------------------

    async def source_pause(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"source": name, "partitions": [...]}: they read no more; without a name the only source, all of it."""
        return await self._paused(True, wanted)

    async def source_resume(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The same: they go on."""
        return await self._paused(False, wanted)

    async def _paused(self, paused: bool, wanted: dict[str, Any]) -> dict[str, Any]:
        timeout, partitions = float(wanted.get("timeout", DEADLINE)), wanted.get("partitions", ())
        return await asyncio.to_thread(self._sources().pause, wanted.get("source"), paused, timeout, partitions)

    async def source_seek(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"partition": name, "to": "start", "end" or an offset}: it goes on there."""
        where, timeout = (wanted["partition"], wanted["to"]), float(wanted.get("timeout", DEADLINE))
        return await asyncio.to_thread(self._sources().seek, wanted.get("source"), *where, timeout)

    def _sources(self) -> SourcesOf:
        config = self._fleet.config
        return SourcesOf(config.name, config.directory, os.geteuid())

    # ---- what the policy asks for ------------------------------------------------------------------------------------

    def follow(self, decision: ScalingDecision) -> Coroutine[Any, Any, dict[str, Any]] | None:
        """Says what a decision wants; what is left is to see it done, and to note it. None: there is nothing to do."""
        fleet, planner = self._fleet, self._fleet.planner
        why = f"because {decision.reason}"
        if decision.kind is DecisionKind.UP:
            return self._followed(decision, self._settle(fleet.shards.create(decision.count, force=False), [], why))
        if decision.kind is DecisionKind.DOWN:
            if not planner.table.open_shards:
                return None  # nobody would take their slots
            removed = planner.mapper.scale_down(decision.count, time.monotonic(), planner.table.cordoned)
            for shard in removed:
                planner.drained(shard)
            return self._followed(decision, self._settle([], removed, why))
        return None

    async def _followed(self, decision: ScalingDecision, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        with self.noting(f"{decision.kind} {decision.count}, because {decision.reason}"):
            return await work

    # ---- waiting -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _change(self, mine: Callable[[Finished], bool] = lambda finished: True) -> Iterator[Change]:
        change = self._fleet.changes.open(mine)
        try:
            yield change
        finally:
            self._fleet.changes.close(change)

    async def _finish(
        self,
        what: str,
        work: Coroutine[Any, Any, dict[str, Any]],
        wanted: dict[str, Any],
        shards: list[int],
        slots: list[int] | None = None,
        so_far: Callable[[], dict[str, Any]] = dict,
    ) -> dict[str, Any]:
        """What the work answers, or at the deadline who is waited for. so_far: what else the answer has to have
        then."""
        self._fleet.step_soon()
        self._board.post()
        change = Change()

        def late() -> dict[str, Any]:
            waiting = waiting_for(self._fleet, shards, slots)
            texts = [each["text"] for each in waiting]
            return {**so_far(), **change.summary(), "waiting_for": waiting, "late": texts}

        def in_vain() -> dict[int, int] | None:
            return for_the_sink(self._fleet, waiting_for(self._fleet, shards, slots))

        return await answer(what, work, float(wanted.get("timeout", DEADLINE)), late, in_vain)

    # ---- what is noted -----------------------------------------------------------------------------------------------

    def _note_scaled(self, done: dict[str, Any], why: str) -> None:
        if not done["added"] and not done["removed"]:
            self._noted_move(done, why)
            return
        changed = ", ".join(f"{what} {_listed(done[what])}" for what in ("added", "removed") if done[what])
        before = len(done["shards"]) - len(done["added"]) + len(done["removed"])
        text = f"from {before} to {some(len(done['shards']), 'shard')} in {done['seconds']['total']:.2g} s"
        self._fleet.history.note("scaled", f"{text}, {why}: {changed}; {_moved_text(done['moved'])}")

    def _noted_move(self, done: dict[str, Any], why: str) -> dict[str, Any]:
        if done["moved"]:
            self._fleet.history.note(
                "moved", f"{_moved_text(done['moved'])} {why}, in {done['seconds']['total']:.2g} s"
            )
        return done


def _listed(shards: list[int]) -> str:
    return ", ".join(map(str, shards[:8])) + (f" and {len(shards) - 8} more" if len(shards) > 8 else "")


def _moved_text(moved: list[dict[str, int]]) -> str:
    ways = Counter((each["from"], each["to"]) for each in moved)
    text = [f"{count} from {source} to {target}" for (source, target), count in ways.most_common(4)]
    return f"{some(len(moved), 'slot')} moved" + (
        f" ({', '.join(text)}{', ...' if len(ways) > 4 else ''})" if ways else ""
    )


def _last_to_go(active: list[int], cordoned: Collection[int]) -> list[int]:
    """The order in which shards go when fewer are wanted by hand: cordoned ones, then the highest ids."""
    return sorted(active, key=lambda shard: (shard not in cordoned, -shard))
