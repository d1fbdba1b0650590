"""What each format and each conversion means, written plainly and slowly: the reference for the scanner in C. Where
Python has a reader of the format, the reference is that one."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np

BLANK = re.compile(rb"[ \t-\r]+")
KEY_MIN, KEY_MAX = -(2**63), 2**64 - 1


class Bad(Exception):
    """No record of the format, or no value of the kind."""


@dataclass
class Record:
    offset: int
    line: int
    raw: bytes
    fields: dict[Any, tuple[str, bytes]] | None  # name or number -> (what it is, its bytes); None: no record
    closed: bool = True


# ---- records ------------------------------------------------------------------------------------------


def lines_of(data: bytes, cr: bool) -> list[tuple[int, int, bytes]]:
    """(offset, line number, line)."""
    ends = re.compile(rb"[\r\n]" if cr else rb"\r?\n")
    found, at, number = [], 0, 1
    for end in ends.finditer(data):
        found.append((at, number, data[at : end.start()]))
        at, number = end.end(), number + 1
    return found + ([(at, number, data[at:])] if at < len(data) else [])


def csv_records(data: bytes, delimiter: bytes, quote: bytes | None, comment: bytes | None) -> list[Record]:
    """Records between line ends that are not in quotes. The fields of one that is well-formed are those of Python's
    reader."""
    found, at, line = [], 0, 1
    while at < len(data):
        start, first = at, line
        if comment is not None and data.startswith(comment, at):
            end = re.compile(rb"\r\n|\r|\n|\Z").search(data, at)
            assert end is not None
            at, line = end.end(), line + 1
            continue
        fresh, quoted, good = True, False, True
        while at < len(data):
            byte = data[at : at + 1]
            if quoted:
                if byte == quote and data[at + 1 : at + 2] == quote:
                    at += 1
                elif byte == quote:
                    quoted = False
                    good &= data[at + 1 : at + 2] in (delimiter, b"\r", b"\n", b"")
                line += byte == b"\n" or (byte == b"\r" and data[at + 1 : at + 2] != b"\n")
            elif byte in (b"\r", b"\n"):
                break
            elif byte == quote and fresh:
                quoted = True
            fresh = not quoted and byte == delimiter
            at += 1
        raw = data[start:at]
        if not quoted:
            at, line = at + len(data[at : at + 2] if data[at : at + 2] == b"\r\n" else data[at : at + 1]), line + 1
        if raw:
            fields = _row(raw, delimiter, quote) if good and not quoted else None
            found.append(Record(start, first, raw, fields, not quoted))
    return found


def _row(raw: bytes, delimiter: bytes, quote: bytes | None) -> dict[Any, tuple[str, bytes]]:
    text = io.StringIO(raw.decode("latin-1"), newline="")
    options: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if quote is None else {"quotechar": quote.decode()}
    (row,) = csv.reader(text, delimiter=delimiter.decode(), strict=True, **options)
    return {number: ("text", field.encode("latin-1")) for number, field in enumerate(row)}


def line_fields(raw: bytes, delimiter: bytes | None) -> dict[Any, tuple[str, bytes]]:
    parts = [each for each in BLANK.split(raw) if each] if delimiter is None else raw.split(delimiter)
    return {number: ("text", part) for number, part in enumerate(parts)}


def json_fields(raw: bytes, paths: list[tuple[str, ...]]) -> dict[Any, tuple[str, bytes]]:
    """The members by their paths. Raises Bad."""
    pairs = _Pairs
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_Number, parse_int=_Number
        )
    except (ValueError, RecursionError):
        raise Bad("not JSON") from None
    if paths and not isinstance(value, pairs):
        raise Bad("no JSON object")
    found: dict[Any, tuple[str, bytes]] = {}
    for number, path in enumerate(paths):
        at: Any = value
        for name in path:
            matches = [member for key, member in at if key == name] if isinstance(at, pairs) else []
            if len(matches) > 1:
                raise Bad("duplicate name")
            if not matches:
                break
            at = matches[0]
        else:
            found[number] = _json_value(at)
    return found


class _Pairs(list):  # type: ignore[type-arg]
    """The members of an object."""


class _Number(str):
    """A number as it is written."""


def _refuse(_: str) -> Any:
    raise ValueError


def _json_value(value: Any) -> tuple[str, bytes]:
    if isinstance(value, _Number):
        return "number", value.encode()
    if isinstance(value, str):
        try:
            return "string", value.encode()
        except UnicodeEncodeError:
            return "broken", b""
    names = {True: "true", False: "false", None: "null"}
    return ("nested" if isinstance(value, list) else names[value]), b""


LOGFMT = re.compile(
    rb'([^ \t-\r="]+)'
    rb'(?:="((?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)"(?=[ \t-\r]|\Z)|=(?!")([^ \t-\r]*)|(?![="]))'
)


def logfmt_fields(raw: bytes) -> dict[Any, tuple[str, bytes]]:
    found: dict[Any, tuple[str, bytes]] = {}
    at = 0
    while True:
        blank = BLANK.match(raw, at)
        at = blank.end() if blank else at
        if at == len(raw):
            return found
        if not (match := LOGFMT.match(raw, at)):
            raise Bad("not of the format")
        value = match[3] or b""
        if match[2] is not None:
            try:
                text = json.loads(b'"' + match[2] + b'"')
                value = text.encode()
            except UnicodeEncodeError:
                value = None  # type: ignore[assignment]
            except ValueError:
                raise Bad("not UTF-8") from None
        if match[1] in found:
            found[match[1]] = "twice", b""
        else:
            found[match[1]] = ("broken", b"") if value is None else ("text", value)
        at = match.end()


COMBINED = re.compile(rb'"((?:[^"\\]|\\.)*)"|\[([^\]]*)\]|((?!["\[])[^ ]*)', re.S)


def combined_fields(raw: bytes) -> dict[Any, tuple[str, bytes]]:
    found: dict[Any, tuple[str, bytes]] = {}
    names, at = ("host", "ident", "user", "time", "request", "status", "bytes", "referer", "agent"), 0
    for name in names:
        if at >= len(raw):
            break
        if not (match := COMBINED.match(raw, at)):
            raise Bad("not of the format")
        found[name] = "text", next(each for each in match.groups() if each is not None)
        at = match.end()
        if raw[at : at + 1] not in (b" ", b""):
            raise Bad("not of the format")
        at += 1
    if len(found) < 7:
        raise Bad("not of the format")
    method, blank, rest = found["request"][1].partition(b" ")
    if blank:
        path, blank, protocol = rest.rpartition(b" ")
        found |= {"method": ("text", method), "path": ("text", path if blank else rest)}
        found |= {"protocol": ("text", protocol)} if blank else {}
    return found


SYSLOG_NEW = re.compile(
    rb"(?P<timestamp>[^ ]*) (?P<host>[^ ]*) (?P<app>[^ ]*) (?P<pid>[^ ]*) (?P<msgid>[^ ]*) "
    rb'(?:-|(?:\[(?:[^\]"\\]|\\.|"(?:[^"\\]|\\.)*")*\])*)(?: (?P<message>.*))?\Z', re.S
)  # fmt: skip
SYSLOG_OLD = re.compile(
    rb"(?P<timestamp>.{3} .{5}:..:.. |[0-9][^ ]* )(?P<host>[^ ]*) (?P<app>[^:\[ ]*)(?:\[(?P<pid>[^\]]*)\])?:? ?"
    rb"(?P<message>.*)\Z", re.S
)  # fmt: skip


def syslog_fields(raw: bytes) -> dict[Any, tuple[str, bytes]]:
    found = {}
    if raw.startswith(b"<"):
        match = re.match(rb"<([0-9]{1,3})>", raw)
        if not match or int(match[1]) > 191:
            raise Bad("not of the format")
        facility, severity = divmod(int(match[1]), 8)
        found = {"pri": match[1], "facility": b"%d" % facility, "severity": b"%d" % severity}
        raw = raw[match.end() :]
        if raw.startswith(b"1 "):
            if not (match := SYSLOG_NEW.match(raw, 2)):
                raise Bad("not of the format")
            found |= {**match.groupdict(), "message": match["message"] or b""}
            return {name: ("text", value) for name, value in found.items()}
    if not (match := SYSLOG_OLD.match(raw)):
        raise Bad("not of the format")
    found |= {name: value for name, value in match.groupdict().items() if value is not None}
    found["timestamp"] = found["timestamp"][:-1]
    return {name: ("text", value) for name, value in found.items()}


# ---- keys ------------------------------------------------------------------------------------------


def key_of(values: list[tuple[str, bytes] | None], key_type: str) -> Any:
    """Raises Bad."""
    for value in values:
        if value is None:
            raise Bad("missing field")
        what, data = value
        if what not in ("text", "string", "number"):
            raise Bad(
                {"null": "null", "broken": "half a surrogate pair", "twice": "duplicate name"}.get(what, "wrong type")
            )
        whole = re.fullmatch(rb"-?[0-9]+", data)
        if what == "number" and key_type == "auto" and len(values) == 1 and not whole:
            raise Bad("not whole")
    if len(values) > 1:
        if any(b"\x1f" in value[1] for value in values if value):
            raise Bad("separator in key")
        return b"\x1f".join(value[1] for value in values if value).decode(errors="surrogateescape")
    assert values[0] is not None
    what, data = values[0]
    if key_type == "int" or (key_type == "auto" and what == "number"):
        if not re.fullmatch(rb"[+-]?[0-9]+", data):
            raise Bad("not a number")
        if not KEY_MIN <= int(data) <= KEY_MAX:
            raise Bad("out of range")
        return int(data)
    return data.decode(errors="surrogateescape")


# ---- values ------------------------------------------------------------------------------------------

ABSENT = (b"", b"NA", b"NaN", b"nan", b"null", b"NaT")
SCALES = {
    "D": Fraction(1, 86400),
    "h": Fraction(1, 3600),
    "m": Fraction(1, 60),
    "s": 1,
    "ms": 10**3,
    "us": 10**6,
    "ns": 10**9,
}


def value_of(what: str, data: bytes, dtype: np.dtype) -> Any:
    """As an array of that dtype says it with tolist. Raises Bad."""
    kind, text = dtype.kind, data.strip(b" \t")
    if what == "broken":
        raise Bad("half a surrogate pair")
    allowed = {"string": "SUM", "number": "iufbMm", "true": "b", "false": "b", "null": "fMm", "nested": ""}
    if what != "text" and kind not in allowed[what]:
        raise Bad("null" if what == "null" else "wrong type")
    if kind in "fMm" and (what == "null" or (what == "text" and text in ABSENT)):
        return None if kind in "Mm" else float("nan")
    if kind in "iu":
        return _whole(text, *[int(getattr(np.iinfo(dtype), side)) for side in ("min", "max")])
    if kind == "f":
        return _float(what, text, dtype)
    if kind == "b":
        return _boolean(what, text)
    if kind in "SU":
        return _characters(data, dtype)
    if kind == "M" and what != "number":
        ticks = _moment(text) * SCALES[np.datetime_data(dtype)[0]]
        if ticks.denominator != 1:
            raise Bad("too fine a time")
        if not -(2**63) < ticks < 2**63:
            raise Bad("out of range")
        return np.array(int(ticks)).view(dtype).tolist()
    return np.array(_whole(text, -(2**63) + 1, 2**63 - 1)).view(dtype).tolist()


def _whole(text: bytes, least: int, most: int) -> int:
    if not (match := re.fullmatch(rb"([+-]?[0-9]+)(\.0*)?", text)):
        raise Bad("not a number, or not whole")
    if not least <= int(match[1]) <= most:
        raise Bad("out of range")
    return int(match[1])


def _float(what: str, text: bytes, dtype: np.dtype) -> float:
    if what == "text" and (match := re.fullmatch(rb"([+-]?)(inf|Inf|Infinity|infinity)", text)):
        return float(text)
    match = re.fullmatch(rb"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.I)
    if not match:
        raise Bad("not a number")
    exact = Fraction(text.decode())
    with np.errstate(all="ignore"):
        near = dtype.type(float(text))
        around = [near, np.nextafter(near, dtype.type(np.inf)), np.nextafter(near, dtype.type(-np.inf))]
    info = np.finfo(dtype)
    if abs(exact) >= Fraction(float(info.max)) * (1 + Fraction(1, 2 ** (info.nmant + 2) - 2)):
        raise Bad("out of range")  # nearer to twice the greatest power of two

    def distance(each: Any) -> tuple[Fraction, int]:
        return abs(Fraction(float(each)) - exact), int(each.view(f"u{each.itemsize}")) & 1

    best = min((each for each in around if np.isfinite(each)), key=distance)
    if exact and not best:
        raise Bad("out of range")
    if match[3] is None and exact.denominator == 1 and Fraction(float(best)) != exact:
        raise Bad("not exact")
    return -0.0 if not best and text.startswith(b"-") else float(best)


def _boolean(what: str, text: bytes) -> bool:
    words = {True: [b"1", b"true", b"True", b"TRUE"], False: [b"0", b"false", b"False", b"FALSE"]}
    for value, named in words.items():
        if what == str(value).lower() or text in (named if what == "text" else named[:1]):
            return value
    raise Bad("not a boolean")


def _characters(data: bytes, dtype: np.dtype) -> Any:
    if dtype.kind == "S":
        if len(data) > dtype.itemsize:
            raise Bad("too wide")
        if data.endswith(b"\0"):
            raise Bad("ends in NUL")
        return data
    try:
        text = data.decode()
    except ValueError:
        raise Bad("not UTF-8, or too wide") from None
    if len(text) > dtype.itemsize // 4:
        raise Bad("too wide")
    if text.endswith("\0"):
        raise Bad("ends in NUL")
    return text


MOMENT = re.compile(
    rb"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    rb"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]+))?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)


def _moment(text: bytes) -> Fraction:
    """Seconds since 1970."""
    if not (match := MOMENT.fullmatch(text)):
        raise Bad("not a time")
    year, *rest = (int(each or 0) for each in match.groups()[:6])
    shift = 400 if year == 0 else 0  # as long as 400 years ever are
    try:
        moment = datetime(year + shift, *rest, tzinfo=timezone.utc)
    except ValueError:
        raise Bad("not a time") from None
    seconds = (
        Fraction((moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(seconds=1))
        - shift // 400 * 146097 * 86400
    )
    zone = match[8]
    if zone not in (None, b"Z"):
        digits = zone[1:].replace(b":", b"")
        if int(digits[:2]) > 23 or int(digits[2:]) > 59:
            raise Bad("not a time")
        seconds -= (int(digits[:2]) * 3600 + int(digits[2:]) * 60) * (1 if zone[:1] == b"+" else -1)
    return seconds + Fraction(int(match[7]), 10 ** len(match[7])) if match[7] else seconds
