"""A supervisor that takes over damaged memory."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardmem.errors import ShardmemError
from shardmem.memory.segment import SHM_DIRECTORY, control_name, inbox_files, path_of
from support.left import Left, ends


@pytest.fixture
def left(loopback: Any, tmp_path: Any) -> Iterator[Left]:
    left = Left(loopback, str(tmp_path))
    yield left
    for entry in inbox_files(left.engine.name):
        os.unlink(path_of(entry))


def test_random_damage_of_one_shard_keeps_no_other_from_being_taken_over(
    left: Left, draws: Callable[[], Iterator[random.Random]]
) -> None:
    """Its words, the boards, the slot words and the handoff table, each time from the same memory."""
    control, memory = left.control, left.memory()
    shards = left.ranges[-1][0]
    places = [*left.ranges[1:5], *3 * [(shards + left.shard_bytes, 2048)]]
    good = {place: bytes(memory[place[0] : sum(place)]) for place in left.ranges}
    files = set(inbox_files(control.engine))
    for draw in draws():
        for _ in range(draw.randint(1, 8)):
            at, size = draw.choice(places)
            position = (at + draw.randrange(size)) & ~7
            value = draw.choice([0, 1, (1 << 64) - 1, draw.getrandbits(64), draw.getrandbits(16)])
            memory[position : position + 8] = value.to_bytes(8, "little")
        held = ends(left.take())
        assert {shard: held.get(shard) for shard in (0, 2)} == {0: left.held[0], 2: left.held[2]}
        assert held.get(1, 0) in (left.held[1], 0)
        assert files <= set(inbox_files(control.engine)), "an inbox that holds events was swept"
        for entry in set(inbox_files(control.engine)) - files:
            os.unlink(path_of(entry))
        for (at, _), kept in good.items():
            memory[at : at + len(kept)] = kept


@contextlib.contextmanager
def kept(engine: str, directory: str) -> Iterator[Callable[[], None]]:
    """What is yielded puts the files of an engine back, and removes what has taken their place: of a header that is
    damaged nobody can know what was there."""
    names = [control_name(engine), *inbox_files(engine)]
    for name in names:
        os.link(path_of(name), f"{directory}/{name}")

    def put_back() -> None:
        for name in {*names, *inbox_files(engine)}:
            is_ours, is_there = name in names, os.path.exists(path_of(name))
            if is_there and not (is_ours and os.path.samefile(path_of(name), f"{directory}/{name}")):
                os.unlink(path_of(name))
                is_there = False
            if is_ours and not is_there:
                os.link(f"{directory}/{name}", path_of(name))

    yield put_back
    put_back()


def test_damage_of_the_whole_control_segment_is_an_error_of_ours_or_none(
    left: Left, draws: Callable[[], Iterator[random.Random]]
) -> None:
    memory, ranges = left.memory(), left.ranges
    good = {place: bytes(memory[place[0] : sum(place)]) for place in ranges}
    with (
        tempfile.TemporaryDirectory(dir=SHM_DIRECTORY, prefix="kept-") as directory,
        kept(left.engine.name, directory) as put_back,
    ):
        for draw in draws():
            for _ in range(draw.choice([1, 30, 3000])):
                at, size = draw.choice(ranges[draw.choice([0, 1]) :])
                memory[at + draw.randrange(size)] = bytes([draw.randrange(256)])
            with contextlib.suppress(ShardmemError):
                ends(left.take())
            put_back()
            for (at, _), said in good.items():
                memory[at : at + len(said)] = said
