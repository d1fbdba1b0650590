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
    "keys, column",
    [
        ([1, -2], [1, -2]),
        ([1, (1 << 64) - 1], [1, (1 << 64) - 1]),
        (["a", 7], [b"a", b"7"]),
        ([b"\x00", None], [b"\x00", None]),
        (["\udcff", "é"], [b"\xff", "é".encode()]),
    ],
)
def test_events_become_the_columns_key_and_payload(keys, column):
    table = pyarrow.table(shardmem.Batch.of(list(zip(keys, [b"", b"\x00payload"]))))
    assert table.to_pydict() == {"key": column, "payload": [b"", b"\x00payload"]}


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
