"""One file, or stream, as columns of events: its header, then block after block."""

from __future__ import annotations

import numpy as np

from shardmem.errors import ConfigError
from shardmem.memory.native import ffi, lib
from shardmem.schema import Schema
from shardmem.sources.contract import Columns, Position, SourceError
from shardmem.sources.files.formats import Plan, split_record
from shardmem.sources.files.inputs import Input
from shardmem.sources.files.options import COLUMNED, FileOptions
from shardmem.sources.files.reasons import shown
from shardmem.sources.files.scanner import PADDING, Scanner, constant_key

BLOCK = 1 << 20
HEADER = 1 << 20  # the longest header
CR_WINDOW = 1 << 16


class Reader:
    """`poll` until `ended`. name: of the partition."""

    def __init__(
        self,
        source: Input,
        options: FileOptions,
        schema: Schema,
        most: int,
        *,
        block: int = BLOCK,
        keep_all: bool = False,
    ) -> None:
        self.input, self._options, self._schema = source, options, schema
        self.name, self._most, self._block, self._keep_all = source.name, most, block, keep_all
        self._scanner: Scanner | None = None
        self._start = Position(0)  # where to go on, after the header
        self._head = bytearray()  # what was read to see the header
        self._counted = 0  # bytes that were told of
        self._after_cr = False  # what was read ends with CR
        self._at_end = False  # of the input; what was read before may not have been scanned
        self.ended = self.finishing = False  # finishing: a file that is followed will not grow any more

    @property
    def position(self) -> Position:
        return self._scanner.position if self._scanner is not None else self._start

    def start(self, position: Position) -> None:
        """Go on here. Before the first poll."""
        self._start = position

    def poll(self, timeout: float) -> Columns | None:
        """None when nothing came in time; then `ended` says whether that is for ever. Raises SourceError,
        ConfigError."""
        if self.ended:
            return None
        if self.finishing:
            self.input.follows = False
        if self._scanner is None and not self._begin(timeout):
            self.ended = self._at_end
            return None
        assert self._scanner is not None
        if self._scanner.wants_more and not self._at_end:
            size = self.input.read_into(self._scanner.room(), timeout)
            if size is None or (size == 0 and self.input.follows and not self.input.fault):
                return None
            self._scanner.add(size)
            self._at_end = size == 0
        fault = self.input.fault if self._at_end else None
        columns = self._scanner.scan(self.name, self._at_end and self.input.is_complete)
        self.ended = self._at_end and self._scanner.wants_more
        if self.ended and fault is not None:
            columns = self._scanner.cut_off(columns, self.name, fault)
        place = self._scanner.position
        if columns is None and self.ended and place.offset > self._counted:
            columns = Columns(self.name, np.empty(0, "u8"), place)  # what there was besides events is counted, too
        if columns is not None:
            columns.bytes, self._counted, columns.in_bytes = place.offset - self._counted, place.offset, True
        if columns is not None and self._options.key_from_name and not self._schema.is_records:
            columns.keys = constant_key(self.name.rpartition("/")[2], len(columns))
        return columns

    # ---- the header
    # --------------------------------------------------------------------------------------------------------

    def _begin(self, timeout: float) -> bool:
        """Reads as far as the header ends; False when that is not there yet."""
        options = self._options
        while (found := self._header(False)) is None:
            if len(self._head) > HEADER:
                if options.format not in COLUMNED and not options.skip_lines:
                    found = [], 0, 1, False  # a record too long, if anything
                    break
                raise ConfigError(f"{self.name} has no line end in its first {HEADER:,} bytes: no header")
            room = memoryview(bytearray(min(1 << 16, self._block)))
            size = self.input.read_into(room, timeout)
            if size is None or (size == 0 and self.input.follows and not self.input.fault):
                return False
            if size == 0:
                self._at_end, fault = True, self.input.fault
                found = self._header(self.input.is_complete or options.format not in COLUMNED)
                if found is None and fault is not None:
                    raise SourceError(f"{self.name} {fault}")
                if found is None:
                    return False
                break
            self._head += room[:size]
        names, offset, line, cr = found
        if not names and options.format in COLUMNED:
            return False  # an empty file
        self._open(names if options.format in COLUMNED else None, offset, line, cr)
        return True

    def _header(self, final: bool) -> tuple[list[str], int, int, bool] | None:
        """(names, where what comes next begins, its line, whether lines end with CR alone); None: more has to be
        read."""
        options, head = self._options, bytes(self._head)
        columned, at, line, cr = options.format in COLUMNED, 0, 1, False
        if not columned:
            ends = _ends_with_cr(head, final)
            if ends is None:
                return None
            cr = ends
        for _ in range(options.skip_lines):
            end = _behind_line(head, at, columned or cr, not cr, final)
            if end is None:
                return ([], len(head), line, cr) if final else None
            at, line = end, line + 1
        if not columned:
            return [], at, line, cr
        comment = options.comment.encode() if options.comment else None
        while at < len(head):  # blank lines and comments before the header
            if head[at : at + 1] not in (b"\r", b"\n") and not (comment and head.startswith(comment, at)):
                return self._names(head, at, line, final)
            end = _behind_line(head, at, True, True, final)
            if end is None:
                break
            at, line = end, line + 1
        return ([], len(head), line, cr) if final else None

    def _names(self, head: bytes, at: int, line: int, final: bool) -> tuple[list[str], int, int, bool] | None:
        options = self._options
        scan, found = ffi.new("sm_scan *"), ffi.new("sm_found *")
        scan.format, scan.most, scan.line = lib.SM_FORMAT_CSV, HEADER, line
        assert options.delimiter_byte is not None
        scan.delimiter = options.delimiter_byte
        scan.quote = lib.SM_NOTHING if options.quote_byte is None else options.quote_byte
        scan.comment = lib.SM_NOTHING
        found.capacity = found.bad_capacity = 1
        spans, lines, bad = ffi.new("uint64_t[]", 2), ffi.new("uint64_t[]", 1), ffi.new("sm_bad[]", 1)
        data = ffi.new("uint8_t[]", head[at:] + bytes(PADDING))
        found.spans, found.lines, found.bad = spans, lines, bad
        lib.sm_scan_block(scan, data, len(head) - at, len(head) - at, final, found)
        if found.bads:
            what = (
                "has an unclosed quote"
                if bad[0].reason == lib.SM_BAD_OPEN
                else f"goes on after a closing quote: {shown(head[at + bad[0].at :][:60])}"
            )
            raise ConfigError(f"{self.name}, line {line}: the header {what}; if quotes mean nothing here, --quote none")
        if not found.records:
            return None
        fields = split_record(head[at + spans[0] : at + spans[1]], scan.delimiter, options.quote_byte)
        names = [field.decode("utf-8", "surrogateescape") for field in fields]
        if options.header:
            self._after_cr = bool(scan.after_cr)
            return names, at + int(found.consumed), int(scan.line), False
        if options.columns and len(options.columns) != len(names):
            raise ConfigError(f"{self.name} has {len(names)} columns, --columns names {len(options.columns)}")
        return list(options.columns) or [str(i + 1) for i in range(len(names))], at, line, False

    def _open(self, names: list[str] | None, offset: int, line: int, cr: bool) -> None:
        plan = Plan(self._options, self._schema, self._most, names, self.name)
        plan.scan.cr, plan.scan.after_cr = cr, self._after_cr
        scanner = Scanner(plan, self._schema, self._options.format, self._most, self._block, self._keep_all)
        if self._start.offset > offset:
            offset = self._start.offset
            ends = (b"\r", b"\n") if names is not None else (b"\r",) if cr else (b"\n",)
            line = _line_of(self._start) or self.input.lines_before(offset, ends) + 1
            self._after_cr = False
        if offset > len(self._head):
            offset = self.input.seek(offset)
            if offset < self._start.offset:
                raise SourceError(f"{self.name} has {offset:,} bytes; there is no place {self._start.offset:,} in it")
            rest = b""
        else:
            rest = bytes(self._head[offset:])
        scanner.start(offset, line)
        self._counted = self._start.offset or -self.input.skipped
        scanner.preload(rest)
        self._head = bytearray()
        self._scanner = scanner


