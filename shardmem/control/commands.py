"""What can be asked of a running engine: scale, drain, move, rebalance, stop. One answer each: what was done, and how long."""
from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Iterable

from shardmem.control.handoffs import Move, Round
from shardmem.errors import ConfigError
from shardmem.policy.even import even_out

if TYPE_CHECKING:
    from shardmem.control.api import Command
    from shardmem.control.supervisor import Supervisor

SLOTS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def commands_of(supervisor: Supervisor) -> dict[str, Command]:
    commands = Commands(supervisor)
    return {name: getattr(commands, name) for name in ("status", "scale", "drain", "move", "rebalance", "stop")}


class Commands:
    """Each takes a dict and returns one. Raises ValueError for what makes no sense, ShardmemError for what fails."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def status(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return self._supervisor.status()

    async def stop(self, wanted: dict[str, Any]) -> dict[str, Any]:
        self._supervisor.request_stop(now=bool(wanted.get("now")))
        return {"stopping": True}

    async def scale(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shards": n}: more or fewer shards, slots evened out."""
        supervisor, count = self._supervisor, _whole(wanted, "shards")
        most = supervisor.control.max_shards
        if not 1 <= count <= min(most, supervisor.control.slots):
            raise ConfigError(f"shards={count} is outside 1 to {min(most, supervisor.control.slots)}: the engine has room for "
                              f"{most} shards (max_shards) and {supervisor.control.slots} slots")
        async with supervisor._busy:
            started, active = time.monotonic(), supervisor.shards_in("active")
            seconds: dict[str, float] = {}
            added = [supervisor.create_shard() for _ in range(count - len(active))]
            seconds["create"] = time.monotonic() - started
            if added:
                try:
                    await supervisor.spawn(added)
                except BaseException:
                    for shard in added:
                        supervisor.abandon_shard(shard)
                    raise
                seconds["spawn"] = time.monotonic() - started - seconds["create"]
            removed = active[count:] if count < len(active) else []
            rounds = [await self._drain(shard, [each for each in active if each not in removed]) for shard in removed]
            if not removed:
                rounds = [await self._even_out(supervisor.shards_in("active"))]
        return {"shards": supervisor.shards_in("active"), "added": added, "removed": removed, **_summary(rounds, started, seconds)}

    async def drain(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"shard": n}: its slots go to the others, it stops and is removed."""
        supervisor, shard = self._supervisor, _whole(wanted, "shard")
        async with supervisor._busy:
            started, active = time.monotonic(), supervisor.shards_in("active")
            if shard not in active:
                raise ConfigError(f"shard {shard} is not active; active are {active}")
            if len(active) == 1:
                raise ConfigError(f"shard {shard} is the only one; a draining shard's slots need another (stop the engine, or "
                                  f"scale up first)")
            done = await self._drain(shard, [each for each in active if each != shard])
        return {"drained": shard, **_summary([done], started, {})}

    async def move(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """{"slots": "17,40-60" or a list, "to": n}."""
        supervisor, target = self._supervisor, _whole(wanted, "to")
        slots = parse_slots(wanted.get("slots"), supervisor.control.slots)
        started, active = time.monotonic(), supervisor.shards_in("active")
        if target not in active:
            raise ConfigError(f"shard {target} is not active; active are {active}")
        owners, _ = supervisor.control.slot_table()
        failed = sorted({int(owners[slot]) for slot in slots} - set(active))
        if failed:
            raise ConfigError(f"shards {failed} own some of these slots and are not active; they cannot hand them over")
        done = await supervisor.handoffs.run([Move(slot, int(owners[slot]), target) for slot in slots])
        return _summary([done], started, {})

    async def rebalance(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Even counts, with the fewest moves."""
        async with self._supervisor._busy:
            started = time.monotonic()
            done = await self._even_out(self._supervisor.shards_in("active"))
        return _summary([done], started, {})

    async def _even_out(self, shards: list[int]) -> Round:
        supervisor = self._supervisor
        owners, _ = supervisor.control.slot_table()
        moves = [Move(slot, source, target) for slot, source, target in even_out(owners.tolist(), shards)
                 if source in shards and slot not in supervisor.handoffs.moving]
        return await supervisor.handoffs.run(moves)

    async def _drain(self, shard: int, others: list[int]) -> Round:
        """Draining, so that nothing new is sent there without a key; then every slot away; then the end of it."""
        supervisor = self._supervisor
        supervisor.control.set_shard_state(shard, "draining")
        while True:  # a move that was under way may still bring it a slot
            owners, _ = supervisor.control.slot_table()
            done = await supervisor.handoffs.run([Move(slot, source, target) for slot, source, target
                                                  in even_out(owners.tolist(), others) if source == shard
                                                  and slot not in supervisor.handoffs.moving])
            owners, _ = supervisor.control.slot_table()
            if not (owners == shard).any() and not supervisor.moving_at(shard):
                break
            await supervisor.pause()
        await supervisor.remove_shard(shard)
        return done


def parse_slots(text: Any, count: int) -> list[int]:
    """[17, 40, 41, ...] from "17,40-60" or a list of numbers. Raises ConfigError."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = [text]
    if isinstance(text, (list, tuple)) and all(isinstance(slot, int) for slot in text):
        slots: Iterable[int] = text
    elif isinstance(text, str) and SLOTS.fullmatch(text):
        slots = [slot for part in text.split(",") for low, _, high in [part.partition("-")]
                 for slot in range(int(low), int(high or low) + 1)]
    else:
        raise ConfigError(f"slots={text!r} is neither a list of numbers nor text like '17,40-60'")
    found = sorted(set(slots))
    if not found or found[0] < 0 or found[-1] >= count:
        raise ConfigError(f"slots={text!r} must name at least one of the slots 0 to {count - 1}")
    return found


def _whole(wanted: dict[str, Any], key: str) -> int:
    value = wanted.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key}={value!r} is not a whole number")
    return value


def _summary(rounds: list[Round], started: float, seconds: dict[str, float]) -> dict[str, Any]:
    moved = [move for done in rounds for move in done.describe()["moved"]]
    for phase in ("reroute", "drain", "release"):
        seconds[phase] = sum(done.describe()["seconds"][phase] for done in rounds)
    seconds["total"] = time.monotonic() - started
    return {"moved": moved, "seconds": {key: round(value, 6) for key, value in seconds.items()},
            "late": [text for done in rounds for text in done.late]}
