"""A batch as an Arrow stream of one record batch. Needs nanoarrow (`pip install 'shardmem[arrow]'`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shardmem.errors import ShardmemError
from shardmem.schema import KEY_INT

if TYPE_CHECKING:
    from shardmem.runtime.batch import Batch

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


def stream_of(batch: Batch) -> Any:
    """An object with `__arrow_c_stream__`. Records become a column per field; events the columns key and payload.

    Raises ShardmemError without nanoarrow, TypeError for a field that Arrow has no type for.
    """
    try:
        import nanoarrow
    except ImportError:
        raise ShardmemError("the Arrow interface needs nanoarrow: pip install 'shardmem[arrow]'") from None
    if batch._schema.is_records:
        columns = {name: _column(nanoarrow, name, batch.records[name]) for name in batch.records.dtype.names or ()}
    else:
        columns = _events(nanoarrow, batch)
    schema = nanoarrow.struct({name: array.schema for name, array in columns.items()})
    struct = nanoarrow.c_array_from_buffers(schema, len(batch), [None], children=list(columns.values()))
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


def _binary(nanoarrow: Any, data: bytes, offsets: Any) -> Any:
    return nanoarrow.c_array_from_buffers(
        nanoarrow.large_binary(), len(offsets) - 1, [None, np.asarray(offsets, "i8"), data]
    )


def _events(nanoarrow: Any, batch: Batch) -> dict[str, Any]:
    payloads = batch.payloads
    payload = _binary(nanoarrow, b"".join(payloads), np.cumsum([0] + [len(part) for part in payloads]))
    index, _ = batch._index_and_data()
    if (index["meta"] >> 30 == KEY_INT).all():
        return {"key": _column(nanoarrow, "key", batch._int_keys(index)), "payload": payload}
    keys = [
        key if isinstance(key, bytes) else b"" if key is None else str(key).encode("utf-8", "surrogateescape")
        for key in batch.keys
    ]
    return {"key": _binary(nanoarrow, b"".join(keys), np.cumsum([0] + [len(key) for key in keys])), "payload": payload}
