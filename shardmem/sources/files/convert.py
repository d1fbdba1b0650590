"""Fields of text as columns of an engine's dtype: csrc/convert.c, and what it leaves to numpy. The table is in
docs/getting-data-in.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardmem.errors import ConfigError
from shardmem.memory.native import borrow, ffi, lib
from shardmem.schema import Schema

if TYPE_CHECKING:
    from shardmem.memory.native import Integers

UNITS = {"D": 0, "h": 1, "m": 2, "s": 3, "ms": 4, "us": 5, "ns": 6}


@dataclass(frozen=True)
class Target:
    """A field of the engine's dtype, as sm_convert fills it."""

    name: str
    kind: str
    itemsize: int
    unit: int
    offset: int
    dtype: np.dtype
    direct: bool  # it can be written where it is: it has native byte order


def targets_of(schema: Schema) -> list[Target]:
    """Raises ConfigError for a dtype that no text can fill."""
    assert schema.dtype is not None and schema.dtype.names is not None and schema.dtype.fields is not None
    found, faults = [], []
    for name in schema.dtype.names:
        dtype, offset = schema.dtype.fields[name][:2]
        unit = 0
        wanted = dtype.kind in "iufbSUMm" and dtype.subdtype is None and dtype.names is None
        if dtype.kind in "Mm" and wanted:
            text, count = np.datetime_data(dtype)
            wanted, unit = text in UNITS and count == 1, UNITS.get(text, 0)
        if dtype.kind == "f" and dtype.itemsize > 8:
            wanted = False
        if not wanted:
            faults.append(
                f"field {name} is of dtype {dtype}, which cannot be filled from text; numbers, bool, S, U and times in "
                f"D, h, m, s, ms, us or ns can"
            )
        found.append(Target(name, dtype.kind, dtype.itemsize, unit, offset, dtype, dtype.isnative))
    if faults:
        raise ConfigError(faults)
    return found


class Rows:
    """Records that are filled field by field. bad: why a record cannot be, or 0; bad_field: because of which field."""

    def __init__(self, count: int, dtype: np.dtype) -> None:
        self.rows = np.zeros(count, dtype)
        self.bad, self.bad_field = np.zeros(count, "u1"), np.zeros(count, "u4")

    def fill(
        self, each: Target, number: int, data: Integers, fields: Integers, values: Integers, wanted: int, field: int
    ) -> None:
        """Field `number` of the records, which is field `field` of `wanted` among the spans in fields and values."""
        count = len(self.rows)
        if not count:
            return
        before = self.bad != 0 if field != number else None
        column = None if each.direct else np.zeros(count, each.dtype.newbyteorder("="))
        out = self.rows if column is None else column
        view = borrow("uint8_t[]", out.view("u1"))
        target = ffi.new("sm_target *")
        target.kind, target.itemsize = ord(each.kind), each.itemsize
        target.unit, target.wanted, target.field = each.unit, wanted, field
        target.stride = out.itemsize
        target.out = view + each.offset if column is None else view
        flags = borrow("uint8_t[]", self.bad)
        lib.sm_convert(data, fields, values, count, target, flags, borrow("uint32_t[]", self.bad_field))
        if before is not None:
            self.bad_field[(self.bad != 0) & ~before] = number
        if column is not None:
            self.rows[each.name] = column
