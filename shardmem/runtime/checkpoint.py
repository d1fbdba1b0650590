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
from shardmem.memory.reader import Reader, rejected_of
from shardmem.runtime.batch import Batch
from shardmem.runtime.forked import end_if_forked
from shardmem.runtime.handler import Handler, keeps_slots, optional
from shardmem.runtime.state import StateStore
from shardmem.settings import some
from shardmem.state.keeper import Keeper
from shardmem.state.timers import USER, Timer
from shardmem.text import of_error

LOOK_AT_ALL = 16  # batches
FIRE_SECONDS = 0.05  # how long timers may keep events waiting
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # before a timer that failed is tried again
PURGE_EVERY = 1.0  # seconds: rows of slots that went are deleted a few at a time, when there is nothing else to do
IDLE_SHARE = 0.1  # of the interval: with nothing else to do, whoever waits in flush should not wait for all of it

log = logging.getLogger("shardmem.checkpoint")


class Commit(Protocol):
    """When the rows of batches that were handled are committed, and what becomes of the state that they made."""

    handler: Handler

    @property
    def patience_ns(self) -> int:
        """How long the worker may sleep."""

    def handle(self, batch: Batch) -> None:
        """Call the handler. Raises what it raises."""

    def take_up(self) -> None:
        """Before the first batch: what the predecessor had saved, in lanes and in the handler, which gains its
        slots."""

    def handled(self, rejected: bytes) -> bool:
        """The batch in hand was handled, but for the rows that it rejected: places in the lanes. False: a lane changed
        under it, and moves no further."""

    def step(self, idle: bool) -> None:
        """Between batches: save if it is time to."""

    def settle(self) -> None:
        """Nothing is deferred after this."""

    def touch(self, slots: Iterable[int]) -> None:
        """The handler has been given an event of these that is in no lane."""

    def failing(self) -> None:
        """The batch in hand has failed, and has perhaps changed the state of its slots before it did."""

    def roll_back(self) -> None:
        """The handler forgets what it did since the last commit; the rows behind it come again."""

    def hand_over(self, slots: list[int]) -> None:
        """These slots have no rows left here: save them and forget them. The handler has lost them."""

    def restore(self, slots: Iterable[int]) -> None:
        """These slots are handled here from now on. The handler has gained them."""

    def close(self) -> None:
        """The worker ends in good order, and nothing is deferred."""


class Immediate:
    """Heads move when the handler has returned."""

    patience_ns = 100_000_000

    def __init__(self, control: ControlSegment, shard: int, reader: Reader, handler: Handler) -> None:
        self._control, self._shard, self._reader, self.handler = control, shard, reader, handler

    def handle(self, batch: Batch) -> None:
        self.handler.handle(batch)

    def take_up(self) -> None:
        self.restore(owned_slots(self._control, self._shard))

    def handled(self, rejected: bytes) -> bool:
        return (not rejected or self._reader.set_aside_rows(rejected)) and self._reader.commit()

    def step(self, idle: bool) -> None: ...

    def settle(self) -> None: ...

    def touch(self, slots: Iterable[int]) -> None: ...

    def failing(self) -> None: ...

    def roll_back(self) -> None: ...

    def hand_over(self, slots: list[int]) -> None:
        for slot in slots:
            _call(self.handler, self._shard, "drop", slot)
        _tell(self.handler, self._shard, "lost", slots)

    def restore(self, slots: Iterable[int]) -> None:
        _tell(self.handler, self._shard, "gained", slots)

    def close(self) -> None: ...


