"""Keyed state by columns: whatever happens, it is what one key after the other would have made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardmem
from shardmem.testing import Harness

KEYS = [
    17,
    "17",
    b"17",
    -1,
    (1 << 64) - 1,
    1 << 63,
    -(1 << 63),
    "",
    b"",
    "ü",
    "\udc80",
    0,
    *range(100, 120),
    *"abcdefgh",
]
LARGE = (1 << 63) - 1


class OneByOne(shardmem.Handler):
    n = shardmem.KeyedState(int, default=0)
    x = shardmem.KeyedState(float, default=0.5)
    t = shardmem.KeyedState(int, default=lambda: 3, ttl=60)
    last = shardmem.KeyedState(str, default="")
    high = shardmem.KeyedState(int, default=-5)
    ended = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            amount = int(payload)
            self.n[key] += amount
            self.x[key] += amount / 3
            self.t[key] += amount
            self.last[key] = str(amount)
            self.high[key] = max(self.high[key], amount)
            if amount % 5 == 0:
                self.n.pop(key)

    def on_expire(self, key: Any, value: int) -> None:
        self.ended[key] += value


class Columns(OneByOne):
    def handle(self, batch: shardmem.Batch) -> None:
        amounts = np.array([int(payload) for payload in batch.payloads], "i8")
        self.x.add_many(batch, amounts / 3)
        self.t.add_many(batch, amounts)
        self.last.set_many(batch, [str(amount) for amount in amounts.tolist()])
        keys = list(dict.fromkeys(batch.keys))
        of = np.array([keys.index(key) for key in batch.keys], "i8")
        high = self.high.get_many(keys)
        np.maximum.at(high, of, amounts)
        self.high.set_many(keys, high)
        # what is removed in between: runs of events up to the one that removes
        start = 0
        for end in [*(np.flatnonzero(amounts % 5 == 0) + 1).tolist(), len(batch)]:
            self.n.add_many(batch.keys[start:end], amounts[start:end])
            if end and amounts[end - 1] % 5 == 0 and end > start:
                self.n.pop(batch.keys[end - 1])
            start = end


STEPS = st.lists(
    st.one_of(
        st.lists(st.tuples(st.sampled_from(KEYS), st.integers(-9, 9)), max_size=40),
        st.sampled_from(["checkpoint", "crash", "restart", "advance", "fail", "large"]),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(STEPS, st.sampled_from([1 << 13, 1 << 28]))
def test_whatever_happens_columns_make_what_one_key_after_the_other_makes(steps: list[Any], cache: int) -> None:
    both = [Harness(handler, state_cache_bytes=cache) for handler in (OneByOne, Columns)]
    for step in steps:
        for harness in both:
            if isinstance(step, list):
                harness.feed([(key, b"%d" % amount) for key, amount in step])
            elif step == "advance":
                harness.advance(45)
            elif step == "fail":
                with pytest.raises(ValueError, match="invalid literal"):
                    harness.feed([(17, b"1"), ("17", b"2"), (17, b"no number")])
            elif step == "large":
                with pytest.raises(shardmem.StateError, match="cannot be saved"):
                    harness.feed([("large", b"%d" % LARGE)] * 4)
            else:
                getattr(harness, step)()
        for name in ("n", "x", "t", "last", "high", "ended"):
            one, other = (getattr(harness.handler, name) for harness in both)
            assert dict(one) == dict(other), name
            assert [one.get(key) for key in KEYS] == [other.get(key) for key in KEYS]
    one, other = (harness._keeper.changes() for harness in both)
    assert (one.rows, one.timers) == (other.rows, other.timers)


class Counts(shardmem.Handler):
    n = shardmem.KeyedState(int, default=0)
    needed = shardmem.KeyedState(float)
    flags = shardmem.KeyedState(bool, default=False)
    names = shardmem.KeyedState(str)
    lists = shardmem.KeyedState(list[int], default=list)

    def handle(self, batch: shardmem.Batch) -> None:
        self.n.add_many(batch)


def test_a_batch_stands_for_the_keys_of_its_events_whatever_it_carries() -> None:
    harness = Harness(Counts)
    harness.feed([(key, b"") for key in KEYS * 3])
    assert dict.fromkeys(KEYS, 3) == dict(harness.handler.n)
    for kind, keys in (("i4", [-3, 7, 7]), ("u8", [1 << 63, 7, 7]), ("S4", [b"a", b"", b"a"])):
        rows = np.zeros(3, [("symbol", kind), ("price", "f8")])
        rows["symbol"] = keys
        harness = Harness(Counts, key="symbol")
        harness.feed(rows)
        assert {key: keys.count(key) for key in keys} == dict(harness.handler.n)


def test_values_of_many_keys_come_as_an_array_of_their_type_or_as_a_list() -> None:
    handler = Harness(Counts).handler
    handler.n.set_many(np.array([5, 6]), np.array([50, 60], "i4"))
    handler.needed.set_many(["a", "b"], [1.5, 2])
    handler.flags.set_many(["a"], [True])
    handler.names.set_many(["a", 1], ["x", "y"])
    handler.lists.set_many([1, 2], [[1], [2]])
    found = handler.n.get_many(np.array([6, 5, 7, 6], "u1"))
    assert ("int64", [60, 50, 0, 60]) == (found.dtype, found.tolist())
    assert ("float64", [1.5, 2.0]) == ((got := handler.needed.get_many(["a", "b"])).dtype, got.tolist())
    assert ("bool", [True, False]) == ((got := handler.flags.get_many(["a", "b"])).dtype, got.tolist())
    assert ["y", "x"] == handler.names.get_many([np.int8(1), "a"])
    assert [[2], [1]] == handler.lists.get_many([2, 1])
    assert 7 not in handler.n and "b" not in handler.flags, "reading a default keeps nothing"
    assert {5: 50, 6: 60} == dict(handler.n)


def test_what_one_by_one_would_refuse_is_refused_and_changes_nothing() -> None:
    handler = Harness(Counts).handler
    handler.n.update({"a": 1, "b": 2})
    handler.n["big"] = (1 << 64) - 1
    refused: list[tuple[type[Exception], Any]] = [
        (KeyError, lambda: handler.needed.add_many(["a", "b"], 1.0)),
        (KeyError, lambda: handler.needed.get_many(["a"])),
        (TypeError, lambda: handler.n.add_many(["a", None])),
        (TypeError, lambda: handler.n.add_many(["a", 1.5])),
        (ValueError, lambda: handler.n.add_many(["a", 1 << 64])),
        (ValueError, lambda: handler.n.add_many(["a", "b"], [1, 2, 3])),
        (ValueError, lambda: handler.n.set_many(["a", "b"], [1])),
        (ValueError, lambda: handler.n.set_many(["a", "b"], np.array([1]))),
        (ValueError, lambda: handler.n.add_many(np.zeros((2, 2), "i8"))),
        (TypeError, lambda: handler.n.add_many(["a"], 1.5)),
        (TypeError, lambda: handler.n.add_many(["a"], "1")),
        (TypeError, lambda: handler.n.set_many(["a"], np.array([1.5]))),
        (TypeError, lambda: handler.names.add_many(["a"], 1)),
        (TypeError, lambda: handler.lists.add_many(["a"], 1)),
        (OverflowError, lambda: handler.n.add_many(["a"], np.array([1 << 63], "u8"))),
        (OverflowError, lambda: handler.n.get_many(["a", "big"])),
        (shardmem.StateError, lambda: handler.n.set_many(["a"], ["text"])),
        (shardmem.StateError, lambda: handler.names.set_many(["a"], [5])),
    ]
    for error, attempt in refused:
        with pytest.raises(error):
            attempt()
        assert {"a": 1, "b": 2, "big": (1 << 64) - 1} == dict(handler.n)
        assert {} == dict(handler.names) == dict(handler.needed)


def test_a_number_that_only_fits_into_64_bits_without_a_sign_is_added_to_all_the_same() -> None:
    handler = Harness(Counts).handler
    handler.n.set_many([1, 2], [1 << 63, LARGE])
    handler.n.add_many([1, 2, 1], [-1, 1, 5])
    assert {1: (1 << 63) + 4, 2: 1 << 63} == dict(handler.n)


def test_a_key_of_another_shard_is_refused_before_anything_is_added() -> None:
    harness = Harness(Counts)
    harness.feed([(key, b"") for key in range(50)])
    harness.checkpoint()
    lost = {harness._keeper.scope.slot_of(7)}
    harness._keeper.lose(lost)
    with pytest.raises(shardmem.StateError, match="state 'n' of key 7: it belongs to slot"):
        harness.handler.n.add_many(list(range(50)))
    assert 7 not in harness.handler.n.live
    for key in range(50):
        if harness._keeper.scope.slot_of(key) not in lost:
            assert 1 == harness.handler.n[key]


def test_keys_that_come_and_go_leave_no_memory_behind() -> None:
    harness = Harness(Counts)
    n = harness.handler.n
    for first in range(0, 50_000, 100):
        some = np.arange(first, first + 100)
        n.add_many(some)
        for key in some.tolist():
            del n[key]
        harness.checkpoint()
    assert {} == dict(n) and n.entries < 1000
