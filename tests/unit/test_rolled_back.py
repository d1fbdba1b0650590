"""What is undone with a batch that fails, of a worker that saves state and positions together: real lanes, real files,
the shipped types."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardmem
from shardmem.memory.partition_table import PartitionTable
from shardmem.memory.reader import Reader
from shardmem.runtime.aside import Aside
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.checkpoint import Checkpointed
from shardmem.runtime.columns import Origin
from shardmem.runtime.failures import Failures
from shardmem.runtime.outcomes import OnError
from shardmem.runtime.state import StateStore
from shardmem.state.keeper import Keeper
from shardmem.state.scope import Scope
from support.turns import counts, one_turn

SLOTS, PARTITIONS = 64, 4
LONG = 3600.0  # seconds between checkpoints: none comes by itself


class Counts(shardmem.Handler):
    seen = shardmem.KeyedState(int, default=0)

    def __init__(self, decide: Callable[[Batch], None]) -> None:
        self.decide = decide
        self.fire: Callable[[str], None] = lambda name: None

    def on_timer(self, key: Any, name: str) -> None:
        self.fire(name)

    def handle(self, batch: Batch) -> None:
        for key, _ in batch:
            self.seen[key] += 1
        self.decide(batch)


class Worker:
    """Of shard 0; `turn` handles one batch."""

    def __init__(self, engine: Any, directory: Path, decide: Callable[[Batch], None]) -> None:
        self.engine, self.file = engine, directory / "q"
        control, self.batch, self.scratch = engine.control, engine.batches[0], Scratch()
        self.reader, self.handler = Reader(engine.readers[0], 0), Counts(decide)
        rules = OnError("retry", 3, 0.0001, ["ConnectionError"], 0.001, None, str(self.file), 1000)
        aside = Aside(control, 0, self.reader, rules.quarantine_file, rules.quarantine_limit)
        store = StateStore(str(directory / "e.state"), 0, control.geometry.engine_id, SLOTS, keep=False)
        keeper = Keeper(Scope(SLOTS, store, shard=0))
        keeper.bind(self.handler)
        self.commit = Checkpointed(
            control, 0, self.reader, self.handler, keeper, store, LONG, lambda: self.handler, rules, aside.retract
        )
        self.commit.take_up()
        self.failures = Failures(control, 0, self.reader, self.batch, self.commit, aside, rules, None, "", self.scratch)

    def turn(self) -> bool:
        """Whether there was something to do."""
        parts = (self.reader, self.batch, self.scratch, self.commit, self.failures)
        return one_turn(self.engine, *parts) or self.failures.busy

    def run(self) -> None:
        for _ in range(2000):
            if not self.turn():
                self.commit.settle()
                return
        raise AssertionError("it does not come to an end")

    @property
    def counts(self) -> tuple[int, int, int]:
        return counts(self.engine)

    @property
    def quarantined(self) -> list[bytes]:
        with sqlite3.connect(self.file) as database:
            return [payload for (payload,) in database.execute("select payload from events order by id")]


@pytest.mark.parametrize("changes_its_mind", [False, True])
def test_what_was_rejected_and_comes_again_is_in_one_place_whatever_the_handler_says_then(
    loopback: Any, tmp_path: Path, changes_its_mind: bool
) -> None:
    """A batch after it failed, and with it the one that it was rejected in is undone."""
    bad, failed = {b"bad"}, []

    def decide(batch: Batch) -> None:
        if b"fails" in batch.payloads and not failed:
            failed.append(True)
            if changes_its_mind:
                bad.clear()
            raise ValueError("once")
        batch.reject([row for row, payload in enumerate(batch.payloads) if payload in bad], "no")

    engine = loopback(slots=SLOTS)
    worker, producer = Worker(engine, tmp_path, decide), engine.producer()
    producer.push_many(["a", "b", "c"], [b"1", b"bad", b"2"])
    worker.turn()
    assert worker.quarantined == [b"bad"] and worker.counts == (0, 0, 3), "it is not saved yet"
    producer.push_many(["a", "a"], [b"3", b"fails"])
    worker.run()
    assert worker.counts == ((5, 0, 0) if changes_its_mind else (4, 1, 0))
    assert worker.quarantined == ([] if changes_its_mind else [b"bad"])
    assert [worker.handler.seen[key] for key in "abc"] == [3, 1, 1]


def test_a_timer_that_fails_takes_no_event_into_two_places(loopback: Any, tmp_path: Path) -> None:
    """What was rejected since the last checkpoint is undone with it, and comes again."""
    bad = {b"bad"}
    engine = loopback(slots=SLOTS)
    worker = Worker(
        engine,
        tmp_path,
        lambda batch: batch.reject([row for row, payload in enumerate(batch.payloads) if payload in bad], "no"),
    )
    engine.producer().push_many(["a", "b"], [b"bad", b"2"])
    worker.turn()
    bad.clear()
    worker.commit.roll_back()  # as a timer's failure does
    worker.run()
    assert worker.counts == (2, 0, 0) and worker.quarantined == []


def fails(by: Exception, tried: list[str]) -> Callable[[str], None]:
    def fire(name: str) -> None:
        tried.append(name)
        raise by

    return fire


@pytest.mark.parametrize("error", [ValueError("bad"), ConnectionError("the sink is away"), shardmem.Retry("later")])
def test_timers_that_fail_keep_no_event_from_being_handled_and_saved(
    loopback: Any, tmp_path: Path, error: Exception
) -> None:
    """Each failure undid the batch before it, and when the others that had failed were due again."""
    calls: list[bytes] = []
    engine = loopback(slots=SLOTS)
    worker, producer = Worker(engine, tmp_path, lambda batch: calls.extend(batch.payloads)), engine.producer()
    for number in range(300):
        worker.handler.timers.set(number, "t", at=0)
    worker.commit.settle()
    fired: list[str] = []
    worker.handler.fire = fails(error, fired)
    for number in range(40):
        producer.push(number, b"%d" % number)
        worker.turn()
    assert fired and len(calls) <= 2 * 40, "no batch comes again and again"
    worker.commit.settle()
    assert worker.counts == (40, 0, 0) and all(worker.handler.seen[number] == 1 for number in range(40))


def test_timers_that_ask_for_another_try_later_wait_together_and_go_on_in_their_order(
    loopback: Any, tmp_path: Path
) -> None:
    engine = loopback(slots=SLOTS)
    worker = Worker(engine, tmp_path, lambda batch: None)
    for number in range(50):
        worker.handler.timers.set(number, f"{number}", at=number / 1000)
    worker.commit.settle()
    tried: list[str] = []
    worker.handler.fire = fails(ConnectionError("away"), tried)
    while len(tried) < 5:
        worker.turn()
    assert set(tried) == {"0"}
    fired: list[str] = []
    worker.handler.fire = fired.append
    for _ in range(2000):
        worker.turn()
        if len(fired) == 50:
            break
        time.sleep(0.001)
    assert fired == [f"{number}" for number in range(50)]


@pytest.mark.parametrize("how", ["rejected alone", "rejected among others", "failed alone", "failed among others"])
def test_an_event_of_a_partition_that_was_quarantined_is_not_handled_when_its_broker_sends_it_again(
    loopback: Any, tmp_path: Path, how: str
) -> None:
    engine = loopback(slots=SLOTS)
    table = PartitionTable(engine.control)
    table.set_count(PARTITIONS)
    row = table.row("t", 0)
    handled: list[bytes] = []

    def decide(batch: Batch) -> None:
        if b"0002" in batch.payloads:
            raise ValueError("bad") if how.startswith("failed") else shardmem.Reject("bad")
        handled.extend(batch.payloads)

    def push(offsets: list[int], epoch: int) -> None:
        data = b"".join(b"%04d" % offset for offset in offsets)
        ends, origin = np.arange(len(offsets) + 1) * 4, Origin(row, epoch, np.array(offsets))
        producer.push_columns(np.zeros(len(offsets), "i8"), data, ends, 0, origin=origin)

    worker, producer, epoch = Worker(engine, tmp_path, decide), engine.producer(), table.begin(row, 0)
    parts = [[0, 1], [2], [3]] if how.endswith("alone") else [[0, 1, 2, 3]]
    for offsets in parts:
        push(offsets, epoch)
        worker.turn()
    worker.run()
    assert worker.quarantined == [b"0002"] and worker.counts == (3, 1, 0)
    assert worker.handler.seen[0] == 3, "what came before it is counted once"

    push([0, 1, 2, 3, 4], table.begin(row, 0))
    worker.run()
    assert worker.quarantined == [b"0002"] and handled[-1:] == [b"0004"] and worker.handler.seen[0] == 4
    lane = next(each for each in engine.inboxes[0].lanes() if each.seat == producer.seat)
    assert (lane.handled, lane.quarantined, lane.skipped) == (4, 1, 4)
