"""All that one handler keeps: its values and its timers, from binding them to what a checkpoint writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardmem.state.scope import Scope
from shardmem.state.store import Changes, MemoryStore
from shardmem.state.timers import USER, Timer, Timers
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


class Keeper:
    """cache_bytes: about how much memory values may take."""

    def __init__(self, scope: Scope, cache_bytes: int = CACHE_BYTES) -> None:
        self.scope, self._cache_bytes = scope, cache_bytes
        self.timers = Timers(scope)
        self.maps: dict[str, KeyedMap[Any]] = {}
        self._handler: Any = None
        self.between_batches: Callable[[], None] = lambda: None

    def bind(self, handler: Any) -> None:
        """Its attributes are the mappings from now on: found without asking the descriptor."""
        self._handler = handler
        self.timers.can_fire = defines(handler, "on_timer")
        for name, declared in declared_states(handler).items():
            if name not in self.maps:
                self.maps[name] = KeyedMap(declared, self.scope, self.timers)
            vars(handler)[name] = self.maps[name]
        vars(handler)[_ATTRIBUTE] = self

    # ---- around batches ------------------------------------------------------------------------------------------

    def after_batch(self) -> None:
        """Raises StateError for a value that cannot be saved: it is the batch that fails."""
        for each in self.maps.values():
            if each.must_encode_now:
                each.encode()

    def trim(self) -> None:
        self.between_batches()
        if sum(each.live_bytes for each in self.maps.values()) > self._cache_bytes / 2:
            for each in self.maps.values():
                each.cool()

    @property
    def has_changes(self) -> bool:
        return bool(self.timers.changed) or any(each.dirty or each.changed for each in self.maps.values())

    @property
    def is_pressed(self) -> bool:
        """So much is not saved that it should be, whatever the interval."""
        return sum(each.unsaved_bytes for each in self.maps.values()) > self._cache_bytes / 4

    # ---- timers --------------------------------------------------------------------------------------------------

    def next_due(self) -> int:
        return self.timers.next_due()

    def take_due(self) -> Timer | None:
        return self.timers.take(self.scope.now_ms())

    def fire(self, timer: Timer) -> None:
        """Raises what the handler raises."""
        if timer.kind == USER:
            self._handler.on_timer(timer.key, timer.name)
        elif timer.name in self.maps:
            value = self.maps[timer.name].expire(timer.key, self.scope.now_ms())
            if value is not MISSING and defines(self._handler, "on_expire"):
                self._handler.on_expire(timer.key, value)
        self.after_batch()

    def postpone(self, timer: Timer, seconds: float) -> None:
        """It is due that much later than now."""
        self.timers.arm(timer, self.scope.now_ms() + int(seconds * 1000))

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def changes(self) -> Changes:
        made = Changes()
        for each in self.maps.values():
            made.rows.update(each.changes())
        made.timers.update(self.timers.changes())
        return made

    def saved(self) -> None:
        for each in self.maps.values():
            each.saved()
        self.timers.saved()

    def roll_back(self) -> None:
        """To the last checkpoint."""
        for each in self.maps.values():
            each.forget_unsaved()
        self.timers.forget()

    # ---- slots ---------------------------------------------------------------------------------------------------

    def gain(self, slots: set[int]) -> None:
        """Nothing is waiting to be saved; the store has their rows."""
        self.scope.owned |= slots
        self.timers.forget()

    def lose(self, slots: set[int]) -> None:
        """Nothing is waiting to be saved."""
        self.scope.owned -= slots
        for each in self.maps.values():
            each.lose(slots)
        self.timers.forget()
