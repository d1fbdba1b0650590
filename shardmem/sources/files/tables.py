"""Parquet and Arrow IPC files as columns of events; needs pyarrow. A value becomes what it would as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from shardmem.errors import ConfigError
from shardmem.memory.native import borrow, lib
from shardmem.runtime.columns import KEY_UNSIGNED, Keys
from shardmem.schema import KEY_BYTES, KEY_INT, KEY_STR, Schema
from shardmem.sources.contract import Columns, Position, Rejected, SourceError
from shardmem.sources.files.convert import Rows, targets_of
from shardmem.sources.files.inputs import Input
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.reasons import WORDS, Explain

ROWS = 16384


class TableReader:
    """As Reader; a place is the number of a row."""

    def __init__(self, source: Input, options: FileOptions, schema: Schema, most: int) -> None:
        """Raises ConfigError when pyarrow is not there."""
        self.input, self.name, self._options, self._schema, self._most = source, source.name, options, schema, most
        self._row, self._counted = 0, 0
        self._batches: Iterator[Any] | None = None
        self.ended = self.finishing = False
        self._targets = targets_of(schema) if schema.is_records else []
        self._wanted = [target.name for target in self._targets] or [*options.key, *options.payload]
        dtypes = {target.name: target.dtype for target in self._targets}
        self._explain = Explain(options.format, self._wanted, dtypes, 0, most)
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"{options.format} files need the package pyarrow: pip install 'shardmem[tables]'"
            ) from None

    @property
    def position(self) -> Position:
        return Position(self._row, f"row {self._row + 1}")

    def start(self, position: Position) -> None:
        self._row = position.offset

    def poll(self, timeout: float) -> Columns | None:
        import pyarrow as pa

        try:
            if self._batches is None:
                self._batches = self._open()
            batch = next(self._batches, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"reading {self.name} failed at row {self._row + 1:,}: {error}") from None
        if batch is None:
            self.ended = True
            return None
        first, self._row = self._row, self._row + len(batch)
        columns = Columns(
            self.name,
            np.arange(first, self._row, dtype="u8"),
            self.position,
            lines=np.arange(first + 1, self._row + 1, dtype="u8"),
            bytes=batch.nbytes,
        )
        self._records(columns, batch) if self._targets else self._events(columns, batch)
        return columns

    # ---- batches -----------------------------------------------------------------------------------------------------

    def _open(self) -> Iterator[Any]:
        """Batches of the wanted columns from the row to start at."""
        import pyarrow as pa

        names, made = self._read()
        if missing := [name for name in self._wanted if name not in names]:
            raise ConfigError(
                f"{self.name} has no column {', '.join(missing)}", detail=f"Its columns are {', '.join(names)}"
            )
        skip = self._row
        for batch in made:
            if skip >= len(batch):
                skip -= len(batch)
                continue
            batch, skip = pa.Table.from_batches([batch.slice(skip)]).select(self._wanted), 0
            yield from batch.to_batches(max_chunksize=ROWS)

    def _read(self) -> tuple[list[str], Iterator[Any]]:
        import pyarrow as pa

        assert self.input.path is not None
        if self._options.format == "parquet":
            import pyarrow.parquet as pq

            file = pq.ParquetFile(self.input.path)
            names = list(file.schema_arrow.names)
            return names, file.iter_batches(ROWS, columns=[name for name in self._wanted if name in names])
        mapped = pa.memory_map(self.input.path)
        try:
            opened = pa.ipc.open_file(mapped)
            return list(opened.schema.names), (opened.get_batch(i) for i in range(opened.num_record_batches))
        except pa.ArrowInvalid:
            mapped.seek(0)
            stream = pa.ipc.open_stream(mapped)
            return list(stream.schema.names), iter(stream)

    # ---- into records ------------------------------------------------------------------------------------------------

    def _records(self, columns: Columns, batch: Any) -> None:
        assert self._schema.dtype is not None
        made = Rows(len(batch), self._schema.dtype)
        held = []
        for number, target in enumerate(self._targets):
            data, spans, values = self._text(batch.column(target.name), target.name, target.dtype)
            held.append((data, spans))
            made.fill(
                target,
                number,
                borrow("uint8_t[]", data),
                borrow("uint64_t[]", spans),
                borrow("uint8_t[]", values),
                1,
                0,
            )
        good = made.bad == 0
        if not good.all():
            kept, rejected = np.cumsum(good), []
            for i in np.flatnonzero(~good).tolist():
                field, row = int(made.bad_field[i]), int(columns.offsets[i])
                data, spans = held[field]
                first, last = spans[i].tolist()
                text = self._explain(int(made.bad[i]), field, bytes(data[first:last]))
                where, reason = Position(row, f"row {row + 1}"), WORDS[int(made.bad[i])]
                whole = repr(batch.slice(i, 1).to_pylist()[0]).encode(errors="backslashreplace")
                rejected.append(
                    Rejected(self.name, where, reason, f"{self.name}, row {row + 1}: {text}", whole, int(kept[i]))
                )
            columns.rejected = rejected
            columns.offsets, columns.lines = columns.offsets[good], columns.offsets[good] + np.uint64(1)
        columns.records = made.rows[good]

    def _text(self, column: Any, name: str, dtype: np.dtype) -> tuple[Any, np.ndarray, np.ndarray]:
        """(bytes, spans, what stands there) of a column, as the scanner has them of text. Raises ConfigError."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
            kind = column.type
        value = lib.SM_VALUE_NUMBER
        if pa.types.is_floating(kind):
            column, value = pc.cast(column, pa.float64()), lib.SM_VALUE_TEXT  # NaN and inf are words, too
        elif pa.types.is_boolean(kind):
            value = lib.SM_VALUE_TEXT
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            value = lib.SM_VALUE_STRING
            column = column if not getattr(kind, "tz", None) else pc.cast(column, pa.timestamp(kind.unit))
        elif pa.types.is_duration(kind):
            if dtype.kind != "m" or np.datetime_data(dtype)[0] != kind.unit:
                raise ConfigError(f"{self.name}: column {name} is of type {kind}, the field of {dtype}")
            column = pc.cast(column, pa.int64())
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_bytes(kind):
            value = lib.SM_VALUE_STRING
        elif not (pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
            raise ConfigError(f"{self.name}: column {name} is of type {kind}, which no field can take")
        column = pc.cast(column, pa.large_binary() if _is_bytes(kind) else pa.large_string())
        data, spans = _bytes_of(column)
        values = np.full(len(column), value, "u1")
        values[np.asarray(column.is_null())] = lib.SM_VALUE_NULL
        return data, spans, values

    # ---- into events -------------------------------------------------------------------------------------------------

    def _events(self, columns: Columns, batch: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if len(self._options.payload) != 1 or len(self._options.key) > 1:
            raise ConfigError(
                f"{self._options.format} files have columns, and the engine takes a key and a payload",
                hint="name the column of the payload with --payload, and that of the key with --key",
            )
        name = self._options.payload[0]
        column = batch.column(name)
        if not (_is_text(column.type) or _is_bytes(column.type)):
            raise ConfigError(f"{self.name}: column {name} is of type {column.type}; a payload is bytes or text")
        good = np.asarray(column.is_valid())
        keys = batch.column(self._options.key[0]) if self._options.key else None
        if keys is not None:
            good &= np.asarray(keys.is_valid())
        if not good.all():
            kept = np.cumsum(good)
            columns.rejected = [
                Rejected(
                    self.name,
                    Position(int(columns.offsets[i]), f"row {columns.offsets[i] + 1}"),
                    "null",
                    f"{self.name}, row {columns.offsets[i] + 1}: has null where a key or payload is wanted",
                    b"",
                    int(kept[i]),
                )
                for i in np.flatnonzero(~good).tolist()
            ]
            column = column.filter(pa.array(good))
            keys = None if keys is None else keys.filter(pa.array(good))
            columns.offsets, columns.lines = columns.offsets[good], columns.offsets[good] + np.uint64(1)
        columns.payloads = _bytes_of(pc.cast(column, pa.large_binary()))
        if keys is None:
            return
        if pa.types.is_integer(keys.type):
            unsigned = pa.types.is_unsigned_integer(keys.type)
            numbers = np.asarray(pc.cast(keys, pa.uint64() if unsigned else pa.int64()))
            columns.keys = Keys(KEY_UNSIGNED if unsigned else KEY_INT, numbers, None, None)
        elif _is_text(keys.type) or _is_bytes(keys.type):
            data, spans = _bytes_of(pc.cast(keys, pa.large_binary()))
            columns.keys = Keys(KEY_BYTES if _is_bytes(keys.type) else KEY_STR, None, data, spans)
        else:
            raise ConfigError(
                f"{self.name}: column {self._options.key[0]} is of type {keys.type}; a key is int, text or bytes"
            )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _bytes_of(column: Any) -> tuple[Any, np.ndarray]:
    """(bytes, spans) of a large binary or string array."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, "u8", len(column) + 1, 8 * column.offset)
    return (memoryview(data) if data is not None else b""), np.stack([ends[:-1], ends[1:]], axis=1)
