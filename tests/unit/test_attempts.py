"""The record of attempts, events set aside, and commits that wait for state: the worker's end in the hands of the test.

A worker that dies is a reader that is made anew: it knows what is in shared memory, and what was saved, and nothing
else.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardmem.memory.native import arm_point, ffi, lib
from shardmem.runtime.batch import Batch

ROW = np.dtype([("key", "u8"), ("number", "u4"), ("pad", "V4")])
MOST = 3  # attempts
RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(numbers) -> np.ndarray:
    made = np.zeros(len(numbers), ROW)
    made["key"], made["number"] = np.asarray(numbers) % 11, numbers
    return made


def push(engine, data, producers: int, most: int = 600) -> int:
    """Blocks of any size from some producers; numbers rise over all of them. How many there are."""
    made, senders = 0, [engine.producer() for _ in range(producers)]
    for size in data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=8)):
        if made + size <= most:
            data.draw(st.sampled_from(senders)).send(rows(range(made, made + size)))
            made += size
    return made


def dies_at(point: str, call) -> None:
    """Calls in a forked child that is killed at the point. What it stored in shared memory stays."""
    pid = os.fork()
    if not pid:
        arm_point(point, 1, signal.SIGKILL)
        call()
        os._exit(0)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), f"{point} was not reached"


def ledger(engine) -> tuple[int, int, int]:
    lanes = engine.inboxes[0].lanes()
    return (
        sum(lane.handled for lane in lanes),
        sum(lane.quarantined for lane in lanes),
        sum(lane.in_flight for lane in lanes),
    )


def finish(engine) -> None:
    engine.held.clear()
    engine.close()
    engine._opened, engine.readers, engine.inboxes = [], [], []
    engine.close = lambda: None


class Tries:
    """A worker reduced to its bones: what fails alone is put on trial, tried again when nothing else is left, and set
    aside at the limit."""

    def __init__(self, engine, limit: int, data) -> None:
        self.engine, self.limit, self.data = engine, limit, data
        self.aside, self.failures = [], 0

    @property
    def reader(self):
        return self.engine.readers[0]

    @property
    def view(self):
        return self.engine.batches[0]

    def on_trial(self) -> dict[int, int]:
        """tries by number"""
        views = lib.sm_trials(self.reader)
        return {at: views[at].tries for at in range(lib.SM_TRIALS) if views[at].state != lib.SM_TRIAL_NONE}

    def next(self) -> list[int] | None:
        """Numbers of the next batch, or of the next trial; None: nothing is left."""
        batch = self.engine.take()
        if batch is None:
            for trial in self.on_trial():
                assert lib.SM_OK == lib.sm_next_trial(self.reader, trial, self.view)
                if self.view.rows:
                    self.trial = trial
                    break
            else:
                return None
            batch = Batch(self.engine.control.schema, self.engine.control.slots, 0, self.view, self.engine.scratch)
        else:
            self.trial = None
        self.producers = batch.producers.tolist()
        numbers = batch.records["number"].tolist()
        self.engine.held.clear()
        return numbers

    def set_aside(self, numbers) -> None:
        if self.data.draw(st.booleans()):
            point = self.data.draw(st.sampled_from(["aside.stored", "aside.acting", "aside.marked"]))
            dies_at(point, lambda: lib.sm_set_aside(self.reader))
            self.engine.restart(batch_rows=self.limit)
            if point == "aside.stored":
                return  # it comes again, and is to be quarantined again
        else:
            assert lib.SM_OK == lib.sm_set_aside(self.reader)
            lib.sm_end_trial(self.reader, self.trial)
        self.aside += numbers

    def fail(self, numbers) -> None:
        self.failures += 1
        assert self.failures < 400, "it does not converge"
        if self.data.draw(st.booleans()):
            self.engine.restart(batch_rows=self.limit)
        elif len(numbers) > 1:
            limit = self.data.draw(st.sampled_from([0, 1, len(numbers) - 1]))
            assert lib.SM_OK == lib.sm_failed(self.reader, limit)
        else:
            assert 0 <= lib.sm_put_on_trial(self.reader, self.view.tries + 1, 0)

    def succeed(self) -> None:
        assert lib.SM_OK == lib.sm_commit(self.reader)
        if self.trial is not None:
            lib.sm_end_trial(self.reader, self.trial)


@RELAXED
@given(st.data())
def test_exactly_the_events_that_fail_are_set_aside_and_all_others_are_handled_in_order(loopback, data):
    limit = data.draw(st.sampled_from([1, 5, 64, 4096]))
    engine = loopback(ROW, "key", batch_rows=limit)
    pushed = push(engine, data, data.draw(st.integers(1, 3)))
    bad = set(data.draw(st.lists(st.integers(0, max(0, pushed - 1)), max_size=3)) if pushed else [])
    innocent_kills = data.draw(
        st.integers(0, MOST - 1)
    )  # an event that is in hand, alone, at more of them is set aside
    worker, handled = Tries(engine, limit, data), []
    while (numbers := worker.next()) is not None:
        if worker.trial is None and worker.view.tries:  # it was in hand, alone, when the last one died
            assert 0 <= lib.sm_put_on_trial(worker.reader, worker.view.tries, 0)
        elif worker.view.tries >= MOST:
            worker.set_aside(numbers)
        elif bad & set(numbers) or (innocent_kills and data.draw(st.booleans())):
            innocent_kills -= not bad & set(numbers)
            worker.fail(numbers)
        else:
            handled += zip(worker.producers, numbers)
            worker.succeed()
    assert bad == set(worker.aside) and len(bad) == len(worker.aside)
    assert sorted(number for _, number in handled) == sorted(set(range(pushed)) - bad)
    for producer in {producer for producer, _ in handled}:
        for key in range(11):
            mine = [number for by, number in handled if by == producer and number % 11 == key]
            assert sorted(mine) == mine
    assert (pushed - len(bad), len(bad), 0) == ledger(engine)
    finish(engine)


class Saved:
    """A stateful worker reduced to its bones: the state is the set of numbers that it handled."""

    def __init__(self, engine, limit: int) -> None:
        self.engine, self.limit = engine, limit
        self.state, self.ranges, self.live = set(), b"", set()
        lib.sm_defer_commits(engine.readers[0])

    @property
    def reader(self):
        return self.engine.readers[0]

    def handle(self, numbers) -> None:
        again = self.live & set(numbers)
        assert not again, f"the state has {sorted(again)} already"
        self.live |= set(numbers)
        assert lib.SM_OK == lib.sm_defer(self.reader)

    def save(self) -> None:
        count = ffi.new("uint32_t *")
        ranges = lib.sm_ranges(self.reader, count)
        self.state, self.ranges = set(self.live), bytes(ffi.buffer(ranges, count[0] * ffi.sizeof("sm_range")))

    def checkpoint(self) -> None:
        self.save()
        assert lib.SM_OK == lib.sm_commit_deferred(self.reader)

    def die(self) -> None:
        self.engine.restart(batch_rows=self.limit)
        lib.sm_defer_commits(self.reader)
        self.live = set(self.state)
        if self.ranges:
            assert lib.SM_OK == lib.sm_commit_ranges(
                self.reader, ffi.from_buffer("sm_range[]", self.ranges), len(self.ranges) // ffi.sizeof("sm_range")
            )


@RELAXED
@given(st.data())
def test_state_and_positions_agree_wherever_the_worker_dies(loopback, data):
    """Slots are held and released meanwhile, so that what is handled has gaps."""
    limit = data.draw(st.sampled_from([1, 7, 64, 4096]))
    engine = loopback(ROW, "key", batch_rows=limit, slots=16)
    address = engine.control.address
    held = data.draw(st.lists(st.integers(0, 15), unique=True, max_size=5))
    lib.sm_set_holds(address, 0, len(held))
    for slot in held:
        lib.sm_move_begin(address, slot, 1, 0, 0)
        lib.sm_set_slot(address, slot, 0)
    pushed = push(engine, data, data.draw(st.integers(1, 3)))
    worker = Saved(engine, limit)
    deaths, released = data.draw(st.integers(0, 6)), not held
    while True:
        batch = engine.take()
        if batch is None:
            worker.checkpoint()
            if released:
                break
            for slot in held:
                lib.sm_move_phase(address, slot, lib.SM_MOVE_NONE, 0)
            lib.sm_set_holds(address, 0, 0)
            lib.sm_rescan(worker.reader)
            released = True
            continue
        numbers = batch.records["number"].tolist()
        del batch
        engine.held.clear()
        what = data.draw(st.sampled_from(["handle", "handle", "handle", "save", "die"]))
        if what == "die" and deaths:
            deaths -= 1
            worker.die()
            continue
        worker.handle(numbers)
        if what == "save":
            fate = data.draw(st.sampled_from(["whole", "saved", "marked", "begun"])) if deaths else "whole"
            if fate == "whole":
                worker.checkpoint()
                continue
            deaths -= 1
            if fate != "begun":
                worker.save()
            if fate == "marked":
                dies_at("save.marked", lambda: lib.sm_commit_deferred(worker.reader))
            worker.die()
    assert worker.state == set(range(pushed))
    assert (pushed, 0, 0) == ledger(engine)
    finish(engine)


def test_rows_handled_and_not_committed_are_not_left_to_drain(loopback):
    engine = loopback(ROW, "key", slots=16)
    engine.producer().send(rows(range(50)))
    worker = Saved(engine, 4096)
    slots, present = ffi.new("uint32_t[]", list(range(16))), ffi.new("uint8_t[]", 16)
    assert 0 < lib.sm_undone(worker.reader, slots, 16, present)

    worker.handle(engine.take().records["number"].tolist())
    engine.held.clear()

    assert 0 == lib.sm_undone(worker.reader, slots, 16, present)
    assert 50 == ledger(engine)[2]


def test_ranges_that_the_lanes_do_not_have_are_refused(loopback):
    engine = loopback(ROW, "key")
    engine.producer().send(rows(range(5)))
    for position, to, seat in [(0, 1 << 40, 0), (0, 32, 0), (0, 16, 7), (8, 16, 0)]:
        engine.restart()
        wrong = ffi.new("sm_range[1]", [{"position": position, "to": to, "seat": seat, "to_row": 9}])
        assert lib.SM_CORRUPT == lib.sm_commit_ranges(engine.readers[0], wrong, 1)
    engine.restart()
    assert 5 == len(engine.take())
    engine.commit()


def test_a_worker_whose_successor_has_entered_takes_and_commits_nothing(loopback):
    engine = loopback(ROW, "key")
    producer = engine.producer()
    producer.send(rows(range(5)))
    engine.take()
    lib.sm_worker_enter(engine.control.address, 0, os.getpid(), lib.sm_now_ns())
    engine.held.clear()

    for call in (
        lib.sm_commit,
        lib.sm_defer,
        lib.sm_set_aside,
        lib.sm_commit_deferred,
        lambda reader: lib.sm_failed(reader, 0),
    ):
        assert lib.SM_FENCED == call(engine.readers[0])
    producer.send(rows(range(5, 9)))
    assert engine.take() is None and lib.SM_FENCED == engine.last_status
    assert (0, 0, 9) == ledger(engine)


@pytest.mark.parametrize("rows_in_batch", [2, 64, 1000])
def test_one_bad_event_costs_no_more_failures_than_halving_takes(loopback, rows_in_batch):
    engine = loopback(ROW, "key", batch_rows=rows_in_batch)
    engine.producer().send(rows(range(rows_in_batch)))
    failures = 0
    while (batch := engine.take()) is not None:
        bad = 1 in batch.records["number"]
        del batch
        engine.held.clear()
        if engine.batches[0].tries >= MOST:
            lib.sm_set_aside(engine.readers[0])
        elif bad:
            failures += 1
            engine.restart(batch_rows=rows_in_batch)
        else:
            lib.sm_commit(engine.readers[0])
    assert failures <= int(np.ceil(np.log2(rows_in_batch))) + MOST
    assert (rows_in_batch - 1, 1, 0) == ledger(engine)
