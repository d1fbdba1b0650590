"""All that one handler keeps: its values and its timers, from binding them to what a checkpoint writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from shardmem.state.many import Keyed
from shardmem.state.partitions import Layout
from shardmem.state.scope import Scope
from shardmem.state.store import Changes, MemoryStore
from shardmem.state.timers import EXPIRY, USER, Timer, Timers, timer_of
from shardmem.state.values import MISSING, Declaration, KeyedMap

CACHE_BYTES = 256 << 20
_ATTRIBUTE = "_shardmem_keeper"


def declared_states(handler: object) -> dict[str, Declaration[Any]]:
    """By name; those of base classes too."""
    found: dict[str, Declaration[Any]] = {}
    for each in reversed(type(handler).__mro__):
        found.update({name: value for name, value in vars(each).items() if isinstance(value, Declaration)})
    return found


def absent(method: Any) -> Any:
    """Marks a method of a base class that says what a handler may define."""
    method.is_absent = True
    return method


def defines(handler: object, method: str) -> bool:
    found = getattr(handler, method, None)
    return callable(found) and not getattr(found, "is_absent", False)


def keeps_by_key(handler: object) -> bool:
    return bool(declared_states(handler)) or defines(handler, "on_timer")


def keeper_of(handler: object) -> Keeper:
    """The one it is bound to; else one in memory that owns every slot, so that a handler can be tried by itself."""
    found = vars(handler).get(_ATTRIBUTE)
    if found is None:
        found = Keeper(Scope(1, MemoryStore(), {0}))
        found.bind(handler)
    return found


class Shelf:
    """The values of one partition, or of all keys when there are none. live, unsaved: bytes, as of when it was looked
    at last."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.maps: dict[str, KeyedMap[Any]] = {}
        self.live = self.unsaved = 0.0

    @property
    def has_changes(self) -> bool:
        return any(each.dirty or each.changed for each in self.maps.values())


