"""Mistakes that people make with a producer, and what they are told."""

from __future__ import annotations

import numpy as np
import pytest

from shardmem.errors import AlreadyRunning, TooManyProducers

DTYPE = np.dtype([("key", "u8"), ("value", "f8")])


def test_a_push_without_a_payload_names_push(loopback) -> None:
    producer = loopback().producer()
    with pytest.raises(TypeError, match=r"^Producer.push\(\) missing 1 required positional argument: 'payload'$"):
        producer.push("bob")


def test_a_key_with_half_of_a_surrogate_pair_is_named(loopback) -> None:
    producer = loopback().producer()
    with pytest.raises(ValueError, match=r"key 'a\\ud800' has half of a surrogate pair"):
        producer.push("a\ud800", b"x")
    with pytest.raises(ValueError, match=r"event 1: key 'a\\ud800' has half of a surrogate pair"):
        producer.push_many(["b", "a\ud800"], [b"x", b"x"])
    assert producer.outcome()["accepted"] == 0


def test_a_mask_is_not_ignored(loopback) -> None:
    producer = loopback(dtype=DTYPE, key="key").producer()
    rows = np.ma.masked_array(np.zeros(3, DTYPE), mask=[(False, True), (False, False), (False, False)])
    with pytest.raises(TypeError, match="send takes no masked values"):
        producer.send(rows)
    assert producer.send(np.ma.masked_array(np.zeros(3, DTYPE))) == 3, "nothing is masked"


def test_who_has_all_the_seats_is_said_and_what_helps(loopback) -> None:
    engine = loopback(max_producers=2)
    kept = [engine.producer(), engine.producer()]
    with pytest.raises(TooManyProducers, match=r"has 2 producers, all alive.*pid \d+ has 2") as error:
        engine.producer()
    assert isinstance(error.value, AlreadyRunning) and "one producer for each process" in (error.value.hint or "")
    assert len(kept) == 2
