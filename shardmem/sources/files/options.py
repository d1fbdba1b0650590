"""What can be said about files: declared once, for `shardmem ingest` and for [source] in the configuration."""

from __future__ import annotations

import codecs
import contextlib
import re
from dataclasses import dataclass, fields
from typing import Any

from shardmem.errors import ConfigError

FORMATS = ("lines", "csv", "tsv", "jsonl", "logfmt", "syslog", "combined", "parquet", "arrow")
TABLES = ("parquet", "arrow")  # formats that pyarrow reads
KEY_TYPES = ("auto", "str", "int")
COLUMNED = ("csv", "tsv")  # formats of columns with a header
SYSLOG_FIELDS = ("pri", "facility", "severity", "timestamp", "host", "app", "pid", "msgid", "message")
COMBINED_FIELDS = (
    "host", "ident", "user", "time", "request", "status", "bytes", "referer", "agent", "method", "path", "protocol",
)  # fmt: skip
FIXED_FIELDS = {"syslog": SYSLOG_FIELDS, "combined": COMBINED_FIELDS}
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "0": "\0", "\\": "\\", "s": " "}


@dataclass(frozen=True)
class FileOptions:
    """How files are read. key: fields that make the key. payload: of a table, the column that is the payload. columns:
    names for a file without a header."""

    format: str = "lines"
    key: tuple[str, ...] = ()
    payload: tuple[str, ...] = ()
    key_type: str = "auto"
    key_from_name: bool = False
    delimiter: str | None = None
    quote: str | None = None
    header: bool = True
    columns: tuple[str, ...] = ()
    comment: str | None = None
    skip_lines: int = 0
    encoding: str | None = None

    @classmethod
    def of(cls, **given: Any) -> FileOptions:
        """Checked. Raises ConfigError with every fault."""
        known = {each.name for each in fields(cls)}
        faults = [f"{name} is not an option of a file" for name in sorted(given.keys() - known)]
        values = {name: value for name, value in given.items() if name in known and value is not None}
        for name in ("key", "payload", "columns"):
            value = values.get(name)
            values[name] = tuple(split_names(value)) if isinstance(value, str) else tuple(value or ())
        options = cls(**values)
        faults += options._faults()
        if faults:
            raise ConfigError(faults)
        return options

    def _faults(self) -> list[str]:
        found = []
        if self.format not in FORMATS:
            found.append(f"format={self.format!r} is not one of {', '.join(FORMATS)}")
        if self.key_type not in KEY_TYPES:
            found.append(f"key_type={self.key_type!r} is not one of {', '.join(KEY_TYPES)}")
        for name in ("delimiter", "quote", "comment"):
            value = getattr(self, name)
            if value is not None and not (name == "quote" and value == "none"):
                try:
                    byte_of(value)
                except ValueError as error:
                    found.append(f"{name}={value!r} {error}")
        if not found and self.format in COLUMNED and self.quote_byte == self.delimiter_byte:
            found.append("delimiter and quote are the same byte")
        if self.key and self.key_from_name:
            found.append("key and key_from_name exclude each other")
        if self.key_type == "int" and (len(self.key) > 1 or self.key_from_name):
            found.append("key_type=int is for a key of one field")
        if self.format == "lines" and not all(re.fullmatch(r"[1-9][0-9]{0,8}", key, re.ASCII) for key in self.key):
            found.append(f"key={','.join(self.key)}: of lines the key is a field number from 1")
        if self.format in FIXED_FIELDS:
            known = FIXED_FIELDS[self.format]
            found += [
                f"key={key}: {self.format} has no such field; its fields are {', '.join(known)}"
                for key in self.key
                if key not in known
            ]
        for name, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            if value is not None and self.format not in (*COLUMNED, *(("lines",) if name == "delimiter" else ())):
                found.append(
                    f"{name} is for csv{', tsv and lines' if name == 'delimiter' else ' and tsv'}, not {self.format}"
                )
        for name, given in (("header", not self.header), ("columns", self.columns)):
            if given and self.format not in COLUMNED:
                found.append(f"{name if name == 'columns' else 'no_header'} is for csv and tsv, not {self.format}")
        if self.payload and self.format not in TABLES:
            found.append(f"payload is for parquet and arrow, not {self.format}")
        if self.encoding is not None:
            try:
                codecs.getincrementaldecoder(self.encoding)
                with contextlib.suppress(UnicodeError):
                    b"ab".decode(self.encoding)
            except LookupError:
                found.append(f"encoding={self.encoding!r} is not known as one of text")
        return found

    @property
    def delimiter_byte(self) -> int | None:
        """None: white space."""
        if self.delimiter is not None:
            return byte_of(self.delimiter)
        return {"csv": ord(","), "tsv": ord("\t")}.get(self.format)

    @property
    def quote_byte(self) -> int | None:
        if self.format not in COLUMNED or self.quote == "none" or (self.quote is None and self.format == "tsv"):
            return None
        return byte_of(self.quote) if self.quote is not None else ord('"')


def byte_of(text: str) -> int:
    """The byte that a delimiter, quote or comment is: one character, or an escape such as \\t or \\x1f. Raises
    ValueError."""
    plain = text
    if match := re.fullmatch(r"\\x([0-9a-fA-F]{2})", text):
        plain = chr(int(match[1], 16))
    elif len(text) == 2 and text[0] == "\\" and text[1] in _ESCAPES:
        plain = _ESCAPES[text[1]]
    if len(plain) != 1 or ord(plain) > 127:
        raise ValueError("is not one ASCII character (or \\t, \\x1f)")
    if plain in "\r\n":
        raise ValueError("is a line end")
    return ord(plain)


def split_names(text: str) -> list[str]:
    """Names between commas; \\, is a comma in a name."""
    return [name.replace("\\,", ",") for name in re.split(r"(?<!\\),", text) if name]


def split_path(name: str) -> list[str]:
    """a.b is member b of member a; a\\.b is one name."""
    return [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", name)]
