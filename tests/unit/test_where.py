"""`where` says where producers send the events of a key, and who handles them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from shardmem.errors import ConfigError
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.words import now_ns
from shardmem.schema import Schema
from shardmem.status.where import checked_key, key_of_text, where


def records(kind: str, keys: list[Any]) -> tuple[np.dtype, np.ndarray]:
    dtype = np.dtype([("key", kind), ("value", "u4")])
    rows = np.zeros(len(keys), dtype)
    rows["key"] = keys
    return dtype, rows


@pytest.mark.parametrize("keys", [[0, 7, -3, 1 << 63], ["a", "é", ""], [b"a", b"\xff\x00", b""]])
def test_the_slot_of_an_events_key_is_the_one_its_events_come_in(loopback: Any, keys: list[Any]) -> None:
    engine = loopback(slots=64)
    producer = engine.producer()
    for key in keys:
        producer.push(key, b"")
        (slot,) = engine.take().slots.tolist()
        assert where(engine.control, key)["slot"] == slot
        engine.commit()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("u8", [0, 7, (1 << 64) - 1]), ("i2", [-1, 5, -32768]), ("S4", [b"a", b"", b"abcd"]), ("u1", [255, 1])],
)
def test_the_slot_of_a_records_key_is_the_one_its_rows_come_in(loopback: Any, kind: str, keys: list[Any]) -> None:
    dtype, rows = records(kind, keys)
    engine = loopback(dtype, "key", slots=64)
    producer = engine.producer()
    for key, row in zip(keys, rows):
        producer.send(np.array([row], dtype))
        (slot,) = engine.take().slots.tolist()
        assert where(engine.control, key)["slot"] == slot
        assert where(engine.control, checked_key(engine.control.schema, key))["slot"] == slot
        engine.commit()


def test_a_slot_on_its_way_is_its_sources_and_then_its_targets_since_it_came(loopback: Any) -> None:
    engine = loopback(shards=2, slots=64)
    held = lease.Lease.take(engine.control.segment, lease.shard_byte(1))
    engine.control.enter_worker(1)
    slot = where(engine.control, 5)["slot"]
    engine.control.set_slot(slot, 0)
    assert where(engine.control, 5) == {
        "key": 5,
        "slot": slot,
        "shard": 0,
        "pid": None,  # no worker lives
        "incarnation": 0,
        "owner_since": None,
        "moving_to": None,
    }
    engine.control.begin_move(slot, 0, 1, now_ns())
    found = where(engine.control, 5)
    assert (found["shard"], found["moving_to"], found["owner_since"]) == (0, 1, None)
    engine.control.set_move_phase(slot, "none", 0)
    found = where(engine.control, 5)
    assert (found["shard"], found["moving_to"], found["pid"], found["incarnation"]) == (1, None, os.getpid(), 1)
    assert found["owner_since"] is not None and 0 <= found["owner_since"] < 60
    assert held is not None
    held.release()


def test_a_slot_that_no_shard_has_yet_is_nobodys(engine_name: str) -> None:
    control = ControlSegment.create(engine_name, Schema(), slots=64, max_shards=2, max_producers=2, lane_bytes=1 << 16)
    try:
        found = where(control, "k")
    finally:
        control.segment.unlink()
        control.close()
    assert (found["shard"], found["pid"], found["incarnation"]) == (None, None, None)


@pytest.mark.parametrize(
    ("dtype", "field", "key", "text"),
    [
        (None, None, 1.5, "key=1.5 is not a key"),
        (None, None, None, "key=None is not a key: int, str or bytes"),
        (None, None, True, "key=True is not a key"),
        ([("a", "u1")], "a", 256, "key=256 is outside 0 to 255: field 'a' is uint8"),
        ([("a", "u1")], "a", "seven", "key='seven' is not an integer"),
        ([("a", "S2")], "a", 7, "key=7 is not bytes"),
        ([("a", "S2")], "a", "abc", "key='abc' has 3 bytes: field 'a' holds 2"),
        ([("a", "u1")], None, 1, "have no key field"),
    ],
)
def test_what_is_not_a_key_of_the_engine_is_refused(dtype: Any, field: Any, key: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_key(Schema.of(dtype, field), key)
    assert text in str(caught.value)


def test_a_key_in_a_shell_is_a_number_where_the_engines_keys_are_numbers() -> None:
    events, numbers, names = Schema(), Schema.of([("a", "u4")], "a"), Schema.of([("a", "S4")], "a")
    assert key_of_text(events, "17", as_int=False) == "17"
    assert key_of_text(events, "17", as_int=True) == 17
    assert key_of_text(numbers, "17", as_int=False) == 17
    assert key_of_text(names, "17", as_int=False) == "17"
    with pytest.raises(ConfigError, match="key='x' is not an integer"):
        key_of_text(numbers, "x", as_int=False)
