"""What was never reserved is never touched: it would take memory, or be a SIGBUS where there is none."""

from __future__ import annotations

import os
import struct

import pytest

from shardmem.errors import SegmentCorrupt
from shardmem.memory.inbox_segment import PAGE
from shardmem.memory.native import lib
from shardmem.memory.segment import path_of
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


def test_an_inbox_that_was_cut_short_has_no_lanes_and_status_says_what_became_of_it(loopback):
    engine = loopback(shards=2)
    producer = engine.producer()
    producer.push_many(list(range(20)), [b""] * 20)
    observer = Observer(engine.control)
    before = observer.status()
    assert [shard["memory"] for shard in before["shards"]] == ["", ""] and before["engine"]["memory"] == ""
    os.ftruncate(engine.inboxes[0].segment.descriptor, PAGE)
    cut, whole = observer.status()["shards"]
    assert "inbox.0.1 was cut short while it was in use: it has 4,096 bytes of" in cut["memory"]
    assert (cut["accepted"], cut["lanes"]) == (0, 0), "nothing of it is read"
    assert whole["memory"] == "" and whole["accepted"] == before["shards"][1]["accepted"] > 0
    (found,) = [each for each in observer.status()["findings"] if each["kind"] == "memory_lost"]
    assert (found["level"], found["shard"]) == ("error", 0) and found["text"].startswith(cut["memory"])
    observer.close()


@pytest.mark.parametrize("left", [0, 100])
def test_who_comes_after_an_inbox_was_cut_short_is_told_so_and_not_that_it_is_being_created(loopback, left):
    engine = loopback(shards=2)
    segment = engine.inboxes[0].segment
    segment.unlink()  # the test has it mapped: another file is cut short in its place
    with open(path_of(segment.name), "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as short:
        short.write(bytes(left))
    observer = Observer(engine.control)
    cut, whole = observer.status()["shards"]
    assert cut["memory"].startswith(f"/dev/shm/{segment.name} is cut short: it has {left} bytes of")
    assert whole["memory"] == ""
    observer.close()
    os.unlink(path_of(segment.name))


@pytest.mark.parametrize("whose", ["inbox", "control"])
def test_memory_that_was_removed_from_its_directory_is_a_finding(loopback, whose):
    engine = loopback(shards=2)
    observer = Observer(engine.control)
    observer.status()
    segment = engine.inboxes[1].segment if whose == "inbox" else engine.control.segment
    segment.unlink()
    for reader in (observer, late := Observer(engine.control)):  # who had it mapped, and who comes too late
        document = reader.status()
        told = document["shards"][1]["memory"] if whose == "inbox" else document["engine"]["memory"]
        assert f"{segment.name} was removed" in told or f"there is no /dev/shm/{segment.name}" in told
        (found,) = [each for each in document["findings"] if each["kind"] == "memory_lost"]
        assert found["shard"] == (1 if whose == "inbox" else None) and told in found["text"]
    late.close()
    observer.close()


def test_an_inbox_of_which_the_header_is_damaged_hides_no_other_shard(loopback):
    engine = loopback(shards=2)
    engine.producer().push_many(list(range(20)), [b""] * 20)
    os.pwrite(engine.inboxes[0].segment.descriptor, b"NOTSHMEM", 0)
    observer = Observer(engine.control)
    document = observer.status()
    assert "is not the inbox of shard 0" in document["shards"][0]["memory"]
    assert document["shards"][1]["accepted"] > 0 and set(observer.in_flight()) == {0, 1}
    observer.close()


def test_a_control_segment_that_was_cut_short_is_an_error_of_status(loopback):
    engine = loopback()
    observer, descriptor = Observer(engine.control), engine.control.segment.descriptor
    size = os.fstat(descriptor).st_size
    os.ftruncate(descriptor, size - 1)
    with pytest.raises(SegmentCorrupt, match=r"control was cut short .*it has [\d,]+ bytes of [\d,]+; what it held"):
        observer.status()
    os.ftruncate(descriptor, size)
