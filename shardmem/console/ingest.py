"""Lines, CSV and JSON lines into an engine, a block at a time."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from shardmem.console.progress import Meter
from shardmem.errors import ConfigError, ShardmemError
from shardmem.runtime.producer import Producer
from shardmem.settings import some

BLOCK = 4096
Record = tuple[int, bytes, Any]  # line number, the record's bytes, its fields


class BadRecord(ShardmemError):
    """A record that cannot be read; says the file, the line, the field and the value."""


def size_of(files: Sequence[str]) -> int | None:
    """Bytes of all, None if standard input is among them. Raises ConfigError for one that is not there: before the first of
    them is pushed."""
    try:
        sizes = [os.path.getsize(name) for name in files if name != "-"]
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}; nothing was pushed") from None
    return sum(sizes) if sizes and "-" not in files else None


class Ingest:
    """Pushes files into one producer. After `file` has returned or raised, `events` and `skipped` count what it did; `next` says
    in words where to go on when the engine took no more.
    """

    def __init__(
        self, producer: Producer, form: str, *, key: str | None, delimiter: str | None, skip_bad: bool
    ) -> None:
        self._producer, self._form, self._key, self._skip_bad = producer, form, key, skip_bad
        self._delimiter = delimiter if delimiter is not None else "," if form == "csv" else None
        self.events = self.skipped = 0
        self.next: str | None = None
        schema = producer.schema
        if schema.is_records:
            assert schema.dtype is not None
            if form == "lines":
                raise ConfigError(
                    f"engine {producer.engine!r} carries records with fields {', '.join(schema.dtype.names)}; "
                    f"lines have no field names: use --format csv or jsonl"
                )
            if key is not None and key != schema.key:
                raise ConfigError(
                    f"--key {key}: the key of engine {producer.engine!r} is its field {schema.key!r}; leave --key out"
                )
        elif form == "lines" and key is not None and not (key.isdigit() and int(key) > 0):
            raise ConfigError(f"--key {key}: of lines the key is a field number from 1")

    def file(self, name: str, meter: Meter) -> None:
        """One file ('-': standard input). Raises BadRecord unless bad records are skipped."""
        if name == "-":
            self._stream(sys.stdin.buffer, "standard input", meter)
            return
        try:
            stream = open(name, "rb")
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from None
        with stream:
            self._stream(stream, name, meter)

    def _stream(self, stream: BinaryIO, name: str, meter: Meter) -> None:
        self._name = name
        records = {"lines": self._lines, "csv": self._csv, "jsonl": self._jsonl}[self._form](stream)
        push = self._push_records if self._producer.schema.is_records else self._push_events
        while True:
            block = list(islice(records, BLOCK))
            if not block:
                return
            self.events += push(block)
            meter.add(len(block), sum(len(raw) for _, raw, _ in block) + len(block))

    # ---- reading: what a record is ------------------------------------------------------------------------------------

    def _lines(self, stream: BinaryIO) -> Iterator[Record]:
        for number, line in enumerate(stream, 1):
            raw = line.rstrip(b"\r\n")
            yield number, raw, raw

    def _jsonl(self, stream: BinaryIO) -> Iterator[Record]:
        for number, line in enumerate(stream, 1):
            raw = line.strip()
            if not raw:
                continue
            try:
                fields = json.loads(raw)
            except ValueError as error:
                if not self._bad(number, f"is not JSON: {error}"):
                    continue
            else:
                if isinstance(fields, dict) or not self._bad(
                    number, f"is JSON, but a {type(fields).__name__} and no object"
                ):
                    if isinstance(fields, dict):
                        yield number, raw, fields

    def _csv(self, stream: BinaryIO) -> Iterator[Record]:
        source = _Recorder(stream)
        rows = csv.reader(source, delimiter=self._delimiter or ",", strict=True)
        try:
            header = next(rows)
        except StopIteration:
            return
        self._columns = {field.lstrip("\ufeff"): i for i, field in enumerate(header)}
        wanted = (
            [self._key]
            if self._key
            else list(self._producer.schema.dtype.names)
            if self._producer.schema.is_records
            else []
        )
        missing = [field for field in wanted if field not in self._columns]
        if missing:
            hint = "; is another --delimiter meant?" if len(header) == 1 else ""
            raise ConfigError(
                f"{self._name} has no column {', '.join(missing)}; its columns are {', '.join(self._columns)}{hint}"
            )
        source.take()
        while True:
            first = source.number + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                self._bad(first, f"is not CSV: {error}")
                source.take()
                continue
            raw = source.take()
            if len(row) == len(header):
                yield first, raw, row
            elif row:
                self._bad(first, f"has {some(len(row), 'field')}, the header {len(header)}")

    # ---- pushing ----------------------------------------------------------------------------------------------------------

    def _push_events(self, block: list[Record]) -> int:
        if self._key is None:
            keys: list[Any] = [None] * len(block)
        elif self._form == "csv":
            column = self._columns[self._key]
            keys = [fields[column] for _, _, fields in block]
        else:
            keyed = [(record, self._key_of(record)) for record in block]
            block = [record for record, key in keyed if key is not None]
            keys = [key for _, key in keyed if key is not None]
        payloads = [raw for _, raw, _ in block]
        try:
            return self._producer.push_many(keys, payloads)
        except ShardmemError as error:
            if (rest := getattr(error, "rest", None)) is not None:
                self._cut_off(block, len(rest[1]), [*rest[1]] == payloads[len(block) - len(rest[1]) :])
            raise

    def _key_of(self, record: Record) -> Any:
        number, raw, fields = record
        if self._form == "lines":
            parts = raw.split(self._delimiter.encode() if self._delimiter else None)
            if len(parts) >= int(self._key or 0):
                return parts[int(self._key or 0) - 1].decode(errors="surrogateescape")
            self._bad(number, f"has {some(len(parts), 'field')}, the key is number {self._key}")
            return None
        key = fields.get(self._key)
        if isinstance(key, (str, int)) and not isinstance(key, bool):
            return key
        self._bad(number, f"has {'no member' if key is None else 'neither text nor a whole number in'} {self._key!r}")
        return None

    def _push_records(self, block: list[Record]) -> int:
        dtype = self._producer.schema.dtype
        assert dtype is not None
        by_name = self._form == "jsonl"
        while block:
            rows = np.zeros(len(block), dtype)
            bad: set[int] = set()
            for name in dtype.names:
                place = name if by_name else self._columns[name]
                values = [fields.get(name) if by_name else fields[place] for _, _, fields in block]
                try:
                    rows[name] = _column(values, dtype[name])
                except (ValueError, OverflowError, TypeError):
                    bad |= self._find_bad(block, values, name, dtype[name])
            if not bad:
                try:
                    return self._producer.send(rows)
                except ShardmemError as error:
                    if (rest := getattr(error, "rest", None)) is not None:
                        self._cut_off(block, len(rest), rest.tobytes() == rows[len(block) - len(rest) :].tobytes())
                    raise
            block = [record for i, record in enumerate(block) if i not in bad]
        return 0

    def _cut_off(self, block: list[Record], left: int, in_one: bool) -> None:
        """left: how many of the block were not accepted. in_one: they are its end; a shard that had room may have got later ones."""
        accepted = len(block) - left
        self.events += accepted
        if left:
            self.next = (
                f"the first that was not is at {self._name}, line {block[accepted][0]}"
                if in_one
                else f"of {self._name}, lines {block[0][0]} to {block[-1][0]}, {some(left, 'event')} were not, and not only "
                f"the last"
            )

    def _find_bad(self, block: list[Record], values: list[Any], name: str, dtype: np.dtype) -> set[int]:
        bad = set()
        for i, value in enumerate(values):
            try:
                _column([value], dtype)
            except (ValueError, OverflowError, TypeError) as error:
                self._bad(block[i][0], f"field {name}: {value!r} is no {dtype} ({error})")
                bad.add(i)
        return bad

    def _bad(self, number: int, what: str) -> bool:
        if not self._skip_bad:
            raise BadRecord(
                f"{self._name}, line {number}: {what}. Pushed before it: {some(self.events, 'event')}; "
                f"--skip-bad leaves such records out"
            )
        self.skipped += 1
        return False


class _Recorder:
    """Lines for csv.reader that remembers the bytes of the record at hand: a quoted field may span lines."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._lines = iter(stream)
        self._taken: list[bytes] = []
        self.number = 0

    def __iter__(self) -> _Recorder:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._taken.append(line)
        return line.decode(errors="surrogateescape")

    def take(self) -> bytes:
        taken, self._taken = self._taken, []
        return (taken[0] if len(taken) == 1 else b"".join(taken)).rstrip(b"\r\n")


_ABSENT = ("", "NA", "null", None)


def _column(values: list[Any], dtype: np.dtype) -> np.ndarray:
    """Values of one field as an array of its dtype; never silently cut short or rounded to fit."""
    if dtype.kind == "f":
        return np.array([float("nan") if value in _ABSENT else float(value) for value in values], dtype)
    if dtype.kind in "iu":
        return np.array(
            [int(value) if not isinstance(value, float) or value.is_integer() else _no(value) for value in values],
            dtype,
        )
    if dtype.kind == "S":
        encoded = ["" if value is None else str(value) for value in values]
        cells = [text.encode(errors="surrogateescape") for text in encoded]
        longest = max(map(len, cells), default=0)
        if longest > dtype.itemsize:
            raise ValueError(f"{longest} bytes, the field holds {dtype.itemsize}")
        return np.array(cells, dtype)
    if dtype.kind == "U":
        cells_u = ["" if value is None else str(value) for value in values]
        if max(map(len, cells_u), default=0) * 4 > dtype.itemsize:
            raise ValueError(f"the field holds {dtype.itemsize // 4} characters")
        return np.array(cells_u, dtype)
    return np.array(values).astype(dtype)


def _no(value: float) -> int:
    raise ValueError(f"{value} is not whole")
