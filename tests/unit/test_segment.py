"""Segments: what is attached to, what the system refuses, and what is left when it does."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardmem.errors import ConfigError, NotRunning, OutOfMemory, SegmentCorrupt, SegmentError, ShardmemError
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import PAGE, InboxSegment
from shardmem.memory.refusals import refused
from shardmem.memory.segment import Segment, control_name, path_of
from shardmem.schema import Schema
from support.rig import segments_of
from support.seal import seal_control

SHM = Path("/dev/shm")
SCHEMA_AT, NAME_AT = 16 + 7 * 8 + 10 * 4, 16 + 7 * 8 + 10 * 4 + 2048


@contextlib.contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def sealed(name: str) -> Iterator[bytearray]:
    """The header of its control segment, to be changed; the sum is made to fit."""
    with open(path_of(control_name(name)), "r+b", buffering=0) as file:
        header = bytearray(file.read(PAGE))
        yield header
        seal_control(header)
        file.seek(0)
        file.write(header)


def create(name: str, lane_bytes: int = PAGE, max_producers: int = 4) -> ControlSegment:
    return ControlSegment.create(
        name, Schema.of(None, None), slots=16, max_shards=2, max_producers=max_producers, lane_bytes=lane_bytes
    )


def works(control: ControlSegment) -> InboxSegment:
    return InboxSegment.create(control, 0, 1)


@pytest.fixture
def name(engine_name: str) -> Iterator[str]:
    """Of an engine that has a control segment and the inbox of shard 0, 4 GiB long, of which next to nothing is used;
    both go at the end."""
    control = create(engine_name, lane_bytes=1 << 26, max_producers=64)
    inbox = works(control)
    control.set_shard_generation(0, 1)
    inbox.close()
    control.close()
    yield engine_name
    for entry in segments_of(engine_name):
        os.unlink(SHM / entry)


def attach_everything(name: str) -> None:
    control = ControlSegment.attach(name)
    try:
        held = lease.Lease.take(control.segment, lease.seat_byte(3))
        assert held is not None
        held.release()
        control.open_inbox(0).close()
    finally:
        control.close()


def create_everything(name: str) -> None:
    control = create(name + "-new")
    try:
        held = lease.Lease.take(control.segment, lease.SUPERVISOR)
        assert held is not None
        held.release()
        inbox = works(control)
        inbox.segment.unlink()
        inbox.close()
    finally:
        control.segment.unlink()
        control.close()


# ---- what the system refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [attach_everything, create_everything])
def test_without_descriptors_an_attach_or_a_create_names_the_limit_and_leaves_everything_as_it_was(
    name: str, work: Callable[[str], None]
) -> None:
    """SharedMemory removed the segment of a running engine when its mmap, which duplicates the descriptor, failed."""
    before, segments = open_descriptors(), segments_of(name)
    highest = max(map(int, before))
    for limit in range(1, highest + 8):
        try:
            with limited(resource.RLIMIT_NOFILE, limit):
                work(name)
        except SegmentError as error:
            assert f"RLIMIT_NOFILE allows this process {limit}" in str(error) and "ulimit -n" in str(error.hint)
        else:
            break
        finally:
            assert segments_of(name) == segments
            assert open_descriptors() == before
    assert limit > 1, "no limit was too low"


def test_without_address_space_an_attach_or_a_create_names_the_limit_and_leaves_everything_as_it_was(name: str) -> None:
    before, segments = open_descriptors(), segments_of(name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    control = create(name + "-wide", 1 << 26, 64)
    with limited(resource.RLIMIT_AS, used + (1 << 30)):
        with pytest.raises(SegmentError, match="no address space is left.*RLIMIT_AS=") as caught:
            attach_everything(name)
        assert "ulimit -v" in str(caught.value.hint)
        with pytest.raises(SegmentError, match="no address space is left.*RLIMIT_AS="):
            works(control)
    control.segment.unlink()
    control.close()
    assert segments_of(name) == segments and open_descriptors() == before


def test_a_file_size_limit_is_named_and_no_half_made_segment_is_left(name: str) -> None:
    before, segments = open_descriptors(), segments_of(name)
    with limited(resource.RLIMIT_FSIZE, 1 << 16):
        with pytest.raises(SegmentError, match="RLIMIT_FSIZE=65,536"):
            create(name + "-new")
    assert segments_of(name) == segments and open_descriptors() == before


@pytest.mark.parametrize(
    "number, names",
    [
        (errno.EMFILE, r"RLIMIT_NOFILE allows this process [\d,]+"),
        (errno.ENFILE, r"fs.file-max allows \d+"),
        (errno.EAGAIN, "RLIMIT_MEMLOCK is"),
        (errno.EFBIG, "RLIMIT_FSIZE=|more than a file can have"),
        (errno.ENOMEM, "RLIMIT_AS=|vm.max_map_count|the kernel has no memory to map 4,096 bytes"),
        (errno.EROFS, "/dev/shm cannot be written to by uid"),
        (errno.ENOENT, "there is no /dev/shm"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_system_refuses_is_said_with_the_limit_that_it_met(number: int, names: str) -> None:
    said = refused("cannot map x", OSError(number, "no"), need=4096)
    assert re.match(rf"cannot map x: .*({names}).*\(errno {number}\)", str(said)), said
    assert number == errno.EIO or said.hint


def test_no_room_is_out_of_memory_and_says_what_needs_it() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        said = refused("cannot reserve", OSError(number, "no"), what="the lane of producer 2", need=4096)
        assert isinstance(said, OutOfMemory) and said.need == 4096
        assert str(said).startswith("the lane of producer 2 needs 4,096 bytes of shared memory and /dev/shm has")


# ---- what is attached to ---------------------------------------------------------------------------------------------


def no_file(kind: str, path: Path) -> None:
    if kind == "symbolic link":
        (path.parent / f"{path.name}-to").touch(0o600)
        path.symlink_to(path.parent / f"{path.name}-to")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))


@pytest.mark.parametrize("kind", ["symbolic link", "directory", "fifo", "socket"])
def test_what_is_no_regular_file_is_refused_and_stays(engine_name: str, kind: str) -> None:
    path = Path(path_of(control_name(engine_name)))
    no_file(kind, path)
    try:
        for attempt in (lambda: ControlSegment.attach(engine_name), lambda: Segment.attach(path.name)):
            with pytest.raises(SegmentError, match=f"{path} is (a|not a) .*not a segment of shardmem") as caught:
                attempt()
            assert caught.value.hint == "Remove it, or choose another name"
            assert os.path.lexists(path)
    finally:
        for entry in segments_of(engine_name):
            (os.rmdir if (SHM / entry).is_dir() and not (SHM / entry).is_symlink() else os.unlink)(SHM / entry)


@pytest.mark.parametrize("escaping", ["../etc/passwd", "a/b", "", ".", "a\0b", "ä", "x" * 65, "a\n"])
def test_a_name_that_leaves_its_directory_is_refused(escaping: str) -> None:
    for attempt in (ControlSegment.attach, create):
        with pytest.raises(ConfigError, match="is not usable"):
            attempt(escaping)


def test_a_segment_of_another_user_is_refused_whatever_its_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chmod(path_of(control_name(name)), 0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(SegmentError, match=f"{name}.* belongs to uid {os.getuid()}, and .* as uid 54321"):
        ControlSegment.attach(name)


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o602])
def test_a_segment_that_others_can_open_is_refused(name: str, mode: int) -> None:
    path = path_of(control_name(name))
    os.chmod(path, mode)
    with pytest.raises(SegmentError, match=f"{path} is open to other users .mode {mode:04o}.*private") as caught:
        ControlSegment.attach(name)
    assert f"chmod 600 {path}" in str(caught.value.hint)
    os.chmod(path, 0o600)
    attach_everything(name)


def test_a_segment_is_private_whatever_the_umask(engine_name: str) -> None:
    before = os.umask(0o277)
    try:
        control = create(engine_name)
    finally:
        os.umask(before)
    assert os.fstat(control.segment.descriptor).st_mode & 0o7777 == 0o600
    control.segment.unlink()
    control.close()


# ---- damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"kind":"records"}',
        b'{"kind":"records","dtype":[["a","<u8"]],"key":"a"}',
        b'{"kind":"records","dtype":[["a","<q17"]],"key":"a"}',
        b'{"kind":"events","max_shards":"two"}',
        b'{"kind":"events","max_shards":0}',
        b'{"kind":"events","max_shards":99999}',
        b'{"kind":"events","backpressure":"none"}',
        b'{"kind":"events","state_dir":7}',
        b'{"kind":"events","state_dir":"a\\u0000b"}',
        b"[" * 2000,
    ],
)
def test_a_damaged_description_is_an_error_that_names_the_segment(name: str, text: bytes) -> None:
    with sealed(name) as header:
        header[SCHEMA_AT : SCHEMA_AT + 2048] = text.ljust(2048, b" ")
        header[SCHEMA_AT - 8 : SCHEMA_AT - 4] = struct.pack("<I", len(text))
    with pytest.raises(SegmentCorrupt, match=f"{control_name(name)} is damaged: its description"):
        ControlSegment.attach(name)


def test_a_control_segment_under_the_name_of_another_engine_is_refused(name: str) -> None:
    with sealed(name) as header:
        header[NAME_AT : NAME_AT + 7] = b"another"
    with pytest.raises(SegmentCorrupt, match="says that it is engine 'another"):
        ControlSegment.attach(name)


def test_random_damage_of_the_header_is_an_error_of_ours_or_none(name: str) -> None:
    path, draw = path_of(control_name(name)), random.Random(11)
    good = Path(path).read_bytes()[:PAGE]
    with open(path, "r+b", buffering=0) as file:
        for _ in range(600):
            page = bytearray(good)
            for _ in range(draw.randint(1, 3)):
                page[draw.randrange(0, NAME_AT + 96)] ^= 1 << draw.randrange(8)
            if draw.random() < 0.5:
                seal_control(page)
            file.seek(0)
            file.write(page)
            with contextlib.suppress(ShardmemError):
                attach_everything(name)


def test_a_control_segment_without_memory_behind_it_is_damaged_and_takes_none(name: str) -> None:
    path = Path(path_of(control_name(name)))
    size, header = path.stat().st_size, path.read_bytes()[:PAGE]
    os.truncate(path, 0)
    os.truncate(path, size)
    with open(path, "r+b") as file:
        file.write(header)
    before = path.stat().st_blocks
    with pytest.raises(SegmentCorrupt, match="4,096 bytes of it have memory behind them"):
        ControlSegment.attach(name)
    assert path.stat().st_blocks == before


def test_an_inbox_that_is_cut_short_is_not_mapped(name: str) -> None:
    control = ControlSegment.attach(name)
    (inbox,) = (SHM / entry for entry in segments_of(name) if ".inbox." in entry)
    for size, kind, text in (
        (PAGE, SegmentCorrupt, "not the inbox"),
        (17, SegmentCorrupt, "not the inbox"),
        (0, NotRunning, "empty"),
    ):
        os.truncate(inbox, size)
        with pytest.raises(kind, match=text):
            control.open_inbox(0)
    control.close()
