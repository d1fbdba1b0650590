"""Words that a process reads again after somebody has damaged them."""

from __future__ import annotations

import os

import pytest

from shardmem.memory.native import ffi, lib

WORKER_INCARNATION = 128 + 16  # where it is in the words of a shard


@pytest.mark.parametrize("damaged", [(1 << 64) - 1, 1 << 63, 3898977062270009347, (1 << 32) - 1])
def test_a_damaged_count_of_lives_goes_on_as_a_number_that_everybody_can_hold(loopback, damaged):
    """SQLite has no unsigned 64 bits, and a handler may keep it in 32."""
    control = loopback().control
    offsets, lengths = ffi.new("uint64_t[]", 8), ffi.new("uint64_t[]", 8)
    count = lib.sm_control_ranges(control.geometry, offsets, lengths)
    control.enter_worker(0)
    assert control.view_shard(0).incarnation == 1
    os.pwrite(control.segment.descriptor, damaged.to_bytes(8, "little"), offsets[count - 1] + WORKER_INCARNATION)
    assert control.view_shard(0).incarnation == damaged
    control.enter_worker(0)
    first = control.view_shard(0).incarnation
    control.enter_worker(0)
    assert 1 < first < first + 1 == control.view_shard(0).incarnation < 1 << 32
