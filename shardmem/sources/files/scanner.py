"""Blocks of bytes as columns of events or as records: the scanner in C, its buffer, and what it could not take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from shardmem.memory.native import borrow, ffi, lib
from shardmem.runtime.columns import Keys
from shardmem.schema import KEY_STR, Schema
from shardmem.sources.contract import Columns, Position, Rejected
from shardmem.sources.files.convert import Rows
from shardmem.sources.files.formats import Plan
from shardmem.sources.files.reasons import UNREADABLE, WORDS, Explain

RECORDS = 16384  # of one scan
BAD = 1024
PADDING = 64  # the scanner reads so far beyond
KEPT = 4096  # bytes of a rejected record that are kept, unless all are wanted


class Scanner:
    """The bytes at hand of one file. Columns refer to its buffer until the next `scan` or `take`."""

    def __init__(self, plan: Plan, schema: Schema, form: str, most: int, block: int, keep_all: bool) -> None:
        self._plan, self._schema, self._keep = plan, schema, (1 << 62 if keep_all else KEPT)
        self._dtype = schema.dtype
        self._reserve(block)
        self.have = self._done = 0  # bytes in the buffer; of them, those that were scanned
        self.offset = 0  # of the buffer's first byte in the file
        self.wants_more = True  # another scan of the same bytes finds nothing
        self._skipping: tuple[int, int, int, bytes] | None = (
            None  # a record too long: offset, line, size so far, its beginning
        )
        found, wanted = ffi.new("sm_found *"), len(plan.fields)
        found.capacity, found.bad_capacity = RECORDS, BAD
        self._spans = np.empty((RECORDS, 2), "u8")
        self._lines = np.empty(RECORDS, "u8")
        self._fields = np.empty((RECORDS * wanted, 2), "u8")
        self._values = np.empty(RECORDS * wanted, "u1")
        keyed = RECORDS if plan.scan.key_mode else 0
        self._key_kinds, self._numbers = np.empty(keyed, "u1"), np.empty(keyed, "u8")
        self._key_spans = np.empty((keyed, 2), "u8")
        self._bad = ffi.new("sm_bad[]", BAD)
        self._c_fields = borrow("uint64_t[]", self._fields)
        self._c_values = borrow("uint8_t[]", self._values)
        columns = [borrow("uint64_t[]", each) for each in (self._spans, self._lines, self._key_spans)]
        keys = borrow("uint64_t[]", self._numbers), borrow("uint8_t[]", self._key_kinds)
        found.spans, found.lines, found.key_spans = columns
        found.fields, found.values, (found.keys, found.key_kinds) = self._c_fields, self._c_values, keys
        self._held = [*columns, *keys]  # for as long as C writes into them
        found.bad = self._bad
        self._found = found
        dtypes = {target.name: target.dtype for target in plan.targets}
        self.explain = Explain(form, plan.fields, dtypes, plan.scan.columns, most)

    def _reserve(self, capacity: int) -> None:
        self.capacity = capacity
        self.buffer = np.empty(5 * capacity + PADDING + 1024, "u1")  # the rest: escapes resolved, keys joined
        self._pointer = borrow("uint8_t[]", self.buffer)

    @property
    def line(self) -> int:
        """Of the next byte that was not scanned."""
        return int(self._plan.scan.line)

    @property
    def position(self) -> Position:
        """Before the first byte that was not scanned. Of a record too long, its beginning: it is reported when it has
        ended."""
        if self._skipping is not None:
            return Position(self._skipping[0], f"line {self._skipping[1]}")
        return Position(self.offset + self._done, f"line {self.line}")

    def start(self, offset: int, line: int) -> None:
        """Before the first byte: where in the file it is."""
        self.offset, self._plan.scan.line = offset, line

    def preload(self, data: bytes) -> None:
        """Bytes that were read already."""
        if len(data) > self.capacity:
            self._reserve(2 * len(data))
        self.buffer[: len(data)] = np.frombuffer(data, "u1")
        self.have = len(data)
        self.wants_more = not data

    def room(self) -> memoryview:
        """Where to read into: behind what is there. What was scanned is forgotten."""
        if self._done:
            self.buffer[: self.have - self._done] = self.buffer[self._done : self.have].copy()
            self.offset += self._done
            self.have, self._done = self.have - self._done, 0
        if self.have > self.capacity // 2:  # one record fills half of it
            old, have = self.buffer, self.have
            self._reserve(2 * self.capacity)
            self.buffer[:have] = old[:have]
        return self.buffer.data[self.have : self.capacity]

    def add(self, size: int) -> None:
        self.have += size

    def scan(self, partition: str, final: bool) -> Columns | None:
        """The events in what is at hand; None if there is neither an event nor a rejected record in it. final: the file
        ends there."""
        if self._skipping is not None:
            ended = self._skip()
            self.wants_more = not ended
            return self._rejected_only(partition, ended) if ended or final else None
        before, self.wants_more = self._done, True
        size = self.have - before
        if not size:
            return None
        pointer = self._pointer + before
        lib.sm_scan_block(self._plan.scan, pointer, size, size, final, self._found)
        found = self._found
        self._done = before + int(found.consumed)
        self.wants_more = found.records < RECORDS and found.bads < BAD and not (final and found.too_long)
        columns = None
        if found.records or found.bads:
            columns = self._columns(partition, before)
        if found.too_long:
            self._skipping = (
                self.offset + self._done,
                self.line,
                0,
                bytes(self.buffer[self._done : self._done + KEPT]),
            )
            self._skip(first=True)
        return columns

    def _skip(self, first: bool = False) -> bool:
        assert self._skipping is not None
        consumed = ffi.new("uint64_t *")
        ended = lib.sm_scan_skip(self._plan.scan, self._pointer + self._done, self.have - self._done, first, consumed)
        offset, line, size, head = self._skipping
        self._done += int(consumed[0])
        self._skipping = (offset, line, size + int(consumed[0]), head)
        return bool(ended)

    def _rejected_only(self, partition: str, ended: bool) -> Columns:
        assert self._skipping is not None
        offset, line, size, head = self._skipping
        self._skipping, size = None, size - ended  # without its line end
        if self._plan.scan.comment < lib.SM_NOTHING and head[:1] == bytes([self._plan.scan.comment]):
            return Columns(partition, np.empty(0, "u8"), self.position)
        where = Position(offset, f"line {line}")
        quoted = self._plan.scan.skip_mode == 2
        lines = max(1, self.line - line)
        reason = lib.SM_BAD_OPEN if quoted else lib.SM_BAD_LONG
        text = self.explain(reason, 0, b"", lines=lines, size=size)
        where_lines = f"line {line}" if lines == 1 else f"lines {line} to {line + lines - 1}"
        bad = Rejected(partition, where, WORDS[reason], f"{partition}, {where_lines}: {text}", head)
        return Columns(partition, np.empty(0, "u8"), self.position, rejected=[bad])

    def cut_off(self, columns: Columns | None, partition: str, fault: str) -> Columns:
        """The columns, and that the file cannot be read beyond the bytes at hand: those behind its last record are no
        event."""
        place = self.position
        data = bytes(self.buffer[self._done : min(self.have, self._done + self._keep)])
        if self._skipping is not None:
            data, self._skipping = self._skipping[3], None
        self._done, self.wants_more = self.have, True
        bad = Rejected(partition, place, UNREADABLE, f"{partition}, {place.metadata}: {fault}", data)
        if columns is None:
            columns = Columns(partition, np.empty(0, "u8"), self.position)
        columns.next = Position(self.offset + self._done, place.metadata)
        columns.rejected = [*columns.rejected, replace(bad, after=len(columns))]
        return columns

    # ---- what was found
    # ------------------------------------------------------------------------------------------------

    def _columns(self, partition: str, before: int) -> Columns:
        count, wanted = int(self._found.records), len(self._plan.fields)
        spans = self._spans[:count]
        rejected = [self._rejected_of(partition, before, self._bad[i]) for i in range(int(self._found.bads))]
        if rejected:
            starts = spans[:, 0]
            places = np.array([self._bad[i].start for i in range(len(rejected))], "u8")
            rejected = [
                replace(each, after=int(after)) for each, after in zip(rejected, np.searchsorted(starts, places))
            ]
        base = self.offset + before
        columns = Columns(
            partition,
            spans[:, 0] + np.uint64(base),
            Position(self.offset + self._done, f"line {self.line}"),
            lines=self._lines[:count],
            rejected=rejected,
        )
        if self._plan.targets:
            self._records(columns, count, wanted, before)
            return columns
        data = self.buffer[before:]
        columns.payloads = (data, spans)
        if self._plan.scan.key_mode:
            columns.keys = Keys(self._key_kinds[:count], self._numbers[:count], data, self._key_spans[:count])
        return columns

    def _records(self, columns: Columns, count: int, wanted: int, before: int) -> None:
        """Fields as typed columns; records with a value that is not of its field are rejected."""
        assert self._dtype is not None
        made = Rows(count, self._dtype)
        for number, each in enumerate(self._plan.targets):
            made.fill(each, number, self._pointer + before, self._c_fields, self._c_values, wanted, number)
        rows, bad, bad_field = made.rows, made.bad, made.bad_field
        if bad.any():
            good = bad == 0
            kept = np.cumsum(good)
            new = [
                self._bad_value(columns, i, int(bad[i]), int(bad_field[i]), before, int(kept[i]))
                for i in np.flatnonzero(bad).tolist()
            ]
            old = [replace(each, after=int(kept[each.after - 1]) if each.after else 0) for each in columns.rejected]
            columns.rejected = sorted([*old, *new], key=lambda each: each.position.offset)
            rows, columns.offsets = rows[good], columns.offsets[good]
            assert columns.lines is not None
            columns.lines = columns.lines[good]
        columns.records = rows

    def _bad_value(self, columns: Columns, i: int, reason: int, field: int, before: int, after: int) -> Rejected:
        wanted = len(self._plan.fields)
        first, last = self._fields[i * wanted + field].tolist() if self._values[i * wanted + field] else (0, 0)
        start, end = self._spans[i].tolist()
        assert columns.lines is not None
        line = int(columns.lines[i])
        text = self.explain(reason, field, bytes(self.buffer[before + first : before + last]))
        data = bytes(self.buffer[before + start : before + min(end, start + self._keep)])
        where = Position(int(columns.offsets[i]), f"line {line}")
        return Rejected(
            columns.partition, where, WORDS[reason], f"{columns.partition}, line {line}: {text}", data, after
        )

    def _rejected_of(self, partition: str, before: int, bad: object) -> Rejected:
        b: Any = bad
        start, end, at = before + int(b.start), before + int(b.end), before + int(b.at)
        line, lines = int(b.line), int(b.lines)
        value = bytes(self.buffer[at : max(at, end)][:200])
        if b.reason in (lib.SM_BAD_KIND, lib.SM_BAD_WHOLE, lib.SM_BAD_NUMBER, lib.SM_BAD_RANGE) and self._plan.fields:
            value = value.split(b",")[0].split(b"}")[0] if b.reason != lib.SM_BAD_KIND else value
        text = self.explain(b.reason, b.field, value, column=at - start + 1, lines=lines, size=end - start)
        where = f"line {line}" if lines <= 1 else f"lines {line} to {line + lines - 1}"
        data = bytes(self.buffer[start : min(end, start + self._keep)])
        return Rejected(
            partition,
            Position(self.offset + start, f"line {line}"),
            WORDS[b.reason],
            f"{partition}, {where}: {text}",
            data,
        )


def constant_key(name: str, count: int) -> Keys:
    data = name.encode(errors="surrogateescape")
    return Keys(KEY_STR, None, data, np.tile(np.array([0, len(data)], "u8"), (count, 1)))
