"""A process that writes into memory that is not its own, while the engine runs: one lane suffers, and everybody is
told."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem.memory.inbox_segment import PAGE
from support.checker import check
from support.programs import hostile, sends
from support.recorder import payload
from support.rig import PATIENCE, SMALL_LANE, Program, Rig, segments_of, wait_until

MAD, HONEST = 1, 1022  # far enough from each other that no flip makes one the other
VERSION = 8  # where it is in both headers
ACCEPTED = 8  # where both copies are in a lane


def lives(status: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(shard["id"], shard["pid"], shard["incarnation"]) for shard in status["shards"]]


@pytest.fixture
def kept(engine_name: str) -> Iterator[None]:
    """What a broken lane holds stays in shared memory, in segments that are this test's to remove."""
    yield
    for entry in segments_of(engine_name):
        os.unlink(Path("/dev/shm") / entry)


@pytest.mark.parametrize("handler", ["support.recorder:Recorder", "support.handlers.counting:CountingSlots"])
def test_flipped_bits_break_their_lane_and_nothing_else(rig: Rig, engine_name: str, kept: None, handler: str) -> None:
    engine = rig.engine(engine_name, handler=handler, shards=2, lane_bytes=16384).start()
    before = lives(engine.status())
    with (
        Program(sends.push_until_told, rig, engine=engine_name, producer=MAD) as mad,
        Program(sends.push_until_told, rig, engine=engine_name, producer=HONEST) as honest,
    ):
        at, _ = mad.hear(), honest.hear()
        with Program(hostile.vandal, rig, engine=engine_name, seat=at["seat"], seed=1, seconds=1) as vandal:
            looks = 0
            while not has_said(vandal):
                assert len(engine.status()["shards"]) == 2
                looks += 1
            assert vandal.hear()["flips"] > 100 and looks
            vandal.end()
        status = wait_until(
            lambda: (now := engine.status()) and all(shard["error"] for shard in now["shards"]) and now,
            "both workers report the lane",
        )
        assert [shard["broken_lanes"] for shard in status["shards"]] == [[at["seat"]]] * 2
        for shard in status["shards"]:
            assert f"lane of producer {at['seat']} (pid {at['pid']})" in shard["error"] and "corrupt" in shard["error"]
        said = mad.hear()
        assert said["error"] == "SegmentCorrupt"
        assert "connect again" in said["text"] or "contradicts itself" in said["text"]
        assert honest.ask() == {"error": None}, "the other producer's events are not handled"
        mad.end()
        honest.end()
    assert lives(engine.status()) == before, "a worker died of it"
    # what a handler has seen of other lanes when a frame changes under it comes again; state is rolled back for that
    assert check(rig.logs().of([HONEST]), duplicates=0 if handler == "support.recorder:Recorder" else 10**6) == []
    with pytest.raises(shardmem.SegmentCorrupt, match="found corrupt.*events in flight"):
        engine.stop()


def has_said(program: Program) -> bool:
    return bool(select.select([program.process.stdout], [], [], 0)[0])


def test_what_a_broken_lane_still_holds_counts_as_in_flight(rig: Rig, engine_name: str, kept: None) -> None:
    engine = rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE).start()
    with engine.producer() as mad, engine.producer() as good, rig.hold() as release:
        mad.push(1, payload(MAD, 1, 0))
        rig.wait_held(0)
        mad.push_many([1] * 10, [payload(MAD, 1, number) for number in range(1, 11)])
        with lane_of(engine_name, 0, mad.seat) as (read, write):
            (length,) = struct.unpack("<I", read(PAGE, 4))
            write(PAGE + length, struct.pack("<I", 7))  # of the second frame
        good.push(1, payload(HONEST, 1, 0))
        release()
        good.flush(PATIENCE)
        status = wait_until(lambda: (now := engine.status())["shards"][0]["broken_lanes"] and now, "the lane is broken")
        assert status["shards"][0]["broken_lanes"] == [mad.seat]
        assert status["accounting"]["in_flight"] == 10 and status["accounting"]["handled"] == 2
        with pytest.raises(shardmem.SegmentCorrupt, match="connect"):
            mad.flush(PATIENCE)
    with pytest.raises(shardmem.SegmentCorrupt, match="10 events in flight"):
        engine.stop()
    assert engine.status()["accounting"]["in_flight"] == 10


