"""A batch as an Arrow stream of one record batch. Needs nanoarrow (`pip install 'shardmem[arrow]'`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardmem.errors import ShardmemError

_FORMATS = {
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "u8": "uint64",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
}
_UNITS = {"s": "s", "ms": "ms", "us": "us", "ns": "ns"}


def records_stream(records: np.ndarray) -> Any:
    """An object with `__arrow_c_stream__`: a column per field.

    Raises ShardmemError without nanoarrow, TypeError for a field that Arrow has no type for.
    """
    nanoarrow = _nanoarrow()
    columns = {name: _column(nanoarrow, name, records[name]) for name in records.dtype.names or ()}
    return _stream(nanoarrow, columns, len(records))


def events_stream(keys: np.ndarray | list[Any], payloads: list[bytes | None]) -> Any:
    """An object with `__arrow_c_stream__`: the columns key, null where there is none, and payload, null for a
    tombstone. keys: an array when all are integers."""
    nanoarrow = _nanoarrow()
    if isinstance(keys, np.ndarray):
        key = _column(nanoarrow, "key", keys)
    else:
        texts = [
            each if isinstance(each, bytes) else b"" if each is None else str(each).encode("utf-8", "surrogateescape")
            for each in keys
        ]
        ends, has_key = np.cumsum([0] + [len(text) for text in texts]), [each is not None for each in keys]
        key = _binary(nanoarrow, b"".join(texts), ends, has_key)
    parts, there = [part or b"" for part in payloads], [part is not None for part in payloads]
    payload = _binary(nanoarrow, b"".join(parts), np.cumsum([0] + [len(part) for part in parts]), there)
    return _stream(nanoarrow, {"key": key, "payload": payload}, len(payloads))


def _nanoarrow() -> Any:
    try:
        import nanoarrow
    except ImportError:
        raise ShardmemError("the Arrow interface needs nanoarrow: pip install 'shardmem[arrow]'") from None
    return nanoarrow


def _stream(nanoarrow: Any, columns: dict[str, Any], length: int) -> Any:
    schema = nanoarrow.struct({name: array.schema for name, array in columns.items()})
    struct = nanoarrow.c_array_from_buffers(schema, length, [None], children=list(columns.values()))
    return nanoarrow.ArrayStream(nanoarrow.Array(struct))


def _column(nanoarrow: Any, name: str, values: np.ndarray) -> Any:
    packed = np.array(values, order="C")  # a copy even of the only field of its dtype, which is contiguous as it is
    kind = packed.dtype
    if kind.kind == "b":
        kind, packed = np.dtype("u1"), packed.view("u1")
    if kind.kind in "iuf" and kind.isnative and packed.ndim == 1:
        return nanoarrow.c_array_from_buffers(getattr(nanoarrow, _FORMATS[kind.str[1:]])(), len(packed), [None, packed])
    if kind.kind == "M" and packed.ndim == 1 and np.datetime_data(kind)[0] in _UNITS:
        unit = nanoarrow.timestamp(_UNITS[np.datetime_data(kind)[0]])
        return nanoarrow.c_array_from_buffers(unit, len(packed), [None, packed.view("i8")])
    if kind.kind in "SV" and packed.ndim == 1:
        # bytes fields lose their padding, void fields keep every byte
        cells = packed.tolist() if kind.kind == "S" else [cell.tobytes() for cell in packed]
        return _binary(nanoarrow, b"".join(cells), np.cumsum([0] + [len(cell) for cell in cells]))
    raise TypeError(
        f"field {name} has dtype {packed.dtype}{packed.shape[1:] or ''}, which has no Arrow type here; take "
        f"batch.records[{name!r}].copy() instead"
    )


def _binary(nanoarrow: Any, data: bytes, offsets: Any, there: list[bool] | None = None) -> Any:
    validity = None if there is None or all(there) else np.packbits(there, bitorder="little")
    return nanoarrow.c_array_from_buffers(
        nanoarrow.large_binary(), len(offsets) - 1, [validity, np.asarray(offsets, "i8"), data]
    )
