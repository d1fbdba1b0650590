"""Values by key that survive, as a mapping.

A value that is in memory is read and written in C (`csrc/keyed.c`); here is the rest: what is not in memory, what was
written since the last checkpoint, what has to leave memory, what expires.

live      in memory, and of this shard
cold      in memory since longer: the first to go; what is asked for returns to `live`
dirty     written (or, of objects that can change in place, handed out) and not encoded yet
changed   encoded and not saved yet
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import repeat
from typing import Any, Generic, TypeVar

import numpy as np

from shardmem.errors import StateError
from shardmem.memory.native import Cell, StateMap
from shardmem.state.keys import Key, prefix, read_store_key
from shardmem.state.many import NUMBERS, ManyKeys, each_of, numbers_of, source_of
from shardmem.state.scope import Duration, Scope, seconds_of
from shardmem.state.store import Row
from shardmem.state.timers import EXPIRY, Timer, Timers, timer_of

V = TypeVar("V")
MISSING: Any = object()
FEW = 16  # one key in so many that was read by itself is many
LOOK_AGAIN = 64  # batches
ENTRY_BYTES = 220  # of a key and a small value in a dict, beside what they encode to


class Declaration(Generic[V]):
    """What a handler says of values that it keeps: see `KeyedState`."""

    name = ""
    keeps_defaults = False  # in memory, although nothing was changed of them

    def __init__(
        self,
        type: type[V],
        *,
        default: V | Callable[[], V] = MISSING,
        ttl: Duration | None = None,
        version: int = 1,
        upgrade: Callable[[int, Any], V] | None = None,
        pickle: bool = False,
    ) -> None:
        from shardmem.state.codec import Codec  # msgspec, which a worker without state need not wait for

        self.codec: Codec = Codec(type, version=version, upgrade=upgrade, pickled=pickle)
        self.ttl_ms = None if ttl is None else max(1, int(seconds_of(ttl) * 1000))
        self._default, self._encoded_default = default, b""
        if default is not MISSING and not callable(default):
            self._default = self.codec.plain_value(default) if self.codec.plain else default
            self._encoded_default = self.codec.encode(self._default)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def make_default(self, key: Key) -> Any:
        if self._default is MISSING:
            raise KeyError(key)
        if callable(self._default):
            value = self._default()
            return value if self.codec.plain is None else self.codec.plain_value(value)
        return self._default if self.codec.plain else self.codec.decode(self._encoded_default, self.codec.version)


class KeyedMap(StateMap, MutableMapping[Key, V]):
    """The values of one `KeyedState` in one worker, or in one partition of it. All methods of a dict; those that go
    over all keys read the store."""

    def __init__(self, declared: Declaration[V], scope: Scope, timers: Timers) -> None:
        super().__init__(declared.codec.plain)
        self.name = declared.name
        self._declared, self._codec, self._scope, self._timers = declared, declared.codec, scope, timers
        self._stored_name = declared.name.encode()
        self.changed: dict[Key, Row | None] = {}
        self._cold: dict[Key, Cell] = {}
        self._marks: dict[Key, int] = {}  # of objects: hash of what they encode to, as far as it is saved or in changed
        self._looked_at: set[Key] = set()  # objects that were made as a default, and not encoded yet
        self._has_expiry: set[Key] = set()  # keys in memory whose expiry is among the timers
        self._mean_bytes = 16.0
        self._missed = 0  # keys of this batch that were read one by one
        self._has_missed = self._batches = 0
        self._absent: set[Key] = set()  # of those that were read together: what the store does not have

    # ---- what C leaves to us -------------------------------------------------------------------------------------

    def _miss(self, key: object) -> V:
        plain = self._admit(key)
        if (value := self._find(plain)) is not MISSING:
            return value  # type: ignore[no-any-return]
        value = self._declared.make_default(plain)
        if self._codec.plain is None:  # it may be changed in place
            self._marks[plain] = hash(self._codec.encode(value))
            self._put(plain, value)
            if not self._declared.keeps_defaults:
                self._looked_at.add(plain)
        return value  # type: ignore[no-any-return]

    def _get(self, key: object, otherwise: Any) -> Any:
        value = self._find(self._admit(key))
        return otherwise if value is MISSING else value

    def _has(self, key: object) -> bool:
        return self._find(self._admit(key)) is not MISSING

    def _assign(self, key: object, value: Any) -> None:
        plain = self._admit(key)
        if self._codec.plain is not None:
            try:
                value = self._codec.plain_value(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise StateError(f"the value of {self._of(plain)} cannot be saved: {error}") from None
        self._put(plain, value)

    def _put(self, key: Key, value: Any) -> None:
        """Written."""
        cell = self.live.get(key) or self._cold.pop(key, None)
        if cell is None:
            cell = Cell(key, value)
        cell.value = value
        self.live[key] = cell
        self.mark(cell)

    def _delete(self, key: object) -> None:
        plain = self._admit(key)
        if self._find(plain) is MISSING:
            raise KeyError(plain)
        self._remove(plain)

    def pop(self, key: Key, *otherwise: Any) -> Any:
        plain = self._admit(key)
        if (value := self._find(plain)) is MISSING:
            if not otherwise:
                raise KeyError(key)
            return otherwise[0]
        self._remove(plain)
        return value

    def setdefault(self, key: Key, default: Any = None) -> Any:
        if (value := self._find(self._admit(key))) is MISSING:
            self[key] = value = default
        return value

    def clear(self) -> None:
        for key in list(self):
            self._remove(key)

    def _admit(self, key: object) -> Key:
        return self._scope.admit(key, f"state {self.name!r}")

    def _store_key(self, key: Key) -> bytes:
        return self._scope.store_keys([key], self._stored_name)[0]

    def _expiry(self, key: Key) -> Timer:
        return timer_of(self._scope, key, EXPIRY, self.name)

    def _of(self, key: Key) -> str:
        return f"key {key!r} of state {self.name!r}"

    # ---- many keys at once ----------------------------------------------------------------------------------------

    def add_many(self, keys: ManyKeys, amounts: Any = 1) -> None:
        """As `self[key] += amount` for each of them in order: a number, or an array of as many as there are keys.

        keys: a batch, which stands for the key of each of its events; an array; or a list. Of values that are int or
        float. Raises what one by one would raise, ValueError for another number of amounts, TypeError for amounts that
        are not such numbers.
        """
        source, given = source_of(keys), numbers_of(amounts, self._codec.plain, f"state {self.name!r}")
        if given.ndim == 0:
            given = np.full(len(keys), given)
        if not self.add_each(source, given):
            for key, amount in zip(each_of(keys), given.tolist()):
                self[key] += amount

    def get_many(self, keys: ManyKeys) -> Any:
        """The value of each of them, as `self[key]` says it: an array if values are int, float or bool, else a list.
        Raises KeyError for a key without value and default, OverflowError for an int beyond int64."""
        plain = self._codec.plain
        if plain is None:
            return [self[key] for key in each_of(keys)]
        if plain not in NUMBERS:
            found = self.get_each(source_of(keys))
            return np.array(found, bool) if plain is bool else found
        values = np.empty(len(keys), NUMBERS[plain])
        if not self.get_each(source_of(keys), values):
            raise OverflowError(f"a value of state {self.name!r} does not fit into int64; ask for it by its key")
        return values

    def set_many(self, keys: ManyKeys, values: Any) -> None:
        """As `self[key] = value` for each of them in order. values: an array or a list, as long as there are keys."""
        plain = self._codec.plain
        if plain in NUMBERS and isinstance(values, np.ndarray):
            if self.set_each(source_of(keys), numbers_of(values, plain, f"state {self.name!r}")):
                return
        given = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if len(given) != len(keys):
            raise ValueError(f"{len(given)} values for {len(keys)} keys")
        if plain is None or not self.set_each(source_of(keys), given):
            for key, value in zip(each_of(keys), given):
                self[key] = value

    def _cell(self, key: Key, is_write: bool) -> Cell:
        """For C, which has not found the key in `live`. What is not there then has no value yet."""
        plain = self._admit(key)
        if is_write and (cold := self._cold.pop(plain, None)) is not None:
            self.live[plain] = cold
        elif not is_write and self._find(plain) is MISSING:
            return Cell(plain, self._declared.make_default(plain))
        found = self.live.get(plain)
        return found if found is not None else Cell(plain, (self._codec.plain or object)())

    # ---- all keys of this shard ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Key]:
        return self.in_slots(self._scope.here())

    def in_slots(self, slots: Iterable[int]) -> Iterator[Key]:
        """Keys that have a value, of these slots: those that this shard owns."""
        wanted = set(slots)
        known = dict.fromkeys((*self.live, *self._cold))
        known.update(dict.fromkeys(key for key, row in self.changed.items() if row is not None))
        keys = list(known)
        if wanted != self._scope.here():
            keys = [key for key, slot in zip(keys, self._scope.slots_of(keys).tolist()) if slot in wanted]
        yield from keys
        for slot in sorted(wanted):
            for stored, _ in self._scope.store.scan(prefix(slot, self._stored_name)):
                key = read_store_key(stored)[2]
                if key not in known and key not in self.changed:
                    yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<state {self.name!r}: {len(self.live) + len(self._cold)} values in memory>"

    # ---- from the store, and away --------------------------------------------------------------------------------

    def _find(self, key: Key) -> Any:
        """The value, which is in memory then; MISSING if there is none."""
        if (cell := self.live.get(key)) is None:
            if (cell := self._cold.pop(key, None) or self._loaded(key)) is None:
                return MISSING
            self.live[key] = cell
        if self._codec.plain is None:
            self.mark(cell)
        return cell.value

    def _loaded(self, key: Key) -> Cell | None:
        if key in self._absent and key not in self.changed:
            return None
        self._missed += 1
        row = self._saved(key)
        return None if row is None else self._made_of(key, row)

    def _made_of(self, key: Key, row: Row) -> Cell:
        data, version, expires = row
        cell = Cell(key, self.decoded(key, row))
        self._mean_bytes += (len(data) - self._mean_bytes) / 64
        if self._codec.plain is None:
            self._marks[key] = hash(data) if version == self._codec.version else 0
        if expires is not None:
            self._has_expiry.add(key)
        return cell

    def fetch(self, keys: ManyKeys) -> None:
        """What a batch is likely to ask for, and is not in memory, is read together and in order, which costs a third
        of one by one. Whether it is likely, the batches before it have shown."""
        if self._missed * FEW > len(keys):
            self._has_missed = LOOK_AGAIN
        self._missed, self._has_missed = 0, max(0, self._has_missed - 1)
        self._absent.clear()
        if not self._has_missed:
            return
        wanted = set(self.absent(source_of(keys)))
        for key in wanted & self._cold.keys():
            self.live[key] = self._cold.pop(key)
        unread = [key for key in wanted if key is not None and key not in self.changed and key not in self.live]
        names = self._scope.store_keys(unread, self._stored_name)
        found = self._scope.store.get_many(names)
        for key, name in zip(unread, names):
            if name not in found:
                self._absent.add(key)
            elif (row := found[name]) is not None:
                with contextlib.suppress(StateError):  # it is the fault of the event that asks for it
                    self.live[key] = self._made_of(key, row)

    def _saved(self, key: Key) -> Row | None:
        """What a successor would find. It may be past its time: it is there until its timer has fired, or `on_expire`
        would not be told of it."""
        return self.changed[key] if key in self.changed else self._scope.store.get(self._store_key(key))

    def decoded(self, key: Key, row: Row) -> Any:
        try:
            return self._codec.decode(row[0], row[1])
        except StateError as error:
            raise StateError(f"the value of {self._of(key)}: {error}", hint=error.hint) from error.__cause__

    def _remove(self, key: Key) -> None:
        self._let_go(key)
        self.changed[key] = None
        if self._declared.ttl_ms is not None:
            self._has_expiry.discard(key)
            self._timers.disarm(self._expiry(key))

    def is_over(self, key: Key, now: int) -> bool:
        """It has expired, and its timer has not fired yet."""
        row = self._saved(key)
        return row is not None and row[2] is not None and row[2] <= now

    def expire(self, key: Key, now: int) -> Any:
        """Its timer has fired. The value, which is gone now; MISSING: it has been written since, and lives on."""
        self._encode()
        row = self._saved(key)
        if row is None or row[2] is None:
            return MISSING
        if row[2] > now:
            self._timers.arm(self._expiry(key), row[2])
            return MISSING
        cell = self.live.get(key) or self._cold.get(key)
        value = self.decoded(key, row) if cell is None else cell.value
        self._remove(key)
        return value

    # ---- what was written ----------------------------------------------------------------------------------------

    @property
    def expires(self) -> bool:
        return self._declared.ttl_ms is not None

    @property
    def must_encode_now(self) -> bool:
        """After each batch, not only when it is saved: a value that cannot be is the fault of an event, and a value
        expires so long after the event that wrote it."""
        return bool(self.dirty) and (self._codec.plain is None or self._declared.ttl_ms is not None)

    def _encode(self) -> None:
        if not self.dirty:
            return
        keys, values = self.take_dirty()
        if not keys:  # they were written and removed
            return
        ttl, version = self._declared.ttl_ms, self._codec.version
        if ttl is None and self._codec.plain is not None:  # checked when they were written
            encoded = list(map(self._codec.encode_plain, values))
            self._mean_bytes += (len(encoded[-1]) - self._mean_bytes) / 16
            self.changed.update(zip(keys, zip(encoded, repeat(version), repeat(None))))
            return
        expires = None if ttl is None else self._scope.now_ms() + ttl
        looked_at, self._looked_at = self._looked_at, set()
        for key, value in zip(keys, values):
            try:
                data = self._codec.encode(value)
            except Exception as error:
                for each in keys:  # the batch is undone: what is in memory of it says nothing any more
                    self._let_go(each)
                raise StateError(f"the value of {self._of(key)} cannot be saved: {error}") from None
            if self._codec.plain is None:
                if self._marks.get(key) == (mark := hash(data)):
                    if key in looked_at:  # a successor would not find it
                        self._let_go(key)
                    continue
                self._marks[key] = mark
            self.changed[key] = data, version, expires
            if expires is not None and key not in self._has_expiry:
                self._has_expiry.add(key)
                self._timers.arm(self._expiry(key), expires)
        self._mean_bytes += (len(data) - self._mean_bytes) / 16

    encode = _encode

    def changes(self) -> Iterator[tuple[bytes, Row | None]]:
        self._encode()
        return zip(self._scope.store_keys(list(self.changed), self._stored_name), self.changed.values())

    def saved(self) -> None:
        self.changed.clear()
        self._absent.clear()

    # ---- memory --------------------------------------------------------------------------------------------------

    @property
    def live_bytes(self) -> float:
        return len(self.live) * (ENTRY_BYTES + 2 * self._mean_bytes)

    @property
    def unsaved_bytes(self) -> float:
        return (len(self.dirty) + len(self.changed)) * (ENTRY_BYTES + 2 * self._mean_bytes)

    def cool(self) -> None:
        """What was not asked for since the last time leaves memory. Between batches: the handler holds no value."""
        self._encode()
        self.forget_found()
        self._cold, self.live = self.live, {}
        self._marks = {key: mark for key, mark in self._marks.items() if key in self._cold}
        self._has_expiry &= self._cold.keys()

    def in_memory(self) -> list[tuple[Key, V]]:
        return [(key, cell.value) for held in (self.live, self._cold) for key, cell in held.items()]

    def drop(self, key: Key) -> None:
        """It leaves memory, and is read again when it is asked for. Not what was written and not encoded yet."""
        cell = self.live.get(key) or self._cold.get(key)
        if cell is not None and not cell.dirty:
            self._let_go(key)
            self._has_expiry.discard(key)

    def _let_go(self, key: Key) -> None:
        """Whatever is in memory of it is forgotten."""
        for held in (self.live, self._cold):
            if (cell := held.pop(key, None)) is not None:
                self.leave(cell)
        self._marks.pop(key, None)

    def forget_unsaved(self) -> None:
        """What was written, or may have been changed in place, since the last checkpoint."""
        for key in (*self.take_dirty()[0], *self.changed):
            self._let_go(key)
            self._has_expiry.discard(key)
        self.changed.clear()
        self._absent.clear()

    def lose(self, slots: set[int]) -> None:
        """These belong to another shard now; what was written is saved."""
        self.forget_found()
        self._absent.clear()
        for held in (self.live, self._cold):
            keys = list(held)
            for key, slot in zip(keys, self._scope.slots_of(keys).tolist()):
                if slot in slots:
                    del held[key]
                    self._marks.pop(key, None)
                    self._has_expiry.discard(key)
