"""Lines, and log formats of lines: the bytes of an event are those that were there."""

from __future__ import annotations

import codecs
import gzip
import zlib

import pytest

from shardmem.errors import ConfigError
from shardmem.sources.contract import SourceError
from shardmem.sources.files.options import FileOptions


def test_a_line_is_its_bytes_without_one_line_end(read):
    assert read(b"abc\r\r\r\n\n\xff\x00\r\nlast")[0] == [
        (None, b"abc\r\r"),
        (None, b""),
        (None, b"\xff\x00"),
        (None, b"last"),
    ]


@pytest.mark.parametrize("block", [256, 1 << 10, 1 << 20])
def test_lines_are_the_same_whatever_the_block(read, block):
    lines = [b"x" * (i * 7 % 700) for i in range(3000)]
    events, rejected = read(b"\n".join(lines) + b"\n", block=block)
    assert [(None, line) for line in lines] == events and not rejected


def test_more_records_than_one_scan_takes_are_all_there(read):
    events, _ = read(b"\n" * 100_000)
    assert 100_000 == len(events) and 100_000 == read.bytes


def test_bytes_count_everything_that_was_in_the_file(read):
    data = b"\xef\xbb\xbf# no\r\n\r\na,b\r\n1,2\r\n\r\n1\r\n\r\n"
    read(data, format="csv", comment="#")
    assert len(data) == read.bytes


def test_the_key_of_a_line_is_a_field_by_number(read):
    assert [("b", b"a  b\tc"), ("d", b" c d")] == read(b"a  b\tc\n c d\n", key="2")[0]
    assert [("b", b"a|b|")] == read(b"a|b|\n", key="2", delimiter="|")[0]
    assert [("", b"a||b")] == read(b"a||b\n", key="2", delimiter="|")[0]
    assert [("b", b"a\tb")] == read(b"a\tb\n", key="2", delimiter="\\t")[0]
    assert [("b\x1fa", b"a b")] == read(b"a b\n", key="2,1")[0]


def test_a_blank_line_is_an_event_and_where_a_key_is_wanted_it_has_none(read):
    events, (bad,) = read(b"a\n\n", key="1")
    assert [("a", b"a")] == events and ("missing field", 1) == (bad.reason, bad.after)
    assert bad.text.endswith("line 2: has no field number 1")


def test_a_key_that_is_no_utf8_is_kept_as_it_is(read):
    assert [("\udcffx", b"\xffx 1")] == read(b"\xffx 1\n", key="1")[0]


def test_a_key_is_text_or_a_number_as_is_asked_for(read):
    events, rejected = read(
        b"17\n-9223372036854775808\n18446744073709551615\n18446744073709551616\n1.5\n", key="1", key_type="int"
    )
    assert [17, -(2**63), 2**64 - 1] == [key for key, _ in events]
    assert ["out of range", "not a number"] == [bad.reason for bad in rejected]


@pytest.mark.parametrize("key", ["²", "0", "a", "-1", "1.5", "99999999999"])
def test_a_key_of_lines_is_a_number_from_1(key):
    with pytest.raises(ConfigError, match="of lines the key is a field number from 1"):
        FileOptions.of(key=key)


@pytest.mark.parametrize("delimiter", ["||", "", "é", "\n"])
def test_a_delimiter_is_one_byte(delimiter):
    with pytest.raises(ConfigError, match="delimiter"):
        FileOptions.of(format="csv", delimiter=delimiter)


@pytest.mark.parametrize("given", [{"delimiter": ","}, {"quote": "'"}, {"header": False}, {"columns": "a"}])
def test_an_option_that_means_nothing_to_the_format_is_refused(given):
    with pytest.raises(ConfigError):
        FileOptions.of(format="jsonl", **given)


