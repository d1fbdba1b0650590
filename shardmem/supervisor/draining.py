"""The drain of an engine that was asked to stop: what is waited for, for how long, and what stays.

Producers are refused, and what is in the lanes is handled first. But a stop always ends: what nobody will handle is not
waited for, and stays in shared memory for the next run. That is said, by shard.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from shardmem.errors import HandlerError, ShardmemError
from shardmem.supervisor.carrier import Marks
from shardmem.supervisor.fleet import REROUTE_POLL, Fleet
from shardmem.supervisor.life import Life
from shardmem.text import plural

DRAIN_POLL = 0.005
SEND_GRACE = 10.0  # seconds for a producer that is inside a send: it takes microseconds, so it is stopped, or starved
SAID_AFTER = 1.0
KEPT_GRACE = 5.0  # seconds without a batch or an event handled: what such a shard has left is what it keeps back
NOTHING_HANDLED = 60.0  # seconds, without drain_timeout: what is in hand then hangs


@dataclass
class _Look:
    """Of one shard: its events in flight and its batch in hand, and since when they are the same. handled: when one was
    last. tries: in vain, by then."""

    left: int
    in_hand: int
    since: float
    handled: float
    tries: int


class Draining:
    """why: why shards were left with events, if it is not known otherwise. is_kept: what stays is kept for the next
    run; else a shard that waits is waited for."""

    def __init__(self, fleet: Fleet, life: Life, is_kept: bool) -> None:
        self._fleet, self._life, self._is_kept = fleet, life, is_kept
        self._waits: set[int] = set()
        self._looks: dict[int, _Look] = {}
        self._marks: Marks | None = None
        self.why: dict[int, str] = {}

    async def run(self) -> None:
        fleet, life = self._fleet, self._life
        # E1/E2: a producer that saw "running" had its mark odd by then, and it changes once that send is over.
        fleet.control.set_state("draining")
        left = sum(fleet.observer.in_flight().values())
        fleet.history.note(
            "draining", f"asked to stop: producers are refused, {left:,} events in flight are handled first"
        )
        started, limit = time.monotonic(), fleet.config.drain_timeout
        await self._settle_sends(started, SEND_GRACE if limit is None else limit)
        while not life.is_stopping_now:
            now = time.monotonic()
            fleet.finish_handoffs(now)
            if not (waiting := self._waited_for(now)):
                if any(fleet.control.view_shard(shard).batch_since_ns for shard in self.why):  # it would not end
                    life.fail(self.failure() or ShardmemError("a batch is in hand, and does not end"))
                return
            if limit is not None and now - started > limit:
                self.why |= dict.fromkeys(waiting, f"drain_timeout={limit:g} s is over")
                life.fail(ShardmemError(f"drain_timeout={limit:g} s is over and shards still hold events: {waiting}"))
                return
            await life.wait(DRAIN_POLL)

    async def _settle_sends(self, started: float, limit: float) -> None:
        fleet, life = self._fleet, self._life
        self._marks, is_said = Marks(fleet.table), False
        while (inside := self._marks.inside()) and not life.is_stopping_now:
            now = time.monotonic()
            who = f"a producer (seat {inside[0]}, pid {fleet.control.view_seat(inside[0]).pid})"
            if now - started > limit:
                over = f"drain_timeout={limit:g} s" if fleet.config.drain_timeout is not None else f"{limit:g} s"
                text = f"{over} is over and {who} is still inside a send: it is stopped, or starved"
                life.fail(ShardmemError(text)) if fleet.config.drain_timeout is not None else fleet.history.note(
                    "late", f"{text}. The engine ends without it; the memory is kept for what it sends"
                )
                break
            if not is_said and now - started > SAID_AFTER:
                is_said = True
                fleet.history.note("late", f"the stop waits for {who}, which is inside a send: stopped, or starved")
            fleet.finish_handoffs(now)
            await life.wait(REROUTE_POLL)

    @property
    def has_senders(self) -> bool:
        """Whether a producer is in the middle of a send: what it publishes is not lost while the memory is kept."""
        return self._marks is not None and bool(self._marks.inside())

    def _waited_for(self, now: float) -> dict[int, int]:
        """Events in flight by shard, without those that nobody will handle."""
        waiting = {}
        for shard, left in self._fleet.observer.in_flight().items():
            why = self._why_not(shard, left, now) if left else None
            if why is not None:
                self.why[shard] = why
                continue
            self.why.pop(shard, None)
            if left:
                waiting[shard] = left
        return waiting

    def _why_not(self, shard: int, left: int, now: float) -> str | None:
        """Why the events of a shard are not waited for."""
        fleet, view = self._fleet, self._fleet.control.view_shard(shard)
        in_hand, tries = view.batch_since_ns, view.waiting_tries if view.waiting_kind else 0
        look = self._looks.setdefault(shard, _Look(left, in_hand, now, now, tries))
        if look.left != left:
            look.handled, look.tries = now, tries
        if (look.left, look.in_hand) != (left, in_hand):
            look.left, look.in_hand, look.since = left, in_hand, now
        idle = 0.0 if in_hand else now - look.since
        if shard in fleet.workers.failed():
            return "it has failed"
        if self._is_kept and now - look.handled > KEPT_GRACE and tries > look.tries:
            self._waits.add(shard)
            return f"it waits: {fleet.control.shard_error(shard)}"
        self._waits.discard(shard)
        if idle > KEPT_GRACE and shard in fleet.unreachable():
            return "it keeps them back until a shard that has failed hands over its part"
        if fleet.config.drain_timeout is None and now - look.since > NOTHING_HANDLED:
            return f"none of them was handled for {NOTHING_HANDLED:g} s" + ("; a batch is in hand" if in_hand else "")
        return None

    # ---- what stays --------------------------------------------------------------------------------------------------

    def failure(self) -> ShardmemError | None:
        """Of the shards as they are now: one that failed and was started again is no reason to end badly."""
        for shard, reason in self._fleet.workers.failed().items():
            return HandlerError(f"shard {shard} stopped: {reason}")
        for shard, reason in self.why.items():
            if shard in self._waits:
                continue  # what it waits for is not here: its events are kept for the next run
            return ShardmemError(f"events of shard {shard} were not handled: {reason}")
        return None

    def left(self) -> str:
        """For people; empty: nothing is."""
        in_flight = {shard: left for shard, left in self._fleet.observer.in_flight().items() if left}
        if not in_flight:
            return ""
        each = [
            f"{left:,} of shard {shard}" + (f" ({self.why[shard]})" if shard in self.why else "")
            for shard, left in in_flight.items()
        ]
        return f"{plural(sum(in_flight.values()), 'event')} not handled: {', '.join(each)}"
