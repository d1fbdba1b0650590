"""A batch as an Arrow stream of one record batch. Needs nanoarrow (`pip install 'shardmem[arrow]'`)."""

from __future__ import annotations

from collections.abc import Sequence
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
    """An object with `__arrow_c_stream__`: the columns key and payload, null for a tombstone and for an event without a
    key. keys: an array when all are integers.

    The key column is of the type of its keys: int64 or uint64, large_string, large_binary, null when there are none.
    17, "17" and b"17" are three keys, so if there are several kinds it is a struct with a field for each, of which one
    is not null.
    """
    nanoarrow = _nanoarrow()
    key = _column(nanoarrow, "key", keys) if isinstance(keys, np.ndarray) else _key_column(nanoarrow, keys)
    payload = _binary(nanoarrow, nanoarrow.large_binary(), payloads)
    return _stream(nanoarrow, {"key": key, "payload": payload}, len(payloads))


def _key_column(nanoarrow: Any, keys: list[Any]) -> Any:
    kinds = {_kind_of(key) for key in keys} - {"none"}
    if not kinds:
        return nanoarrow.c_array_from_buffers(nanoarrow.null(), len(keys), [])
    if len(kinds) == 1:
        return _of_kind(nanoarrow, kinds.pop(), keys)
    if kinds == {"int", "uint"} and min(key for key in keys if key is not None) >= 0:
        return _of_kind(nanoarrow, "uint", keys)
    fields = {
        kind: _of_kind(nanoarrow, kind, [key if _kind_of(key) == kind else None for key in keys])
        for kind in ("int", "uint", "str", "bytes")
    }
    schema = nanoarrow.struct({kind: field.schema for kind, field in fields.items()})
    validity = _validity([key is not None for key in keys])
    return nanoarrow.c_array_from_buffers(schema, len(keys), [validity], children=list(fields.values()))


def _kind_of(key: Any) -> str:
    """uint: only what is beyond int64."""
    if isinstance(key, int):
        return "uint" if key >= 1 << 63 else "int"
    return "none" if key is None else "str" if isinstance(key, str) else "bytes"


def _of_kind(nanoarrow: Any, kind: str, keys: list[Any]) -> Any:
    """None is null."""
    if kind in ("int", "uint"):
        numbers = np.array([key or 0 for key in keys], "i8" if kind == "int" else "u8")
        return _column(nanoarrow, "key", numbers, [key is not None for key in keys])
    if kind == "bytes":
        return _binary(nanoarrow, nanoarrow.large_binary(), keys)
    try:
        texts = [None if key is None else key.encode() for key in keys]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"key {error.object!r} is text that is not UTF-8, for which Arrow has no type; take batch.keys instead"
        ) from None
    return _binary(nanoarrow, nanoarrow.large_string(), texts)


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


def _column(nanoarrow: Any, name: str, values: np.ndarray, there: list[bool] | None = None) -> Any:
    packed = np.array(values, order="C")  # a copy even of the only field of its dtype, which is contiguous as it is
    kind = packed.dtype
    if kind.kind == "b":
        kind, packed = np.dtype("u1"), packed.view("u1")
    if kind.kind in "iuf" and kind.isnative and packed.ndim == 1:
        schema = getattr(nanoarrow, _FORMATS[kind.str[1:]])()
        return nanoarrow.c_array_from_buffers(schema, len(packed), [_validity(there), packed])
    if kind.kind == "M" and packed.ndim == 1 and np.datetime_data(kind)[0] in _UNITS:
        unit = nanoarrow.timestamp(_UNITS[np.datetime_data(kind)[0]])
        return nanoarrow.c_array_from_buffers(unit, len(packed), [None, packed.view("i8")])
    if kind.kind in "SV" and packed.ndim == 1:
        # bytes fields lose their padding, void fields keep every byte
        cells = packed.tolist() if kind.kind == "S" else [cell.tobytes() for cell in packed]
        return _binary(nanoarrow, nanoarrow.large_binary(), cells)
    raise TypeError(
        f"field {name} has dtype {packed.dtype}{packed.shape[1:] or ''}, which has no Arrow type here; take "
        f"batch.records[{name!r}].copy() instead"
    )


def _binary(nanoarrow: Any, schema: Any, cells: Sequence[bytes | None]) -> Any:
    offsets = np.cumsum([0] + [len(cell or b"") for cell in cells]).astype("i8")
    validity = _validity([cell is not None for cell in cells])
    return nanoarrow.c_array_from_buffers(
        schema, len(cells), [validity, offsets, b"".join([cell or b"" for cell in cells])]
    )


def _validity(there: list[bool] | None) -> np.ndarray | None:
    return None if there is None or all(there) else np.packbits(there, bitorder="little")
