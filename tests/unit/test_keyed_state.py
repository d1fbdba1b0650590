"""Keyed state: a mapping that survives, by key and by type of key."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

import shardmem
from shardmem.testing import Harness

KEYS = [17, "17", b"17", -1, 1 << 63, (1 << 64) - 1, -(1 << 63), "", b"", "ü", "\udc80", 0]


@dataclasses.dataclass
class Session:
    pages: int = 0
    last: str = ""


class Visits(shardmem.Handler):
    visits = shardmem.KeyedState(int, default=0)
    session = shardmem.KeyedState(Session, default=Session)
    names = shardmem.KeyedState(str)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            if payload == b"delete":
                del self.visits[key]
            elif payload == b"fail":
                self.visits[key] += 100
                raise ValueError("fail")
            else:
                self.visits[key] += 1
                session = self.session[key]  # changed in place, and not assigned
                session.pages += 1
                session.last = payload.decode()
                self.names[key] = payload.decode()


def test_keys_keep_their_type_in_memory_and_through_a_restart() -> None:
    harness = Harness(Visits)
    for n, key in enumerate(KEYS, 1):
        harness.feed([(key, b"page")] * n)
    for _ in range(2):
        assert list(range(1, len(KEYS) + 1)) == [harness.handler.visits[key] for key in KEYS]
        harness.restart()
    assert set(KEYS) == set(harness.handler.visits)
    assert len(KEYS) == len(harness.handler.visits)


def test_a_crash_takes_what_was_not_saved_and_events_come_again() -> None:
    harness = Harness(Visits)
    harness.feed([("a", b"x")] * 3)
    harness.checkpoint()
    harness.feed([("a", b"y")] * 2)
    assert 3 == harness.state("visits", "a")
    harness.crash()
    assert 5 == harness.handler.visits["a"]
    assert Session(5, "y") == harness.handler.session["a"]
    harness.checkpoint()
    assert (5, Session(5, "y")) == (harness.state("visits", "a"), harness.state("session", "a"))


def test_what_a_batch_that_fails_did_is_undone() -> None:
    harness = Harness(Visits)
    harness.feed([("a", b"x")])
    with pytest.raises(ValueError, match="fail"):
        harness.feed([("a", b"x"), ("a", b"fail")])
    assert (1, 1) == (harness.handler.visits["a"], harness.handler.session["a"].pages)


def test_a_mapping_as_others_are() -> None:
    harness = Harness(Visits)
    visits, names = harness.handler.visits, harness.handler.names
    assert "a" not in visits and visits.get("a") is None and visits.get("a", 7) == 7 and visits["a"] == 0
    assert "a" not in visits, "reading a default keeps nothing"
    visits["a"] += 2
    visits.update({"b": 3, 4: 5})
    assert visits.setdefault("b", 9) == 3 and visits.pop("b") == 3 and visits.pop("b", None) is None
    assert {"a": 2, 4: 5} == dict(visits)
    assert 2 == len(visits) and "a" in visits
    with pytest.raises(KeyError):
        names["a"]
    with pytest.raises(KeyError):
        del visits["b"]
    harness.push("a", b"delete")
    assert "a" not in visits and {4: 5} == dict(visits.items())
    harness.restart()
    assert {4: 5} == dict(harness.handler.visits)
    harness.handler.visits.clear()
    harness.restart()
    assert {} == dict(harness.handler.visits)


def test_a_value_that_was_deleted_and_set_again_is_there() -> None:
    harness = Harness(Visits)
    harness.push("a", b"x")
    harness.checkpoint()
    harness.push("a", b"delete")
    harness.push("a", b"x")
    harness.restart()
    assert 1 == harness.handler.visits["a"]


def test_numbers_of_numpy_are_the_same_keys_and_values() -> None:
    harness = Harness(Visits)
    visits = harness.handler.visits
    visits[np.uint64(5)] += np.int64(3)
    visits[5] += 1
    visits[True] = 2
    harness.checkpoint()
    assert (4, 2) == (harness.state("visits", 5), harness.state("visits", 1))
    assert int is type(visits[5])


@pytest.mark.parametrize("key", [None, 1.0, 1 << 64, ("a",)])
def test_what_is_no_key_is_refused(key: Any) -> None:
    visits = Harness(Visits).handler.visits
    for use in (
        lambda: visits[key],
        lambda: visits.__setitem__(key, 1),
        lambda: key in visits,
        lambda: visits.get(key),
    ):
        with pytest.raises((TypeError, ValueError)):
            use()


@pytest.mark.parametrize("value", ["text", 1 << 64, 1.5, None, True, [1]])
def test_a_value_that_is_not_of_the_declared_type_is_refused_where_it_is_written(value: Any) -> None:
    visits = Harness(Visits).handler.visits
    for _ in range(2):  # the key is not in memory, and then it is
        with pytest.raises(shardmem.StateError, match="the value of key 'a' of state 'visits' cannot be saved"):
            visits["a"] = value
        visits["a"] = 1
    assert 1 == visits["a"]


def test_text_that_cannot_be_saved_is_refused_where_it_is_written() -> None:
    """In place of another text it was taken, and the checkpoint that could not write it ended the worker."""
    names = Harness(Visits).handler.names
    for _ in range(2):
        with pytest.raises(shardmem.StateError, match="the value of key 'a' of state 'names' cannot be saved"):
            names["a"] = "\ud800"
        names["a"] = "ü"
    with pytest.raises(shardmem.StateError, match="cannot be saved"):
        names.set_many(["a"], ["\ud800"])
    assert "ü" == names["a"]


def test_a_default_that_was_only_looked_at_is_not_there_before_a_crash_as_after_it() -> None:
    class Looks(shardmem.Handler):
        session = shardmem.KeyedState(Session, default=Session)
        seen = shardmem.KeyedState(bool, default=False)

        def handle(self, batch: shardmem.Batch) -> None:
            for key, payload in batch:
                self.seen[key] = key in self.session
                session = self.session[key]
                if payload:
                    assert len(self.session), "goes over all keys, and leaves objects in hand alone"
                    session.pages += 1

    harness = Harness(Looks)
    for _ in range(2):
        harness.push("a")
        assert (False, False) == (harness.handler.seen["a"], "a" in harness.handler.session)
    harness.push("a", b"change")
    harness.restart()
    assert 1 == harness.handler.session["a"].pages
    harness.push("a")
    assert harness.handler.seen["a"]


@pytest.mark.parametrize("name", ["open", "timers", "snapshot", "on_timer"])
def test_a_state_cannot_have_a_name_of_handlers(name: str) -> None:
    shape = type("Named", (Typed,), {name: shardmem.KeyedState(int)})
    with pytest.raises(shardmem.HandlerError, match=f"{name} is a name of handlers"):
        Harness(shape)


def test_an_object_that_cannot_be_saved_fails_the_batch_that_wrote_it() -> None:
    class Careless(shardmem.Handler):
        session = shardmem.KeyedState(Session, default=Session)

        def handle(self, batch: shardmem.Batch) -> None:
            for key, payload in batch:
                self.session[key].pages += 1
                if payload == b"bad":
                    self.session[key].last = object()  # type: ignore[assignment]

    harness = Harness(Careless)
    harness.push(1, b"good")
    with pytest.raises(shardmem.StateError, match="the value of key 1 of state 'session' cannot be saved"):
        harness.push(1, b"bad")
    assert Session(1, "") == harness.handler.session[1]


class Small(shardmem.Handler):
    n = shardmem.KeyedState(int, default=0)
    seen = shardmem.KeyedState(list[int], default=list)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            self.n[key] += 1
            self.seen[key].append(int(payload))


def test_what_does_not_fit_into_memory_is_read_from_the_store() -> None:
    harness = Harness(Small, state_cache_bytes=1 << 16)
    for number in range(5):
        for first in range(0, 1000, 50):
            harness.feed([(key, b"%d" % number) for key in range(first, first + 50)])
        if number % 2:
            harness.checkpoint()
    assert len(harness.handler.n.live) < 500
    harness.crash()
    assert dict.fromkeys(range(1000), 5) == dict(harness.handler.n)
    assert all(harness.handler.seen[key] == [0, 1, 2, 3, 4] for key in range(1000))


def test_once_a_handler_has_shown_what_it_asks_for_that_is_read_for_the_whole_batch_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(Small, state_cache_bytes=1 << 16)
    asked: list[bytes] = []
    get = harness._store.get
    monkeypatch.setattr(harness._store, "get", lambda key: asked.append(key) or get(key))
    for number in range(6):
        for first in range(0, 1000, 100):
            harness.feed([(key, b"%d" % number) for key in range(first, first + 100)])
        harness.checkpoint()
        if number == 0:
            assert 100 < len(asked), "one by one, until it is seen"
            asked.clear()
    assert [] == asked
    assert dict.fromkeys(range(1000), 6) == {key: harness.handler.n[key] for key in range(1000)}
    del harness.handler.n[5]
    harness.checkpoint()
    harness.feed([(5, b"0"), (2000, b"0")])
    assert (1, 1) == (harness.handler.n[5], harness.handler.n[2000])


class Counted(shardmem.Handler):
    n = shardmem.KeyedState(int, default=0)
    session = shardmem.KeyedState(Session, default=Session)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            if payload == b"read":
                self.n[key], self.session[key].pages
                assert key in self.n
            else:
                self.n[key] += 1
                self.session[key].pages += 1


def test_a_checkpoint_writes_what_changed_and_nothing_else() -> None:
    harness = Harness(Counted)
    harness.feed([(key, b"") for key in range(100)])
    assert 200 == len(harness._keeper.changes().rows)
    harness.checkpoint()
    harness.feed([(key, b"read") for key in range(100)])
    assert 0 == len(harness._keeper.changes().rows), "reading changes nothing, not even of objects"
    harness.feed([(7, b"")])
    assert 2 == len(harness._keeper.changes().rows)


class Typed(shardmem.Handler):
    def handle(self, batch: shardmem.Batch) -> None: ...


class Old(shardmem.Handler):
    n = shardmem.KeyedState(int)
    session = shardmem.KeyedState(dict[str, int])

    def handle(self, batch: shardmem.Batch) -> None:
        for key, _ in batch:
            self.n[key] = 7
            self.session[key] = {"count": 3}


def upgraded(version: int, old: Any) -> Session:
    assert 1 == version
    return Session(old["count"], "upgraded")


class New(shardmem.Handler):
    n = shardmem.KeyedState(str, version=2, upgrade=lambda version, old: f"{old} of {version}")
    session = shardmem.KeyedState(Session, version=2, upgrade=upgraded)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, _ in batch:
            self.session[key].pages += 1


def test_values_of_an_older_version_are_upgraded_when_they_are_asked_for() -> None:
    harness = Harness(Old)
    harness.feed([(1, b""), (2, b"")])
    harness.restart(New)
    assert "7 of 1" == harness.handler.n[1]
    harness.push(1)
    harness.restart()
    assert Session(4, "upgraded") == harness.handler.session[1]
    assert Session(3, "upgraded") == harness.handler.session[2]


def test_a_value_that_neither_decodes_nor_upgrades_is_named_with_its_key_and_the_others_are_there() -> None:
    class Broken(shardmem.Handler):
        n = shardmem.KeyedState(str)
        session = shardmem.KeyedState(Session, version=2, upgrade=lambda version, old: Session(old["missing"]))
        visits = shardmem.KeyedState(int, default=0)

        def handle(self, batch: shardmem.Batch) -> None:
            for key, payload in batch:
                self.visits[key] += 1
                if payload:
                    getattr(self, payload.decode())[key]

    harness = Harness(Old)
    harness.feed([(1, b""), (2, b"")])
    harness.restart(Broken)
    with pytest.raises(shardmem.StateError, match="the value of key 1 of state 'n': it cannot be read") as unread:
        harness.push(1, b"n")
    assert "raise `version`" in (unread.value.hint or "")
    with pytest.raises(shardmem.StateError, match="key 2 of state 'session': it of version 1 cannot be upgraded: KeyE"):
        harness.push(2, b"session")
    harness.push(2, b"")
    assert 1 == harness.handler.visits[2]


def test_a_handler_can_be_tried_without_any_engine() -> None:
    handler = Visits()
    handler.handle(shardmem.Batch.of([("a", b"x"), ("a", b"y"), (1, b"z")]))
    assert (2, 1, "y") == (handler.visits["a"], handler.visits[1], handler.names["a"])
    assert Visits().visits["a"] == 0, "each has its own"


def test_declarations_are_checked_where_they_are_made() -> None:
    with pytest.raises(TypeError, match="cannot be saved"):
        shardmem.KeyedState(dict[str, int] | dict[int, int])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="declared is int"):
        shardmem.KeyedState(int, default="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a duration"):
        shardmem.KeyedState(int, ttl="soon")


def test_pickle_only_when_asked_for() -> None:
    class Any_(shardmem.Handler):
        held = shardmem.KeyedState(complex, pickle=True)

        def handle(self, batch: shardmem.Batch) -> None:
            for key, _ in batch:
                self.held[key] = 1 + 2j

    harness = Harness(Any_)
    harness.push(1)
    harness.restart()
    assert 1 + 2j == harness.handler.held[1]


def test_a_view_of_a_batch_that_is_kept_is_found() -> None:
    kept: list[Any] = []

    class Keeps(shardmem.Handler):
        def handle(self, batch: shardmem.Batch) -> None:
            kept.append(batch.records["price"])

    harness = Harness(Keeps, key="symbol")
    with pytest.raises(shardmem.BatchEscaped):
        harness.feed(np.zeros(3, [("symbol", "u8"), ("price", "f8")]))


def test_records_by_key() -> None:
    class Sums(shardmem.Handler):
        total = shardmem.KeyedState(float, default=0.0)
        count = shardmem.KeyedState(int, default=0)

        def handle(self, batch: shardmem.Batch) -> None:
            for key, rows in batch.by_key():
                self.total[key] += rows["price"].sum()
                self.count[key] += len(rows)
                assert list(rows["price"]) == sorted(rows["price"]), "in order"

    for kind, keys in (("i8", [-3, 7, 7, 0, -3, 7]), ("S4", [b"a", b"", b"b", b"a", b"", b"a"])):
        rows = np.zeros(6, [("symbol", kind), ("price", "f8")])
        rows["symbol"], rows["price"] = keys, np.arange(6)
        harness = Harness(Sums, key="symbol")
        harness.feed(rows)
        harness.feed(rows[:0])
        expected = {key: float(sum(n for n, other in enumerate(keys) if other == key)) for key in keys}
        assert expected == dict(harness.handler.total)
        assert {key: keys.count(key) for key in keys} == dict(harness.handler.count)


def test_events_by_key_keep_type_and_order_across_frames() -> None:
    events = [(KEYS[n % len(KEYS)], b"%d" % n) for n in range(500)] + [(None, b"none")]
    grouped = shardmem.Batch.of(events).by_key()
    expected: dict[Any, list[bytes]] = {}
    for key, payload in events:
        expected.setdefault((type(key), key), []).append(payload)
    assert expected == {(type(key), key): payloads for key, payloads in grouped}
    assert [] == shardmem.Batch.of([]).by_key()


class Anything(shardmem.Handler):
    """The same in three ways: a number, an object that is changed in place, a number that would expire."""

    n = shardmem.KeyedState(int, default=0)
    d = shardmem.KeyedState(dict[str, int], default=dict)
    t = shardmem.KeyedState(int, default=0, ttl="1 h")

    def handle(self, batch: shardmem.Batch) -> None:
        for key, what in batch:
            if what == b"delete":
                for each in (self.n, self.d, self.t):
                    each.pop(key, None)
            elif what == b"set":
                self.n[key], self.d[key], self.t[key] = 5, {"a": 5}, 5
            else:
                self.n[key] += 1
                self.d[key]["a"] = self.d[key].get("a", 0) + 1
                self.t[key] += 1
            if what == b"fail":
                raise ValueError("fail")


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_in_whatever_order_the_values_are_those_of_a_dict(seed: int) -> None:
    chance = random.Random(seed)
    harness = Harness(Anything, state_cache_bytes=chance.choice([1 << 14, 1 << 28]))
    keys, expected = [*range(60), *map(str, range(60))], dict[Any, int]()
    for step in range(120):
        whats = [b"", b"", b"", b"set", b"delete"]
        events = [(chance.choice(keys), chance.choice(whats)) for _ in range(chance.randrange(1, 30))]
        if chance.random() < 0.15:
            with pytest.raises(ValueError, match="fail"):
                harness.feed([*events, (chance.choice(keys), b"fail")])
        else:
            harness.feed(events)
            for key, what in events:
                if what == b"delete":
                    expected.pop(key, None)
                else:
                    expected[key] = 5 if what == b"set" else expected.get(key, 0) + 1
        chance.choice([harness.checkpoint, harness.crash, harness.restart, *[lambda: None] * 12])()
        if step % 10 == 0:
            assert expected == dict(harness.handler.n) == dict(harness.handler.t)
            assert expected == {key: value["a"] for key, value in harness.handler.d.items()}
