"""A warm process whose forked children are sources on a named seat, each killed at a named point of a push."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np

import shardmem
from shardmem.memory.native import arm_point
from shardmem.runtime.columns import Origin
from support.programs import NOT_REACHED, order, program, reply
from support.programs.children import forked, reap
from support.recorder import payload
from support.rig import PATIENCE, Log

SEAT, PARTITIONS, BLOCK = "source:clicks", 4, 60


@program
def broken_source() -> None:
    """Replies with the exit code of each child. Offsets of a partition are the numbers of its events."""
    first = order()
    directory, chance = Path(first["directory"]), random.Random(1)
    reply(ready=True)
    while orders := order():
        codes = []
        for _ in range(orders["count"]):
            passes = chance.randint(1, 12)
            codes.append(
                reap(forked(lambda: one_life(first["engine"], directory, orders["point"], passes, orders["blocks"])))  # noqa: B023
            )
        reply(codes=codes)


def one_life(engine: str, directory: Path, point: str | None, passes: int, blocks: int) -> None:
    """As a source begins: it goes on where the last one was killed, or begins each partition."""
    with shardmem.connect(engine, seat=SEAT, spin_us=0) as producer:
        table = producer.partition_table()
        table.set_count(PARTITIONS)
        rows = [table.row("clicks", number) for number in range(PARTITIONS)]
        there = producer.recover(table)
        for row, state in zip(rows, table.rows()):
            if state.state == "none":
                table.begin(row, 0)
        if point:
            arm_point(point, passes, signal.SIGKILL)
        log = Log(directory)
        for row in [*there, *rows * blocks]:
            push_block(producer, table.resume(row), row, table.pushed(row), there.pop(row, np.zeros(0, "u8")), log)
        producer.flush(PATIENCE)
        if point:
            os._exit(NOT_REACHED)


def push_block(producer: shardmem.Producer, epoch: int, row: int, at: int, there: np.ndarray, log: Log) -> None:
    """The events of a block, without those that are there already."""
    offsets = np.setdiff1d(np.arange(at, max(at + BLOCK, int(there.max(initial=0)) + 1), dtype="u8"), there)
    keys = offsets % 16 + 16 * row
    parts = [payload(row, key, number) for key, number in zip(keys.tolist(), offsets.tolist())]
    log.rows("offered", row, keys, offsets)
    ends = np.cumsum([0, *map(len, parts)])
    producer.push_columns(keys, b"".join(parts), ends, PATIENCE, origin=Origin(row, epoch, offsets))
    if len(there):
        producer.partition_table().set_pushed(row, max(producer.partition_table().pushed(row), int(there[-1]) + 1))
