"""What was never reserved is never touched: it would take memory, or be a SIGBUS where there is none."""

from __future__ import annotations

import os
import struct

import pytest

from shardmem.errors import SegmentCorrupt
from shardmem.memory.inbox_segment import PAGE
from shardmem.memory.native import lib
from shardmem.status.observer import Observer
from support.rig import wait_until

LANE_OPEN = 1024  # where it is in the header of an inbox


def say_open(engine, seat: int, word: int = 1) -> None:
    os.pwrite(engine.inboxes[0].segment.descriptor, struct.pack("<I", word), LANE_OPEN + 4 * seat)


def blocks(engine) -> int:
    return os.fstat(engine.inboxes[0].segment.descriptor).st_blocks


def test_a_lane_that_is_said_to_be_open_and_has_no_memory_is_broken_and_nobody_touches_it(loopback):
    engine = loopback()
    producer = engine.producer()
    producer.push(1, b"mine")
    assert engine.take().payloads == [b"mine"]
    engine.commit()
    before = blocks(engine)
    for seat in (3, 5):
        say_open(engine, seat, 0xFFFFFFFF)
    producer.push(1, b"again")
    broken = []
    while True:
        batch = engine.take()
        if engine.last_status == lib.SM_CORRUPT:
            broken.append(engine.batches[0].broken_seat)
        if batch is not None:
            assert batch.payloads == [b"again"]
            engine.commit()
        elif engine.last_status == lib.SM_OK:
            break
    assert broken == [3, 5], "each is said once"
    observer = Observer(engine.control)
    (shard,) = observer.status()["shards"]
    assert shard["broken_lanes"] == [3, 5] and shard["in_flight"] == 0 and shard["handled"] == 2
    assert [finding["kind"] for finding in observer.status()["findings"] if finding["kind"] == "broken_lane"]
    assert [lane["seat"] for lane in observer.lanes(0) if lane["broken"]] == [3, 5]
    observer.close()
    assert blocks(engine) == before


def test_the_producer_of_a_seat_that_was_said_to_be_open_is_read_when_it_comes(loopback):
    engine = loopback()
    say_open(engine, 0)
    assert engine.take() is None and engine.last_status == lib.SM_CORRUPT
    producer = engine.producer()
    assert producer.seat == 0
    producer.push(7, b"late")
    batch = wait_until(engine.take, "its lane is looked at again")
    assert batch.payloads == [b"late"]
    engine.commit()
    assert not engine.inboxes[0].lanes()[0].broken


def test_a_lane_of_which_only_the_header_has_memory_is_reserved_before_it_is_read(loopback):
    engine = loopback()
    descriptor, geometry = engine.inboxes[0].segment.descriptor, engine.control.geometry
    at = geometry.lanes_offset + 2 * geometry.lane_stride
    os.pwrite(descriptor, struct.pack("<Q", 4096), at)  # the tail: there are frames
    before = blocks(engine)
    say_open(engine, 2)
    engine.take()
    assert engine.last_status == lib.SM_CORRUPT and engine.batches[0].broken_seat == 2
    assert blocks(engine) == before + (geometry.lane_stride - PAGE) // 512


def test_an_inbox_that_was_cut_short_is_an_error_of_its_readers(loopback):
    engine = loopback()
    engine.producer().push(1, b"lost")
    descriptor = engine.inboxes[0].segment.descriptor
    size = os.fstat(descriptor).st_size
    os.ftruncate(descriptor, size - 1)
    with pytest.raises(SegmentCorrupt, match=r"inbox\.0\.1 was cut short .*it has [\d,]+ bytes of [\d,]+"):
        engine.inboxes[0].lanes()
    os.ftruncate(descriptor, size)
