"""Entities: one object for each key, whose attributes are its state."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar, get_origin, get_type_hints

import msgspec

from shardmem.errors import HandlerError, StateError
from shardmem.runtime.batch import Batch
from shardmem.runtime.handler import Context, Handler
from shardmem.state.codec import Codec
from shardmem.state.keeper import keeper_of
from shardmem.state.keyed import KeyedState
from shardmem.state.keys import Key, plain_key
from shardmem.state.scope import Duration, seconds_of
from shardmem.state.timers import Timers
from shardmem.state.values import Declaration, KeyedMap

LOOKS = 4  # at what is idle, in the time after which it is passivated


class EntityTimers:
    """`self.timers` of an entity."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = set(names)
        self._timers: Timers
        self._key: Key

    def belong(self, timers: Timers, key: Key) -> None:
        self._timers, self._key = timers, key

    def set(self, name: str, *, after: Duration | None = None, at: Any = None) -> None:
        """`on_timer(name)` is called once; one that is set already is moved. See `Timers.set`."""
        self._timers.set(self._key, name, after=after, at=at)
        self.names.add(name)

    def cancel(self, name: str) -> None:
        self._timers.cancel(self._key, name)
        self.names.discard(name)


class Entity:
    """State and behaviour of one key. `handler=Cart`, a class derived from this, makes one for each key with events.

    Attributes without a leading underscore are its state: saved with the position in the events, and there again after
    a crash, a move, a restart. An annotated attribute comes back as the type that it was declared with, others as
    MessagePack has them (a tuple or a set is a list then). `version` and `upgrade(old, attributes)`: when they change.
    """

    passivate_after: ClassVar[Duration | None] = None  # idle for so long, it leaves memory, and not its state
    remember: ClassVar[bool] = False  # it comes to life again by itself, without an event
    version: ClassVar[int] = 1

    _key: Key
    _timers: EntityTimers
    _is_started = _is_stopping = False
    _used_at = 0.0

    @property
    def key(self) -> Key:
        return self._key

    @property
    def timers(self) -> EntityTimers:
        return self._timers

    def started(self) -> None:
        """It is in memory now, new or as it was saved; before its first event here."""

    def receive(self, events: Any) -> None:
        """Its events of a batch, in order: a list of payloads, or an array of rows."""
        raise NotImplementedError(f"{type(self).__name__} has no receive(events)")

    def on_timer(self, name: str) -> None:
        """A timer is due."""

    def stop(self) -> None:
        """When this call of it has returned, key, state and timers are forgotten. The next event makes a new one."""
        self._is_stopping = True

    @classmethod
    def __shardmem_handler__(cls) -> Handler:
        shape = type(cls.__name__, (EntityHandler,), {"entities": _Entities(cls)})
        made: Handler = shape(cls)
        return made

    @staticmethod
    def upgrade(old: int, attributes: dict[str, Any]) -> dict[str, Any]:
        """Attributes as an older version has saved them -> as this version has them."""
        raise ValueError(f"there is no upgrade from version {old}")


class _EntityCodec(Codec):
    """The attributes of an entity. What is decoded is an entity without a key."""

    def __init__(self, shape: type[Entity]) -> None:
        super().__init__(dict[str, Any], version=shape.version)
        self._shape = shape
        own = {name: hint for name, hint in get_type_hints(shape).items() if name not in get_type_hints(Entity)}
        self._hints = {
            name: hint
            for name, hint in own.items()
            if not (name.startswith("_") or hint is ClassVar or get_origin(hint) is ClassVar)
        }

    def fresh(self) -> Entity:
        made = self._shape()
        made._timers = EntityTimers()
        for name in self._hints:
            if name not in vars(made) and hasattr(self._shape, name):
                setattr(made, name, copy.deepcopy(getattr(self._shape, name)))
        return made

    def encode(self, value: Any) -> bytes:
        attributes = {name: each for name, each in vars(value).items() if not name.startswith("_")}
        encoded = msgspec.msgpack.encode([attributes, sorted(value._timers.names)])
        self._typed(msgspec.msgpack.decode(encoded)[0])
        return encoded

    def decode(self, data: bytes, version: int) -> Any:
        try:
            attributes, names = msgspec.msgpack.decode(data)
            if version != self.version:
                attributes = self._shape.upgrade(version, attributes)
            made = self.fresh()
            vars(made).update(self._typed(attributes))
            made._timers.names.update(names)
            return made
        except Exception as error:
            raise StateError(f"it cannot be read: {type(error).__name__}: {error}") from error

    def _typed(self, attributes: dict[str, Any]) -> dict[str, Any]:
        return {
            name: msgspec.convert(value, self._hints[name]) if name in self._hints else value
            for name, value in attributes.items()
        }


class _Entities(Declaration[Any]):
    keeps_defaults = True  # it has been started

    def __init__(self, shape: type[Entity]) -> None:
        super().__init__(dict)
        self.name, self.codec = "entities", _EntityCodec(shape)

    def make_default(self, key: Key) -> Any:
        return self.codec.fresh()  # type: ignore[attr-defined]


class EntityHandler(Handler):
    """What runs entities of one class."""

    entities: KeyedMap[Any]
    alive = KeyedState(bool)  # of those that are remembered: which are in memory

    def __init__(self, shape: type[Entity]) -> None:
        if shape.receive is Entity.receive:
            raise HandlerError(f"entity {shape.__name__} has no receive(self, events)")
        self._shape = shape
        self._idle = None if shape.passivate_after is None else seconds_of(shape.passivate_after)
        self._looked = 0.0

    def open(self, context: Context) -> None:
        keeper_of(self).between_batches = self._passivate

    def handle(self, batch: Batch) -> None:
        for key, events in batch.by_key():
            entity = self.active(key)
            entity.receive(events)
            self._settle(entity)

    def on_timer(self, key: Key, name: str) -> None:
        if key in self.entities:
            entity = self.active(key)
            entity._timers.names.discard(name)
            entity.on_timer(name)
            self._settle(entity)

    def gained(self, slots: list[int]) -> None:
        if self._shape.remember:
            for key in self.alive.in_slots(slots):
                self._settle(self.active(key))

    def active(self, key: Key) -> Entity:
        """The entity of this key, started."""
        keeper = keeper_of(self)
        entity: Entity = self.entities[key]
        entity._used_at = keeper.scope.clock()
        if not entity._is_started:
            entity._key, entity._is_started = plain_key(key), True
            entity._timers.belong(keeper.timers, entity._key)
            if self._shape.remember:
                self.alive[key] = True
            entity.started()
        return entity

    def _settle(self, entity: Entity) -> None:
        if entity._is_stopping:
            for name in list(entity._timers.names):
                entity._timers.cancel(name)
            del self.entities[entity.key]
            self.alive.pop(entity.key, None)

    def _passivate(self) -> None:
        keeper = keeper_of(self)
        now = keeper.scope.clock()
        if self._idle is None or now < self._looked + self._idle / LOOKS:
            return
        self._looked = now
        for _ in keeper.each_partition(keeper.scope.owned):
            for key, entity in self.entities.in_memory():
                if entity._used_at <= now - self._idle:
                    self.entities.drop(key)
                    self.alive.pop(key, None)
