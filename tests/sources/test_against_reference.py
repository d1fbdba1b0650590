"""Whatever the bytes, the options and the blocks: what comes out is what the reference says (tests/support/formats.py).

SHARDMEM_EXAMPLES (60) makes longer runs.
"""

from __future__ import annotations

import math
import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import formats
from support.formats import Bad

EXAMPLES = settings(
    max_examples=int(os.environ.get("SHARDMEM_EXAMPLES", "60")), deadline=None, suppress_health_check=list(HealthCheck)
)
BYTES = ["a", "b", "é", "😀", "\ufeff", "\0", "\x1f", " ", "\t", "\n", "\n", "\r\n", "\r", *',"\\#-1{[', '""']
WORDS = {
    "lines": ["a b c", "x,y,z"],
    "csv": ["1,2\n", '"a\nb",c\n', '"a ""b""",\r\n', "a,b\r", "#x\n", "1,2,3\n", "x\n"],
    "jsonl": [
        *r"""{"a":1} {"a":{"b": "a": "b" : } [ ] null true 1e3 -0 01 1.5 1. "\ud83d\ude00" "\ud83d" \u0061 \x NaN
        {"a": {"b": 18446744073709551615 18446744073709551616 -9223372036854775809""".split(),
        *['{"a":1,"a":2}\n', '{"b":"x"}\n', '{"a":{"b":1},"a":{}}\n', '{"\\u0061":7}\n', "}\n", " "],
    ],
    "logfmt": [*r"""a=1 b= a="x" a="x\"y\"\u00e9" b="\ud800" a = a=" a=b=c a=x"y""".split(), " "],
    "syslog": [
        *["<34>1 2003-10-11T22:14:15Z host app 7 - - text\n", "<13>Oct 11 22:14:15 host app[9]: text\n"],
        *["2024-01-01T00:00:00 h a: b\n", "Oct 11 22:14:15 ", '[x@1 a="]"]', "host ", "app", "1 ", ": ", "- ", "2 "],
        *"< <191> <192> [x] [ [7]".split(),
    ],
    "combined": ['h - u [t] "GET / H" 200 1', '"GET /a b H"', '"x\\"y"', "[t]", " ", "- ", "h ", "\n", "200 ", *'["'],
}
WORDS["tsv"] = [word.replace(",", "\t") for word in WORDS["csv"]]
VALUES = r"""0 1 -1 +7 7.0 7.5 7e1 -0 -0.0 255 256 65504 65520 16777217 9007199254740993 9007199254740993.0
18446744073709551615
18446744073709551616 -9223372036854775808 1e400 1e-400 5e-324 0.1 1e22 1e23 .5 5. . 1e 0x1 1_0 inf -Infinity nan NA null
NaT
true False no abc abcd é 2024-02-29 2023-02-29 2024-02-29T12:34 2024-02-29T12:34:56+02:00 0000-01-01 2024-02-29T24:00
9999-12-31T23:59:59.999999999 1677-09-21T00:12:43.145224193 2262-04-11T23:47:16.854775808 1.00048828125000000000001 2049
2.5e-8 3e-8 3.4028235677973366e38 123456789012345678901234567890123456789012345
0.000000000000000000000000000000000000000000001""".split()
VALUES += ["", " 1 ", "\t2", "a\0", "2024-02-29 12:34:56.789Z"]
DTYPES = [
    "i1",
    "u1",
    "i4",
    ">i4",
    "u8",
    "i8",
    "f2",
    "f4",
    "f8",
    ">f8",
    "?",
    "S3",
    "U3",
    "M8[D]",
    "M8[h]",
    "M8[s]",
    "M8[ms]",
    "M8[ns]",
    "m8[s]",
]


def check(read, reference, data, block, dtype=None, **options):
    """The events in order with what they are, the rejected with their places."""
    events, rejected = read(data, dtype, block=block, **options)
    good, bad = [], []
    for record, value in reference:
        (bad if isinstance(value, Bad) else good).append((record, value))
    assert [plain(value) for _, value in good] == [plain(event) for event in events]
    assert [(record.offset, record.line) for record, _ in bad] == [
        (each.position.offset, int(each.position.metadata.removeprefix("line "))) for each in rejected
    ]