def _ends_with_cr(head: bytes, final: bool) -> bool | None:
    """Whether lines end with CR alone: the first line end is one, and no other comes within so many bytes, for what
    draws a bar on a terminal writes many before a line end. None: that is not there yet."""
    at = min((i for i in (head.find(b"\r"), head.find(b"\n")) if i >= 0), default=-1)
    if at < 0:
        return False if final else None
    if b"\n" in head[at : at + CR_WINDOW]:
        return False
    return True if final or len(head) >= at + CR_WINDOW else None


def _behind_line(head: bytes, at: int, cr: bool, lf: bool, final: bool) -> int | None:
    """Where the next line begins, if lines end with CR, with LF (then with CR LF, too), or with either. None: that is
    not there yet."""
    ends = [i for i, wanted in ((head.find(b"\r", at), cr), (head.find(b"\n", at), lf)) if wanted and i >= 0]
    if not ends:
        return None
    end = min(ends)
    if lf and head[end : end + 1] == b"\r":
        if end + 1 == len(head) and not final:
            return None
        end += head[end + 1 : end + 2] == b"\n"
    return end + 1


def _line_of(position: Position) -> int:
    """0: it is not known."""
    word, _, number = position.metadata.partition(" ")
    return int(number) if word == "line" and number.isdigit() else 0
