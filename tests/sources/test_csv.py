"""CSV: records and fields are those of Python's reader; what is no CSV is named with its lines."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardmem.errors import ConfigError
from shardmem.sources.files.formats import split_record


def test_quotes_and_line_breaks_in_fields_are_part_of_the_event_and_of_the_key(read):
    events, rejected = read(b'k,v\r\n"a,\r\n""b""",2\r\n"",3\r\n', format="csv", key="k")
    assert [('a,\r\n"b"', b'"a,\r\n""b""",2'), ("", b'"",3')] == events and not rejected


@pytest.mark.parametrize("block", [*range(1, 24), 1 << 20])
@pytest.mark.parametrize(
    "ends", [["\n"], ["\r\n"], ["\r"], ["\r", "\n"], ["\r\n", "\r", "\n"], ["\n", "\r\n", "\r", "\r\n"]]
)
def test_records_end_with_any_line_end_and_with_several_in_one_file(read, ends, block):
    records = ["a,b", "1,2", '3,"4\n\r\r\n"', "bad", "5,6"]
    data = "".join(record + ends[i % len(ends)] for i, record in enumerate(records)).encode()
    events, (bad,) = read(data, format="csv", key="b", block=block)
    assert [("2", b"1,2"), ("4\n\r\r\n", records[2].encode()), ("6", b"5,6")] == events
    assert bad.text.endswith("line 7: has 1 field, the header 2") and data.index(b"bad") == bad.position.offset


@pytest.mark.parametrize("block", [300, 1000, 1 << 20])
def test_a_quoted_field_beyond_128_kib_is_one_record_in_blocks_of_any_size(read, block):
    inside = "".join(f"{i},inside the text of record 2\n" for i in range(6000))
    data = f'id,text\n1,a\n2,"{inside}"\n3,c\n'.encode()
    events, rejected = read(data, format="csv", key="id", block=block)
    assert ["1", "2", "3"] == [key for key, _ in events] and not rejected
    assert f'2,"{inside}"'.encode() == events[1][1]


def test_an_unclosed_quote_says_where_it_began_and_how_many_lines_it_swallowed(read):
    data = b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 1000
    events, (bad,) = read(data, format="csv")
    assert [(None, b"1,2")] == events
    assert "lines 3 to 1003: a quote opens in field 2 and never closes: the rest of the file, 1,001 lines" in bad.text


def test_an_unclosed_quote_in_a_large_file_is_found_in_little_memory(read):
    events, (bad,) = read(b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 300_000, format="csv", most=10_000, block=1 << 12)
    assert [(None, b"1,2")] == events and "unclosed quote" == bad.reason and "lines 3 to 300003" in bad.text


def test_text_after_a_closing_quote_is_named(read):
    events, (bad,) = read(b'a,b\n"1"x,2\n3,4\n', format="csv")
    assert [(None, b"3,4")] == events and "line 2: field 1 goes on after its closing quote: 'x,2'" in bad.text


def test_another_number_of_fields_than_the_header_is_named(read):
    events, rejected = read(b"a,b\n1\n1,2,3\n1,2\n\n", format="csv")
    assert [(None, b"1,2")] == events
    assert ["has 1 field, the header 2", "has 3 fields, the header 2"] == [
        bad.text.partition(": ")[2] for bad in rejected
    ]


@pytest.mark.parametrize("data", [b"\n\na,b\n1,2\n", b"\r\n\r\na,b\r\n1,2\r\n", b"a,b\n\n1,2\n\n\n"])
def test_blank_lines_are_neither_header_nor_events(read, data):
    assert [("1", b"1,2")] == read(data, format="csv", key="a")[0]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("header", [b'"a","b"', b"a,b", b'"a","b, or\nc"'])
def test_a_header_may_be_quoted_and_have_a_mark_before_it(read, mark, header):
    assert [("1", b"1,2")] == read(mark + header + b"\n1,2\n", format="csv", key="a")[0]


def test_a_header_that_is_no_csv_is_an_error_that_names_it(read):
    with pytest.raises(ConfigError, match="line 1: the header goes on after a closing quote"):
        read(b'"a" ,"b"\n1,2\n', format="csv")
    assert [("2", b"1,2")] == read(b'"a" ,"b"\n1,2\n', format="csv", quote="none", key='"b"')[0]


def test_a_wanted_column_that_occurs_twice_or_not_at_all_is_an_error(read):
    with pytest.raises(ConfigError, match="2 columns of the name a; say which by its number, 1 or 3"):
        read(b"a,b,a\n1,2,3\n", format="csv", key="a")
    assert [("3", b"1,2,3")] == read(b"a,b,a\n1,2,3\n", format="csv", key="3")[0]
    with pytest.raises(ConfigError, match="no column x; its columns are a, b"):
        read(b"a,b\n1,2\n", format="csv", key="x")
    with pytest.raises(ConfigError, match="2 columns of the name k"):
        read(b"k,k\n1,2\n", [("k", "u8")], format="csv")


def test_without_a_header_columns_have_numbers_or_the_names_that_are_given(read):
    assert [("2", b"1,2"), ("4", b"3,4")] == read(b"1,2\n3,4\n", format="csv", header=False, key="2")[0]
    assert [("2", b"1,2")] == read(b"1,2\n", format="csv", header=False, columns="x,y", key="y")[0]
    assert [(1, 2)] == read(b"2,1\n", [("y", "u1"), ("x", "u1")], format="csv", header=False, columns="x,y")[0]
    with pytest.raises(ConfigError, match="has 2 columns, --columns names 3"):
        read(b"1,2\n", format="csv", header=False, columns="x,y,z")


def test_tab_separated_values_have_no_quotes(read):
    assert [('"b', b'a\t"b')] == read(b'x\ty\na\t"b\n', format="tsv", key="y")[0]
    assert [("b'c", b"'b''c';1")] == read(b"x;y\n'b''c';1\n", format="csv", quote="'", delimiter=";", key="x")[0]


def test_an_empty_file_has_no_events(read):
    assert ([], []) == read(b"", format="csv", key="a") == read(b"\n\n", format="csv", key="a")


CELL = st.text(st.sampled_from('ab",\n\r é'), max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]))
@example([["a\r", "b"], ["\r", ""]], "\n")
def test_what_a_writer_wrote_is_read_as_it_was(read, rows, ends):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=ends, quoting=csv.QUOTE_ALL)
    writer.writerow(["k", "v"])
    writer.writerows(rows)
    for key, number in (("k", 0), ("v", 1)):
        for block in (64, 1 << 16):
            events, rejected = read(out.getvalue().encode(), format="csv", key=key, block=block)
            assert [row[number] for row in rows] == [got for got, _ in events] and not rejected
            split = [split_record(payload, ord(","), ord('"')) for _, payload in events]
            assert rows == [[field.decode() for field in fields] for fields in split]
