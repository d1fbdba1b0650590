"""Parquet and Arrow files: rows become what the same values as text would."""

from __future__ import annotations

import datetime
import decimal
import io

import numpy as np
import pytest

from shardmem.errors import ConfigError
from shardmem.sources.contract import SourceError

pa = pytest.importorskip("pyarrow", exc_type=ImportError)  # too new for the lowest numpy
import pyarrow.parquet as pq  # noqa: E402


def written(table, form):
    out = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, out)
    else:
        new = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
        with new(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue(), {"format": "parquet" if form == "parquet" else "arrow"}


FORMS = pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])


@FORMS
def test_columns_fill_records_by_name(read, form):
    table = pa.table(
        {
            "more": [1, 2, 3],
            "u": pa.array([1, 2, 3], pa.int64()),
            "f": pa.array([0.5, None, float("inf")], pa.float32()),
            "b": [True, False, True],
            "s": pa.array(["a", "b", "c"]).dictionary_encode(),
            "t": pa.array([datetime.datetime(2024, 1, 1, 12)] * 3, pa.timestamp("us", "UTC")),
            "d": pa.array([datetime.date(2024, 1, 1)] * 3),
            "x": pa.array([decimal.Decimal("1.25")] * 3),
        }
    )
    dtype = [("s", "S2"), ("u", ">u2"), ("f", "f8"), ("b", "?"), ("t", "M8[s]"), ("d", "M8[D]"), ("x", "f4")]
    data, options = written(table, form)
    events, rejected = read(data, dtype, **options)
    moment, day = datetime.datetime(2024, 1, 1, 12), datetime.date(2024, 1, 1)
    assert [(b"a", 1, 0.5, True, moment, day, 1.25), (b"c", 3, float("inf"), True, moment, day, 1.25)] == [
        events[0],
        events[2],
    ]
    assert np.isnan(events[1][2]) and not rejected


@FORMS
def test_values_that_a_field_cannot_have_are_rejected_with_their_row(read, form):
    table = pa.table({"u": pa.array([1, 300, None, 4]), "s": ["a", "b", "c", "too long"]})
    data, options = written(table, form)
    events, rejected = read(data, [("u", "u1"), ("s", "S2")], **options)
    assert [(1, b"a")] == events
    assert [("out of range", 1), ("null", 1), ("too wide", 1)] == [(bad.reason, bad.after) for bad in rejected]
    assert all(f"a.in, row {row}: field " in bad.text for row, bad in zip((2, 3, 4), rejected))


@FORMS
@pytest.mark.parametrize(
    "keys, expected",
    [(pa.array([1, 2], pa.int32()), [1, 2]), (pa.array([2**63, 1], pa.uint64()), [2**63, 1]), (["a", "b"], ["a", "b"])],
)
def test_an_events_engine_takes_columns_of_key_and_payload(read, form, keys, expected):
    data, options = written(pa.table({"k": keys, "p": [b"x", b"yy"], "more": [1.5, 2.5]}), form)
    assert list(zip(expected, [b"x", b"yy"])) == read(data, key="k", payload="p", **options)[0]


def test_what_is_no_such_file_or_has_no_such_column_is_an_error(read):
    data, options = written(pa.table({"k": [[1]]}), "parquet")
    with pytest.raises(ConfigError, match="no column u"):
        read(data, [("u", "u1")], **options)
    with pytest.raises(ConfigError, match="is of type list"):
        read(data, [("k", "u1")], **options)
    with pytest.raises(ConfigError, match="takes a key and a payload"):
        read(data, **options)
    with pytest.raises(SourceError, match="reading .* failed"):
        read(b"PAR1 nonsense", [("k", "u1")], format="parquet")
