"""What can be asked of a running engine: scale, drain, move, rebalance, reload, stop, and what to do with the quarantine. One
answer each: what was done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from shardmem.errors import ConfigError, HandlerError, NotRunning, ShardmemError
from shardmem.http.operations import COMMANDS, LANES
from shardmem.http.server import Command
from shardmem.policy import DecisionKind, Move, ScalingDecision
from shardmem.settings import some
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.handoffs import Round
from shardmem.supervisor.life import Life
from shardmem.supervisor.replacements import Replacements
from shardmem.supervisor.takeover import Takeover

ROUND = 256  # the most slots that the policy has in motion at a time
ROUNDS = 100  # a strategy of the user's own may never come to rest

log = logging.getLogger("shardmem.supervisor")


class Commands:
    """Each takes a body that fits its declaration in operations.py, and returns one. Raises ValueError, ShardmemError."""

    def __init__(self, fleet: Fleet, life: Life, replacements: Replacements) -> None:
        self._fleet, self._life, self._replacements = fleet, life, replacements
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
            with self._noting(f"{name} by hand"):
                return await command(wanted)

        return run

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """What cannot be done is noted, unless it made no sense: that is for whoever asked."""
        try:
            yield
        except ShardmemError as error:
            if not isinstance(error, (ConfigError, NotRunning)):
                self._fleet.history.note("not_done", f"{what}: {error}")
            raise

    async def stop(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"now": true}: without draining. Asked again, it goes on draining: whoever asks may not have heard the answer."""
        if wanted.get("now") or not self._life.is_stopping:
            self._life.request_stop(now=bool(wanted.get("now")))
        return {"stopping": True}

    async def scale(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shards": n} or {"shards": "auto"}: more or fewer shards, slots evened out; or back to the policy."""
        fleet = self._fleet
        if wanted.get("shards") == "auto":
            if not fleet.config.elastic:
                raise ConfigError(
                    "this engine does not scale by itself: start it with min_shards and max_shards, without shards "
                    "and with auto_scale = true"
                )
            fleet.planner.follow(True)
            return {
                "auto_scale": True,
                "shards": fleet.planner.mapper.active_shard_ids(),
                "added": [],
                "removed": [],
                **_summary([], time.monotonic(), {}),
            }
        count, most = wanted["shards"], fleet.control.max_shards
        if not 1 <= count <= min(most, fleet.control.slots):
            raise ConfigError(
                f"shards={count} is outside 1 to {min(most, fleet.control.slots)}: the engine has room for "
                f"{most} shards (max_shards) and {fleet.control.slots} slots"
            )
        async with fleet.change_lock:
            fleet.planner.follow(False)
            active = fleet.planner.mapper.active_shard_ids()
            done = (
                await self._add(count - len(active))
                if count >= len(active)
                else await self._remove(
                    [fleet.planner.mapper.drain_specific(shard, time.monotonic()) and shard for shard in active[count:]]
                )
            )
            self._note_scaled(done, "by hand")
        return {"auto_scale": False, **done}

    async def scale_by(self, step: int) -> dict[str, Any]:
        return await self.scale({"shards": self._fleet.planner.mapper.active_shard_count() + step})

    async def drain(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shard": n}: its slots go to the others, it stops and is removed."""
        mapper, shard = self._fleet.planner.mapper, wanted["shard"]
        async with self._fleet.change_lock:
            active = mapper.active_shard_ids()
            if shard not in active:
                raise ConfigError(f"shard {shard} is not active; active are {active}")
            if len(active) == 1:
                raise ConfigError(
                    f"shard {shard} is the only one; a draining shard's slots need another (stop the engine, or "
                    f"scale up first)"
                )
            mapper.drain_specific(shard, time.monotonic())
            done = await self._remove([shard])
            self._fleet.history.note(
                "shard_removed",
                f"drained by hand in {done['seconds']['total']:.2g} s; {_moved_text(done['moved'])}",
                shard,
            )
        return {"drained": shard, **done}

    async def move(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"slots": "17,40-60" or a list, "to": n}."""
        fleet, target = self._fleet, wanted["to"]
        slots = parse_slots(wanted["slots"], fleet.control.slots)
        started, active = time.monotonic(), fleet.shards.in_state("active")
        if target not in active:
            raise ConfigError(f"shard {target} is not active; active are {active}")
        owners, _ = fleet.control.slot_table()
        failed = sorted({int(owners[slot]) for slot in slots} - set(fleet.shards.in_state("active", "draining")))
        if failed:
            raise ConfigError(f"shards {failed} own some of these slots and are not active; they cannot hand them over")
        done = await fleet.handoffs.run([Move(slot, int(owners[slot]), target) for slot in slots])
        return self._noted_move(_summary([done], started, {}), "by hand")

    async def rebalance(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """As the strategy says, small differences included, until it has nothing more to say."""
        async with self._fleet.change_lock:
            started = time.monotonic()
            rounds = await self._even_out()
            return self._noted_move(_summary(rounds, started, {}), "to even out, by hand")

    async def reload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every worker is replaced by a fresh one, with what the configuration says now."""
        started = time.monotonic()
        done = await self._replacements.reload()
        return {**done, **_summary([], started, {})}

    async def quarantine_replay(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"ids": [...]} or {"all": true}, "timeout": seconds: pushed again, as far as there is room in time. One after the other:
        two at once would give the same events back twice."""
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

    # ---- what the policy asks for -------------------------------------------------------------------------------------------

    async def follow(self, decision: ScalingDecision, moves: list[Move]) -> None:
        """Carry out a decision. One change at a time; what is not carried out now is decided again at the next tick."""
        fleet = self._fleet
        if fleet.change_lock.locked():
            return
        with self._noting(f"{decision.kind} {decision.count}, because {decision.reason}"):
            async with fleet.change_lock:
                if decision.kind is DecisionKind.UP:
                    self._note_scaled(await self._add(decision.count), f"because {decision.reason}")
                elif decision.kind is DecisionKind.DOWN:
                    down = fleet.planner.mapper.scale_down(decision.count, time.monotonic())
                    self._note_scaled(await self._remove(down), f"because {decision.reason}")
                elif moves and (done := await fleet.handoffs.run(moves[:ROUND])).moves:
                    # of small differences there is one after the other
                    # without samples it went by the number of slots: that nothing was measured is not why they moved
                    why = f"; {decision.reason}" if decision.cause != "no_samples" else ""
                    fleet.history.count(
                        "moved", len(done.moves), lambda count: f"{some(count, 'slot')} moved by the strategy{why}"
                    )

    # ---- what an earlier supervisor had begun -------------------------------------------------------------------------------

    async def resume(self, takeover: Takeover, begun: dict[Move, int]) -> None:
        fleet = self._fleet
        shards = fleet.shards
        for shard in takeover.never_started:
            shards.abandon(shard)
        finishing = asyncio.create_task(fleet.handoffs.finish(begun))
        async with fleet.change_lock:
            for shard in takeover.joining:
                reason = await fleet.workers.ready([shard], lambda: self._life.is_stopping)
                if reason is None:
                    shards.activate([shard])
                    fleet.history.note("shard_added", "begun by the earlier supervisor, it has joined", shard)
                elif shards.is_used(shard):
                    log.error("%s", reason)
                else:
                    log.error("%s; nothing had moved to it, so it is given up", reason)
                    shards.abandon(shard)
            for shard in takeover.stopped:
                await shards.finish_removal(shard)
            if takeover.draining:
                await self._remove(takeover.draining)
            for shard in (*takeover.stopped, *takeover.draining):
                fleet.history.note("shard_removed", "its removal, begun by the earlier supervisor, is done", shard)
        await finishing

    async def _add(self, count: int) -> dict[str, Any]:
        fleet, started, seconds = self._fleet, time.monotonic(), {}
        added = fleet.shards.create(count)
        seconds["create"] = time.monotonic() - started
        if added:
            try:
                await fleet.shards.boot(added)
            except BaseException:
                for shard in added:
                    fleet.shards.abandon(shard)
                raise
            seconds["spawn"] = time.monotonic() - started - seconds["create"]
        rounds = await self._even_out()
        return {
            "shards": fleet.planner.mapper.active_shard_ids(),
            "added": added,
            "removed": [],
            **_summary(rounds, started, seconds),
        }

    async def _remove(self, shards: list[int]) -> dict[str, Any]:
        """Shards that the mapper has as draining: no keyless events any more, every slot away, then their end."""
        fleet, started = self._fleet, time.monotonic()
        for shard in shards:
            fleet.control.set_shard_state(shard, "draining")
        rounds: list[Round] = []
        while True:
            done = await fleet.handoffs.run(fleet.planner.plan(fleet.handoffs.moving, eager=True))
            rounds.append(done)
            owners, _ = fleet.control.slot_table()
            leaving = np.isin(owners, shards).any() or any(fleet.shards.moving_at(shard) for shard in shards)
            if not leaving:
                break
            failed = [shard for shard in shards if fleet.control.shard_state(shard) == "failed"]
            if failed:
                raise HandlerError(
                    f"shard {failed[0]} failed while it was being drained: {fleet.control.shard_error(failed[0])}"
                )
            if not done.moves:  # a move by hand is still under way
                await fleet.shards.pause()
        for shard in shards:
            await fleet.shards.remove(shard)
        return {
            "shards": fleet.planner.mapper.active_shard_ids(),
            "added": [],
            "removed": shards,
            **_summary(rounds, started, {}),
        }

    async def _even_out(self) -> list[Round]:
        fleet, rounds = self._fleet, []
        while len(rounds) < ROUNDS:
            moves = fleet.planner.plan(fleet.handoffs.moving, eager=True)
            if not moves:
                break
            rounds.append(await fleet.handoffs.run(moves))
        return rounds

    # ---- what is noted --------------------------------------------------------------------------------------------------------

    def _note_scaled(self, done: dict[str, Any], why: str) -> None:
        if not done["added"] and not done["removed"]:
            self._noted_move(done, why)
            return
        changed = ", ".join(f"{what} {_listed(done[what])}" for what in ("added", "removed") if done[what])
        before = len(done["shards"]) - len(done["added"]) + len(done["removed"])
        text = f"from {before} to {some(len(done['shards']), 'shard')} in {done['seconds']['total']:.2g} s, {why}: {changed}"
        self._fleet.history.note("scaled", f"{text}; {_moved_text(done['moved'])}")

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


def parse_slots(given: str | int | list[int], count: int) -> list[int]:
    """[17, 40, 41, ...] from "17,40-60", a number or a list of numbers. Raises ConfigError."""
    if isinstance(given, str):
        ends = [
            (_number(low), _number(high or low)) for part in given.split(",") for low, _, high in [part.partition("-")]
        ]
    else:
        ends = [(slot, slot) for slot in ([given] if isinstance(given, int) else given)]
    # Limits first: all numbers of "0-99999999999" would fill the memory of the supervisor.
    inside = all(0 <= low and high < count for low, high in ends)
    slots = sorted({slot for low, high in ends for slot in range(low, high + 1)}) if inside else []
    if not slots:
        raise ConfigError(f"slots={given!r} must name at least one of the slots 0 to {count - 1}, and no other")
    return slots


def _number(digits: str) -> int:
    """int() does not read thousands of them; any number of more than twenty is beyond the last slot."""
    return int(digits.lstrip("0")[:20] or "0")


def _summary(rounds: list[Round], started: float, seconds: dict[str, float]) -> dict[str, Any]:
    moved = [move for done in rounds for move in done.describe()["moved"]]
    for phase in ("reroute", "drain", "release"):
        seconds[phase] = sum(done.describe()["seconds"][phase] for done in rounds)
    seconds["total"] = time.monotonic() - started
    return {
        "moved": moved,
        "seconds": {key: round(value, 6) for key, value in seconds.items()},
        "late": [text for done in rounds for text in done.late],
    }
