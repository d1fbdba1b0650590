"""A batch as an Arrow stream, as pyarrow reads it."""

from __future__ import annotations

import datetime
import sys

import numpy as np
import pytest

import shardmem

pyarrow = pytest.importorskip("pyarrow", reason="the Arrow interface is tested with pyarrow, which is not installed")

NUMBERS = [(name, name) for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")]


def test_each_kind_of_field_becomes_a_column_of_its_type():
    dtype = np.dtype([*NUMBERS, ("flag", "?"), ("at", "M8[us]"), ("name", "S4"), ("raw", "V2")])
    row = (*range(1, 11), True, np.datetime64("2026-01-31T12:00:00", "us"), b"ab", b"\x00\x01")

    table = pyarrow.table(shardmem.Batch.of(np.array([row] * 3, dtype), key="u8"))

    wanted = dict(zip(dtype.names, (*range(1, 11), 1, datetime.datetime(2026, 1, 31, 12), b"ab", b"\x00\x01")))
    assert table.to_pylist() == [wanted] * 3
    assert [str(table.schema.field(name).type) for name in ("i2", "u8", "f4", "at", "name")] == [
        "int16",
        "uint64",
        "float",
        "timestamp[us]",
        "large_binary",
    ]


@pytest.mark.parametrize(
    "keys, kind",
    [
        ([1, -2], "int64"),
        ([1, None], "int64"),
        ([1, (1 << 64) - 1], "uint64"),
        ([None, (1 << 64) - 1], "uint64"),
        (["é", ""], "large_string"),
        (["17", None], "large_string"),
        ([b"\x00", None], "large_binary"),
        ([None, None], "null"),
    ],
)
def test_the_key_column_is_of_the_type_of_the_keys_and_null_for_none(keys, kind):
    table = pyarrow.table(shardmem.Batch.of(list(zip(keys, [b"", b"\x00payload"]))))
    table.validate(full=True)
    assert kind == str(table.schema.field("key").type)
    assert table.to_pydict() == {"key": keys, "payload": [b"", b"\x00payload"]}


@pytest.mark.parametrize("keys", [[17, "17", b"17", None], [-1, (1 << 64) - 1], [None, "a", 0], ["", b"", 1 << 63, 5]])
def test_keys_of_several_kinds_stay_apart_in_a_struct(keys):
    """17, "17" and b"17" were one key, b"17"; and -1 was 2**64 - 1."""
    table = pyarrow.table(shardmem.Batch.of([(key, b"") for key in keys]))
    table.validate(full=True)
    found = table.column("key").to_pylist()
    assert keys == [None if each is None else next(v for v in each.values() if v is not None) for each in found]
    assert all(each is None or 3 == list(each.values()).count(None) for each in found)
    assert all(each is None or each["str"] is None or each["bytes"] is None for each in found)
    assert [type(key) for key in keys] == [
        type(None)
        if each is None
        else {"int": int, "uint": int, "str": str, "bytes": bytes}[next(n for n, v in each.items() if v is not None)]
        for each in found
    ]


def test_text_that_is_not_utf_8_has_no_type_in_arrow():
    with pytest.raises(ValueError, match=r"key '\\udcff' is text that is not UTF-8"):
        shardmem.Batch.of([("\udcff", b""), ("é", b"")]).__arrow_c_stream__()


def test_an_empty_batch_is_an_empty_table():
    assert pyarrow.table(shardmem.Batch.of(np.zeros(0, [("key", "u8"), ("x", "f8")]), key="key")).num_rows == 0


@pytest.mark.parametrize("dtype", [[("key", "u8")], [("key", "u8"), ("x", "f8")], [("key", "u8"), ("flag", "?")]])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_table_may_be_kept(loopback, dtype, frames):
    """That of a dtype with one field only referred to the lane, and keeping it stopped the shard."""
    rows = np.zeros(900, dtype)
    rows["key"] = np.arange(900)
    engine = loopback(np.dtype(dtype), "key")
    producer = engine.producer()
    for part in np.split(rows, frames):
        producer.send(part)

    kept = pyarrow.table(engine.take())
    engine.commit()

    assert kept.column("key").to_pylist() == list(range(900))


def test_a_field_without_an_arrow_type_is_named():
    with pytest.raises(TypeError, match=r"field pair has dtype float64\(2,\), which has no Arrow type"):
        pyarrow.table(shardmem.Batch.of(np.zeros(3, [("key", "u8"), ("pair", "f8", 2)]), key="key"))


def test_without_nanoarrow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanoarrow", None)
    with pytest.raises(shardmem.ShardmemError, match=r"pip install 'shardmem\[arrow\]'"):
        shardmem.Batch.of([("a", b"")]).__arrow_c_stream__()
