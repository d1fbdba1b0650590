"""What every source on a broker keeps to, besides test_contract.py. A kind adds its bench in support/benches.py."""

from __future__ import annotations

import json
import time

import pytest

from shardmem.errors import Superseded
from shardmem.sources.contract import BrokerUnavailable, Position, SourceError
from support.benches import BROKERS, PATIENCE, FakeBench, Member


@pytest.fixture(params=BROKERS, ids=lambda kind: kind.__name__)
def bench(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def join(bench):
    """join(**settings) -> a member that has joined; closed at the end."""
    members = []

    def join(starts=True, topics=("t",), **settings):
        members.append(Member(bench.source(list(topics), **settings), starts))
        return members[-1]

    yield join
    for member in members:
        if not member.stop.is_set():
            member.close(False)


def numbered(first, count):
    return [(b"key", b"%d" % number) for number in range(first, first + count)]


def plain(first, count):
    return [payload for _, payload in numbered(first, count)]


def test_partitions_are_counted_and_nothing_is_committed_at_first(bench, join):
    bench.create_topic("t", 3)
    member = join()
    assert 3 == member.source.partition_counts(PATIENCE)["t"] and ("t",) == tuple(member.source.topics)
    member.until(lambda: len(member.held) == 3)
    assert {"t/0": None, "t/2": None} == member.source.committed(["t/0", "t/2"], PATIENCE)


def test_nothing_of_a_partition_is_delivered_before_it_is_started_and_then_from_there_on(bench, join):
    bench.create_topic("t", 2)
    for number in range(2):
        bench.produce("t", number, numbered(0, 20))
    member = join(starts=False)
    member.until(lambda: len(member.held) == 2)
    for _ in range(10):
        assert member.poll(0.01) is None
    member.source.start("t/1", bench.at("t/1", 15))
    member.until(lambda: len(member.payloads.get("t/1", [])) == 5)
    assert {"t/1": plain(15, 5)} == member.payloads
    member.source.start("t/0", None)
    member.until(lambda: len(member.payloads.get("t/0", [])) == 20)
    assert plain(0, 20) == member.payloads["t/0"]


def test_a_poll_ends_as_soon_as_partitions_were_assigned_because_they_wait_to_be_told_where_to_begin(bench, join):
    bench.create_topic("t", 1)
    member, deadline, told_at = join(starts=False), time.monotonic() + PATIENCE, []
    member.on_assigned = lambda: told_at.append(time.monotonic())
    while not member.held:
        assert time.monotonic() < deadline
        assert member.poll(2 * PATIENCE) is None
    assert time.monotonic() < told_at[-1] + PATIENCE


def test_without_a_commit_latest_begins_behind_what_is_there(bench, join):
    bench.create_topic("t", 1)
    bench.produce("t", 0, numbered(0, 5))
    member = join(start="latest")
    member.until(lambda: member.held)
    member.until(lambda: member.source.lag() == {"t/0": 0})
    bench.produce("t", 0, numbered(5, 5))
    member.until(lambda: len(member.payloads.get("t/0", [])) >= 5)
    assert plain(5, 5) == member.payloads["t/0"]


def test_what_comes_with_an_event_is_delivered_and_a_tombstone_is_none(bench, join):
    bench.create_topic("t", 1)
    bench.produce(
        "t",
        0,
        [(b"a", b"1"), (b"a", None), (b"", b"")],
        headers=[("trace", b"\x01"), ("none", None)],
        timestamp=1234567,
    )
    member = join(headers=True)
    member.until(lambda: len(member.payloads.get("t/0", [])) == 3)
    assert [b"1", None, b""] == member.payloads["t/0"]
    columns = member.columns[0]
    assert [1234567] * len(columns) == columns.timestamps.tolist()
    data, offsets = columns.headers
    header = b"\x02\0\0\0" + b"\x05\0\0\0trace\x01\0\0\0\x01" + b"\x04\0\0\0none\xff\xff\xff\xff"
    assert header == bytes(data)[offsets[0] : offsets[1]]
    last = member.columns[-1]
    assert last.next.offset == int(last.offsets[-1]) + 1


def test_a_commit_comes_back_with_its_metadata_and_the_next_member_begins_there(bench, join):
    bench.create_topic("t", 1)
    bench.produce("t", 0, numbered(0, 10))
    first = join()
    first.until(lambda: len(first.payloads.get("t/0", [])) == 10)
    metadata = json.dumps({"e": "engine", "s": "x" * 3900})
    first.source.commit({"t/0": Position(bench.at("t/0", 7), metadata)}, True)
    assert metadata == first.source.committed(["t/0"], PATIENCE)["t/0"].metadata
    first.close()
    second = join()
    second.until(lambda: len(second.payloads.get("t/0", [])) == 3)
    assert plain(7, 3) == second.payloads["t/0"]


def test_a_partition_waits_alone_and_pausing_twice_is_pausing_once(bench, join):
    bench.create_topic("t", 2)
    member = join()
    member.until(lambda: len(member.held) == 2)
    member.source.pause(["t/0"])
    member.source.pause(["t/0", "t/7"])
    for number in range(2):
        bench.produce("t", number, numbered(0, 5))
    member.until(lambda: len(member.payloads.get("t/1", [])) == 5)
    for _ in range(5):
        assert member.poll(0.01) is None
    member.source.resume(["t/0"])
    member.source.resume(["t/0"])
    member.until(lambda: len(member.payloads.get("t/0", [])) == 5)
    assert plain(0, 5) == member.payloads["t/0"]


def test_partitions_are_handed_over_in_good_order_and_what_was_committed_in_it_counts(bench, join):
    bench.create_topic("t", 4)
    for number in range(4):
        bench.produce("t", number, numbered(0, 10))
    first = join()
    first.until(lambda: sum(map(len, first.payloads.values())) == 40)

    def on_revoking(names):
        first.source.commit({name: Position(bench.at(name, 10)) for name in names}, True)

    first.on_revoking = on_revoking
    second = join()
    first.until(lambda: len(first.held) == 2 and len(second.held) == 2, second)
    assert not first.held & second.held and "lost" not in {what for what, _ in first.told}
    for number in range(4):
        bench.produce("t", number, numbered(10, 5))
    first.until(lambda: sum(map(len, [*first.payloads.values(), *second.payloads.values()])) == 60, second)
    assert {name: plain(10, 5) for name in second.held} == second.payloads
    assert all(plain(0, 15) == first.payloads[name] for name in first.held)


def test_who_leaves_in_good_order_is_followed_at_once(bench, join):
    bench.create_topic("t", 2)
    first = join(session=60.0)
    first.until(lambda: len(first.held) == 2)
    second = join()
    first.until(lambda: len(second.held) == 1, second)
    first.close()
    began = time.monotonic()
    second.until(lambda: len(second.held) == 2)
    assert time.monotonic() - began < 50, "it waited for the session to end"


def test_whose_session_is_over_is_told_so_and_joins_again(bench, join):
    bench.create_topic("t", 1)
    bench.produce("t", 0, numbered(0, 10))
    member = join()
    member.until(lambda: len(member.payloads.get("t/0", [])) == 10)
    bench.expel(member.source)
    with pytest.raises(Superseded):
        member.source.commit({"t/0": Position(10)}, True)
    member.told.clear()
    member.until(lambda: [each for each in member.told if each[1]] == [("lost", ["t/0"]), ("assigned", ["t/0"])])
    assert member.source.committed(["t/0"], PATIENCE) == {"t/0": None}
    member.until(lambda: len(member.payloads["t/0"]) == 20)


def test_what_another_owns_cannot_be_committed(bench, join):
    bench.create_topic("t", 2)
    first = join()
    first.until(lambda: len(first.held) == 2)
    second = join()
    first.until(lambda: len(second.held) == 1, second)
    (others,) = second.held
    with pytest.raises((Superseded, SourceError)):
        first.source.commit({others: Position(3)}, True)
    assert {others: None} == second.source.committed([others], PATIENCE)


def test_a_member_with_a_name_of_its_own_has_its_partitions_again_without_any_move(bench, join):
    bench.create_topic("t", 4)
    other = join(instance="a")
    other.until(lambda: len(other.held) == 4)
    first = join(instance="b", session=600.0)
    first.until(lambda: len(first.held) == 2, other)
    other.told.clear()
    again = join(instance="b", session=600.0)  # the process before was killed, and said nothing
    again.until(lambda: len(again.held) == 2, other)
    assert first.held == again.held and [] == other.told


def test_a_process_that_dies_while_it_gives_partitions_up_is_followed_by_one_that_does_it_in_good_order(tmp_path):
    bench = FakeBench(tmp_path)
    bench.create_topic("t", 2)
    first = Member(bench.source(["t"], instance="a"))
    first.until(lambda: len(first.held) == 2)
    other = Member(bench.source(["t"], instance="b"))
    first.on_revoking = lambda names: killed()
    with pytest.raises(KeyboardInterrupt):
        first.until(lambda: other.held, other)
    again = Member(bench.source(["t"], instance="a"))
    again.until(lambda: len(again.held) == 1 and len(other.held) == 1, other)
    assert [("assigned", ["t/0", "t/1"]), ("revoking", sorted(other.held))] == again.told
    for member in (first, other, again):
        member.close()
    bench.close()


def killed():
    raise KeyboardInterrupt


def test_the_broker_confirms_again_and_again_also_between_polls(bench, join):
    bench.create_topic("t", 1)
    member = join(session=8.0)
    member.until(lambda: member.held and member.source.confirmed_ns())
    before, deadline = member.source.confirmed_ns(), time.monotonic() + PATIENCE
    while member.source.confirmed_ns() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert member.source.confirmed_ns() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_it_goes_on_elsewhere_when_it_is_told_to(bench, join):
    bench.create_topic("t", 1)
    bench.produce("t", 0, numbered(0, 10))
    member = join()
    member.until(lambda: len(member.payloads.get("t/0", [])) == 10)
    fourth = bench.at("t/0", 4)
    assert fourth == member.source.seek("t/0", fourth).offset
    member.until(lambda: len(member.payloads["t/0"]) == 16)
    assert plain(4, 6) == member.payloads["t/0"][10:]
    assert bench.at("t/0", 10) == member.source.seek("t/0", "end").offset
    member.source.seek("t/0", "start")
    member.until(lambda: len(member.payloads["t/0"]) == 26)
    with pytest.raises(SourceError):
        member.source.seek("t/5", 0)


def test_a_broker_that_does_not_answer_is_said_to_and_all_goes_on_when_it_does(bench, join):
    bench.create_topic("t", 1)
    member = join(session=600.0)
    member.until(lambda: member.held)
    bench.set_reachable(False)
    with pytest.raises(BrokerUnavailable):
        member.source.partition_counts(1.0)
    with pytest.raises(SourceError):
        member.source.commit({"t/0": Position(0)}, True)
    bench.set_reachable(True)
    bench.produce("t", 0, numbered(0, 5))
    deadline = time.monotonic() + PATIENCE
    while len(member.payloads.get("t/0", [])) < 5:
        assert time.monotonic() < deadline
        try:
            member.poll(0.05)
        except BrokerUnavailable:
            continue
    member.source.commit({"t/0": Position(5)}, True)
    assert 5 == member.source.committed(["t/0"], PATIENCE)["t/0"].offset
