"""`KeyedState`: how a handler declares values by key."""

from __future__ import annotations

from typing import TypeVar, overload

from shardmem.state.keeper import keeper_of
from shardmem.state.values import Declaration, KeyedMap

V = TypeVar("V")


class KeyedState(Declaration[V]):
    """Declares values by key, in the class of a handler: `visits = KeyedState(int, default=0)`.

    type: what msgspec can write: int, float, str, bytes, bool, a dataclass, a msgspec.Struct, dict[str, int], ...
    default: what a key has that has no value; a function makes one for each key. Without it, that is a KeyError.
    ttl: a value expires so long after it was last written; then `on_expire(key, value)` is called.
    version, upgrade: `upgrade(old_version, value)` makes a value of today of one that an older version has saved.
    pickle: save values by pickle, which takes any type, and runs what a file says.
    """

    @overload
    def __get__(self, instance: None, owner: type) -> KeyedState[V]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> KeyedMap[V]: ...
    def __get__(self, instance: object | None, owner: type) -> KeyedState[V] | KeyedMap[V]:
        """Of a handler that no engine runs: a mapping in memory."""
        if instance is None:
            return self
        return keeper_of(instance).maps[self.name]
