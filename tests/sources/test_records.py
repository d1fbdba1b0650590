"""Fields into records: the table of conversions in docs/getting-data-in.md. A value never depends on its neighbours."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardmem.errors import ConfigError


def field_of(read, dtype, text=None, value=None):
    """(value or None, reason or None) of one field, from CSV or JSON."""
    data = f'k,f\n1,"{text}"\n'.encode() if text is not None else json.dumps({"k": 1, "f": value}).encode()
    events, rejected = read(data, [("k", "u1"), ("f", dtype)], format="csv" if text is not None else "jsonl")
    return (events[0][1] if events else None), (rejected[0].reason if rejected else None)


@pytest.mark.parametrize(
    "dtype, text, expected",
    [
        ("u1", "255", 255), ("u1", "256", "out of range"), ("u1", "-1", "out of range"), ("u1", "-0", 0),
        ("i1", "-128", -128),
        ("i1", "-129", "out of range"), ("i4", "2147483648", "out of range"),
        ("u8", "18446744073709551615", 2**64 - 1),
        ("u8", "18446744073709551616", "out of range"), ("i8", "-9223372036854775808", -(2**63)), ("i2", " 7\t", 7),
        ("i2", "+7", 7),
        ("i2", "7.0", 7), ("i2", "7.5", "not whole"), ("i2", "7e1", "not whole"), ("u8", "2024_01", "not a number"),
        ("u8", "١٢", "not a number"), ("u8", "", "not a number"), ("u8", "NA", "not a number"),
        ("u8", "0x10", "not a number"),
        (">i4", "-5", -5), ("f8", "0.1", 0.1), ("f8", "1e400", "out of range"), ("f8", "1e-400", "out of range"),
        ("f8", "5e-324", 5e-324),
        ("f4", "1e39", "out of range"), ("f4", "16777217", "not exact"), ("f4", "16777216", 16777216.0),
        ("f2", "70000", "out of range"),
        ("f2", "1.5", 1.5), ("f2", "2049", "not exact"), ("f2", "1e-9", "out of range"),
        ("f2", "0.1", 0.0999755859375), (">f8", "0.1", 0.1), ("f8", "9007199254740993", "not exact"),
        ("f8", "9007199254740992", 2.0**53), ("f8", "1e22", 1e22),
        ("f8", "9007199254740993.0", "not exact"), ("f8", "9007199254740993.", "not exact"),
        ("f8", "9007199254740994.000", 2.0**53 + 2), ("f8", "9007199254740993.5", 2.0**53 + 2),
        ("f8", "9007199254740993e0", 2.0**53), ("f8", "-9007199254740993.0", "not exact"),
        ("f4", "16777217.0", "not exact"), ("f4", "16777216.0", 16777216.0), ("f2", "2049.0", "not exact"),
        ("f8", f"{2.0**200:.0f}", 2.0**200), ("f8", f"-0{2.0**200:.6f}", -(2.0**200)),
        ("f8", f"{2.0**200:.0f}"[:-1] + "7", "not exact"), ("f8", "1" + "0" * 40, "not exact"),
        ("f8", f"{1.7976931348623157e308:.1f}", 1.7976931348623157e308),
        ("f8", "0" * 60 + "1.0" + "0" * 60, 1.0), ("f8", "0." + "0" * 60 + "1", 1e-61),
        ("f8", "100000000000000000000", 1e20), ("f8", "1_0.5", "not a number"), ("f8", "-inf", -math.inf),
        ("f8", ".5", 0.5),
        ("f8", "1,5", "not a number"), ("f8", "12abc", "not a number"), ("?", "true", True), ("?", "False", False),
        ("?", "0", False),
        ("?", "1", True), ("?", "no", "not a boolean"), ("?", "2", "not a boolean"), ("?", "", "not a boolean"),
        ("S3", "abc", b"abc"),
        ("S3", "abcd", "too wide"), ("S3", "", b""), ("S3", "a\0", "ends in NUL"), ("U2", "éß", "éß"),
        ("U2", "abc", "too wide"),
        ("M8[s]", "2024-02-29T12:34:56Z", np.datetime64("2024-02-29T12:34:56")),
        ("M8[s]", "2024-02-29 12:34", np.datetime64("2024-02-29T12:34")),
        ("M8[s]", "2024-02-29T12:34:56+02:00", np.datetime64("2024-02-29T10:34:56")),
        ("M8[s]", "2024-01-01T00:00:00.999", "too fine a time"),
        ("M8[ms]", "2024-01-01T00:00:00.999", np.datetime64("2024-01-01T00:00:00.999")),
        ("M8[s]", "2023-02-29", "not a time"),
        ("M8[D]", "2024-01-01T00:00:00", np.datetime64("2024-01-01")),
        ("M8[D]", "2024-01-01T01:00:00", "too fine a time"),
        ("M8[s]", "1700000000", "not a time"), ("M8[s]", "yesterday", "not a time"),
        ("M8[ns]", "9999-01-01", "out of range"),
        ("M8[ns]", "1677-09-21T00:12:43.145224193", np.datetime64(-(2**63) + 1, "ns")),
        ("M8[ns]", "1677-09-21T00:12:43.145224192", "out of range"),
        ("M8[ns]", "1677-09-21T00:12:43.145224191", "out of range"),
        ("M8[ns]", "1677-09-21T02:12:43.145224193+02:00", np.datetime64(-(2**63) + 1, "ns")),
        ("M8[ns]", "2262-04-11T23:47:16.854775807", np.datetime64(2**63 - 1, "ns")),
        ("M8[ns]", "2262-04-11T23:47:16.854775808", "out of range"),
        ("m8[ns]", str(2**63 - 1), np.timedelta64(2**63 - 1, "ns")), ("m8[ns]", str(-(2**63)), "out of range"),
        ("M8[D]", "0000-01-01", np.datetime64("0000-01-01", "D")), ("M8[ms]", "9999-12-31T23:59:59.999",
        np.datetime64("9999-12-31T23:59:59.999", "ms")),
        ("M8[us]", "0001-01-01", np.datetime64("0001-01-01", "us")), ("m8[s]", "90", np.timedelta64(90, "s")),
        ("m8[s]", "1.5", "not whole"),
    ],
)  # fmt: skip
def test_text_becomes_the_value_that_it_says_or_is_refused(read, dtype, text, expected):
    value, reason = field_of(read, dtype, text=text)
    if isinstance(expected, (np.datetime64, np.timedelta64)):
        value, expected = np.array(value, dtype), expected.astype(dtype)
    assert expected == (reason if isinstance(expected, str) and reason else value)
    assert (value is None) != (reason is None)


@pytest.mark.parametrize("text", ["", "NA", "NaN", "nan", "null"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "M8[s]", "m8[s]"])
def test_nothing_is_nan_where_the_dtype_has_one(read, dtype, text):
    value, reason = field_of(read, dtype, text=text)
    assert reason is None and (value is None or math.isnan(value))


@pytest.mark.parametrize(
    "dtype, value, expected",
    [
        ("u1", 7, 7), ("u1", 7.0, 7), ("u1", 7.5, "not whole"), ("u1", "7", "wrong type"), ("u1", None, "null"),
        ("u1", True, "wrong type"),
        ("u8", 2**64, "out of range"), ("f8", 1, 1.0), ("f8", 9007199254740993, "not exact"),
        ("f8", "1", "wrong type"), ("f8", [1], "wrong type"),
        ("?", True, True), ("?", False, False), ("?", None, "null"), ("?", 1, True), ("?", 2, "not a boolean"),
        ("?", "true", "wrong type"),
        ("?", [True], "wrong type"), ("S4", "abc", b"abc"), ("S4", 1, "wrong type"), ("S4", [], "wrong type"),
        ("S4", {}, "wrong type"),
        ("S4", True, "wrong type"), ("S4", None, "null"), ("S4", "a\0", "ends in NUL"),
        ("U4", "\ud83d", "half a surrogate pair"),
        ("U4", "é😀", "é😀"), ("M8[s]", 1700000000, np.datetime64(1700000000, "s")), ("M8[s]", 1.5, "not whole"),
        ("M8[s]", "2024-01-01", np.datetime64("2024-01-01", "s")), ("M8[s]", [1], "wrong type"),
        ("m8[ms]", 5, np.timedelta64(5, "ms")),
        ("m8[ms]", "5", "wrong type"),
    ],
)  # fmt: skip
def test_json_becomes_the_value_that_it_says_or_is_refused(read, dtype, value, expected):
    got, reason = field_of(read, dtype, value=value)
    if isinstance(expected, (np.datetime64, np.timedelta64)):
        got, expected = np.array(got, dtype), expected.astype(dtype)
    assert expected == (reason if isinstance(expected, str) and reason else got)


@pytest.mark.parametrize(
    "dtype, good, odd",
    [
        ("?", True, [True, False]),
        ("?", False, "x"),
        ("M8[s]", 1700000000, [1, 2]),
        ("M8[s]", 1700000000, "2024-01-01"),
        ("f8", 1.5, {}),
        ("S3", "abc", []),
    ],
)
def test_a_value_does_not_depend_on_its_neighbours(read, dtype, good, odd):
    alone, _ = read(json.dumps({"v": good}).encode(), [("v", dtype)], format="jsonl")
    lines = [json.dumps({"v": odd if i == 1000 else good}) for i in range(4096)]
    events, rejected = read("\n".join(lines).encode(), [("v", dtype)], format="jsonl")
    assert 4096 == len(events) + len(rejected)
    assert set(alone) == {event for i, event in enumerate(events) if i != 1000 or rejected}


@pytest.mark.parametrize("dtype", ["c16", "V4", "M8", "M8[Y]", "M8[10s]", [("x", "u1")], ("f4", (3,)), "g"])
def test_a_dtype_that_no_text_can_fill_is_refused_before_anything_is_read(read, dtype):
    with pytest.raises(ConfigError, match="field f is of dtype .* which cannot be filled from text"):
        read(b'{"f":[1,2,3]}\n', [("f", *dtype) if isinstance(dtype, tuple) else ("f", dtype)], format="jsonl")


def test_a_missing_member_is_named_and_no_default_stands_in_for_it(read):
    events, (bad,) = read(b'{"u":1}\n{"u":1,"s":"x"}\n', [("u", "f8"), ("s", "S2")], format="jsonl")
    assert [(1.0, b"x")] == events and bad.text.endswith("line 1: field s: is missing")


def test_bad_records_of_all_kinds_are_in_order_and_say_how_many_events_come_before_them(read):
    data = b'{"u":1}\nno\n{"u":2}\n{"u":"x"}\n{"u":3}\n{"v":1}\n{"u":4}'
    events, rejected = read(data, [("u", "u1")], format="jsonl")
    assert [(1,), (2,), (3,), (4,)] == events
    assert [(2, 1), (4, 2), (6, 3)] == [(int(bad.position.metadata[5:]), bad.after) for bad in rejected]
    assert [b"no", b'{"u":"x"}', b'{"v":1}'] == [bad.data for bad in rejected]


@pytest.mark.parametrize("form", ["logfmt", "syslog", "combined"])
def test_log_formats_fill_records_by_field_name(read, form):
    lines = {
        "logfmt": (b"status=200 host=h", [("host", "S4"), ("status", "u2")]),
        "syslog": (b"<13>Oct 11 22:14:15 h app[7]: x", [("host", "S4"), ("pid", "u4"), ("severity", "u1")]),
        "combined": (b'h - - [t] "GET / HTTP/1" 404 12', [("host", "S4"), ("status", "u2"), ("path", "U9")]),
    }
    line, dtype = lines[form]
    expected = {"logfmt": (b"h", 200), "syslog": (b"h", 7, 5), "combined": (b"h", 404, "/")}
    assert [expected[form]] == read(line, dtype, format=form)[0]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_floats_are_the_nearest_ones(read, numbers):
    data = "f,g\n" + "".join(f"{number!r},{number:.20e}\n" for number in numbers)
    events, rejected = read(data.encode(), [("f", "f8"), ("g", "f8")], format="csv")
    assert [(number, float(f"{number:.20e}")) for number in numbers] == events and not rejected


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_single_floats_are_rounded_once(read, numbers):
    data = "f\n" + "".join(f"{number!r}\n" for number in numbers)
    events, _ = read(data.encode(), [("f", "f4")], format="csv")
    assert [struct.pack("f", number) for number in numbers] == [struct.pack("f", value) for (value,) in events]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.datetimes(), min_size=1, max_size=20))
def test_times_are_those_of_numpy(read, times):
    data = "t\n" + "".join(f"{time.isoformat()}\n" for time in times)
    events, rejected = read(data.encode(), [("t", "M8[us]")], format="csv")
    assert times == [value for (value,) in events] and not rejected


@pytest.mark.parametrize("kind", "iu")
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_integer_at_the_edges_of_a_dtype_is_exact_and_beyond_them_refused(read, kind, size):
    info = np.iinfo(f"{kind}{size}")
    numbers = [info.min - 1, info.min, info.min + 1, 0, info.max - 1, info.max, info.max + 1]
    data = "n\n" + "".join(f"{number}\n" for number in numbers)
    events, rejected = read(data.encode(), [("n", f"{kind}{size}")], format="csv")
    assert [(number,) for number in numbers[1:-1]] == events and 2 == len(rejected)
