"""What happens to a batch that was handled: its rows are committed, at once or together with the state that they
made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import numpy as np

from shardmem.errors import HandlerError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.reader import Reader
from shardmem.runtime.handler import Handler, optional
from shardmem.runtime.state import StateStore
from shardmem.settings import some
from shardmem.text import of_error

LOOK_AT_ALL = 16  # batches
IDLE_SHARE = 0.1  # of the interval: with nothing else to do, whoever waits in flush should not wait for all of it

log = logging.getLogger("shardmem.checkpoint")


class Commit(Protocol):
    """When the rows of batches that were handled are committed, and what becomes of the state that they made."""

    handler: Handler

    @property
    def patience_ns(self) -> int:
        """How long the worker may sleep."""

    def take_up(self) -> None:
        """Before the first batch: what the predecessor had saved, in lanes and in the handler, which gains its
        slots."""

    def handled(self) -> bool:
        """The batch in hand was handled. False: a lane changed under it, and moves no further."""

    def step(self, idle: bool) -> None:
        """Between batches: save if it is time to."""

    def settle(self) -> None:
        """Nothing is deferred after this."""

    def failing(self) -> None:
        """The batch in hand has failed, and has perhaps changed the state of its slots before it did."""

    def roll_back(self) -> None:
        """The handler forgets what it did since the last commit; the rows behind it come again."""

    def hand_over(self, slots: list[int]) -> None:
        """These slots have no rows left here: save them and forget them. The handler has lost them."""

    def restore(self, slots: Iterable[int]) -> None:
        """These slots are handled here from now on. The handler has gained them."""


class Immediate:
    """Heads move when the handler has returned."""

    patience_ns = 100_000_000

    def __init__(self, control: ControlSegment, shard: int, reader: Reader, handler: Handler) -> None:
        self._control, self._shard, self._reader, self.handler = control, shard, reader, handler

    def take_up(self) -> None:
        self.restore(owned_slots(self._control, self._shard))

    def handled(self) -> bool:
        return self._reader.commit()

    def step(self, idle: bool) -> None: ...

    def settle(self) -> None: ...

    def failing(self) -> None: ...

    def roll_back(self) -> None: ...

    def hand_over(self, slots: list[int]) -> None:
        for slot in slots:
            _call(self.handler, self._shard, "drop", slot)
        _tell(self.handler, self._shard, "lost", slots)

    def restore(self, slots: Iterable[int]) -> None:
        _tell(self.handler, self._shard, "gained", slots)


class Checkpointed:
    """A stateful handler: the states of changed slots and the rows behind them are saved in one transaction, then heads
    move.

    interval: seconds between checkpoints under load. Sooner when half a lane is handled and not committed, and when
    there is nothing else to do. anew: makes another handler, for one without `drop`; it gains the slots that are left.
    Raises HandlerError when snapshot, restore, drop, gained or lost raise, ShardmemError when the file cannot be used.
    """

    def __init__(
        self,
        control: ControlSegment,
        shard: int,
        reader: Reader,
        handler: Handler,
        store: StateStore,
        interval: float,
        anew: Callable[[], Handler],
    ) -> None:
        self._control, self._shard, self._reader = control, shard, reader
        self.handler, self._store, self._interval, self._anew = handler, store, interval, anew
        self._touched = np.zeros(control.slots, "u1")
        self._live: set[int] = set()  # slots that the handler may hold something of
        self._mine: set[int] = set()  # slots whose rows may be in a batch
        self._all_touched, self._batches, self._told_of_keyless = False, 0, False
        self._saved_at = time.monotonic()
        self._deferred = 0
        reader.defer_commits()

    @property
    def patience_ns(self) -> int:
        """Until the next checkpoint is due, if something waits for it."""
        if not self._deferred:
            return 100_000_000
        due = self._saved_at + self._interval * IDLE_SHARE - time.monotonic()
        return max(0, min(100_000_000, int(due * 1e9)))

    def take_up(self) -> None:
        view = self._control.view_shard(self._shard)
        ranges = self._store.begin_life(self._shard, view.incarnation, view.generation)
        if not self._reader.commit_ranges(ranges):
            log.error(
                "shard %d: the last checkpoint speaks of rows that its lanes do not have; rows may be handled again",
                self._shard,
            )
        self.restore(owned_slots(self._control, self._shard))

    def handled(self) -> bool:
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
                self._all_touched = bool(self._touched[list(self._mine)].all())
        return self._reader.defer()

    def step(self, idle: bool) -> None:
        self._deferred, pressed, awaited = self._reader.deferred()
        if not self._deferred:
            return
        age = time.monotonic() - self._saved_at
        if pressed or age >= self._interval or (idle and (awaited or age >= self._interval * IDLE_SHARE)):
            self.save()

    def settle(self) -> None:
        if self._reader.deferred().rows:
            self.save()

    def save(self, also: Iterable[int] = ()) -> None:
        slots = sorted({*np.flatnonzero(self._touched).tolist(), *also})
        states = self._snapshots(slots)
        self._store.save(states, self._reader.ranges())
        if not self._reader.commit_deferred():
            log.error("shard %d: a lane changed under what was handled of it; it moves no further", self._shard)
        self._live.update(slots)
        self._touched[:] = 0
        self._all_touched = False
        self._deferred, self._saved_at = 0, time.monotonic()

    def failing(self) -> None:
        self._reader.touched(self._touched)

    def roll_back(self) -> None:
        changed = self._live | set(np.flatnonzero(self._touched).tolist())
        is_new = self._forget(changed)
        self._touched[:] = 0
        self._all_touched = False
        self._reader.rescan()
        self._load(self._mine)
        if is_new:
            _tell(self.handler, self._shard, "gained", self._mine)

    def hand_over(self, slots: list[int]) -> None:
        self.save(also=slots)
        self._mine.difference_update(slots)
        if callable(getattr(self.handler, "drop", None)):
            self._forget(slots)
            _tell(self.handler, self._shard, "lost", slots)
        else:  # there is nobody else to tell than the one that goes
            _tell(self.handler, self._shard, "lost", slots)
            self._forget(slots)
            self.restore(self._mine)

    def _forget(self, slots: Collection[int]) -> bool:
        """The handler holds nothing of these slots any more. True: nor of any other, because it is a new one. What a
        handler without `drop` kept would be counted again when the slot comes back, or when the rows do: 12,860 of 20
        were."""
        if callable(getattr(self.handler, "drop", None)):
            for slot in slots:
                _call(self.handler, self._shard, "drop", slot)
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
        gained = list(slots)
        self._mine.update(gained)
        self._all_touched = False
        self._load(gained)
        _tell(self.handler, self._shard, "gained", gained)

    def _load(self, slots: Iterable[int]) -> None:
        for slot, state in self._store.load(slots).items():
            if state:
                _call(self.handler, self._shard, "restore", slot, state)
                self._live.add(slot)

    def _snapshots(self, slots: list[int]) -> list[tuple[int, bytes]]:
        snapshot = optional(self.handler, "snapshot")
        try:
            return [(slot, bytes(snapshot(slot) or b"")) for slot in slots]
        except Exception:
            for slot in slots:  # which one, for the error
                _call(self.handler, self._shard, "snapshot", slot)
            raise


def owned_slots(control: ControlSegment, shard: int) -> set[int]:
    """Slots whose rows the worker of a shard handles now. The table is read before the holds: a slot that begins to
    move in between is seen as moving."""
    owners, _ = control.slot_table()
    owned = set(np.flatnonzero(owners == shard).tolist())
    for move in control.moves():
        if move.source == shard and move.phase in ("rerouting", "draining") and not move.drained:
            owned.add(move.slot)
        elif not (move.target == shard and move.phase == "releasing" and move.restored):
            owned.discard(move.slot)
    return owned


def _tell(handler: Handler, shard: int, method: str, slots: Iterable[int]) -> None:
    """What the handler raises fails the worker, as `restore` and `drop` do."""
    if told := sorted(slots):
        _call(handler, shard, method, told)


def _call(handler: Handler, shard: int, method: str, about: int | list[int], *values: Any) -> Any:
    try:
        return optional(handler, method)(about, *values)
    except Exception as error:
        what = f"slot {about}" if isinstance(about, int) else f"{some(len(about), 'slot')} from {about[0]} on"
        raise HandlerError(
            f"{method}({what}) of the handler of shard {shard} raised {of_error(error)}; what "
            f"was not committed yet stays in shared memory"
        ) from error
