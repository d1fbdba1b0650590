"""The record by which members of a group on NATS share partitions, without a server: every order of what they do."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardmem.sources.nats.group import Displaced, Member, Membership, NotOwner, Partition, Place, Record

SESSION = 10.0
LEASE = 0.8 * SESSION  # how long workers obey what was confirmed
PARTITIONS = [f"clicks/{number}" for number in range(5)]


def member(name, life="1"):
    return Membership(name, f"{name}-{life}", SESSION)


def change(record, act, *values):
    """As it is with the bucket: a change that raises has written nothing."""
    copy = Record.of_json(record.to_json())
    act(copy, *values)
    return copy


def shares(record, *members):
    return [sorted(each.owned(record)) for each in members]


class Group(RuleBasedStateMachine):
    """Three members that act in any order, freeze, die and come back."""

    @initialize()
    def begin(self):
        self.now, self.record = 100.0, Record()
        self.members = {name: member(name) for name in "abc"}
        self.held = {name: (set(), -1e9) for name in "abc"}  # as it knows, and until when its workers obey it

    def write(self, name, act, *values):
        began = self.now
        try:
            self.record = change(self.record, act, *values)
        except (Displaced, NotOwner):
            return False
        self.held[name] = set(self.members[name].owned(self.record)), began + LEASE
        return True

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 9.0, 11.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(name=st.sampled_from("abc"))
    def beat(self, name):
        if self.write(name, self.members[name].step, self.now, PARTITIONS):
            self.members[name].has_written()

    @rule(name=st.sampled_from("abc"))
    def give_up_what_others_have_room_for(self, name):
        if name in self.record.members:
            self.write(name, self.members[name].release, self.members[name].surplus(self.record))

    @rule(name=st.sampled_from("abc"))
    def leave(self, name):
        self.write(name, self.members[name].leave)

    @rule(name=st.sampled_from("abc"), partition=st.sampled_from(PARTITIONS), offset=st.integers(0, 100))
    def commit(self, name, partition, offset):
        entry = self.record.partitions.get(partition, Partition())
        is_owner = entry.owner == name
        assert is_owner == self.write(name, self.members[name].commit, {partition: Place(entry.epoch, offset, "")})

    @invariant()
    def no_two_hosts_handle_one_partition(self):
        if hasattr(self, "held"):
            for partition in PARTITIONS:
                holders = [
                    name for name, (names, until) in self.held.items() if partition in names and until > self.now
                ]
                assert len(holders) <= 1, (partition, holders)


Group.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestGroup = Group.TestCase


def test_whoever_comes_gets_an_even_share_and_whoever_leaves_leaves_it_to_the_others():
    a, b, c, record = member("a"), member("b"), member("c"), Record()
    for round in range(3):
        for each in (a, b, c):
            record = change(record, each.step, 100.0 + round, PARTITIONS)
            record = change(record, each.release, each.surplus(record))

    assert [2, 2, 1] == [len(share) for share in shares(record, a, b, c)]
    record = change(record, b.leave)
    for each in (a, c):
        record = change(record, each.step, 104.0, PARTITIONS)
    assert [3, 2] == [len(share) for share in shares(record, a, c)] and "b" not in record.members


def test_a_member_without_beats_is_gone_after_a_session_and_not_before():
    a, b = member("a"), member("b")
    record = change(change(Record(), a.step, 0.0, PARTITIONS), b.step, 0.0, PARTITIONS)
    for second in (4, 8, 10):
        record = change(record, b.step, float(second), PARTITIONS)
        assert "a" in record.members

    record = change(record, b.step, 10.5, PARTITIONS)
    assert ["b"] == list(record.members) and PARTITIONS == sorted(b.owned(record))


def test_silence_while_nobody_could_write_counts_for_nothing():
    """The server was away for a minute: who comes first must not take everything from the others."""
    a, b = member("a"), member("b")
    record = change(change(Record(), a.step, 0.0, PARTITIONS), b.step, 0.0, PARTITIONS)
    record = change(record, b.step, 60.0, PARTITIONS)

    assert {"a", "b"} == set(record.members)


def test_a_partition_that_went_and_came_back_has_another_epoch():
    a, b = member("a"), member("b")
    record = change(Record(), a.step, 0.0, PARTITIONS)
    before = a.owned(record)
    record = change(change(record, a.leave), b.step, 0.0, PARTITIONS)
    record = change(change(record, b.leave), a.step, 0.0, PARTITIONS)

    assert before.keys() == a.owned(record).keys() and not set(before.items()) & set(a.owned(record).items())


def test_a_process_of_the_same_name_takes_over_at_once_and_the_old_one_hears_of_it():
    old, new = member("a"), member("a", "2")
    record = change(Record(), old.step, 0.0, PARTITIONS)
    old.has_written()
    record = change(record, old.commit, {PARTITIONS[0]: Place(1, 7, "here")})
    record = change(record, new.step, 0.1, PARTITIONS)

    assert PARTITIONS == sorted(new.owned(record)) and Partition("a", 1, 7, "here") == record.partitions[PARTITIONS[0]]
    for act in ((old.step, 0.2, PARTITIONS), (old.commit, {PARTITIONS[0]: Place(1, 8, "")}), (old.leave,)):
        with pytest.raises(Displaced):
            change(record, *act)


def test_a_commit_is_of_all_its_partitions_or_of_none():
    a, b = member("a"), member("b")
    record = change(Record(), a.step, 0.0, PARTITIONS[:1])
    record = change(record, b.step, 0.0, PARTITIONS[:2])
    with pytest.raises(NotOwner, match="clicks/1"):
        change(record, a.commit, {"clicks/0": Place(1, 1, ""), "clicks/1": Place(1, 1, "")})
    assert record.partitions["clicks/0"].offset is None


def test_what_was_handled_in_an_earlier_epoch_cannot_be_committed():
    a, record = member("a"), Record()
    for _ in range(2):
        record = change(record, a.step, 0.0, PARTITIONS)
        record = change(record, a.release, PARTITIONS[:1])
    record = change(record, a.step, 0.0, PARTITIONS)
    with pytest.raises(NotOwner):
        change(record, a.commit, {PARTITIONS[0]: Place(2, 5, "")})
    change(record, a.commit, {PARTITIONS[0]: Place(3, 5, "")})


def test_what_is_no_record_is_an_error():
    with pytest.raises(ValueError):
        Record.of_json(b"{")
    assert Record({"a": Member("x", 3)}, {"t/0": Partition("a", 1, 5)}) == Record.of_json(
        Record({"a": Member("x", 3)}, {"t/0": Partition("a", 1, 5)}).to_json()
    )
