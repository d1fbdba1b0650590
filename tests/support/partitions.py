"""State files of an engine with partitions, filled by hand."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import shardmem
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.partition_table import PartitionTable
from shardmem.runtime.columns import Origin
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.state import StateStore
from shardmem.runtime.state_reader import StateReader
from shardmem.state.keys import prefix, slot_of, store_key
from shardmem.state.partitions import NEVER, AppliedRow, Layout
from shardmem.state.store import Changes

LAYOUT = Layout(32, 3)  # 8 slots of each; the last 8 of none
ENGINE = 7
KEYS = [*range(60), "a", b"a"]


def slot_in(number: int, key: Any) -> int:
    return LAYOUT.slots_of(number)[slot_of(key, LAYOUT.width)]


def stored(number: int, key: Any, name: bytes = b"n") -> bytes:
    return prefix(slot_in(number, key)) + store_key(key, name, LAYOUT.slots)[2:]


def applied(offsets: dict[int, int], topic: str = "t") -> list[AppliedRow]:
    """slot -> offset, as a checkpoint writes it."""
    found = []
    for number in sorted({slot // LAYOUT.width for slot in offsets}):
        array = np.array([offsets.get(slot, NEVER) for slot in LAYOUT.slots_of(number)], "<i8")
        found.append(AppliedRow(topic, number, array.tobytes()))
    return found


def fill(store: StateStore, slots: range, value: bytes, at: int, merge: bool = False) -> None:
    """Each key of each partition has that value and a timer in these slots; offset 1000 * at + slot was applied."""
    mine = [(number, key) for number in range(3) for key in KEYS if slot_in(number, key) in slots]
    rows = {stored(*each): (value, 1, None) for each in mine}
    timers: dict[bytes, int | None] = {stored(*each, b":t"): at for each in mine}
    done = applied({slot: 1000 * at + slot for slot in slots})
    store.save([(slots[0], b"whole " + value)], Changes(dict(rows), timers), b"", applied=done, merge=merge)


class Host:
    """The state files of one engine, and the stores of its shards."""

    def __init__(self, directory: Path, engine: int = ENGINE) -> None:
        self.directory, self.engine = str(directory), engine
        self.files = StateFiles(self.directory, engine)
        self.stores: dict[int, StateStore] = {}

    def shard(self, shard: int, slots: range | None = None) -> StateStore:
        if shard not in self.stores:
            self.stores[shard] = StateStore(self.directory, shard, self.engine, LAYOUT.slots, keep=True)
            self.stores[shard].begin_life(1, 1)
        if slots is not None:
            self.stores[shard].claim(slots)
        return self.stores[shard]

    def content(self, number: int) -> Any:
        """Values, timers, whole slots and offsets of a partition, as other processes see them."""
        slots = LAYOUT.slots_of(number)
        with contextlib.closing(StateReader(self.directory)) as reader:
            found = [reader.slot(slot) for slot in slots]
            offsets = {(row.topic, row.number): row.array.tolist() for row in reader.applied(slots)}
        return [sorted(map(tuple, rows)) + sorted(timers) for rows, timers in found], offsets

    def close(self) -> None:
        for store in self.stores.values():
            store.leave()


# ---- a source that a test drives -------------------------------------------------------------------------------------

EACH = 40  # keys of a partition; each partition has the same


class Feeder:
    """Stands for the source of an engine. Event n of a partition is of key n mod EACH, and says the how manyth of its
    key it is."""

    def __init__(self, engine: str, partitions: int, topic: str = "t") -> None:
        self.control = ControlSegment.attach(engine)
        self.table = PartitionTable(self.control)
        self.table.set_count(partitions)
        self.topic, self.producer = topic, shardmem.connect(engine, seat="source:test")
        self.epochs: dict[int, int] = {}

    def row(self, number: int) -> int:
        return self.table.row(self.topic, number)

    def begin(self, number: int, offset: int) -> None:
        self.epochs[number] = self.table.begin(self.row(number), offset)

    def end(self, number: int) -> None:
        self.table.end(self.row(number))

    def push(self, number: int, first: int, end: int) -> None:
        offsets = np.arange(first, end)
        payloads = [b"%d" % (offset // EACH) for offset in offsets.tolist()]
        origin = Origin(self.row(number), self.epochs[number], offsets)
        self.producer.push_columns(
            offsets % EACH, b"".join(payloads), np.cumsum([0, *map(len, payloads)]), timeout=60, origin=origin
        )

    def flush(self) -> None:
        """All that was pushed is handled and saved."""
        self.producer.flush(60)

    def close(self) -> None:
        self.producer.close()
        self.control.close()


def counts(directory: str, name: str, partitions: int, slots: int) -> dict[int, dict[Any, Any]]:
    """number of the partition -> key -> value, as the files say."""
    found: dict[int, dict[Any, Any]] = {number: {} for number in range(partitions)}
    with contextlib.closing(StateReader(directory)) as reader:
        for slot, _, key, row in reader.rows(name):
            found[slot // Layout(slots, partitions).width][key] = msgspec.msgpack.decode(row[0])
    return found