def test_a_byte_order_mark_is_no_part_of_the_first_line(read):
    assert [("u1", b"u1 x"), ("u1", b"u1 y")] == read(b"\xef\xbb\xbfu1 x\nu1 y\n", key="1")[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_known_by_its_mark(read, encoding):
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    assert [(None, "é1".encode()), (None, b"b")] == read(mark + "é1\r\nb".encode(encoding))[0]


def test_another_encoding_is_named(read):
    assert [(None, "é".encode())] == read("é\n".encode("latin-1"), encoding="latin-1")[0]
    for none in ("nonsense", "hex", "rot13"):
        with pytest.raises(ConfigError, match="is not known as one of text"):
            FileOptions.of(encoding=none)


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize(
    "encoding, data, fault, payloads",
    [
        ("ascii", b"a\nb\nc", b"\xff\nd\n", ["a", "b"]),
        ("utf-16-le", "a\né\nc".encode("utf-16-le"), b"\x00\xdc\x0a\x00", ["a", "é"]),
        ("utf-16", b"\xff\xfe" + "a\né\nc".encode("utf-16-le"), b"\x00\xdc\x0a\x00", ["a", "é"]),
        ("shift_jis", "日\n本\nc".encode("shift_jis"), b"\x81\xff\nd\n", ["日", "本"]),
        ("utf-16-le", "a\nb\nc".encode("utf-16-le"), b"x", ["a", "b"]),
        ("ascii", b"a\n" * 5000 + b"c", b"\xff\n" * 5000, ["a"] * 5000),
    ],
)
def test_what_comes_before_bytes_that_are_not_of_the_encoding_is_events(read, encoding, data, fault, payloads, block):
    events, (bad,) = read(data + fault, encoding=encoding, block=block)
    assert payloads == [payload.decode() for _, payload in events]
    assert f"line {len(events) + 1}: cannot be decoded: at byte {len(data):,} of the file" in bad.text
    assert ("cannot be decoded", b"c") == (bad.reason, bad.data)


def test_a_mark_is_no_part_of_the_text_where_the_encoding_is_named(read):
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-8"):
        assert [(None, b"a"), (None, "é".encode())] == read("\ufeffa\né".encode(encoding), encoding=encoding)[0]


def test_a_mark_behind_the_beginning_is_no_part_of_a_key_and_stays_in_a_payload(read):
    data = "u1 x\n\ufeffu1 y\nu2\ufeff\n".encode()
    assert data.splitlines() == [payload for _, payload in read(data)[0]]
    assert ["x", "y"] == [key for key, _ in read(data[:-6], key="2")[0]]
    events, (bad,) = read(data, key="1")
    assert ["u1", "u2\ufeff"] == [key for key, _ in events] and ("byte order mark", 1) == (bad.reason, bad.after)
    assert "line 2: begins with a byte order mark, which would be part of '1'" in bad.text
    events, (bad,) = read("k,v\na,1\n\ufeffa,2\n".encode(), [("k", "U4"), ("v", "u1")], format="csv")
    assert [("a", 1)] == events and "field k: begins with a byte order mark" in bad.text


def test_gzip_is_known_by_its_first_bytes_and_members_follow_each_other(read):
    packed = gzip.compress(b"a\nb\n") + gzip.compress(b"c\n")
    assert [b"a", b"b", b"c"] == [payload for _, payload in read(packed)[0]]
    packed = gzip.compress(b"a\nb\n") + bytes(900) + gzip.compress(b"c\n") + bytes(9)
    assert [b"a", b"b", b"c"] == [payload for _, payload in read(packed)[0]]


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_what_comes_before_a_fault_of_compressed_data_is_events_and_half_a_record_is_none(read, block):
    lines = [b"line %d" % i for i in range(20_000)]
    packed = gzip.compress(b"\n".join(lines) + b"\nhalf")
    events, (bad,) = read(packed + b"garbage", block=block)  # which is behind what was compressed, and that is complete
    assert [*lines, b"half"] == [payload for _, payload in events]
    assert ("cannot be decoded", b"") == (bad.reason, bad.data)
    events, (bad,) = read(packed + b"\x1f\x8bx", block=block)
    assert lines == [payload for _, payload in events]
    assert ("cannot be decoded", b"half") == (bad.reason, bad.data)
    assert f"line 20001: cannot be decoded: at byte {len(packed)} of the file" in bad.text.replace(",", "")
    events, (bad,) = read(packed[:-12])
    assert lines[: len(events)] == [payload for _, payload in events] and len(events) > 19_000
    assert "the compressed data ends too early" in bad.text
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 255
    events, rejected = read(bytes(broken), block=block)
    assert lines[:1000] == [payload for _, payload in events][:1000] and "cannot be decoded" == rejected[-1].reason


def test_a_header_that_cannot_be_decoded_is_an_error(read):
    with pytest.raises(SourceError, match="cannot be decoded: at byte 3 of the file"):
        read(b"a,b\xff\n1,2\n", format="csv", encoding="ascii")
    events, (bad,) = read(b"a,b\n1,2\n3,4\xff\n", format="csv", encoding="ascii", key="a")
    assert [("1", b"1,2")] == events and b"3,4" == bad.data


def test_zstd_is_known_by_its_first_bytes(read):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(b"a\nb\n")
    events, (bad,) = read(zstandard.ZstdCompressor().compress(b"a\nb") + b"garbage")
    assert [b"a", b"b"] == [payload for _, payload in events] and b"" == bad.data
    events, (bad,) = read(packed + b"garbage")
    assert [b"a", b"b"] == [payload for _, payload in events]
    assert f"cannot be decoded: at byte {len(packed)} of the file" in bad.text
    events, (bad,) = read(packed[:-1])
    assert "cannot be decoded" == bad.reason and "ends too early" in bad.text
    assert [b"a", b"b", b"c", b"c"] == [
        payload for _, payload in read(packed + zstandard.ZstdCompressor().compress(b"c\nc\n"))[0]
    ]


def test_a_line_longer_than_half_a_lane_is_named_and_those_around_it_are_events(read):
    events, (bad,) = read(b"a\n" + b"x" * 300_000 + b"\nb\n", most=100_000, block=1 << 12)
    assert [(None, b"a"), (None, b"b")] == events
    assert "line 2: has 300,000 bytes; half a lane holds at most 100,000" in bad.text and 2 == bad.position.offset


def test_a_line_that_its_key_makes_too_long_is_too_long(read):
    events, (bad,) = read(b"x" * 60 + b"\n", key="1", most=100)
    assert not events and "too long" == bad.reason


def test_a_file_without_a_line_end_is_one_event_or_one_too_long(read):
    assert [(None, bytes(90))] == read(bytes(90), most=90)[0]
    events, (bad,) = read(bytes(1_000_000), most=90)
    assert not events and "has 1,000,000 bytes" in bad.text


def test_comments_and_first_lines_are_left_out(read):
    assert [(None, b"b")] == read(b"a\n#x\nb\n", skip_lines=1, comment="#")[0]
    assert [("1", b"1,2")] == read(b"title\n#x\na,b\n1,2\n#y\n", format="csv", key="a", skip_lines=1, comment="#")[0]


def test_the_name_of_a_file_may_be_the_key(read):
    assert [("b.log", b"x"), ("b.log", b"y")] == read(b"x\ny\n", name="b.log", key_from_name=True)[0]


LOGFMT = b'at=info msg="a \\"q\\" \\u00e9" user=bob debug\n'
SYSLOG = [
    b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su 12 ID47 [x@1 a=\"b]\\]\"][y] 'su root' failed",
    b"<13>Feb  5 17:32:18 10.0.0.99 cron[42]: job",
    b"2024-03-01T10:00:00.123456+01:00 host systemd[1]: Started",
    b"Oct 11 22:14:15 host kernel: oops",
]
COMBINED = (
    b'1.2.3.4 - bob [10/Oct/2000:13:55:36 -0700] "GET /a b?c HTTP/1.0" 200 23 "http://r/" "Moz \\"x\\" (y)" "more"'
)


@pytest.mark.parametrize(
    "form, line, key, expected",
    [
        ("logfmt", LOGFMT, "msg", 'a "q" é'),
        ("logfmt", LOGFMT, "user", "bob"),
        ("logfmt", LOGFMT, "debug", ""),
        ("syslog", SYSLOG[0], "app", "su"),
        ("syslog", SYSLOG[0], "facility,severity", "4\x1f2"),
        ("syslog", SYSLOG[0], "message", "'su root' failed"),
        ("syslog", SYSLOG[1], "timestamp", "Feb  5 17:32:18"),
        ("syslog", SYSLOG[1], "host,app,pid", "10.0.0.99\x1fcron\x1f42"),
        ("syslog", SYSLOG[2], "app", "systemd"),
        ("syslog", SYSLOG[2], "timestamp", "2024-03-01T10:00:00.123456+01:00"),
        ("syslog", SYSLOG[3], "message", "oops"),
        ("combined", COMBINED, "host", "1.2.3.4"),
        ("combined", COMBINED, "path", "/a b?c"),
        ("combined", COMBINED, "method,status", "GET\x1f200"),
        ("combined", COMBINED, "time", "10/Oct/2000:13:55:36 -0700"),
        ("combined", COMBINED, "agent", 'Moz \\"x\\" (y)'),
        ("combined", COMBINED[: COMBINED.index(b' "http')], "bytes", "23"),
    ],
)
def test_log_formats_have_fields_by_name_and_the_line_as_payload(read, form, line, key, expected):
    line = line.rstrip(b"\n")
    assert [(expected, line)] == read(line + b"\n", format=form, key=key)[0]


@pytest.mark.parametrize(
    "form, line, key",
    [
        ("logfmt", b"=x", "a"),
        ("logfmt", b'a="b', "a"),
        ("logfmt", b'a="b"c', "a"),
        ("syslog", b"not a log", "host"),
        ("syslog", b"<999>Oct 11 22:14:15 host a: b", "host"),
        ("syslog", b"<34>1 2003-10-11T22:14:15.003Z host app 12 ID47 [x", "host"),
        ("combined", b"words", "host"),
        ("combined", b'1.2.3.4 - - [x] "GET /', "host"),
    ],
)
def test_a_line_that_is_not_of_its_format_is_named(read, form, line, key):
    events, (bad,) = read(line + b"\n", format=form, key=key)
    assert not events and f"line 1: is not {form}" in bad.text and "not of the format" == bad.reason


def test_decompressing_never_takes_more_memory_than_a_block_at_a_time(read):
    bomb = zlib.compressobj(9, wbits=31)
    packed = bomb.compress(bytes(50 << 20)) + bomb.flush()
    events, (bad,) = read(packed)
    assert not events and "52,428,800 bytes" in bad.text


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_lines_that_end_with_cr_alone_are_events_of_their_own(read, block):
    assert [("a", b"a 1"), ("b", b"b"), ("c", b"c")] == read(b"a 1\rb\rc", key="1", block=block)[0]
    assert [(1, b'{"a":1}'), (2, b'{"a":2}')] == read(b'{"a":1}\r{"a":2}\r', format="jsonl", key="a", block=block)[0]
    events, rejected = read(b"a=1\rb\ra=3\r", format="logfmt", key="a", block=block)
    assert [("1", b"a=1"), ("3", b"a=3")] == events and [2] == [int(bad.position.metadata[5:]) for bad in rejected]
    assert [(None, b"2")] == read(b"1\r2\r", skip_lines=1, block=block)[0]
    events, _ = read(b"x" * 9 + b"\r" * 70_000 + b"a\nb\r\nc\r", block=block)
    assert [(None, b"x" * 9), (None, b"a"), (None, b"b"), (None, b"c")] == [each for each in events if each[1]]


def test_a_bar_that_was_drawn_with_cr_is_one_line(read):
    bar = b"".join(b"%d %%\r" % i for i in range(100))
    assert [(None, bar + b"done"), (None, b"next")] == read(bar + b"done\nnext\n", block=16)[0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_refused_and_not_taken_for_lines(read, encoding):
    data = "a 1\nb 2\n".encode(encoding)
    with pytest.raises(SourceError, match=f"looks like {encoding.upper()} without its mark: --encoding {encoding}"):
        read(data)
    assert [(None, b"a 1"), (None, b"b 2")] == read(data, encoding=encoding)[0]
    assert data == b"\n".join(payload for _, payload in read(data, encoding="utf-8")[0]) + b"\n" * data.endswith(b"\n")
    assert [(None, b"a\0b"), (None, b"\0 c")] == read(b"a\0b\n\0 c\n")[0]


def test_a_delimiter_is_not_the_quote():
    with pytest.raises(ConfigError, match="delimiter and quote are the same byte"):
        FileOptions.of(format="csv", delimiter='"')
    FileOptions.of(format="csv", delimiter='"', quote="none")
