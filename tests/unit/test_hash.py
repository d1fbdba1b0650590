"""A key has one slot: in every process, whatever the width of its field, and in every version to come."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmem.memory.native import ffi, lib
from shardmem.schema import Schema

SEED = 0x73686172646D656D  # "shardmem", read as a big-endian number
SLOTS = 65536

words = st.integers(0, 2**64 - 1)


def int_hash(key: int) -> int:
    return lib.sm_hash_int(key & (1 << 64) - 1)


def slots_of(rows: np.ndarray, slots: int = SLOTS) -> list[int]:
    """What a sender works out for rows of a records engine keyed by `key`."""
    geometry = ffi.new("sm_geometry *", dict(slots=slots, **Schema.of(rows.dtype, "key").geometry()))
    found = np.empty(len(rows), "u4")
    rows = np.ascontiguousarray(rows)
    status = lib.sm_slots_of_rows(
        geometry, ffi.cast("void *", rows.ctypes.data), len(rows), ffi.cast("uint32_t *", found.ctypes.data)
    )
    assert status == lib.SM_OK
    return found.tolist()


def records(keys: list, kind: str) -> np.ndarray:
    """Rows of 13 bytes and the key: it lies at an odd offset, so most keys are not aligned."""
    made = np.zeros(len(keys), np.dtype([("before", "V5"), ("key", kind), ("after", "V8")]))
    made["key"] = keys
    return made


# ---- the function ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), words)
def test_xxh64_is_xxh64(data, seed):
    assert xxhash.xxh64_intdigest(data, seed) == lib.sm_xxh64(data, len(data), seed)


@pytest.mark.parametrize("length", range(130))
def test_xxh64_is_xxh64_at_every_length_around_its_block_sizes(length):
    data = bytes(range(130))[:length]
    assert xxhash.xxh64_intdigest(data, 1) == lib.sm_xxh64(data, length, 1)


@given(st.binary(min_size=1, max_size=80), st.integers(1, 15), words)
def test_xxh64_does_not_care_where_its_data_begins(data, offset, seed):
    memory = ffi.new("uint8_t[]", 16 + len(data))
    ffi.memmove(memory + offset, data, len(data))
    assert xxhash.xxh64_intdigest(data, seed) == lib.sm_xxh64(memory + offset, len(data), seed)


@given(st.integers(-(2**63), 2**64 - 1))
def test_an_int_is_hashed_as_its_eight_little_endian_bytes(key):
    data = (key & (1 << 64) - 1).to_bytes(8, "little")
    assert xxhash.xxh64_intdigest(data, SEED) == int_hash(key)


@given(st.binary(max_size=300))
def test_bytes_are_hashed_as_they_are(key):
    assert xxhash.xxh64_intdigest(key, SEED) == lib.sm_hash_bytes(key, len(key))


# ---- the slot --------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]), st.data())
def test_an_integer_field_of_any_width_has_the_slot_of_the_same_int(kind, data):
    info = np.iinfo(kind)
    keys = data.draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=1, max_size=20)) + [
        int(info.min),
        int(info.max),
        0,
    ]
    expected = [int_hash(key) & SLOTS - 1 for key in keys]
    assert expected == slots_of(records(keys, kind))


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8"])
def test_a_negative_key_has_one_slot_in_all_signed_fields(kind):
    assert [int_hash(-5) & SLOTS - 1] == slots_of(records([-5], kind))


@settings(max_examples=50)
@given(st.integers(1, 40), st.data())
def test_a_bytes_field_has_the_slot_of_the_bytes_that_numpy_gives_back(size, data):
    keys = data.draw(st.lists(st.binary(max_size=size), min_size=1, max_size=20))
    rows = records(keys, f"S{size}")
    given_back = rows["key"].tolist()
    assert [key.rstrip(b"\0") for key in keys] == given_back  # padding is not part of the key
    assert [lib.sm_hash_bytes(key, len(key)) & SLOTS - 1 for key in given_back] == slots_of(rows)


@given(st.lists(words, max_size=50), st.integers(0, 16))
def test_a_column_of_ints_has_the_slots_of_its_ints(keys, power):
    slots, column, found = 1 << power, np.array(keys, "u8"), np.empty(len(keys), "u4")
    lib.sm_slots_of_ints(
        ffi.cast("uint64_t *", column.ctypes.data), len(keys), slots, ffi.cast("uint32_t *", found.ctypes.data)
    )
    assert [int_hash(key) % slots for key in keys] == found.tolist()


def test_rows_without_a_key_have_no_slot():
    geometry = ffi.new("sm_geometry *", {"slots": SLOTS, "row_bytes": 8, "key_kind": lib.SM_KEY_NONE})
    assert lib.SM_UNROUTED == lib.sm_slots_of_rows(geometry, ffi.new("char[8]"), 1, ffi.new("uint32_t *"))


@pytest.mark.parametrize("slots", [16, 1024, 65536])
def test_consecutive_ints_spread_over_the_slots(slots):
    count = 64 * slots
    keys, found = np.arange(count, dtype="u8"), np.empty(count, "u4")
    lib.sm_slots_of_ints(
        ffi.cast("uint64_t *", keys.ctypes.data), count, slots, ffi.cast("uint32_t *", found.ctypes.data)
    )
    per_slot = np.bincount(found, minlength=slots)
    assert 0.5 * 64 <= np.percentile(per_slot, 0.1) and per_slot.max() <= 2.5 * 64


# ---- for ever --------------------------------------------------------------------------------------------------------

# Changing one of these moves keys between slots while producers of the old version still run: it needs a new layout
# version.
FROZEN_INTS = {
    0: 0xC4CB389D46998AE5,
    1: 0x9697D34ECBAF42AB,
    7: 0x5B698D063D273925,
    -1: 0xEA98116A90DA0F26,
    2**63: 0x59D618EC6DA8DE9,
    10**18: 0xB1DC51393E0ED944,
}
FROZEN_BYTES = {
    b"": 0xB023008FDAE8F9F4,
    b"a": 0x27D800B2B21B1F01,
    b"AAPL": 0x883B2720A92FB7A9,
    b"shardmem": 0x2A7999E759682A46,
    "Z\u00fcrich".encode(): 0x4DB2A7D68D67CA5,
    b"0123456789abcdef0123456789abcdef": 0x7AF7770AF27BE369,
    bytes(range(100)): 0xB72243A6E6A95626,
}


@pytest.mark.parametrize("key", FROZEN_INTS)
def test_the_hash_of_an_int_never_changes(key):
    assert FROZEN_INTS[key] == int_hash(key)


@pytest.mark.parametrize("key", FROZEN_BYTES)
def test_the_hash_of_bytes_never_changes(key):
    assert FROZEN_BYTES[key] == lib.sm_hash_bytes(key, len(key))
