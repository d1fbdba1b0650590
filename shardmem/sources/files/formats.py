"""What the scanner in C looks for, made of options, the engine's schema and a file's header."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmem.errors import ConfigError
from shardmem.memory.native import borrow, ffi, lib
from shardmem.schema import Schema
from shardmem.settings import some
from shardmem.sources.files.convert import targets_of
from shardmem.sources.files.options import COLUMNED, FIXED_FIELDS, FileOptions, byte_of, split_path

_FORMATS = {
    "lines": "SM_FORMAT_LINES",
    "csv": "SM_FORMAT_CSV",
    "tsv": "SM_FORMAT_CSV",
    "jsonl": "SM_FORMAT_JSON",
    "logfmt": "SM_FORMAT_LOGFMT",
    "syslog": "SM_FORMAT_SYSLOG",
    "combined": "SM_FORMAT_COMBINED",
}


def check_fits(options: FileOptions, schema: Schema) -> None:
    """Whether the engine can take such files at all. Raises ConfigError."""
    if not schema.is_records:
        return
    assert schema.dtype is not None and schema.dtype.names is not None
    if options.format == "lines":
        raise ConfigError(
            f"the engine carries records with fields {', '.join(schema.dtype.names)}; lines have no field names: "
            f"use another format"
        )
    if options.key and options.key != (schema.key,):
        raise ConfigError(
            f"key={','.join(options.key)}: the key of the engine is its field {schema.key}; leave key out"
        )
    targets_of(schema)


class Plan:
    """A sm_scan for files of one form. fields: the names of what is wanted, in the order of the columns that are
    found."""

    def __init__(
        self, options: FileOptions, schema: Schema, most: int, header: Sequence[str] | None, name: str
    ) -> None:
        """header: of a file with columns; of one without names, their numbers. Raises ConfigError."""
        self.targets = targets_of(schema) if schema.is_records else []
        self.fields = [target.name for target in self.targets] or list(options.key)
        self._held: list[object] = []
        scan = self.scan = ffi.new("sm_scan *")
        scan.format = getattr(lib, _FORMATS[options.format])
        scan.key_mode = 0
        if not schema.is_records and options.key:
            scan.key_mode = {"auto": lib.SM_KEY_AUTO, "str": lib.SM_KEY_TEXT, "int": lib.SM_KEY_NUMBER}[
                options.key_type
            ]
        for place, byte in (
            ("delimiter", options.delimiter_byte),
            ("quote", options.quote_byte),
            ("comment", None if options.comment is None else byte_of(options.comment)),
        ):
            setattr(scan, place, lib.SM_NOTHING if byte is None else byte)
        scan.most, scan.wanted, scan.line = most, len(self.fields), 1
        scan.blank = options.format == "lines"
        if options.format in COLUMNED:
            assert header is not None
            scan.columns = len(header)
            self._positions(self._columns(header, options, name))
        elif options.format == "lines":
            self._positions([int(key) - 1 for key in options.key])
        elif options.format in FIXED_FIELDS:
            known = FIXED_FIELDS[options.format]
            if missing := [each for each in self.fields if each not in known]:
                raise ConfigError(
                    f"{options.format} has no field {', '.join(missing)}; its fields are {', '.join(known)}"
                )
            self._positions([known.index(each) for each in self.fields])
        elif self.fields:
            self._paths(
                [split_path(each) if options.format == "jsonl" and not self.targets else [each] for each in self.fields]
            )

    def _columns(self, header: Sequence[str], options: FileOptions, name: str) -> list[int]:
        found, missing, twice = [], [], []
        for field in self.fields:
            if header.count(field) == 1:
                found.append(header.index(field))
            elif header.count(field):
                twice.append(field)
            elif not self.targets and field.isascii() and field.isdigit() and 0 < int(field) <= len(header):
                found.append(int(field) - 1)
            else:
                missing.append(field)
        if missing:
            hint = "; is another --delimiter meant?" if len(header) == 1 else ""
            raise ConfigError(f"{name} has no column {', '.join(missing)}; its columns are {', '.join(header)}{hint}")
        if twice:
            places = [str(i + 1) for i, each in enumerate(header) if each == twice[0]]
            how = f"; say which by its number, {' or '.join(places)}" if not self.targets else ""
            raise ConfigError(f"{name} has {some(len(places), 'column')} of the name {twice[0]}{how}")
        return found

    def _positions(self, numbers: Sequence[int]) -> None:
        most = max(numbers, default=-1) + 1
        positions = np.full(most, -1, "i4")
        for wanted, number in enumerate(numbers):
            if positions[number] >= 0:
                raise ConfigError(f"field {number + 1} is wanted twice")
            positions[number] = wanted
        held = borrow("int32_t[]", positions)
        self._held.append(held)
        self.scan.position, self.scan.positions = held, most

    def _paths(self, paths: Sequence[Sequence[str]]) -> None:
        """The names as a tree, the children of each node side by side."""
        tree: dict[str, object] = {}
        for wanted, path in enumerate(paths):
            node = tree
            for part in path:
                node = node.setdefault(part, {})  # type: ignore[assignment]
            if None in node:
                raise ConfigError(f"field {'.'.join(path)} is wanted twice")
            node[None] = wanted  # type: ignore[index]
        names = bytearray()
        nodes: list[list[int]] = [[0, 0, 0, 0, -1]]
        queue = [(0, tree)]
        while queue:
            at, members = queue.pop(0)
            children = [name for name in members if name is not None]
            nodes[at][2:4] = [len(nodes), len(children)]
            for child in children:
                text = child.encode()
                below: dict = members[child]  # type: ignore[assignment,type-arg]
                nodes.append([len(names), len(names) + len(text), 0, 0, below.get(None, -1)])
                names += text
                queue.append((len(nodes) - 1, below))
        tree_of = ffi.new("sm_path[]", [tuple(node) for node in nodes])
        text_of = borrow("uint8_t[]", bytes(names))
        self._held += [tree_of, text_of]
        self.scan.path, self.scan.names = tree_of, text_of
        self.scan.paths = len(nodes)


def split_record(raw: bytes, delimiter: int, quote: int | None) -> list[bytes]:
    """The fields of one record, which is well-formed: a header."""
    found, at = [], 0
    mark = bytes([delimiter])
    while True:
        if quote is not None and raw[at : at + 1] == bytes([quote]):
            end = at + 1
            while True:
                end = raw.index(bytes([quote]), end)
                if raw[end + 1 : end + 2] != bytes([quote]):
                    break
                end += 2
            found.append(raw[at + 1 : end].replace(bytes([quote, quote]), bytes([quote])))
            at = end + 1
        else:
            end = raw.find(mark, at)
            end = len(raw) if end < 0 else end
            found.append(raw[at:end])
            at = end
        if at >= len(raw):
            return found
        at += 1
