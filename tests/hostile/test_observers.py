"""Whoever looks at damaged memory gets a document or an error of ours, never anything else."""

from __future__ import annotations

import io
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from shardmem.console import render
from shardmem.errors import ShardmemError
from shardmem.host.census import Places, judge, observe
from shardmem.http.metrics import encoder, exposition
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import PAGE
from shardmem.status.health import against_life, against_readiness
from shardmem.status.observer import Observer
from shardmem.status.where import where
from support.left import Left

WORDS = (0, 1, 2, 3, 4, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def look(name: str, directory: str) -> None:
    """As `status`, the page, `/metrics`, `where`, `gc` and `/readyz` do."""
    control = ControlSegment.attach(name)
    observer = Observer(control)
    try:
        for _ in range(2):
            document = observer.status()
        json.dumps(document)
        Console(file=io.StringIO(), highlight=False).print(render.status(document))
        against_life(document), against_readiness(document)
        exposition(document, observer.histograms(), encoder("")[0])
        observer.in_flight(), observer.board(), observer.history(), observer.handoffs()
        for shard in range(control.room):
            observer.lanes(shard)
        for key in range(20):
            where(control, key)
    finally:
        observer.close()
        control.close()
    judge(observe(name, Places(directory, os.getuid())), os.getuid(), False)


def damage(draw: random.Random, memories: list[tuple[int, int, int]]) -> None:
    """Some words, somewhere. memories: descriptor, offset and length."""
    for _ in range(draw.choice([1, 2, 8, 64])):
        descriptor, offset, length = draw.choice(memories)
        at = offset + (draw.randrange(length) & ~7)
        word = draw.choice(WORDS) if draw.randrange(3) else draw.getrandbits(64)
        size = draw.choice([4, 8])
        os.pwrite(descriptor, (word & (1 << 8 * size) - 1).to_bytes(size, "little"), at)


def test_whoever_looks_at_damaged_memory_gets_a_document_or_an_error_of_ours(
    loopback: Any, tmp_path: Any, draws: Callable[[], Iterator[random.Random]], figures: Counter[str]
) -> None:
    left = Left(loopback, str(tmp_path))
    control, geometry = left.control, left.control.geometry
    descriptor = control.segment.descriptor
    memories = [(descriptor, *place) for place in left.ranges] * 2
    for inbox in left.engine.inboxes:
        memories += [(inbox.segment.descriptor, 0, PAGE)]
        memories += [(inbox.segment.descriptor, geometry.lanes_offset, 2048)] * 2
    good = [(file, offset, os.pread(file, length, offset)) for file, offset, length in memories]
    for draw in draws():
        for _ in range(20):
            damage(draw, memories)
            figures["looks"] += 1
            try:
                look(left.engine.name, str(tmp_path))
                figures["documents"] += 1
            except ShardmemError:
                pass
            for file, offset, kept in good:
                os.pwrite(file, kept, offset)
    assert 0 < figures["documents"] < figures["looks"]
