"""Carries out handoffs on shared memory: reroute, drain, release.

    begin ──▶ rerouting ──marks settled──▶ draining ──source has none left──▶ releasing ──target restored──▶ done

Every phase is in the handoff table, so a supervisor that takes over can go on with it. A handoff always runs forward; one
that is late says whom it waits for. Slots of one round go through the phases one by one, as fast as each can.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import MOVE_PHASES, ffi, lib, point
from shardmem.memory.words import name_of
from shardmem.policy import Move
from shardmem.supervisor.history import History

POLL = 0.02  # reports come over the workers' pipes; this is for workers that have none of ours
REROUTE_LIMIT = 1.0
DRAIN_LIMIT = 10.0
RELEASE_LIMIT = 10.0

log = logging.getLogger("shardmem.handoff")


@dataclass
class Round:
    """What became of some moves that were begun together. Seconds."""

    moves: list[Move]
    reroute_s: float = 0.0
    drain_s: float = 0.0  # until the last slot was drained
    release_s: float = 0.0  # from then until the last was released
    late: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {
            "moved": [{"slot": move.slot, "from": move.source, "to": move.target} for move in self.moves],
            "seconds": {
                "reroute": round(self.reroute_s, 6),
                "drain": round(self.drain_s, 6),
                "release": round(self.release_s, 6),
            },
            "late": self.late,
        }


class Handoffs:
    """All handoffs of one engine. `changed` is awaited between looks; the supervisor sets it when a worker reports."""

    def __init__(self, control: ControlSegment, wake: Callable[[int], Any], history: History) -> None:
        self._control, self._wake, self._history = control, wake, history
        self._holds: dict[int, int] = {}
        self._moving: set[int] = set()
        self._news: set[asyncio.Event] = set()

    @property
    def moving(self) -> frozenset[int]:
        """Slots in motion; none of them can be moved again before it has arrived."""
        return frozenset(self._moving)

    def news(self) -> None:
        """A worker has said something: look again."""
        for event in self._news:
            event.set()

    async def settle_marks(
        self, waiting: Callable[[str], None] = lambda text: None, give_up: Callable[[], bool] = lambda: False
    ) -> list[int]:
        """Until every send that was in progress is over, or its process is dead; the seats that were given up on."""
        control = self._control
        before = control.marks()
        odd = [seat for seat in range(len(before)) if before[seat] & 1]
        while odd and not give_up():
            now = control.marks()
            odd = [seat for seat in odd if now[seat] == before[seat] and control.seat_alive(seat)]
            if odd:
                waiting(f"producer {odd[0]} (pid {control.view_seat(odd[0]).pid}) is inside a send")
                await asyncio.sleep(0.0005)
        return odd

    async def run(self, moves: Iterable[Move]) -> Round:
        """Move the slots. Slots that are there already are left out; one already in motion is a ValueError."""
        control = self._control
        owners, _ = control.slot_table()
        moves = [move for move in moves if move.source != move.target and owners[move.slot] == move.source]
        done = Round(moves)
        twice = self._moving & {move.slot for move in moves}
        if twice:
            raise ValueError(f"slot {min(twice)} is in motion; wait until it has arrived")
        if not moves:
            return done
        with self._in_motion(moves) as event:
            for target, count in _counted(moves).items():
                self._hold(target, count)  # before the first row can come: a target looks at holds only if it has some
            numbers = {
                move.slot: lib.sm_move_begin(
                    control.address, move.slot, move.source, move.target, _deadline(REROUTE_LIMIT)
                )
                for move in moves
            }
            point("handoff.begun")
            await self._forward(done, numbers, event)
        return done

    def take_up(self) -> dict[Move, int]:
        """The handoffs that an earlier supervisor left in some phase, with their numbers. They are in motion from here on, so
        that nobody begins one of them again.
        """
        control, view = self._control, ffi.new("sm_move_view *")
        slots = np.empty(control.slots, "u4")
        count = lib.sm_view_moving(
            control.address, control.geometry, ffi.cast("uint32_t *", slots.ctypes.data), control.slots
        )
        begun = {}
        for slot in slots[:count].tolist():
            lib.sm_view_move(control.address, slot, view)
            begun[Move(slot, view.source, view.target)] = view.number
            if name_of(MOVE_PHASES, view.phase) == "rerouting":  # the slot word may not have been stored
                lib.sm_set_slot(control.address, slot, view.target)
        self._moving |= {move.slot for move in begun}
        self._holds = dict.fromkeys(control.known_shards(), 0) | _counted(begun)
        for shard in self._holds:  # a count may have been left too high; and a hold that has fallen not been told of
            self._hold(shard, 0)
            self._wake(shard)
        return begun

    async def finish(self, begun: dict[Move, int]) -> None:
        """Each from the phase it is in."""
        if begun:
            log.info("taking up %d handoffs of an earlier supervisor", len(begun))
            with self._in_motion(list(begun)) as event:
                await self._forward(Round(list(begun)), {move.slot: number for move, number in begun.items()}, event)

    @contextlib.contextmanager
    def _in_motion(self, moves: list[Move]) -> Iterator[asyncio.Event]:
        slots, event = {move.slot for move in moves}, asyncio.Event()
        self._moving |= slots
        self._news.add(event)
        try:
            yield event
        finally:
            self._news.discard(event)
            self._moving -= slots

    async def _forward(self, done: Round, numbers: dict[int, int], event: asyncio.Event) -> None:
        """From whatever phase each is in to its end."""
        address, started, view = self._control.address, time.monotonic(), ffi.new("sm_move_view *")
        rerouting = []
        for move in done.moves:
            lib.sm_view_move(address, move.slot, view)
            if name_of(MOVE_PHASES, view.phase) == "rerouting":
                rerouting.append(move.slot)
        if rerouting:
            await self.settle_marks(_Late(done, REROUTE_LIMIT, self._history).waiting_for)
        point("handoff.rerouted")
        for slot in rerouting:
            lib.sm_move_phase(address, slot, lib.SM_MOVE_DRAINING, _deadline(DRAIN_LIMIT))
        point("handoff.draining")
        drained = rerouted = time.monotonic()
        for shard in {shard for move in done.moves for shard in (move.source, move.target)}:
            self._wake(shard)
        done.reroute_s = rerouted - started
        late, waiting = _Late(done, DRAIN_LIMIT, self._history), {move.slot: move for move in done.moves}
        while waiting:
            event.clear()
            arrived: list[Move] = []
            restoring: set[int] = set()
            stateful, slow = self._stateful(), ""
            for move in list(waiting.values()):
                lib.sm_view_move(address, move.slot, view)
                if name_of(MOVE_PHASES, view.phase) == "draining":
                    if view.drained != numbers[move.slot]:
                        slow = slow or f"shard {move.source} has not drained slot {move.slot}"
                        continue
                    point("handoff.drained")
                    drained = time.monotonic()
                    if stateful:
                        lib.sm_move_phase(address, move.slot, lib.SM_MOVE_RELEASING, _deadline(RELEASE_LIMIT))
                        restoring.add(move.target)
                    else:
                        arrived.append(waiting.pop(move.slot))
                elif view.restored == numbers[move.slot]:
                    arrived.append(waiting.pop(move.slot))
                else:
                    slow = slow or f"shard {move.target} has not restored slot {move.slot}"
            if restoring:
                point("handoff.releasing")
            for target in restoring:
                self._wake(target)
            self._release(arrived)
            if waiting:
                if slow:
                    late.waiting_for(slow)
                try:
                    await asyncio.wait_for(event.wait(), POLL)
                except asyncio.TimeoutError:
                    pass
        done.drain_s, done.release_s = drained - rerouted, time.monotonic() - drained

    def _stateful(self) -> bool:
        """Whether any handler here keeps state: its words say so, whoever started it."""
        return any(self._control.view_shard(shard).stateful for shard in self._control.known_shards())

    def _release(self, arrived: list[Move]) -> None:
        for move in arrived:
            lib.sm_move_phase(self._control.address, move.slot, lib.SM_MOVE_NONE, 0)
        if arrived:
            point("handoff.released")
        for target, count in _counted(arrived).items():
            self._hold(target, -count)
            self._wake(target)

    def _hold(self, shard: int, change: int) -> None:
        self._holds[shard] = self._holds.get(shard, 0) + change
        lib.sm_set_holds(self._control.address, shard, self._holds[shard])


class _Late:
    """Says once whom a phase waits for when it has taken longer than its limit."""

    def __init__(self, done: Round, limit: float, history: History) -> None:
        self._done, self._history, self._at = done, history, time.monotonic() + limit

    def waiting_for(self, text: str) -> None:
        if time.monotonic() > self._at:
            self._at = float("inf")
            self._done.late.append(text)
            self._history.note("late", f"a handoff of {len(self._done.moves)} slots is late: {text}")


def _counted(moves: Iterable[Move]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for move in moves:
        counts[move.target] = counts.get(move.target, 0) + 1
    return counts


def _deadline(seconds: float) -> int:
    return lib.sm_now_ns() + int(seconds * 1e9)