class Keeper:
    """cache_bytes: about how much memory values may take."""

    def __init__(self, scope: Scope, cache_bytes: int = CACHE_BYTES) -> None:
        self.scope, self._cache_bytes = scope, cache_bytes
        self.timers = Timers(scope)
        self.layout: Layout | None = None  # of partitions, once there are
        self._shelf = Shelf(scope)  # the one that the handler sees
        self._shelves: dict[int | None, Shelf] = {None: self._shelf}
        self._entered: dict[int | None, Shelf] = {None: self._shelf}  # since the last checkpoint
        self._handler: Any = None
        self.between_batches: Callable[[], None] = lambda: None

    @property
    def maps(self) -> dict[str, KeyedMap[Any]]:
        return self._shelf.maps

    def bind(self, handler: Any) -> None:
        """Its attributes are the mappings from now on: found without asking the descriptor."""
        self._handler = handler
        self.timers.can_fire = defines(handler, "on_timer")
        vars(handler)[_ATTRIBUTE] = self
        self._show(self._shelf)

    def _show(self, shelf: Shelf) -> None:
        if self._handler is not None:
            for name, declared in declared_states(self._handler).items():
                if name not in shelf.maps:
                    shelf.maps[name] = KeyedMap(declared, shelf.scope, self.timers)
            vars(self._handler).update(shelf.maps)

    # ---- partitions ----------------------------------------------------------------------------------------------

    def share_out(self, layout: Layout) -> None:
        """From here on keys are of partitions. Nothing is waiting to be saved, and what is in memory is forgotten."""
        self.layout = layout
        self._shelves.clear()
        self._entered.clear()
        self.timers.forget()
        self.enter(0)

    def enter(self, partition: int) -> None:
        """What the handler does next is about keys of this partition. It is found by its number in any handler."""
        if partition == self._shelf.scope.partition:
            return
        assert self.layout is not None
        if partition not in self._shelves:
            self._shelves[partition] = Shelf(self.scope.of_partition(self.layout, partition))
        self._shelf = self._entered[partition] = self._shelves[partition]
        self.timers.scope = self._shelf.scope
        self._show(self._shelf)

    def each_partition(self, slots: Iterable[int]) -> Iterator[list[int]]:
        """The slots of one partition after another, entered; without partitions, all of them."""
        if self.layout is None:
            yield list(slots)
            return
        width = self.layout.width
        for partition, some in groupby(sorted(slots), lambda slot: slot // width):
            self.enter(partition)
            yield list(some)

    # ---- around batches ------------------------------------------------------------------------------------------

    def fetch(self, batch: Keyed) -> None:
        """Before a batch is handled."""
        for each in self.maps.values():
            each.fetch(batch)

    def after_batch(self) -> None:
        """Raises StateError for a value that cannot be saved: it is the batch that fails."""
        for each in self.maps.values():
            if each.must_encode_now:
                each.encode()

    def trim(self) -> None:
        self._measure()
        self.between_batches()
        if sum(shelf.live for shelf in self._shelves.values()) > self._cache_bytes / 2:
            for shelf in self._shelves.values():
                for each in shelf.maps.values():
                    each.cool()
                shelf.live = 0.0

    def _measure(self) -> None:
        """Only the shelf that the handler sees can have changed."""
        shelf = self._shelf
        shelf.live = sum(each.live_bytes for each in shelf.maps.values())
        shelf.unsaved = sum(each.unsaved_bytes for each in shelf.maps.values())

    @property
    def has_changes(self) -> bool:
        return bool(self.timers.changed) or any(shelf.has_changes for shelf in self._entered.values())

    @property
    def is_pressed(self) -> bool:
        """So much is not saved that it should be, whatever the interval."""
        return sum(shelf.unsaved for shelf in self._entered.values()) > self._cache_bytes / 4

    # ---- timers --------------------------------------------------------------------------------------------------

    def next_due(self) -> int:
        return self.timers.next_due()

    def take_due(self) -> Timer | None:
        return self.timers.take(self.scope.now_ms())

    def fire(self, timer: Timer) -> None:
        """Raises what the handler raises."""
        if self.layout is not None:
            self.enter(timer.slot // self.layout.width)
        if timer.kind == USER:
            self._handler.on_timer(timer.key, timer.name)
        elif timer.name in self.maps:
            value = self.maps[timer.name].expire(timer.key, self.scope.now_ms())
            if value is not MISSING and defines(self._handler, "on_expire"):
                self._handler.on_expire(timer.key, value)
        self.after_batch()
        if self.layout is not None:
            self._measure()

    def expire_first(self, keys: Iterable[Any]) -> None:
        """What of these keys has expired is gone before an event of them is handled, however many other timers are due
        before theirs. Raises what `on_expire` raises."""
        expiring = [each for each in self.maps.values() if each.expires]
        for key in dict.fromkeys(keys if expiring else ()):
            for each in expiring:
                if key is not None and each.is_over(key, self.scope.now_ms()):
                    timer = timer_of(self._shelf.scope, key, EXPIRY, each.name)
                    self.timers.disarm(timer)
                    self.fire(timer)

    def postpone(self, timer: Timer, seconds: float) -> None:
        """It is due that much later than now."""
        self.timers.arm(timer, self.scope.now_ms() + int(seconds * 1000))

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def changes(self) -> Changes:
        made = Changes()
        for shelf in self._entered.values():
            for each in shelf.maps.values():
                made.rows.update(each.changes())
        made.timers.update(self.timers.changes())
        return made

    def saved(self) -> None:
        self._settled(KeyedMap.saved)
        self.timers.saved()

    def roll_back(self) -> None:
        """To the last checkpoint."""
        self._settled(KeyedMap.forget_unsaved)
        self.timers.forget()

    def _settled(self, how: Callable[[KeyedMap[Any]], None]) -> None:
        for shelf in self._entered.values():
            for each in shelf.maps.values():
                how(each)
            shelf.unsaved = 0.0
        self._entered = {self._shelf.scope.partition: self._shelf}

    # ---- slots ---------------------------------------------------------------------------------------------------

    def gain(self, slots: set[int]) -> None:
        """Nothing is waiting to be saved; the store has their rows."""
        self.scope.owned |= slots
        self.timers.forget()

    def lose(self, slots: set[int]) -> None:
        """Nothing is waiting to be saved."""
        self.scope.owned -= slots
        for shelf in self._shelves.values():
            for each in shelf.maps.values():
                each.lose(slots)
        self.timers.forget()
