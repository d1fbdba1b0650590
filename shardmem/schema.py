"""What an engine carries: records of one numpy dtype, or events of a key and a payload. Fixed at its creation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmem.errors import ConfigError

BACKPRESSURE = ("block", "fail", "drop_newest", "drop_oldest", "sample")  # what a producer does on a full lane
KEY_NONE, KEY_INT, KEY_BYTES, KEY_STR = range(4)  # as in csrc/shardmem.h


@dataclass(frozen=True)
class Schema:
    """dtype None: an events engine, whose keys are int, str, bytes or None and whose payloads are bytes."""

    dtype: np.dtype | None = None
    key: str | None = None

    @classmethod
    def of(cls, dtype: Any, key: str | None) -> Schema:
        """Checked. Raises ConfigError when the dtype cannot live in shared memory or the key cannot be one."""
        if dtype is None:
            if key is not None:
                raise ConfigError(
                    f"key={key!r} names a field of a dtype, but dtype is not given; leave key out for "
                    f"an events engine (there push takes the key), or give the dtype"
                )
            return cls()
        try:
            dtype = np.dtype(dtype)
        except TypeError as error:
            raise ConfigError(f"dtype={dtype!r} is not a numpy dtype: {error}") from None
        if dtype.names is None:
            raise ConfigError(
                f"dtype={dtype!r} has no fields; a records engine takes a structured dtype, "
                f"for example np.dtype([('symbol', 'u8'), ('price', 'f8')])"
            )
        if not dtype.itemsize:
            raise ConfigError(f"dtype={dtype!r} has rows of 0 bytes")
        if dtype.hasobject:
            raise ConfigError(
                f"dtype={dtype!r} holds Python objects, which cannot live in shared memory; "
                f"use fixed-width fields (numbers, 'S' bytes), or an events engine for other payloads"
            )
        if key is not None:
            if key not in dtype.names:
                raise ConfigError(f"key={key!r} is not a field of the dtype; its fields are {', '.join(dtype.names)}")
            field = dtype.fields[key][0]
            whole = field.kind in "iu" and field.isnative
            if not (whole or field.kind == "S" and field.itemsize) or field.subdtype is not None:
                raise ConfigError(
                    f"key={key!r} has dtype {field}; a key is a native integer of 1 to 8 bytes or "
                    f"bytes ('S' with a length)"
                )
        try:
            same = cls.from_json(cls(dtype, key).to_json()).dtype == dtype
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"dtype={dtype!r} has no portable description ({error}); fields must not overlap and must lie in order"
            ) from None
        if not same:
            raise ConfigError(f"dtype={dtype!r} does not survive being written down; use plain fields")
        return cls(dtype, key)

    @property
    def is_records(self) -> bool:
        return self.dtype is not None

    def geometry(self) -> dict[str, int]:
        """The fields of sm_geometry that follow from the schema."""
        if self.dtype is None:
            return {"row_bytes": 0, "key_kind": KEY_NONE, "key_offset": 0, "key_bytes": 0, "key_signed": 0}
        if self.key is None:
            return {
                "row_bytes": self.dtype.itemsize,
                "key_kind": KEY_NONE,
                "key_offset": 0,
                "key_bytes": 0,
                "key_signed": 0,
            }
        assert self.dtype.fields is not None and self.key is not None  # `of` has checked them
        field, offset = self.dtype.fields[self.key][:2]
        return {
            "row_bytes": self.dtype.itemsize,
            "key_kind": KEY_BYTES if field.kind == "S" else KEY_INT,
            "key_offset": offset,
            "key_bytes": field.itemsize,
            "key_signed": int(field.kind == "i"),
        }

    def describe(self) -> dict[str, Any]:
        """For status and for the control segment."""
        if self.dtype is None:
            return {"kind": "events"}
        return {"kind": "records", "dtype": np.lib.format.dtype_to_descr(self.dtype), "key": self.key}

    def to_json(self) -> str:
        return json.dumps(self.describe(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Schema:
        described = json.loads(text)
        if described["kind"] == "events":
            return cls()
        return cls(np.lib.format.descr_to_dtype(_fields(described["dtype"])), described["key"])


def _fields(described: list[Any]) -> list[Any]:
    """JSON has lists where a description of a dtype has tuples: around a field, a shape, a title and name."""
    made = []
    for name, form, *shape in described:
        made.append(
            (
                tuple(name) if isinstance(name, list) else name,
                _fields(form) if isinstance(form, list) else form,
                *(tuple(each) for each in shape),
            )
        )
    return made
