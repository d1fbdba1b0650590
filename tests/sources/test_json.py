"""JSON lines: what is JSON is an event with its own bytes, what is not is named; keys are found by nested names."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ACCEPTED = [
    "{}", "[]", "[1,2]", '"x"', "0", "-0", "1.5e-7", "1E+2", "true", "null", ' {"a" : [ 1 , {"b":null} ] } ',
    '"\\u00e9\\n\\/"',
    '"\\ud83d\\ude00"', '"\u00e9\u20ac\U0001f600"', '{"a":{"b":{}}}', '"\x7f"', "[" * 500 + "]" * 500,
    '{"a":1,"a":2}', "1" * 5000,
]  # fmt: skip
REFUSED = [
    "{", "}", "[1,]", "[,1]", '{"a":1,}', '{"a"}', "{a:1}", "{'a':1}", "01", "1.", ".5", "+1", "-", "1e", "0x1",
    "NaN", "Infinity",
    "-Infinity", "tru", "nul", "True", '"', '"\\x"', '"\\u12"', '"\t"', "1 2", "[1 2]", '{"a" 1}', '{"a":1 "b":2}',
    "]", "[}", '"a', "//",
    '[1]x', "{1:2}", "\ufeff1",
]  # fmt: skip


@pytest.mark.parametrize("text", ACCEPTED)
def test_json_is_an_event_with_its_own_bytes(read, text):
    assert ([(None, text.encode())], []) == read(text.encode() + b"\n", format="jsonl")


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_json_is_named(read, text):
    events, (bad,) = read(f"1\n{text}\n2\n".encode(), format="jsonl")
    assert [(None, b"1"), (None, b"2")] == events and "line 2: is not JSON" in bad.text


@pytest.mark.parametrize(
    "raw",
    [
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b'{"\x80":1}',
        b'"\xf0\x80\x80\x80"',
    ],
)
def test_json_that_is_not_utf8_is_named(read, raw):
    events, (bad,) = read(raw + b"\n", format="jsonl")
    assert not events and "not UTF-8" == bad.reason


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 513 + "]" * 513])
def test_deep_json_is_a_bad_record_and_no_crash(read, text):
    events, (bad,) = read(f"{text}\n{{}}\n".encode(), format="jsonl", most=1 << 22)
    assert [(None, b"{}")] == events and "nested too deep" == bad.reason


@pytest.mark.parametrize(
    "text, key, expected",
    [
        ('{"k":"x"}', "k", "x"),
        ('{"j":0,"k":17}', "k", 17),
        ('{"k":18446744073709551615}', "k", 2**64 - 1),
        ('{"k":-9223372036854775808}', "k", -(2**63)),
        ('{"k":""}', "k", ""),
        ('{"k":"\\u00e9\\ud83d\\ude00\\n"}', "k", "é😀\n"),
        ('{"\\u006b":"x"}', "k", "x"),
        ('{"a":{"b":{"c":"x"}},"c":1}', "a.b.c", "x"),
        ('{"a.b":"x","a":{"b":"y"}}', "a.b", "y"),
        ('{"a.b":"x","a":{"b":"y"}}', "a\\.b", "x"),
        ('{"x":{"k":1},"k":"y","z":[{"k":2}]}', "k", "y"),
        ('{"a":1,"b":"y"}', "a,b", "1\x1fy"),
        ('{"é":"x"}', "é", "x"),
    ],
)
def test_a_key_is_a_member_by_its_path(read, text, key, expected):
    assert ([(expected, text.encode())], []) == read(text.encode() + b"\n", format="jsonl", key=key)


@pytest.mark.parametrize(
    "text, reason, part",
    [
        ('{"j":1}', "missing field", "has no member 'k'"),
        ('{"k":null}', "null", "has null in 'k'"),
        ('{"k":[1]}', "wrong type", "neither text nor a whole number"),
        ('{"k":{}}', "wrong type", "neither text nor a whole number"),
        ('{"k":true}', "wrong type", "neither text nor a whole number"),
        ('{"k":1.5}', "not whole", "neither text nor a whole number"),
        ('{"k":1e3}', "not whole", "neither text nor a whole number"),
        ('{"k":18446744073709551616}', "out of range", "beyond the range of a key"),
        ('{"k":-9223372036854775809}', "out of range", "beyond the range of a key"),
        ('{"k":"\\ud83d"}', "half a surrogate pair", "half a surrogate pair"),
        ('{"k":"\\ud83dx"}', "half a surrogate pair", "half a surrogate pair"),
        ('{"k":"\\ude00\\ud83d"}', "half a surrogate pair", "half a surrogate pair"),
        ('{"k":1,"k":2}', "duplicate name", "has 'k' twice"),
        ("[1]", "no JSON object", "is JSON, but no object"),
        ("null", "no JSON object", "is JSON, but no object"),
    ],
)
def test_a_member_that_is_no_key_is_named_with_its_reason(read, text, reason, part):
    events, (bad,) = read(f'{{"k":"a"}}\n{text}\n{{"k":"b"}}\n'.encode(), format="jsonl", key="k")
    assert ["a", "b"] == [key for key, _ in events]
    assert reason == bad.reason and part in bad.text and "line 2: " in bad.text and 1 == bad.after


def test_numbers_are_keys_as_text_where_that_is_asked_for(read):
    events, _ = read(b'{"k":17}\n{"k":"17"}\n{"k":18446744073709551616}\n', format="jsonl", key="k", key_type="str")
    assert ["17", "17", "18446744073709551616"] == [key for key, _ in events]
    events, (bad,) = read(b'{"k":17}\n{"k":"17"}\n{"k":"x"}\n', format="jsonl", key="k", key_type="int")
    assert [17, 17] == [key for key, _ in events] and "not a number" == bad.reason


def test_a_part_of_a_key_with_the_separator_in_it_is_refused(read):
    events, (bad,) = read(b'{"a":"x\\u001fy","b":"z"}\n', format="jsonl", key="a,b")
    assert not events and "separator in key" == bad.reason


def test_blank_lines_are_no_records(read):
    assert [(None, b"1"), (None, b"2")] == read(b"\n1\n  \t\n\r\n2\n", format="jsonl")[0]
    assert ["not JSON"] == [bad.reason for bad in read(b"\n\f\n", format="jsonl")[1]]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=1, max_size=5), st.booleans(), st.text(max_size=6))
def test_whatever_python_writes_is_accepted_and_its_keys_are_what_python_reads(read, values, ascii, key):
    lines = [json.dumps({"x": value, "k": key, "y": value}, ensure_ascii=ascii).encode() for value in values]
    events, rejected = read(b"\n".join(lines), format="jsonl", key="k", block=256)
    assert [(key, line) for line in lines] == events and not rejected


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('{}[]:,"\\u0123abef-+.eE truefalsn\x00\x1f\x7fé'), min_size=1, max_size=14))
def test_what_python_refuses_is_refused_and_nothing_else(read, text):
    if not text.strip(" \n\r\t") or "\n" in text:
        return
    try:
        json.loads(text, parse_constant=lambda name: json.loads("x"))
        valid = True
    except ValueError:
        valid = False
    events, rejected = read(text.encode() + b"\n", format="jsonl")
    assert (1, 0) == (len(events), len(rejected)) if valid else (0, 1) == (len(events), len(rejected)), text


@pytest.mark.parametrize("again", ["null", "{}", '{"c":2}', "1"])
def test_an_object_that_occurs_twice_on_the_way_to_a_key_is_ambiguous(read, again):
    for first, second in (('{"b":1}', again), (again, '{"b":1}')):
        events, (bad,) = read(f'{{"a":{first},"a":{second}}}'.encode(), format="jsonl", key="a.b")
        assert not events and "duplicate name" == bad.reason and "has 'a.b' twice" in bad.text
    assert [(1, b'{"a":{"b":1},"c":{"a":{}}}')] == read(b'{"a":{"b":1},"c":{"a":{}}}', format="jsonl", key="a.b")[0]
