"""A worker whose handler keeps state follows the partition table: its batches are of one partition, of epochs that its
state is ready for, and a slot's events come in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shardmem.memory.native import ffi, lib
from shardmem.memory.partition_table import NO_PARTITION, PartitionTable
from shardmem.runtime.applied import Applied
from shardmem.runtime.columns import Origin
from shardmem.state.partitions import NEVER, AppliedRow, Layout

PARTITIONS, SLOTS = 4, 64


class Feed:
    def __init__(self, engine: Any) -> None:
        self.engine, self.table, self.producer = engine, PartitionTable(engine.control), engine.producer()
        self.table.set_count(PARTITIONS)
        self.epochs: dict[int, int] = {}

    def begin(self, number: int, offset: int = 0) -> None:
        self.epochs[number] = self.table.begin(self.table.row("t", number), offset)

    def push(self, number: int, offsets: list[int], keys: list[int] | None = None) -> None:
        data = b"".join(b"%04d" % offset for offset in offsets)
        self.producer.push_columns(
            np.array(keys or offsets, "i8"),
            data,
            np.arange(len(offsets) + 1) * 4,
            0,
            origin=Origin(self.table.row("t", number), self.epochs[number], np.array(offsets)),
        )

    def follow(self) -> None:
        version, rows = self.table.version, self.table.rows()
        epochs = ffi.new("uint32_t[]", [row.epoch for row in rows])
        lib.sm_follow(self.engine.readers[0], version, epochs, len(rows))

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        """Partition and offsets of each, handled."""
        while (batch := self.engine.take()) is not None:
            found = [] if batch.origins is None else batch.origins["offset"].tolist()
            number = self.engine.batches[0].partition
            if batch.origins is not None:
                assert {number} == set(batch.origins["partition"].tolist())
            assert number == NO_PARTITION or {number} == set((batch.slots // (SLOTS // PARTITIONS)).tolist())
            del batch
            self.engine.commit()
            yield number, found


@pytest.fixture
def feed(loopback: Any) -> Feed:
    return Feed(loopback(slots=SLOTS))


def test_a_batch_is_of_one_partition_and_each_keeps_its_order(feed: Feed) -> None:
    for number in range(3):
        feed.begin(number)
    feed.follow()
    for at in range(0, 40, 4):
        for number in range(3):
            feed.push(number, list(range(at, at + 4)))
    found: dict[int, list[int]] = {}
    for number, offsets in feed.batches():
        found.setdefault(number, []).extend(offsets)
    assert {number: list(range(40)) for number in range(3)} == found


def test_events_without_an_origin_are_of_the_partition_of_their_slot(feed: Feed) -> None:
    feed.begin(0)
    feed.follow()
    feed.producer.push_many(list(range(50)), [b""] * 50)
    assert set(range(PARTITIONS)) == {number for number, _ in feed.batches()}
    assert 50 == sum(lane.handled for lane in feed.engine.inboxes[0].lanes())


def test_an_epoch_waits_until_the_state_is_ready_for_it(feed: Feed) -> None:
    feed.begin(0)
    feed.follow()
    feed.push(0, [0, 1])
    assert [(0, [0, 1])] == list(feed.batches())
    feed.begin(0, 1)
    feed.push(0, [1, 2])
    assert [] == list(feed.batches())
    feed.follow()
    assert [(0, [1, 2])] == list(feed.batches())


def test_a_worker_that_does_not_follow_takes_what_there_is(feed: Feed) -> None:
    for number in range(2):
        feed.begin(number)
        feed.push(number, [0, 1])
    batch = feed.engine.take()
    assert 4 == len(batch)
    del batch
    feed.engine.commit()


def test_while_an_event_is_on_trial_all_of_its_slot_waits_and_other_slots_flow(feed: Feed) -> None:
    """Its slot, because of a slot only the highest offset that was applied is known."""
    feed.begin(0)
    feed.follow()
    feed.push(0, [0], [0])
    batch = feed.engine.take()
    (held,) = batch.slots.tolist()
    del batch
    feed.engine.held.pop(0)._end()
    trial = lib.sm_put_on_trial(feed.engine.readers[0], 1, 0)
    assert trial >= 0
    keys = list(range(1, 200))
    feed.push(0, keys, keys)
    found = [offset for _, offsets in feed.batches() for offset in offsets]
    assert 0 < len(found) < len(keys)
    lib.sm_end_trial(feed.engine.readers[0], trial)
    rest: list[int] = []
    while (batch := feed.engine.take()) is not None:
        assert {held} == set(batch.slots.tolist())
        rest += batch.origins["offset"].tolist()
        del batch
        feed.engine.commit()
    assert [0, *keys] == sorted(found + rest) and rest == sorted(rest) and rest[0] == 0 and len(rest) > 1


# ---- what was applied ------------------------------------------------------------------------------------------------


def test_what_was_applied_is_saved_rolled_back_given_up_and_taken_up() -> None:
    layout, applied = Layout(SLOTS, PARTITIONS), Applied()
    applied.share_out(layout)
    assert [] == applied.changes()
    applied.know([("t", 1), ("u", 1)])
    rows, slots = np.array([0, 0, 1], "u4"), np.array([16, 17, 16], "u4")
    places, offsets = applied.places(rows, slots), np.array([5, 6, 7], "u8")
    assert [False] * 3 == applied.has(places, offsets).tolist()
    applied.advance(places, offsets)
    assert [True] * 3 == applied.has(places, offsets).tolist()
    assert [False] * 3 == applied.has(places, offsets + np.uint64(1)).tolist()
    applied.roll_back()
    assert [] == applied.changes() and [False] * 3 == applied.has(places, offsets).tolist()
    applied.advance(places, offsets)
    saved = applied.changes()
    never = [NEVER] * 14
    assert [("t", 1, [5, 6, *never]), ("u", 1, [7, NEVER, *never])] == [
        (row.topic, row.number, row.array.tolist()) for row in saved
    ]
    applied.saved()
    applied.forget({16})
    assert [False, True, False] == applied.has(places, offsets).tolist() and [] == applied.changes()
    applied.know([("t", 1), ("u", 1), ("t", 2)])
    applied.take_up(saved, {16, 17, 32})
    assert [True] * 3 == applied.has(places, offsets).tolist()
    applied.take_up([AppliedRow("t", 1, b"")], {16})  # of another layout
    assert [False, True, False] == applied.has(places, offsets).tolist()


def test_of_several_offsets_of_a_slot_in_one_batch_the_last_is_kept() -> None:
    applied = Applied()
    applied.share_out(Layout(SLOTS, PARTITIONS))
    applied.know([("t", 0)])
    count = 10_000
    places = applied.places(np.zeros(count, "u4"), np.arange(count, dtype="u4") % 16)
    applied.advance(places, np.arange(count, dtype="u8"))
    assert list(range(count - 16, count)) == applied.changes()[0].array.tolist()
