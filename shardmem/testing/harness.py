"""A handler in the process of its test: the state, timers and batches of a worker, without its engine."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

import numpy as np

from shardmem.runtime.batch import Batch
from shardmem.runtime.entity import Entity
from shardmem.runtime.handler import Context, handler_of, keeps_slots, optional
from shardmem.state.keeper import CACHE_BYTES, Keeper, keeps_by_key
from shardmem.state.keys import Key, store_key
from shardmem.state.scope import Duration, Scope, seconds_of
from shardmem.state.store import MemoryStore
from shardmem.state.timers import USER

START = 1_700_000_000.0  # seconds since 1970, when nothing else is said


class VirtualClock:
    """Stands still until it is told to move."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Harness:
    """One worker's life and those after it.

    handler: a class, a function, or an object that can be copied: each life gets a new one. slots: of the engine; all
    of them belong to this worker. key: the key field, for records. Nothing is saved until `checkpoint`, `restart` or
    `close`: `crash` shows what a handler makes of that.
    """

    def __init__(
        self,
        handler: Any,
        *,
        slots: int = 1024,
        key: str | None = None,
        clock: VirtualClock | None = None,
        state_cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.handler: Any = None
        self._made_of, self._slots, self._key, self._cache_bytes = handler, slots, key, state_cache_bytes
        self._store = MemoryStore()
        self._snapshots: dict[int, bytes] = {}
        self._unsaved: list[Any] = []  # what was fed since the last checkpoint
        self._touched: set[int] = set()
        self._sequence, self._incarnation = 0, 0
        self._start()

    # ---- what happens to it --------------------------------------------------------------------------------------

    def feed(self, events: Any) -> None:
        """One batch: pairs of key and payload, or a structured array. Raises what the handler raises, and BatchEscaped
        when it keeps a view of the batch; what the batch did is undone then."""
        batch = copy.copy(events) if isinstance(events, np.ndarray) else list(events)
        try:
            self._handle(batch)
        except BaseException:
            self.crash()
            raise
        self._unsaved.append(batch)

    def push(self, key: Key | None, payload: bytes = b"") -> None:
        """One event."""
        self.feed([(key, payload)])

    def advance(self, duration: Duration) -> None:
        """Time goes on, and each timer fires at its moment. Raises what `on_timer` and `on_expire` raise."""
        until = self.clock.now + seconds_of(duration)
        while (due := self._keeper.next_due() / 1000) <= until:
            self.clock.now = max(self.clock.now, due)
            self.fire()
        self.clock.now = until
        self.fire()

    def fire(self) -> None:
        """The timers that are due now."""
        while (timer := self._keeper.take_due()) is not None:
            self._keeper.fire(timer)
        self._keeper.trim()

    def checkpoint(self) -> None:
        """Save what changed. What was fed before is behind us."""
        for slot in self._touched:
            self._snapshots[slot] = bytes(self.handler.snapshot(slot) or b"")
        self._store.save(self._keeper.changes())
        self._keeper.saved()
        self._touched.clear()
        self._unsaved.clear()

    def crash(self) -> None:
        """The worker is killed; the next one takes up the last checkpoint, and is fed again what came after it."""
        self._start()
        for events in self._unsaved:
            self._handle(events)

    def restart(self, handler: Any = None) -> None:
        """The worker ends in good order, and another begins, perhaps with another handler: a later version of it."""
        self.close()
        if handler is not None:
            self._made_of = handler
        self._start()

    def close(self) -> None:
        self.checkpoint()
        optional(self.handler, "close")()

    # ---- what can be seen of it ----------------------------------------------------------------------------------

    def state(self, name: str, key: Key) -> Any:
        """The last saved value, as `client.state` gives it; None if there is none."""
        row = self._store.get(store_key(key, name.encode(), self._slots))
        return None if row is None else self._keeper.maps[name].decoded(key, row)

    def entity(self, key: Key) -> Any:
        """Of a handler that is an Entity: the one of this key, started."""
        return self.handler.active(key)

    @property
    def timers(self) -> dict[tuple[Key, str], float]:
        """(key, name) of every timer that is set, and the moment it is due."""
        armed = self._keeper.timers.all()
        return {(timer.key, timer.name): due / 1000 for timer, due in armed.items() if timer.kind == USER}

    # ---- inside --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._incarnation += 1
        made = self._made_of
        if inspect.isclass(made) and not issubclass(made, Entity):
            made = made()
        elif not callable(made):
            made = copy.copy(made)
        self.handler = handler_of(made)
        self._keeper = Keeper(Scope(self._slots, self._store, clock=self.clock), self._cache_bytes)
        if keeps_by_key(self.handler):
            self._keeper.bind(self.handler)
        log = logging.getLogger("shardmem.handler.0")
        optional(self.handler, "open")(Context("test", 0, self._incarnation, self._slots, log, "0"))
        slots = list(range(self._slots))
        self._keeper.gain(set(slots))
        for slot, state in self._snapshots.items():
            if state:
                optional(self.handler, "restore")(slot, state)
        self._touched.clear()
        optional(self.handler, "gained")(slots)

    def _handle(self, events: Any) -> None:
        self.fire()
        owner = Batch.of(events, key=self._key, slots=self._slots, sequence=self._sequence)
        self._sequence += len(owner)
        if keeps_slots(self.handler):
            self._touched.update(owner.slots.tolist())
        batch = owner.borrowed()
        self._keeper.fetch(batch)
        self.handler.handle(batch)
        self._keeper.after_batch()
        batch._end()
        self._keeper.trim()
