"""Why a record is no event, in a word for histograms and in a sentence for people."""

from __future__ import annotations

from typing import Any

from shardmem.memory.native import lib
from shardmem.settings import some

SHOWN = 60  # bytes of a value that a message shows
_WORDS = {
    "LONG": "too long",
    "OPEN": "unclosed quote",
    "QUOTE": "text after quote",
    "COUNT": "number of fields",
    "SYNTAX": "not JSON",
    "DEPTH": "nested too deep",
    "UTF8": "not UTF-8",
    "OBJECT": "no JSON object",
    "TWICE": "duplicate name",
    "MISSING": "missing field",
    "NULL": "null",
    "KIND": "wrong type",
    "NUMBER": "not a number",
    "WHOLE": "not whole",
    "RANGE": "out of range",
    "EXACT": "not exact",
    "WIDTH": "too wide",
    "NUL": "ends in NUL",
    "BOOL": "not a boolean",
    "TIME": "not a time",
    "FINE": "too fine a time",
    "SURROGATE": "half a surrogate pair",
    "FORM": "not of the format",
    "SEPARATOR": "separator in key",
    "MARK": "byte order mark",
}
UNREADABLE = "cannot be decoded"  # of the rest of a file
WORDS = {getattr(lib, f"SM_BAD_{name}"): word for name, word in _WORDS.items()}


def shown(value: bytes) -> str:
    """The value for people, never longer than a line and never able to do anything to a terminal."""
    cut = value[:SHOWN]
    return ascii(cut.decode("utf-8", "backslashreplace")) + ("..." if len(value) > SHOWN else "")


class Explain:
    """What is said of the records of one file."""

    def __init__(self, form: str, fields: list[str], dtypes: dict[str, Any], columns: int, most: int) -> None:
        self._form, self._fields, self._dtypes, self._columns, self._most = form, fields, dtypes, columns, most

    def __call__(self, reason: int, field: int, value: bytes, *, column: int = 0, lines: int = 1, size: int = 0) -> str:
        """value: the bytes of the field, or from the byte on that is meant. column: of that byte, from 1."""
        word = WORDS[reason]
        if word == "too long":
            return f"has {size:,} bytes; half a lane holds at most {self._most:,} with the key; raise lane_bytes"
        if word == "unclosed quote":
            return (
                f"a quote opens in field {field + 1} and never closes: the rest of the file, {some(lines, 'line')}, is "
                f"inside "
                f"it; if quotes mean nothing here, --quote none"
            )
        if word == "text after quote":
            return f"field {field + 1} goes on after its closing quote: {shown(value)}"
        if word == "number of fields":
            return f"has {some(field, 'field')}, the header {self._columns}"
        if word in ("not JSON", "nested too deep", "not of the format") or (word == "not UTF-8" and not self._dtypes):
            what = (
                "is not JSON"
                if word == "not JSON"
                else f"is not {self._form}"
                if word == "not of the format"
                else f"is {word}"
            )
            return f"{what}: at byte {column}, {shown(value)}" if value else f"{what}: it ends too early"
        if word == "no JSON object":
            return f"is JSON, but no object: {shown(value)}"
        name = self._fields[field] if field < len(self._fields) else "?"
        if name not in self._dtypes:
            return self._of_key(word, name, value)
        dtype = self._dtypes[name]
        more = {
            "missing field": "is missing",
            "null": f"is null, which {dtype} has no value for",
            "wrong type": f"{shown(value)} is of the wrong type for {dtype}",
            "not a number": f"{shown(value)} is not a number ({dtype})",
            "not whole": f"{shown(value)} is not whole ({dtype})",
            "out of range": f"{shown(value)} is out of the range of {dtype}",
            "not exact": f"{shown(value)} has no exact value in {dtype}",
            "too wide": f"{shown(value)} does not fit: {some(len(value), 'byte')}, the field holds {_width(dtype)}",
            "ends in NUL": f"{shown(value)} ends in NUL, which {dtype} cannot show",
            "not a boolean": f"{shown(value)} is neither true nor false",
            "not a time": f"{shown(value)} is not a date or time ({dtype})",
            "too fine a time": f"{shown(value)} is finer than {dtype}",
            "duplicate name": "occurs twice",
            "not UTF-8": f"{shown(value)} is not UTF-8 ({dtype})",
            "half a surrogate pair": f"{shown(value)} has half a surrogate pair, which no text has",
            "byte order mark": "begins with a byte order mark: were files put together?",
        }
        return f"field {name}: {more[word]}"

    def _of_key(self, word: str, name: str, value: bytes) -> str:
        what = "field number" if self._form == "lines" else "member" if self._form == "jsonl" else "field"
        more = {
            "missing field": f"has no {what} {name}" if self._form == "lines" else f"has no {what} {name!r}",
            "null": f"has null in {name!r}, which is no key",
            "wrong type": f"has {shown(value)} in {name!r}, which is neither text nor a whole number",
            "not whole": f"has {shown(value)} in {name!r}, which is neither text nor a whole number",
            "not a number": f"has {shown(value)} in {name!r}, which is not a whole number",
            "out of range": f"has {shown(value)} in {name!r}, which is beyond the range of a key, -2**63 to "
            f"2**64-1; take "
            f"it as text, --key-type str",
            "duplicate name": f"has {name!r} twice",
            "half a surrogate pair": f"has half a surrogate pair in {name!r}, which no text has: {shown(value)}",
            "separator in key": f"has byte 0x1f in {name!r}, which stands between the fields of a key",
            "byte order mark": f"begins with a byte order mark, which would be part of {name!r}: "
            "were files put together?",
        }
        return more[word]


def _width(dtype: Any) -> str:
    return some(dtype.itemsize // 4, "character") if dtype.kind == "U" else f"{dtype.itemsize}"
