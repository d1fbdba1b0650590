"""State and the rows behind it, saved together: what a worker does whose handler keeps state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

from shardmem.errors import HandlerError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.reader import Reader, rejected_of
from shardmem.runtime.batch import Batch
from shardmem.runtime.commit import call, owned_slots, tell
from shardmem.runtime.firing import Firing
from shardmem.runtime.following import Following
from shardmem.runtime.handler import Handler, keeps_slots, optional
from shardmem.runtime.outbox import Outbox
from shardmem.runtime.outcomes import OnError
from shardmem.runtime.state import StateStore
from shardmem.state.keeper import Keeper
from shardmem.text import of_error

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch

LOOK_AT_ALL = 16  # batches
PURGE_EVERY = 1.0  # seconds: rows of slots that went are deleted a few at a time, when there is nothing else to do
IDLE_SHARE = 0.1  # of the interval: with nothing else to do, whoever waits in flush should not wait for all of it

log = logging.getLogger("shardmem.checkpoint")


class Checkpointed:
    """A stateful handler: the states of changed slots, what changed by key, what was sent, and the rows behind them are
    saved in one transaction, then heads move. Timers fire between batches.

    interval: seconds between checkpoints under load. Sooner when half a lane is handled and not committed, and when
    there is nothing else to do. anew: makes another handler, for one without `drop`; it gains the slots that are left.
    retract: takes places of rows that were quarantined and come again, because what was handled with them is undone.
    expects_state: its predecessor had saved some; a file that knows nothing of it is another file.
    Raises HandlerError when snapshot, restore, drop, gained or lost raise, ShardmemError when the file cannot be used.
    """

    saves = True

    def __init__(
        self,
        control: ControlSegment,
        shard: int,
        reader: Reader,
        handler: Handler,
        keeper: Keeper,
        store: StateStore,
        interval: float,
        anew: Callable[[], Handler],
        rules: OnError,
        retract: Callable[[bytes], None],
        expects_state: bool = False,
        outbox: Outbox | None = None,
    ) -> None:
        self._outbox = outbox or Outbox(store.backlog)
        self._control, self._shard, self._reader = control, shard, reader
        self.handler, self._keeper, self._store = handler, keeper, store
        self._interval, self._anew, self._retract = interval, anew, retract
        self._keeps_slots = keeps_slots(handler)
        self._expects_state = expects_state
        self._touched = np.zeros(control.slots, "u1")
        self._live: set[int] = set()  # slots that the handler may hold something of
        self._mine: set[int] = set()  # slots of this shard
        self._here: set[int] = set()  # of them, those whose rows may be in a batch: not of partitions that others own
        self._all_touched, self._batches, self._told_of_keyless = not self._keeps_slots, 0, False
        self._saved_at = self._purged_at = time.monotonic()
        self._deferred, self._rejected = 0, b""
        self._firing = Firing(shard, keeper, self, rules)
        self._following = Following(control, reader, keeper)
        reader.defer_commits()

    @property
    def patience_ns(self) -> int:
        """Until the next checkpoint or timer is due, if something waits for it."""
        patience = self._firing.patience_ns
        if not self._is_unsaved:
            return patience
        due = self._saved_at + self._interval * IDLE_SHARE - time.monotonic()
        return max(0, min(patience, int(due * 1e9)))

    def take(self, batch: sm_batch) -> bool:
        return self._following.take(batch)

    def enter(self, slot: int) -> None:
        self._following.enter(slot)

    def handle(self, batch: Batch) -> None:
        self._outbox.begin(batch)
        try:
            if self._firing.is_behind and (keys := batch.keys) is not None:
                self._keeper.expire_first(keys.tolist() if isinstance(keys, np.ndarray) else keys)
            self._keeper.fetch(batch)
            self.handler.handle(batch)
        finally:
            self._outbox.end()
        self._keeper.after_batch()

    def take_up(self) -> None:
        view = self._control.view_shard(self._shard)
        ranges = self._store.begin_life(view.incarnation, view.generation, self._expects_state)
        if not (self._reader.set_aside_rows(rejected_of(ranges)) and self._reader.commit_ranges(ranges)):
            log.error(
                "shard %d: the last checkpoint speaks of rows that its lanes do not have; rows may be handled again",
                self._shard,
            )
        self._following.look()
        self.restore(owned_slots(self._control, self._shard))
        self._following.ready()

    def handled(self, rejected: bytes) -> bool:
        self._rejected += self._following.handled() + rejected
        # Hashing keys again costs 3 ns a row. Once every slot has changed there is nothing more to find out.
        if not self._all_touched:
            if self._reader.touched(self._touched) and not self._told_of_keyless:
                self._told_of_keyless = True
                log.warning(
                    "shard %d: events without a key have come to a handler that keeps state per key: they belong to no "
                    "slot, so what it keeps of them is not saved; give every event a key",
                    self._shard,
                )
            self._batches += 1
            if self._batches % LOOK_AT_ALL == 0:
                self._all_touched = bool(self._touched[list(self._here)].all())
        return self._reader.defer()

    def set_aside(self) -> None:
        self._following.handled()
        if self._following.applied.changes():
            self.save()  # nobody else would, and from its broker it would come once more

    def step(self, idle: bool) -> None:
        if self._following.is_behind:
            self._follow()
        self._firing.step()
        self._keeper.trim()
        self._deferred, pressed, awaited = self._reader.deferred()
        age = time.monotonic() - self._saved_at
        if not self._is_unsaved:
            if idle and age > PURGE_EVERY and time.monotonic() - self._purged_at > PURGE_EVERY:
                self._store.purge()
                self._purged_at = time.monotonic()
            return
        pressed = pressed or self._keeper.is_pressed or self._outbox.is_pressed
        if pressed or age >= self._interval or (idle and (awaited or age >= self._interval * IDLE_SHARE)):
            self.save()

    def settle(self) -> None:
        self._deferred = self._reader.deferred().rows
        if self._is_unsaved or self._touched.any():
            self.save()

    @property
    def is_deferring(self) -> bool:
        return bool(self._reader.deferred().rows or self._rejected)

    @property
    def _is_unsaved(self) -> bool:
        """Of a batch that was skipped as a whole there is nothing but the places of its rows."""
        return bool(self._deferred or self._rejected or self._keeper.has_changes or self._outbox.unsaved)

    def save(self, also: Iterable[int] = (), merge: bool = False) -> None:
        began = time.monotonic_ns()
        slots = sorted({*np.flatnonzero(self._touched).tolist(), *also}) if self._keeps_slots else []
        states = self._snapshots(slots)
        ranges = self._rejected + self._reader.ranges()
        self._store.save(
            states,
            self._keeper.changes(),
            ranges,
            applied=self._following.applied.changes(),
            messages=self._outbox.unsaved,
            merge=merge,
        )
        self._keeper.saved()
        self._outbox.clear()
        self._following.applied.saved()
        if not (self._reader.set_aside_rows(self._rejected) and self._reader.commit_deferred()):
            log.error("shard %d: a lane changed under what was handled of it; it moves no further", self._shard)
        self._live.update(slots)
        self._untouch()
        self._deferred, self._saved_at, self._rejected = 0, time.monotonic(), b""
        self._control.note_checkpoint(self._shard, time.monotonic_ns() - began)

    def touch(self, slots: Iterable[int]) -> None:
        if self._keeps_slots:
            self._touched[list(slots)] = 1

    def failing(self) -> None:
        if self._keeps_slots:
            self._reader.touched(self._touched)

    def roll_back(self) -> None:
        changed = self._live | set(np.flatnonzero(self._touched).tolist())
        is_new = self._forget(changed)
        self._keeper.roll_back()
        self._outbox.clear()
        self._following.applied.roll_back()
        self._untouch()
        undone, self._rejected = self._rejected, b""
        self._reader.rescan()
        self._load(self._here)
        if is_new:
            self._tell("gained", self._here)
        self._retract(undone)

    def hand_over(self, slots: list[int]) -> None:
        here = self._here.intersection(slots)
        self.save(also=here, merge=True)
        self._mine.difference_update(slots)
        self._store.give(slots)
        self._lose(here)

    def _lose(self, slots: set[int]) -> None:
        """The handler has nothing of these any more, and is told so. All of them is saved."""
        self._here -= slots
        self._keeper.lose(slots)
        self._following.applied.forget(slots)
        has_drop = callable(getattr(self.handler, "drop", None))
        if has_drop:
            self._forget(slots)
        self._tell("lost", slots)
        if not has_drop and self._forget(slots):  # there was nobody else to tell than the one that goes
            self._gain(self._here)

    def close(self) -> None:
        self._store.close()

    def _untouch(self) -> None:
        self._touched[:] = 0
        self._all_touched = not self._keeps_slots

    def _forget(self, slots: Collection[int]) -> bool:
        """The handler holds nothing of these slots any more. True: nor of any other, because it is a new one. What a
        handler without `drop` kept would be counted again when the slot comes back, or when the rows do: 12,860 of 20
        were."""
        if not self._keeps_slots:
            return False
        if callable(getattr(self.handler, "drop", None)):
            for slot in slots:
                call(self.handler, self._shard, "drop", slot)
            self._live.difference_update(slots)
            return False
        if not slots:
            return False
        self._live.clear()
        try:
            optional(self.handler, "close")()
            self.handler = self._anew()
        except Exception as error:
            raise HandlerError(
                f"the handler of shard {self._shard}, which has no drop, cannot be made anew: {of_error(error)}"
            ) from error
        return True

    def restore(self, slots: Iterable[int]) -> None:
        gained = set(slots)
        self._mine |= gained
        self._gain(self._following.here(gained))

    def _gain(self, slots: set[int]) -> None:
        self._store.claim(slots)
        self._here |= slots
        self._keeper.gain(slots)
        self._following.applied.take_up(self._store.applied(), slots)
        self._all_touched = not self._keeps_slots
        self._load(slots)
        self._tell("gained", slots)

    def _follow(self) -> None:
        """The source has taken partitions up, or given them up. A partition that has begun again since may have the
        state of another host by now."""
        self.settle()
        again = self._following.look()
        here = self._following.here(self._mine)
        self._lose((self._here & again) | (self._here - here))
        self._gain(here - self._here)
        self._following.ready()

    def _tell(self, method: str, slots: Iterable[int]) -> None:
        for some in self._keeper.each_partition(slots):
            tell(self.handler, self._shard, method, some)

    def _load(self, slots: Iterable[int]) -> None:
        if not self._keeps_slots:
            return
        for slot, state in self._store.snapshots(slots).items():
            if state:
                call(self.handler, self._shard, "restore", slot, state)
                self._live.add(slot)

    def _snapshots(self, slots: list[int]) -> list[tuple[int, bytes]]:
        if not slots:
            return []
        snapshot = optional(self.handler, "snapshot")
        try:
            return [(slot, bytes(snapshot(slot) or b"")) for slot in slots]
        except Exception:
            for slot in slots:  # which one, for the error
                call(self.handler, self._shard, "snapshot", slot)
            raise
