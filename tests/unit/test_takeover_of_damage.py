"""Taking over memory in which words make no sense: what is not damaged is taken over, and nothing that holds events is
swept."""

from __future__ import annotations

import os
import struct

import pytest

from shardmem.errors import SegmentCorrupt
from shardmem.memory.inbox_segment import PAGE
from shardmem.memory.segment import inbox_files, inbox_name, path_of
from shardmem.supervisor.takeover import Takeover
from support.left import EVENTS, SHARDS, Left, ends


@pytest.fixture
def left(loopback, tmp_path):
    left = Left(loopback, str(tmp_path))
    yield left
    for entry in inbox_files(left.engine.name):
        os.unlink(path_of(entry))


def texts(takeover: Takeover) -> list[str]:
    return [each["text"] for each in takeover.observer.status()["history"] if each["kind"] == "memory_damaged"]


def test_an_engine_without_damage_is_taken_over_and_nothing_is_said(left):
    takeover = left.take()
    assert texts(takeover) == []
    assert ends(takeover) == left.held


@pytest.mark.parametrize(
    "name, value",
    [
        ("generation", 129),
        ("generation", 0),
        ("generation", (1 << 64) - 1),
        ("retired", (1 << 64) - 1),
        ("retired", 7 << 1),
        ("state", 0),
        ("state", 77),
        ("state", (1 << 32) - 1),
    ],
)
def test_a_wild_word_of_a_shard_loses_nothing_of_it_and_nothing_of_the_others(left, name, value):
    left.word(1, name, value)
    takeover = left.take()
    assert any("its words were damaged" in text and "its inbox 1 is taken up" in text for text in texts(takeover))
    document = takeover.observer.status()
    assert document["accounting"]["in_flight"] == EVENTS
    assert {shard["id"]: shard["in_flight"] for shard in document["shards"]} == left.held
    assert ends(takeover) == left.held


@pytest.mark.parametrize("generation", [0, 1])
def test_words_of_a_removal_that_never_began_sweep_no_inbox_that_holds_events(left, generation):
    """Two wild words in one shard looked like a removal that goes on, and a thousand events went with its inbox."""
    left.word(1, "state", 4)
    left.word(1, "retired", (1 << 64) - 1)
    left.word(1, "generation", generation)
    takeover = left.take()
    assert any("its words were damaged" in text for text in texts(takeover))
    assert ends(takeover) == left.held


def test_a_shard_whose_inbox_is_gone_gets_a_new_one_and_the_others_keep_theirs(left):
    os.unlink(path_of(inbox_name(left.engine.name, 1, 1)))
    takeover = left.take()
    assert any("its inbox 1 is gone; what it held is lost" in text for text in texts(takeover))
    assert takeover.inboxes[1].generation == 2
    assert ends(takeover) == {**left.held, 1: 0}


@pytest.mark.parametrize("harm", ["cut", "empty", "directory"])
def test_a_damaged_inbox_is_replaced_and_the_others_are_taken_over(left, harm):
    path = path_of(inbox_name(left.engine.name, 1, 1))
    if harm == "directory":
        os.unlink(path)
        os.mkdir(path)
    else:
        os.truncate(path, 0 if harm == "empty" else PAGE)
    try:
        takeover = left.take()
        assert takeover.inboxes[1].generation == 2
        assert ends(takeover) == {**left.held, 1: 0}
    finally:
        if harm == "directory":
            os.rmdir(path)


@pytest.mark.parametrize("at", range(0, 56, 4))
def test_a_damaged_header_of_an_inbox_is_written_again(left, at):
    """A wild word there cost the shard its inbox, and what was in it."""
    inbox = left.engine.inboxes[1].segment
    whole = inbox.read(0, PAGE)
    os.pwrite(inbox.descriptor, bytes(byte ^ 0xFF for byte in whole[at : at + 4]), at)
    takeover = left.take()
    is_a_gap = at == 44
    assert is_a_gap or any("header of its inbox 1" in text for text in texts(takeover))
    assert ends(takeover) == left.held and (is_a_gap or inbox.read(0, PAGE) == whole)


def test_slots_of_shards_that_do_not_exist_are_given_to_those_that_do(left):
    for slot, owner in ((3, 149), (4, 65534), (5, 4)):
        at = left.ranges[1][0] + 8 * slot
        left.memory()[at : at + 8] = struct.pack("<Q", owner)
    takeover = left.take()
    assert any("3 slots of shards that are gone" in text for text in texts(takeover))
    assert set(left.control.slot_table()[0].tolist()) <= set(range(SHARDS))
    assert ends(takeover) == left.held


def test_handoffs_of_shards_that_do_not_exist_are_given_up(left):
    for slot, (phase, source, target) in enumerate([(2, 149, 0), (1, 0, 149), (9, 0, 1), (255, 9, 9)]):
        at = left.ranges[2][0] + 8 * slot
        left.memory()[at : at + 8] = struct.pack("<Q", phase | source << 16 | target << 32)
    takeover = left.take()
    assert any("the handoff of 4 slots" in text for text in texts(takeover))
    assert left.control.moves() == []
    assert ends(takeover) == left.held


@pytest.mark.parametrize(
    "phase, source, target, owner, becomes",
    [
        (2, 0, 0, 0, None),  # it waited for rows that it kept back itself: a wild word of 2 stood still for good
        (1, 1, 1, 1, None),
        (3, 0, 0, 1, None),
        (2, 0, 1, 2, None),  # the slot is neither's
        (3, 0, 1, 0, None),  # the source has it still, with its state
        (2, 0, 1, 0, "rerouting"),  # it has had no row for the target yet
        (2, 0, 1, 1, "draining"),
        (2, 0, 1, 149, "draining"),  # its slot word is damaged
        (1, 0, 1, 0, "rerouting"),
        (3, 0, 1, 1, "releasing"),
    ],
)
def test_a_handoff_goes_on_if_it_can_end_and_is_given_up_otherwise(left, phase, source, target, owner, becomes):
    control, slot = left.control, 3
    for which, word in ((1, owner), (2, phase | source << 16 | target << 32)):
        at = left.ranges[which][0] + 8 * slot
        left.memory()[at : at + 8] = struct.pack("<Q", word)
    takeover = left.take()
    assert {slot: becomes} == {move.slot: move.phase for move in control.moves()} | ({} if becomes else {slot: None})
    assert any("the handoff of 1 slot" in text for text in texts(takeover)) == (becomes is None)
    assert ends(takeover) == left.held
    if owner == 149:
        assert control.slot_table()[0][slot] == target


def test_a_header_that_says_that_it_is_not_formatted_loses_no_events(left):
    """The segment was taken for one whose maker had been killed, removed, and the inboxes with it."""
    memory, files = left.memory(), set(inbox_files(left.engine.name))
    version = slice(8, 12)
    kept = bytes(memory[version])
    memory[version] = bytes(4)
    with pytest.raises(SegmentCorrupt, match="is not formatted, and engine .* has inboxes"):
        left.take()
    assert set(inbox_files(left.engine.name)) == files and left.control.segment.is_current()
    memory[version] = kept
    assert ends(left.take()) == left.held
