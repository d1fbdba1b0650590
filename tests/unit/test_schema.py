"""A schema survives the control segment: the dtype that comes back is the dtype that went in."""

from __future__ import annotations

import numpy as np
import pytest

from shardmem.errors import ConfigError
from shardmem.schema import Schema


@pytest.mark.parametrize(
    "dtype",
    [
        [("a", "u8"), ("b", "f4")],
        np.dtype([("a", "u1"), ("b", "f8"), ("c", "S7")], align=True),
        [("a", "i4"), ("m", "f4", (2, 3)), ("t", "M8[ms]"), ("u", "U4"), ("v", "V5")],
        [("a", "i4"), ("n", [("x", "f4"), ("y", "f4")])],
        {"names": ["a", "b"], "formats": ["u2", "u4"], "offsets": [2, 8], "itemsize": 32},
    ],
)
def test_a_dtype_survives_the_way_through_json(dtype):
    schema = Schema.of(dtype, "a")

    again = Schema.from_json(schema.to_json())

    assert schema == again
    assert schema.dtype.itemsize == again.dtype.itemsize and schema.dtype.fields == again.dtype.fields


def test_an_events_schema_survives_too():
    assert Schema.of(None, None) == Schema.from_json(Schema.of(None, None).to_json())


@pytest.mark.parametrize(
    "dtype, key",
    [
        ([("a", ">u8")], "a"),
        ([("a", "f8")], "a"),
        ([("a", "u8", (2,))], "a"),
        ([("a", "U4")], "a"),
        ("not a dtype", None),
        ([("a", "O")], None),
    ],
)
def test_what_cannot_be_a_key_or_live_in_shared_memory_is_refused(dtype, key):
    with pytest.raises(ConfigError):
        Schema.of(dtype, key)