def test_a_damaged_count_keeps_no_drain_waiting(rig: Rig, engine_name: str) -> None:
    """Counts are read by people. Whether a lane is empty is told by its positions, which are checked."""
    engine = rig.engine(engine_name, shards=2, max_shards=2, lane_bytes=SMALL_LANE).start()
    with engine.producer() as producer:
        producer.push_many(list(range(50)), [payload(MAD, key, 0) for key in range(50)])
        producer.flush(PATIENCE)
        for shard in range(2):
            with lane_of(engine_name, shard, producer.seat) as (_, write):
                write(ACCEPTED, struct.pack("<2Q", *[(1 << 64) - 1] * 2))
        assert len(engine.status()["shards"]) == 2
        assert engine.scale_to(1)["removed"] == [1]
    engine.stop()


@contextlib.contextmanager
def lane_of(
    engine: str, shard: int, seat: int
) -> Iterator[tuple[Callable[[int, int], bytes], Callable[[int, bytes], int]]]:
    """read(offset, length) and write(offset, data) in a lane of SMALL_LANE bytes: its page of words, then its
    frames."""
    file = os.open(Path("/dev/shm") / f"shardmem.{engine}.inbox.{shard}.1", os.O_RDWR)
    begin = PAGE + (PAGE + SMALL_LANE) * seat
    yield (
        lambda offset, length: os.pread(file, length, begin + offset),
        lambda offset, data: os.pwrite(file, data, begin + offset),
    )
    os.close(file)


NOT_IT = "not the inbox of shard 0"
HEADERS = {
    "magic, inbox": (".inbox.0.1", 0, b"NOTSHMEM", shardmem.SegmentCorrupt, NOT_IT),
    "version, inbox": (".inbox.0.1", VERSION, struct.pack("<I", 999), shardmem.SegmentCorrupt, NOT_IT),
    "lane_bytes, inbox": (".inbox.0.1", 32, struct.pack("<Q", 1 << 40), shardmem.SegmentCorrupt, NOT_IT),
    "magic, control": (".control", 0, b"NOTSHMEM", shardmem.LayoutMismatch, "magic"),
    "version, control": (".control", VERSION, struct.pack("<I", 999), shardmem.LayoutMismatch, "999"),
    "lane_bytes, control": (".control", 16 + 16, struct.pack("<Q", 1 << 40), shardmem.SegmentCorrupt, "damaged"),
    "slots, control": (".control", 16 + 56, struct.pack("<I", 1 << 31), shardmem.SegmentCorrupt, "damaged"),
}


def test_a_damaged_header_stops_who_attaches_until_the_supervisor_looks_and_nobody_who_runs(
    rig: Rig, engine_name: str
) -> None:
    """It stayed so once: nobody could join, nor stop the engine by its name."""

    def attach() -> bool:
        with contextlib.suppress(shardmem.SegmentCorrupt, shardmem.LayoutMismatch, shardmem.Backpressure):
            with shardmem.connect(engine_name) as late:
                late.push(1, payload(2, 1, 0), 0.0)
                return True
        return False

    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE) as engine, engine.producer() as producer:
        producer.push(1, payload(1, 1, 0))
        status = engine.status()
        before, supervisor = lives(status), status["supervisor"]["pid"]
        for number, (what, (end, offset, bad, kind, text)) in enumerate(HEADERS.items(), 1):
            with open(Path("/dev/shm") / f"shardmem.{engine_name}{end}", "r+b", buffering=0) as file:
                os.kill(supervisor, signal.SIGSTOP)
                os.pwrite(file.fileno(), bad, offset)
                with pytest.raises(kind, match=text), shardmem.connect(engine_name) as late:
                    late.push(1, payload(2, 1, 0))
                producer.push(1, payload(1, 1, number))
                producer.flush(PATIENCE)
                os.kill(supervisor, signal.SIGCONT)
                wait_until(attach, f"somebody attaches again: {what}")
                assert os.pread(file.fileno(), len(bad), offset) != bad
                assert lives(engine.status()) == before, what
        said = [entry["text"] for entry in engine.status()["history"] if entry["kind"] == "memory_damaged"]
        assert any("the header of inbox 0" in text or "the geometry" in text for text in said)