def plain(value):
    """Equal where the values are, NaN included."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return value


def attempt(what, *arguments):
    try:
        return what(*arguments)
    except Bad as bad:
        return bad


@st.composite
def texts(draw, form):
    pieces = draw(st.lists(st.sampled_from([*BYTES, *WORDS[form] * 3]), max_size=24))
    data = "".join(pieces).encode()
    return data if draw(st.integers(0, 9)) else data[: draw(st.integers(0, len(data)))] + b"\xff" + data[:3]


BLOCKS = st.one_of(st.integers(1, 70), st.just(1 << 20))


def without_mark(data):
    """The mark is none of the text; places count without it."""
    return data.removeprefix(b"\xef\xbb\xbf")


@EXAMPLES
@given(st.sampled_from(["lines", "jsonl", "logfmt", "syslog", "combined"]), st.data())
def test_events_and_keys_of_lines_are_those_of_the_reference(read, form, data):
    text, block = data.draw(texts(form)), data.draw(BLOCKS)
    names = {
        "lines": ["1", "2", "3"], "jsonl": ["a", "a.b", "b"], "logfmt": ["a", "b"],
        "syslog": ["pri", "facility", "severity", "timestamp", "host", "app", "pid", "message"],
        "combined": ["host", "user", "time", "request", "status", "agent", "method", "path", "protocol"],
    }  # fmt: skip
    keys = data.draw(st.lists(st.sampled_from(names[form]), max_size=2, unique=True))
    if {"a", "a.b"} == set(keys):
        keys = ["a.b"]
    key_type = data.draw(st.sampled_from(["auto", "str", "int"][: 3 if len(keys) == 1 else 2]))
    comment = data.draw(st.sampled_from([None, "#"]))
    delimiter = data.draw(st.sampled_from([None, ","])) if form == "lines" else None
    whole = without_mark(text)
    first = min((at for at in (whole.find(b"\r"), whole.find(b"\n")) if at >= 0), default=-1)
    reference = []
    for offset, line, raw in formats.lines_of(whole, first >= 0 and b"\n" not in whole[first:]):
        record = formats.Record(offset, line, raw, None)
        skipped = not raw.strip(b" \t\r") if form == "jsonl" else not raw and form != "lines"
        if not skipped and not (comment and raw.startswith(b"#")):
            reference.append((record, attempt(event_of, raw, form, keys, key_type, delimiter)))
    check(
        read,
        reference,
        text,
        block,
        format=form,
        key=",".join(keys),
        key_type=key_type,
        comment=comment,
        delimiter=delimiter,
    )


def event_of(raw, form, keys, key_type, delimiter):
    if form == "jsonl":
        found = formats.json_fields(raw, [tuple(key.split(".")) for key in keys])
        values = [found.get(number) for number in range(len(keys))]
    elif not keys:
        values = []
    elif form == "lines":
        found = formats.line_fields(raw, None if delimiter is None else delimiter.encode())
        values = [found.get(int(key) - 1) for key in keys]
    else:
        found = getattr(formats, f"{form}_fields")(raw)
        values = [found.get(key.encode() if form == "logfmt" else key) for key in keys]
    if raw.startswith(b"\xef\xbb\xbf") and any(value and value[1].startswith(b"\xef\xbb\xbf") for value in values):
        raise Bad("byte order mark")
    return (formats.key_of(values, key_type) if keys else None), raw


@EXAMPLES
@given(st.data())
def test_events_and_keys_of_csv_are_those_of_the_reference(read, data):
    form = data.draw(st.sampled_from(["csv", "csv", "tsv"]))
    body, block = data.draw(texts(form)), data.draw(BLOCKS)
    delimiter = b"\t" if form == "tsv" else b","
    quote = None if form == "tsv" else data.draw(st.sampled_from([b'"', b'"', b"-", None]))
    comment = data.draw(st.sampled_from([None, "#"]))
    header = data.draw(
        st.sampled_from([b"x%sy\n", b"\r\nx%sy\r\n", b"x%sy\r", b"#n\nx%sy\n" if comment else b"\nx%sy\n"])
    )
    header = header.replace(b"%s", delimiter)
    key = data.draw(st.sampled_from(["", "x", "y", "y,x"]))
    whole = header + body
    options = {"quote": "none" if quote is None else quote.decode()} if form == "csv" else {}
    records = formats.csv_records(whole, delimiter, quote, None if comment is None else b"#")
    reference = [(record, attempt(csv_event, record, key)) for record in records[1:]]
    check(read, reference, whole, block, format=form, key=key, comment=comment, **options)


def csv_event(record, key):
    if record.fields is None or len(record.fields) != 2:
        raise Bad("number of fields")
    values = [record.fields["xy".index(each)] for each in key.split(",") if each]
    if record.raw.startswith(b"\xef\xbb\xbf") and "x" in key:
        raise Bad("byte order mark")
    return (formats.key_of(values, "auto") if values else None), record.raw


@EXAMPLES
@given(
    st.lists(st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES)), min_size=1, max_size=8),
    st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    BLOCKS,
)
def test_fields_of_csv_become_the_values_of_the_reference(read, rows, dtypes, block):
    dtype = [("f", dtypes[0]), ("g", dtypes[1])]
    data = b"g,f\n" + b"".join(f'"{g}","{f}"\n'.encode() for f, g in rows)
    reference, offset = [], 4
    for line, (f, g) in enumerate(rows):
        raw = f'"{g}","{f}"'.encode()
        reference.append(
            (formats.Record(offset, line + 2, raw, None), attempt(row_of, [("text", f), ("text", g)], dtypes))
        )
        offset += len(raw) + 1
    check(read, reference, data, block, dtype, format="csv")


JSON_VALUES = [f'"{value}"' for value in VALUES if value not in ("a\0", "\t2")]
JSON_VALUES += r"""null true false [] {} "\ud800" "\u0000" 0 1 -1 7.0 7.5 7e1 -0 -0.0 256 9007199254740993
18446744073709551616 1e400 0.1 5e-324 1e23 2049""".split()


@EXAMPLES
@given(
    st.lists(st.tuples(st.sampled_from(JSON_VALUES), st.sampled_from(JSON_VALUES)), min_size=1, max_size=8),
    st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    BLOCKS,
)
def test_members_of_json_become_the_values_of_the_reference(read, rows, dtypes, block):
    dtype, data, reference = [("f", dtypes[0]), ("g", dtypes[1])], b"", []
    for line, (f, g) in enumerate(rows):
        raw = f'{{"g":{g},"x":0,"f":{f}}}'.encode()
        found = formats.json_fields(raw, [("f",), ("g",)])
        reference.append(
            (formats.Record(len(data), line + 1, raw, None), attempt(row_of, [found[0], found[1]], dtypes))
        )
        data += raw + b"\n"
    check(read, reference, data, block, dtype, format="jsonl")


def row_of(values, dtypes):
    return tuple(
        formats.value_of(what, data if isinstance(data, bytes) else data.encode(), np.dtype(dtype))
        for (what, data), dtype in zip(values, dtypes, strict=True)
    )
