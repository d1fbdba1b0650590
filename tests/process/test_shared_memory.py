"""Shared memory that is short, foreign, damaged or abandoned: a clear error, never a SIGBUS, never a tracker's
cleaning."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardmem
from support.checker import accounting, check
from support.programs import endings, sends, small_memory
from support.recorder import payload
from support.rig import PATIENCE, SMALL_LANE, Program, Rig, drained, run_program, segments_of
from support.seal import GEOMETRY, seal_control

SHM = Path("/dev/shm")


# ---- too little of it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """The command that gives a program a mount namespace of its own."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        if (
            shutil.which("unshare")
            and subprocess.run(
                [*command, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"], capture_output=True
            ).returncode
            == 0
        ):
            return command
    pytest.skip("this user may not mount a small /dev/shm of its own")


@pytest.fixture(scope="module")
def told(namespace: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What programs.in_small_memory went through, in 2 MB of shared memory."""
    rig = Rig(tmp_path_factory.mktemp("small"))
    told = run_program(small_memory.in_small_memory, rig, prefix=namespace, timeout=40, stderr=None, size=2 << 20)
    told["logs"] = rig.logs()
    return told


@pytest.mark.parametrize(
    "step, what",
    [
        ("second engine", "the control segment of engine 'second'"),
        ("third engine", "the inbox of shard 0"),
        ("lane 2", "the lane of producer 2 to shard 0"),
        ("lane 2 again", "the lane of producer 2 to shard 0"),
    ],
)
def test_too_little_memory_is_an_error_that_names_need_free_space_and_remedy(
    told: dict[str, Any], step: str, what: str
) -> None:
    said = told[step]
    assert said["error"] == "OutOfMemory"
    assert said["text"].startswith(
        f"{what} needs {said['need']:,} bytes of shared memory and /dev/shm has {said['free']:,} free"
    )
    assert "--shm-size" in said["text"] and "lane_bytes" in said["text"]
    assert said["need"] > said["free"] >= 0


@pytest.mark.parametrize("step", ["second engine", "third engine", "lane 2", "lane 2 again"])
def test_a_refusal_for_want_of_memory_leaves_nothing_behind(told: dict[str, Any], step: str) -> None:
    before, after = told[step]["before"], told[step]["after"]
    assert after["segments"] == before["segments"]
    assert after["free"] == before["free"]


def test_a_lane_refused_again_and_again_leaves_no_descriptor_behind(told: dict[str, Any]) -> None:
    assert told["lane 2 again"]["after"]["descriptors"] == told["lane 2 again"]["before"]["descriptors"]


def test_an_event_for_which_there_was_no_memory_counts_as_refused_because_it_is_full(told: dict[str, Any]) -> None:
    assert {"full"} == set(told["status"]["accounting"]["refused"])


def test_an_engine_that_runs_already_goes_on_while_memory_is_short(told: dict[str, Any]) -> None:
    assert told["lane 1"]["error"] is None
    assert accounting(told["status"], drained=True) == []
    assert check(told["logs"]) == []
    assert len(told["logs"].of([0]).handled) == 4


def test_a_lane_that_was_refused_opens_when_there_is_room(told: dict[str, Any]) -> None:
    assert told["lane 2 at last"]["error"] is None
    assert told["status"]["accounting"]["handled"] == 4 + 1 + 1


def test_the_end_of_the_engine_gives_all_memory_back(told: dict[str, Any]) -> None:
    assert told["left"] == []


# ---- not what it should be -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(
    make_engine_name: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, bytes]]:
    """The segments of an engine that was left with one event in them: ends of their names, and what is in them."""
    rig, name = Rig(tmp_path_factory.mktemp("left")), make_engine_name("left")
    engine = rig.engine(name, handler="support.handlers.failing:Leaving", shards=1, lane_bytes=SMALL_LANE, max_shards=1)
    with engine.start().producer() as producer:
        producer.push(1, payload(1, 1, 0))
    engine.stop(now=True)
    segments = {entry.removeprefix(f"shardmem.{name}"): (SHM / entry).read_bytes() for entry in segments_of(name)}
    for entry in segments_of(name):
        os.unlink(SHM / entry)
    assert sorted(segments) == [".control", ".inbox.0.1"]
    yield {**segments, "name": name.encode()}


@pytest.fixture
def copy(left: dict[str, bytes], engine_name: str) -> Iterator[Path]:
    """The same under the name of this test; the path of the control segment."""
    for end in (".control", ".inbox.0.1"):
        data = bytearray(left[end].replace(left["name"].ljust(96, b"\0"), engine_name.encode().ljust(96, b"\0")))
        if end == ".control":
            seal_control(data)
        (SHM / f"shardmem.{engine_name}{end}").touch(0o600)
        (SHM / f"shardmem.{engine_name}{end}").write_bytes(data)
    yield SHM / f"shardmem.{engine_name}.control"
    for entry in segments_of(engine_name):
        os.unlink(SHM / entry)


def write(offset: int, data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def flip(offset: int) -> Callable[[Path], None]:
    """For words of chance, which may be what a test would write."""

    def damage(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 0xFF]))

    return damage


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


DAMAGES = {
    "a later version": (
        write(8, struct.pack("<I", 999)),
        shardmem.LayoutMismatch,
        "layout version 999.*this shardmem reads",
    ),
    "another header": (write(12, struct.pack("<I", 1)), shardmem.LayoutMismatch, "layout version"),
    "another magic": (
        write(0, b"NOTSHMEM"),
        shardmem.LayoutMismatch,
        "(?s:not made by shardmem.*Remove it, or choose another name)",
    ),
    "absurd geometry": (
        write(GEOMETRY + 7 * 8, struct.pack("<I", 12345)),
        shardmem.SegmentCorrupt,
        "(?s:damaged.*Remove it)",
    ),
    # Each of the next three took the inboxes for another engine's once, and the next supervisor swept them.
    "another engine": (flip(GEOMETRY), shardmem.SegmentCorrupt, "written over its geometry"),
    "longer lanes": (write(GEOMETRY + 16, struct.pack("<Q", 1 << 20)), shardmem.SegmentCorrupt, "over its geometry"),
    "fewer seats": (write(GEOMETRY + 64, struct.pack("<I", 1)), shardmem.SegmentCorrupt, "written over its geometry"),
    "cut in the table": (cut(8192), shardmem.SegmentCorrupt, "(?s:cut short.*Remove it)"),
    "cut in the header": (cut(100), shardmem.SegmentCorrupt, "(?s:cut short.*Remove it)"),
}


def taken_up(rig: Rig, name: str) -> shardmem.Engine:
    """The engine to which the segments belong, not started."""
    return rig.engine(name, shards=1, lane_bytes=SMALL_LANE, max_shards=1)


def test_a_copy_that_is_not_damaged_is_taken_up(rig: Rig, engine_name: str, copy: Path) -> None:
    """So that the tests below show what the damage does."""
    with taken_up(rig, engine_name) as engine:
        assert drained(engine)["accounting"]["handled"] == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_control_segment_that_is_not_ours_or_damaged_is_a_clear_error(
    rig: Rig, engine_name: str, copy: Path, damage: str
) -> None:
    harm, kind, text = DAMAGES[damage]
    harm(copy)
    for who in (shardmem.connect, shardmem.Client, lambda name: taken_up(rig, name).start()):
        with pytest.raises(kind, match=f"{engine_name}.*{text}"):
            who(engine_name)
    assert len(segments_of(engine_name)) == 2, "what is not understood is not removed"


def test_a_control_segment_that_was_never_finished_is_no_engine_and_is_taken_over(rig: Rig, engine_name: str) -> None:
    """Its creator was killed between two system calls: the file is there, and empty."""
    (SHM / f"shardmem.{engine_name}.control").touch(0o600)
    for who in (shardmem.connect, shardmem.Client):
        with pytest.raises(shardmem.NotRunning, match=f"{engine_name}.*is empty.*killed in the act"):
            who(engine_name)
    with rig.engine(engine_name, shards=1) as engine, engine.producer() as producer:
        producer.push(1, payload(1, 1, 0))
        producer.flush(PATIENCE)


HEADER = {
    "magic": write(0, b"NOTSHMEM"),
    "a later version": write(8, struct.pack("<I", 999)),
    "no version": write(8, struct.pack("<I", 0)),
    "shard": write(12, struct.pack("<I", 7)),
    "another engine": flip(16),
    "generation": write(24, struct.pack("<Q", 2)),
    "longer lanes": write(32, struct.pack("<Q", 1 << 20)),
    "fewer seats": write(40, struct.pack("<I", 1)),
    "its sum": flip(48),
}


@pytest.mark.parametrize("word", HEADER)
def test_a_damaged_header_of_an_inbox_is_written_again_and_its_events_are_handled(
    rig: Rig, engine_name: str, copy: Path, word: str
) -> None:
    """All that it says is known otherwise: the inbox was thrown away for it once."""
    HEADER[word](copy.with_name(copy.name.replace(".control", ".inbox.0.1")))
    with taken_up(rig, engine_name) as engine:
        assert any("header of its inbox 1" in entry["text"] for entry in engine.status()["history"])
        assert drained(engine)["accounting"]["handled"] == 1


@pytest.mark.parametrize("harm", [cut(4096), cut(0)], ids=["cut", "empty"])
def test_an_inbox_that_is_damaged_is_named_and_its_shard_goes_on_with_a_new_one(
    rig: Rig, engine_name: str, copy: Path, harm: Callable[[Path], None]
) -> None:
    """One shard's damage keeps no engine from being taken over."""
    harm(copy.with_name(copy.name.replace(".control", ".inbox.0.1")))
    with taken_up(rig, engine_name) as engine, engine.producer() as producer:
        assert any("its inbox 1 is gone" in entry["text"] for entry in engine.status()["history"])
        producer.push(1, payload(1, 1, 0))
        producer.flush(PATIENCE)
        assert engine.status()["accounting"]["in_flight"] == 0


def test_segments_are_private_to_their_user(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2):
        names = segments_of(engine_name)
        assert len(names) == 3
        for name in names:
            assert stat.S_IMODE(os.stat(SHM / name).st_mode) == 0o600


# ---- the standard library's resource tracker -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "no close", "os._exit", "spawn"])
def test_the_end_of_a_producer_process_removes_and_prints_nothing(rig: Rig, engine_name: str, how: str) -> None:
    with rig.engine(engine_name, shards=2) as engine:
        before = segments_of(engine_name)
        reply = run_program(endings.attach_and_end, rig, engine=engine_name, how=how, stderr="")
        assert set(reply["codes"]) == {0}
        assert segments_of(engine_name) == before
        with engine.producer() as producer:
            producer.push(1, payload(9, 1, 0))
            producer.flush(PATIENCE)
        assert accounting(drained(engine), drained=True) == []


def test_a_killed_producer_process_removes_nothing(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine:
        before = segments_of(engine_name)
        with Program(sends.pusher, rig, engine=engine_name, producer=1) as program:
            program.hear()
            program.kill()
            assert program.end(stderr="") == -9
        assert segments_of(engine_name) == before
        assert drained(engine)["accounting"]["handled"] == 10


def test_a_process_that_uses_shared_memory_of_its_own_keeps_its_tracker(rig: Rig, engine_name: str) -> None:
    """Ours is hidden from the tracker; theirs is not."""
    with rig.engine(engine_name, shards=1):
        reply = run_program(endings.own_shared_memory, rig, engine=engine_name, stderr=None)
        assert reply["tracked"] is True
        assert len(segments_of(engine_name)) == 2
    assert not (SHM / reply["name"]).exists(), "the tracker removed what its process forgot"
