"""Entities, functions with state, and keys as somebody to tell something."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

import shardmem
from shardmem.runtime.handler import HandlerRef
from shardmem.testing import Harness


@dataclasses.dataclass
class Item:
    name: str
    count: int


class Cart(shardmem.Entity):
    passivate_after = 600
    remember = True
    items: list[Item] = []
    total: int = 0

    def started(self) -> None:
        self.lives = getattr(self, "lives", 0) + 1
        self._not_saved = True

    def receive(self, events: list[bytes]) -> None:
        for event in events:
            if event == b"stop":
                self.stop()
            elif event.startswith(b"timer"):
                self.timers.set(event.decode(), after=60)
            elif event == b"fail":
                self.total += 1000
                raise ValueError("fail")
            else:
                self.items.append(Item(event.decode(), 1))
                self.total += 1

    def on_timer(self, name: str) -> None:
        self.total += 100


def test_attributes_are_the_state_and_come_back_as_their_types() -> None:
    harness = Harness(Cart)
    harness.feed([("a", b"pen"), ("b", b"ink"), ("a", b"cup")])
    harness.restart()
    cart = harness.entity("a")
    assert ("a", [Item("pen", 1), Item("cup", 1)], 2, 2) == (cart.key, cart.items, cart.total, cart.lives)
    assert [Item("ink", 1)] == harness.entity("b").items, "a default is not shared"
    assert [] == harness.entity("c").items
    assert not hasattr(harness.handler.entities.decoded("a", harness._store.get(_stored(harness, "a"))), "_not_saved")


def _stored(harness: Harness, key: str) -> bytes:
    from shardmem.state.keys import store_key

    return store_key(key, b"entities", 1024)


def test_what_a_failed_batch_did_is_undone() -> None:
    harness = Harness(Cart)
    harness.push("a", b"pen")
    with pytest.raises(ValueError, match="fail"):
        harness.feed([("a", b"cup"), ("a", b"fail")])
    assert (1, [Item("pen", 1)]) == (harness.entity("a").total, harness.entity("a").items)


def test_an_idle_entity_leaves_memory_and_not_its_state() -> None:
    harness = Harness(Cart)
    harness.feed([("a", b"pen"), ("b", b"pen")])
    harness.advance(300)
    harness.push("b", b"cup")
    harness.checkpoint()
    harness.advance(500)
    assert ["b"] == [key for key, _ in harness.handler.entities.in_memory()]
    harness.push("a", b"cup")
    assert (2, 2) == (harness.entity("a").total, harness.entity("a").lives)


def test_those_that_were_in_memory_come_to_life_again_by_themselves() -> None:
    harness = Harness(Cart)
    harness.feed([("idle", b"pen"), ("stopped", b"pen"), ("stopped", b"stop")])
    harness.advance(700)
    harness.feed([("busy", b"pen")])
    harness.checkpoint()
    for end in (harness.crash, harness.restart):
        end()
        assert ["busy"] == [key for key, _ in harness.handler.entities.in_memory()]
    assert 3 == harness.entity("busy").lives


def test_stop_forgets_key_state_and_timers() -> None:
    harness = Harness(Cart)
    harness.feed([("a", b"timer one"), ("a", b"timer two"), ("b", b"timer one"), ("a", b"pen")])
    harness.checkpoint()
    harness.push("a", b"stop")
    assert [("b", "timer one")] == list(harness.timers)
    harness.restart()
    assert "a" not in harness.handler.entities and "a" not in harness.handler.alive
    harness.push("a", b"ink")
    assert (1, 1) == (harness.entity("a").total, harness.entity("a").lives)


def test_timers_of_an_entity_wake_it() -> None:
    harness = Harness(Cart)
    harness.feed([("a", b"timer one"), ("a", b"pen")])
    harness.restart()
    harness.advance(61)
    assert 101 == harness.entity("a").total
    assert set() == harness.entity("a").timers.names


class Second(shardmem.Entity):
    version = 2
    amount: float = 0.0

    def receive(self, events: list[bytes]) -> None:
        self.amount += 0.5

    @staticmethod
    def upgrade(old: int, attributes: dict[str, Any]) -> dict[str, Any]:
        assert 1 == old
        return {"amount": attributes["total"] + 0.25}


def test_attributes_of_an_older_version_are_upgraded() -> None:
    harness = Harness(Cart)
    harness.feed([("a", b"pen"), ("a", b"ink")])
    harness.restart(Second)
    harness.push("a")
    assert 2.75 == harness.entity("a").amount


def test_constants_of_a_class_are_no_state_and_whoever_stops_as_it_starts_is_forgotten() -> None:
    class Limited(shardmem.Entity):
        limit: ClassVar[int] = 2
        remember = True
        count: int = 0

        def started(self) -> None:
            if self.count >= self.limit:
                self.stop()

        def receive(self, events: list[bytes]) -> None:
            self.count += len(events)

    harness = Harness(Limited)
    harness.feed([("a", b""), ("b", b""), ("a", b"")])
    assert 2 == len(harness.handler.entities)
    harness.restart()
    assert ["b"] == list(harness.handler.entities) == list(harness.handler.alive)
    assert {"count": 1} == {name: value for name, value in vars(harness.entity("b")).items() if name[0] != "_"}


def test_an_attribute_of_a_wrong_type_fails_the_batch() -> None:
    class Wrong(shardmem.Entity):
        total: int = 0

        def receive(self, events: list[bytes]) -> None:
            self.total = events[0]  # type: ignore[assignment]

    with pytest.raises(shardmem.StateError, match="the value of key 'a' of state 'entities' cannot be saved"):
        Harness(Wrong).push("a", b"text")


def test_an_entity_needs_receive_and_a_key() -> None:
    class Deaf(shardmem.Entity):
        pass

    with pytest.raises(shardmem.HandlerError, match="has no receive"):
        Harness(Deaf)
    with pytest.raises(TypeError, match="without a key"):
        Harness(Cart).push(None, b"pen")


def test_an_entity_and_a_function_can_be_sent_to_workers() -> None:
    for handler in (Cart, count):
        assert pickle.loads(pickle.dumps(handler)) is handler
        assert callable(HandlerRef.of(handler).load().handle)


# ---- functions -------------------------------------------------------------------------------------------------------


def ring(key: Any, name: str, state: Any) -> None:
    state.rung[key] += 1


@shardmem.stateful(visits=shardmem.KeyedState(int, default=0), rung=shardmem.KeyedState(int, default=0), on_timer=ring)
def count(batch: shardmem.Batch, state: Any) -> None:
    for key, _ in batch:
        state.visits[key] += 1
        state.timers.set(key, "idle", after=60)


def test_a_function_with_state() -> None:
    harness = Harness(count)
    harness.feed([("a", b""), ("a", b""), (1, b"")])
    harness.advance(30)
    harness.push("a")
    harness.advance(40)
    assert (3, 0) == (harness.handler.visits["a"], harness.handler.rung["a"])
    harness.restart()
    harness.advance(60)
    assert (3, 1, 1) == (harness.handler.visits["a"], harness.handler.rung["a"], harness.handler.rung[1])


def test_what_a_function_declares_is_checked() -> None:
    with pytest.raises(shardmem.ConfigError, match="takes a KeyedState"):
        shardmem.stateful(visits=int)  # type: ignore[arg-type]
    with pytest.raises(shardmem.ConfigError, match="timers is a name of handlers"):
        shardmem.stateful(timers=shardmem.KeyedState(int))

    @shardmem.stateful(visits=shardmem.KeyedState(int))
    def without_state(batch: shardmem.Batch) -> None: ...

    with pytest.raises(shardmem.HandlerError, match="so it takes the batch and its state"):
        Harness(without_state)
