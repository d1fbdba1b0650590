"""The supervisor believes what it has written, and sets right what somebody else has changed."""

from __future__ import annotations

import os
import struct

import pytest

from shardmem.errors import Backpressure, SegmentCorrupt
from shardmem.memory.native import ffi, lib
from shardmem.memory.words import NOBODY, now_ns
from shardmem.status import usage
from shardmem.supervisor import process, recovery, replacements

STATE_OF_ENGINE = 2304


class Damaged:
    def __init__(self, control) -> None:
        self._control = control
        offsets, lengths = ffi.new("uint64_t[]", 8), ffi.new("uint64_t[]", 8)
        count = lib.sm_control_ranges(control.geometry, offsets, lengths)
        self.slots, self.holds, self.shards = offsets[1], offsets[2], offsets[count - 1]
        self.shard_bytes = lengths[count - 1] // control.room

    def write(self, at: int, form: str, *words: int) -> None:
        os.pwrite(self._control.segment.descriptor, struct.pack(form, *words), at)


@pytest.fixture
def control(loopback):
    control = loopback(shards=2).control
    control.remember()
    return control


@pytest.fixture
def damaged(control):
    return Damaged(control)


def test_words_that_nobody_changed_are_left_alone(control):
    before = control.slot_table()[1].tolist()
    assert control.repair() == []
    assert control.slot_table()[1].tolist() == before


@pytest.mark.parametrize("at", [0, 8, 12, 16, 32, 64, 120, 2200, 2256])
def test_a_header_that_never_changes_is_set_right(control, damaged, at):
    """Nobody could join, nor stop the engine by its name."""
    whole = control.segment.read(0, 4096)
    damaged.write(at, "<I", 77)
    assert control.repair() == ["the geometry"] and control.segment.read(0, 4096) == whole
    assert control.repair() == []


def test_without_a_supervisor_words_are_what_is_read(loopback):
    control = loopback().control
    Damaged(control).write(STATE_OF_ENGINE, "<I", 3)
    assert control.state == "stopped" and control.repair() == []


def test_states_are_believed_as_they_were_written_and_set_right(control, damaged):
    damaged.write(STATE_OF_ENGINE, "<I", 77)
    damaged.write(damaged.shards, "<I", 4)
    damaged.write(damaged.shards + damaged.shard_bytes + 8, "<QI", 129, 7)
    assert control.state == "running" and control.shard_state(0) == "active"
    assert control.known_shards() == [0, 1]
    assert control.repair() == [
        "the state of the engine",
        "the state of shard 0",
        "the generation of shard 1",
        "the holds of shard 1",
    ]
    assert control.view_engine().state == 1 and control.view_shard(0).state == 2
    assert (control.view_shard(1).generation, control.view_shard(1).holds) == (1, 0)
    control.set_state("draining")
    control.set_shard_state(0, "draining")
    assert control.repair() == [] and control.state == "draining" and control.view_shard(0).state == 3


def test_slot_words_are_set_right_by_a_new_epoch(control, damaged):
    owners, epochs = control.slot_table()
    for slot, owner in ((1, 149), (2, NOBODY), (3, 1 - int(owners[3]))):
        damaged.write(damaged.slots + 8 * slot, "<Q", owner | 9 << 32)
    assert control.repair() == ["3 slot words"]
    after, now = control.slot_table()
    assert after.tolist() == owners.tolist()
    assert now[[1, 2, 3]].tolist() == [10, 10, 10] and now[4] == epochs[4]


def test_a_hold_of_no_handoff_falls_and_that_of_a_handoff_is_as_it_was(control, damaged):
    control.begin_move(5, 0, 1, now_ns())
    control.set_move_phase(5, "draining")
    damaged.write(damaged.holds + 8 * 4, "<Q", 2 | 1 << 16)
    damaged.write(damaged.holds + 8 * 5, "<Q", 0)
    damaged.write(damaged.holds + 8 * 6, "<Q", 200 | 9 << 16 | 9 << 32)
    assert control.repair() == ["the holds of 3 slots"]
    (move,) = control.moves()
    assert (move.slot, move.phase, move.source, move.target) == (5, "draining", 0, 1)
    assert control.slot_table()[0][5] == 1
    control.set_move_phase(5, "none")
    assert control.repair() == [] and control.moves() == []


def test_events_that_a_wild_slot_word_sends_to_a_shard_that_goes_wait_until_the_word_is_right(loopback):
    """They were accepted, and lost with its inbox."""
    engine = loopback(shards=2, slots=4)
    producer = engine.producer()
    for key in range(8):
        producer.push(key, b"x")
    before = [sum(lane.accepted for lane in inbox.lanes()) for inbox in engine.inboxes]
    engine.control.set_shard_state(1, "stopped")
    for slot in range(4):
        engine.control.set_slot(slot, 1)
    for push in (lambda: producer.push(1, b"x", 0.02), lambda: producer.push_many([1, 2], [b"x", b"y"], 0.02)):
        with pytest.raises(Backpressure):
            push()
    assert before == [sum(lane.accepted for lane in inbox.lanes()) for inbox in engine.inboxes]
    for slot in range(4):
        engine.control.set_slot(slot, 0)
    assert producer.push(1, b"x", 0.02) and producer.push_many([1, 2], [b"x", b"y"], 0.02) == 2


@pytest.mark.parametrize("state", [5, 4711])
def test_words_that_are_changed_while_they_are_set_right_are_set_right_once_more(loopback, monkeypatch, state):
    """A supervisor ended for the inbox of a shard that never was; the next one failed at every look."""
    control = loopback(shards=2).control
    damaged, mend, times = Damaged(control), recovery._mend_words, []

    def mend_and_damage(control):
        done = mend(control)
        if not times:
            damaged.write(damaged.shards + 2 * damaged.shard_bytes, "<I", state)
        times.append(done)
        return done

    monkeypatch.setattr(recovery, "_mend_words", mend_and_damage)
    done = recovery.take_words(control)
    assert len(times) == 2 and control.are_known and done == times[1]
    assert [control.shard_state(shard) for shard in (0, 1)] == ["active", "active"]
    damaged.write(damaged.shards + 2 * damaged.shard_bytes, "<I", 99)
    assert control.known_shards() == [*range(2 if state > 5 else 3)] and control.repair() == ["the state of shard 2"]
    for shard in control.known_shards():  # one more has been made, for a state that only somebody else can have written
        inbox = control.open_inbox(shard)
        inbox.segment.unlink() if shard == 2 else inbox.close()


def test_memory_that_somebody_writes_to_all_the_time_is_an_error_of_ours(loopback, monkeypatch):
    control = loopback(shards=1).control
    damaged = Damaged(control)
    monkeypatch.setattr(
        recovery, "_mend_words", lambda control: damaged.write(damaged.shards, "<I", 4711) or list[tuple[None, str]]()
    )
    with pytest.raises(SegmentCorrupt, match="all the time"):
        recovery.take_words(control)


@pytest.mark.parametrize("pid", [-1, 0, 1 << 31, 1 << 40, (1 << 63) - 1])
def test_a_wild_number_of_a_worker_s_process_is_that_of_none(loopback, pid):
    """A supervisor that took over ended with an OverflowError."""
    control = loopback(shards=1).control
    lib.sm_worker_enter(control.address, 0, pid, now_ns())
    assert process.pidfd_of_worker(control, "inbox", 0) is None
    assert replacements._rss(pid) >= 0 and usage.Usage().of(0, 1, pid) == (None, None)