class Checkpointed:
    """A stateful handler: the states of changed slots, what changed by key, and the rows behind them are saved in one
    transaction, then heads move. Timers fire between batches.

    interval: seconds between checkpoints under load. Sooner when half a lane is handled and not committed, and when
    there is nothing else to do. anew: makes another handler, for one without `drop`; it gains the slots that are left.
    expects_state: its predecessor had saved some; a file that knows nothing of it is another file.
    Raises HandlerError when snapshot, restore, drop, gained or lost raise, ShardmemError when the file cannot be used.
    """

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
        expects_state: bool = False,
    ) -> None:
        self._control, self._shard, self._reader = control, shard, reader
        self.handler, self._keeper, self._store = handler, keeper, store
        self._interval, self._anew = interval, anew
        self._keeps_slots = keeps_slots(handler)
        self._expects_state = expects_state
        self._touched = np.zeros(control.slots, "u1")
        self._live: set[int] = set()  # slots that the handler may hold something of
        self._mine: set[int] = set()  # slots whose rows may be in a batch
        self._all_touched, self._batches, self._told_of_keyless = not self._keeps_slots, 0, False
        self._saved_at = self._purged_at = time.monotonic()
        self._deferred, self._rejected = 0, b""
        self._firing = Firing(shard, keeper, self)
        reader.defer_commits()

    @property
    def patience_ns(self) -> int:
        """Until the next checkpoint or timer is due, if something waits for it."""
        patience = self._firing.patience_ns
        if not self._deferred and not self._keeper.has_changes:
            return patience
        due = self._saved_at + self._interval * IDLE_SHARE - time.monotonic()
        return max(0, min(patience, int(due * 1e9)))

    def handle(self, batch: Batch) -> None:
        self.handler.handle(batch)
        self._keeper.after_batch()

    def take_up(self) -> None:
        view = self._control.view_shard(self._shard)
        ranges = self._store.begin_life(view.incarnation, view.generation, self._expects_state)
        if not (self._reader.set_aside_rows(rejected_of(ranges)) and self._reader.commit_ranges(ranges)):
            log.error(
                "shard %d: the last checkpoint speaks of rows that its lanes do not have; rows may be handled again",
                self._shard,
            )
        self.restore(owned_slots(self._control, self._shard))

    def handled(self, rejected: bytes) -> bool:
        self._rejected += rejected
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
        self._firing.step()
        self._keeper.trim()
        self._deferred, pressed, awaited = self._reader.deferred()
        age = time.monotonic() - self._saved_at
        if not self._deferred and not self._keeper.has_changes:
            if idle and age > PURGE_EVERY and time.monotonic() - self._purged_at > PURGE_EVERY:
                self._store.purge()
                self._purged_at = time.monotonic()
            return
        pressed = pressed or self._keeper.is_pressed
        if pressed or age >= self._interval or (idle and (awaited or age >= self._interval * IDLE_SHARE)):
            self.save()

    def settle(self) -> None:
        if self._reader.deferred().rows or self._keeper.has_changes or self._touched.any():
            self.save()

    def save(self, also: Iterable[int] = (), merge: bool = False) -> None:
        slots = sorted({*np.flatnonzero(self._touched).tolist(), *also}) if self._keeps_slots else []
        states = self._snapshots(slots)
        ranges = self._rejected + self._reader.ranges()
        self._store.save(states, self._keeper.changes(), ranges, merge=merge)
        self._keeper.saved()
        if not (self._reader.set_aside_rows(self._rejected) and self._reader.commit_deferred()):
            log.error("shard %d: a lane changed under what was handled of it; it moves no further", self._shard)
        self._live.update(slots)
        self._untouch()
        self._deferred, self._saved_at, self._rejected = 0, time.monotonic(), b""

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
        self._untouch()
        self._rejected = b""
        self._reader.rescan()
        self._load(self._mine)
        if is_new:
            _tell(self.handler, self._shard, "gained", self._mine)

    def hand_over(self, slots: list[int]) -> None:
        self.save(also=slots, merge=True)
        self._mine.difference_update(slots)
        self._keeper.lose(set(slots))
        self._store.give(slots)
        if not self._keeps_slots:
            _tell(self.handler, self._shard, "lost", slots)
        elif callable(getattr(self.handler, "drop", None)):
            self._forget(slots)
            _tell(self.handler, self._shard, "lost", slots)
        else:  # there is nobody else to tell than the one that goes
            _tell(self.handler, self._shard, "lost", slots)
            self._forget(slots)
            self.restore(self._mine)

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
        self._store.claim(gained)
        self._mine.update(gained)
        self._keeper.gain(set(gained))
        self._all_touched = not self._keeps_slots
        self._load(gained)
        _tell(self.handler, self._shard, "gained", gained)

    def _load(self, slots: Iterable[int]) -> None:
        if not self._keeps_slots:
            return
        for slot, state in self._store.snapshots(slots).items():
            if state:
                _call(self.handler, self._shard, "restore", slot, state)
                self._live.add(slot)

    def _snapshots(self, slots: list[int]) -> list[tuple[int, bytes]]:
        if not slots:
            return []
        snapshot = optional(self.handler, "snapshot")
        try:
            return [(slot, bytes(snapshot(slot) or b"")) for slot in slots]
        except Exception:
            for slot in slots:  # which one, for the error
                _call(self.handler, self._shard, "snapshot", slot)
            raise


class Firing:
    """Timers that are due, between batches. One whose `on_timer` raises is tried again later, alone, for as long as it
    takes: it is no event that could be set aside, and others go on."""

    def __init__(self, shard: int, keeper: Keeper, commit: Checkpointed) -> None:
        self._shard, self._keeper, self._commit = shard, keeper, commit
        self._failed: dict[Timer, int] = {}  # times in a row

    @property
    def patience_ns(self) -> int:
        wait_ms = self._keeper.next_due() - self._keeper.scope.now_ms()
        return max(0, min(100_000_000, wait_ms * 1_000_000))

    def step(self) -> None:
        until = time.monotonic() + FIRE_SECONDS
        while (timer := self._keeper.take_due()) is not None:
            try:
                self._keeper.fire(timer)
            except BaseException as error:  # sys.exit too: see Worker.run
                end_if_forked(error)
                self._failing(timer, error)
                return
            end_if_forked()
            self._failed.pop(timer, None)
            if time.monotonic() > until:
                return

    def _failing(self, timer: Timer, error: BaseException) -> None:
        """What it did is undone, and with it what others did since the last checkpoint: so the next attempt is made
        behind a checkpoint of its own."""
        tries = self._failed[timer] = self._failed.get(timer, 0) + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        what = f"on_timer({timer.key!r}, {timer.name!r})" if timer.kind == USER else f"on_expire({timer.key!r}, ...)"
        log.error(
            "shard %d: %s raised %.500s; it is tried again in %g s",
            self._shard,
            what,
            of_error(error),
            pause,
            exc_info=error if tries == 1 else None,
        )
        self._commit.roll_back()
        self._keeper.postpone(timer, pause)


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
