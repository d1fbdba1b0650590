"""Timers: one for each key and name. In memory are those that are due soon, in the store all of them.

A timer that fires is gone from the store with the checkpoint that saves what `on_timer` did: a worker that is killed
before it fires again from the state of before, so it has fired once in the state.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import itertools
from typing import NamedTuple

from shardmem.state.keys import Key, prefix, read_store_key
from shardmem.state.scope import Duration, Scope, milliseconds_of, seconds_of

HORIZON_MS = 10_000  # what is due within it is in memory
MOST_IN_MEMORY = 10_000  # about; what is read at once delays what is due meanwhile
LATEST = 1e13  # seconds since 1970; in ms it is far from the largest integer of the store
USER, EXPIRY = ":", "="  # what the name of a timer in the store begins with


class Timer(NamedTuple):
    """slot: of keys that are of a partition; two of them may have the same key."""

    key: Key
    kind: str
    name: str
    slot: int = -1


def timer_of(scope: Scope, key: Key, kind: str, name: str) -> Timer:
    return Timer(key, kind, name) if scope.partition is None else Timer(key, kind, name, scope.slot_of(key))


class Timers:
    """`self.timers` of a handler. Times are the worker's wall clock."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.can_fire = True
        self.changed: dict[Timer, int | None] = {}  # not saved yet; None: gone
        self._armed: dict[Timer, int] = {}  # of those in memory: an entry of the heap that says otherwise is over
        self._heap: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._shed_at = 2 * MOST_IN_MEMORY
        self._horizon = -1  # what the store has up to here, in ms, is in memory

    def set(
        self, key: Key, name: str, *, after: Duration | None = None, at: float | datetime.datetime | None = None
    ) -> None:
        """`on_timer(key, name)` is called once after that time, or at that moment (seconds since 1970, or a datetime).
        One that is set already is moved. Raises StateError for a key of another shard."""
        if not self.can_fire:
            raise TypeError("a handler that sets timers needs on_timer(key, name)")
        if (after is None) == (at is None):
            raise TypeError("timers.set takes after= or at=, and one of them")
        if after is not None:
            moment = self.scope.clock() + seconds_of(after)
        else:
            moment = at.timestamp() if isinstance(at, datetime.datetime) else float(at or 0)
            if not abs(moment) < LATEST:
                raise ValueError(f"at={at!r} is not a moment: write seconds since 1970, or a datetime")
        self.arm(self._of(key, name), milliseconds_of(moment))

    def cancel(self, key: Key, name: str) -> None:
        """It does not fire any more; nothing happens if there is none."""
        self.disarm(self._of(key, name))

    def _of(self, key: Key, name: str) -> Timer:
        return timer_of(self.scope, self.scope.admit(key, f"timer {name!r}"), USER, _checked(name))

    def arm(self, timer: Timer, due: int) -> None:
        due = max(0, due)
        self.changed[timer] = due
        self._armed.pop(timer, None)
        self._hold(timer, due)

    def disarm(self, timer: Timer) -> None:
        self.changed[timer] = None
        self._armed.pop(timer, None)

    # ---- firing --------------------------------------------------------------------------------------------------

    def next_due(self) -> int:
        """When something has to be done, in ms: a timer is due, or the store has to be looked at."""
        self._drop_stale()
        first = self._heap[0][0] if self._heap else self._look_at
        return first if self._has_enough else min(first, self._look_at)

    def take(self, now: int) -> Timer | None:
        """The next timer that is due, which is gone then."""
        if now >= self._look_at and not self._has_enough:
            self._look_ahead(now)
        self._drop_stale()
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)[2]
            self.disarm(timer)
            self._drop_stale()
            return timer
        return None

    @property
    def _look_at(self) -> int:
        return self._horizon - HORIZON_MS // 2

    @property
    def _has_enough(self) -> bool:
        return len(self._armed) >= MOST_IN_MEMORY // 2

    def _hold(self, timer: Timer, due: int) -> None:
        """In memory, if it is due soon enough."""
        if due > self._horizon:
            return
        self._armed[timer] = due
        heapq.heappush(self._heap, (due, next(self._order), timer))
        if len(self._heap) > self._shed_at:
            self._shed()

    def _drop_stale(self) -> None:
        heap = self._heap
        while heap and self._armed.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)

    def _look_ahead(self, now: int) -> None:
        """Bring into memory what the store has up to the horizon, and further up to what is not saved yet."""
        horizon, limit = now + HORIZON_MS, MOST_IN_MEMORY
        found = self.scope.store.timers(self._horizon + 1, horizon, limit)
        if len(found) >= limit:
            horizon = found[-1][0]
        self._horizon = max(self._horizon, horizon)
        for due, key in found:
            slot, timer = self._read(key)
            if slot in self.scope.owned and timer not in self.changed and timer not in self._armed:
                self._hold(timer, due)
        for timer, changed_due in self.changed.items():
            if changed_due is not None and timer not in self._armed:
                self._hold(timer, changed_due)

    def _read(self, stored: bytes) -> tuple[int, Timer]:
        slot, name, key = read_store_key(stored)
        text = name.decode("utf-8", "surrogateescape")
        return slot, Timer(key, text[:1], text[1:], -1 if self.scope.partition is None else slot)

    def _shed(self) -> None:
        """What is due later is in the store or in `changed`, and comes back when it is due sooner. Never less is kept
        than `_has_enough` asks for, or it would come back at once."""
        kept = sorted((due, n, t) for due, n, t in self._heap if self._armed.get(t) == due)
        if len(kept) > MOST_IN_MEMORY:
            self._horizon = kept[MOST_IN_MEMORY][0]
            kept = [entry for entry in kept if entry[0] <= self._horizon]
        self._heap, self._armed = kept, {timer: due for due, _, timer in kept}
        self._shed_at = 2 * max(MOST_IN_MEMORY, len(kept))

    def all(self) -> dict[Timer, int]:
        """Every timer of this shard, and when it is due."""
        stored = ((due, self._read(key)[1]) for due, key in self.scope.store.timers(0, 1 << 62, 1 << 62))
        found: dict[Timer, int | None] = {timer: due for due, timer in stored}
        found.update(self.changed)
        return {timer: due for timer, due in found.items() if due is not None}

    # ---- saving --------------------------------------------------------------------------------------------------

    def changes(self) -> dict[bytes, int | None]:
        by_name: dict[bytes, list[Timer]] = {}
        for timer in self.changed:
            by_name.setdefault((timer.kind + timer.name).encode("utf-8", "surrogateescape"), []).append(timer)
        made: dict[bytes, int | None] = {}
        for name, timers in by_name.items():
            stored = self.scope.store_keys([timer.key for timer in timers], name)
            if self.scope.partition is not None:
                stored = [prefix(timer.slot) + key[2:] for timer, key in zip(timers, stored)]
            made.update(zip(stored, (self.changed[timer] for timer in timers)))
        return made

    def saved(self) -> None:
        self.changed.clear()

    def forget(self) -> None:
        """What is in memory, and what was not saved. The store is read again."""
        self.changed.clear()
        self._armed.clear()
        self._heap.clear()
        self._horizon = -1


def _checked(name: str) -> str:
    """What could not be saved is the fault of the event that says it."""
    with contextlib.suppress(UnicodeEncodeError):
        if isinstance(name, str) and "\0" not in name and name.encode("utf-8", "surrogateescape") is not None:
            return name
    raise TypeError(f"the name of a timer is text without a zero character; this is {name!r}")
