"""What every source keeps to, and the loop that drives files. Each kind has its bench in support/benches.py:
make(events) is a source of one or two partitions with these payloads. What brokers keep to besides is in
test_brokers.py."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque

import numpy as np
import pytest

import shardmem
from shardmem.errors import ShardmemError
from shardmem.schema import Schema
from shardmem.sources.contract import Columns, Position, Rejected, SourceError, topic_and_number
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.source import FileSource
from shardmem.sources.runner import Limits, Runner, TooManyBad
from shardmem.sources.wishes import Pause
from support.benches import KINDS, FileBench, Member, payloads_in
from support.handlers.waiting import slow_when_told


class Memory:
    """Partitions in memory. committed: what it was told; rejects: payloads that it says are no events."""

    def __init__(self, partitions, start=None, step=7, rejects=()):
        self.partitions, self.places = partitions, dict(start or {})
        self.step, self.rejects, self.committed, self.closed = step, rejects, [], None
        self.paused, self.ended = set(), False

    def open(self, context):
        self.context = context
        context.assigned(list(self.partitions))

    def poll(self, max_events, timeout):
        for name, events in self.partitions.items():
            at = self.places.get(name, 0)
            if name in self.paused or at == len(events):
                continue
            taken = events[at : at + min(self.step, max_events)]
            good = [i for i, event in enumerate(taken) if event not in self.rejects]
            self.places[name] = at + len(taken)
            pieces = [taken[i] for i in good]
            rejected = [
                Rejected(name, Position(at + i), "fake", f"{name} {at + i}", event, sum(j < i for j in good))
                for i, event in enumerate(taken)
                if event in self.rejects
            ]
            return Columns(
                name,
                np.array([at + i for i in good], "u8"),
                Position(at + len(taken)),
                (b"".join(pieces), np.cumsum([0, *map(len, pieces)])),
                keys=np.array([len(piece) for piece in pieces], "u8"),
                rejected=rejected,
                bytes=sum(map(len, taken)),
            )
        self.ended = not self.paused
        if self.paused:
            self.context.stop.wait(timeout)
        return None

    def pause(self, partitions):
        self.paused |= set(partitions)

    def resume(self, partitions):
        self.paused -= set(partitions)

    def seek(self, partition, to):
        if partition not in self.partitions:
            raise SourceError(f"no partition {partition}")
        place = {"start": 0, "end": len(self.partitions[partition])}.get(to, to)
        self.places[partition] = place
        return Position(place)

    def lag(self):
        return {name: len(events) - self.places.get(name, 0) for name, events in self.partitions.items()}

    def commit(self, positions, sync):
        self.committed.append((dict(positions), sync))

    def close(self, drained):
        self.closed = drained


EVENTS = {"p0": [b"a%d" % i for i in range(100)], "p1": [b"b%d" % i for i in range(50)]}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


def name_of(kind, partition):
    """As the tests call it: p0, p1."""
    return partition.rpartition("/")[2] if isinstance(kind, FileBench) else f"p{topic_and_number(partition)[1]}"


def drain(kind, member, count):
    """Reads so many events, or to the end of files, and commits all of it."""
    places = {}
    member.until(
        lambda: member.source.ended if isinstance(kind, FileBench) else sum(map(len, member.payloads.values())) >= count
    )
    for columns in member.columns:
        assert columns.next.offset >= places.get(columns.partition, Position(0)).offset
        places[columns.partition] = columns.next
    member.source.commit(places, True)
    return {name_of(kind, name): events for name, events in member.payloads.items() if events}


def first_columns(member):
    return member.until(lambda: member.columns)[0]


def test_every_event_comes_once_and_in_the_order_of_its_partition(kind):
    member = Member(kind.make(EVENTS))
    assert EVENTS == drain(kind, member, 150)
    told = {name_of(kind, name) for what, names in member.told for name in names if what == "assigned"}
    assert {"p0", "p1"} == told
    member.close()
    kind.kept()


def test_offsets_rise_and_name_the_place_of_each_event(kind):
    member = Member(kind.make(EVENTS))
    drain(kind, member, 150)
    last = {}
    for columns in member.columns:
        if len(columns):
            places = [columns.position(i).offset for i in range(len(columns))]
            assert sorted(set(places)) == places and places[0] >= last.get(columns.partition, 0)
            assert columns.position(len(columns)) == columns.next
            last[columns.partition] = columns.next.offset
    member.close(False)
    kind.kept()


def test_the_first_events_of_columns_end_where_the_next_one_begins(kind):
    member = Member(kind.make(EVENTS))
    columns = first_columns(member)
    first = columns.first(3)
    assert payloads_in(columns)[:3] == payloads_in(first) and 3 == len(first)
    assert columns.position(3) == first.next
    member.close(False)
    kind.kept()


def test_what_is_kept_of_columns_outlives_the_next_poll(kind):
    member = Member(kind.make(EVENTS))
    columns = first_columns(member)
    expected = payloads_in(columns)[2:5]
    kept = columns.kept(np.arange(2, 5))
    assert expected == payloads_in(kept) and columns.offsets[2:5].tolist() == kept.offsets.tolist()
    assert not np.shares_memory(np.frombuffer(columns.payloads[0], "u1"), np.frombuffer(kept.payloads[0], "u1"))
    member.close(False)
    kind.kept()


def test_what_was_committed_does_not_come_again_and_what_was_not_does(kind):
    member = Member(kind.make(EVENTS))
    columns = first_columns(member)
    name, seen = name_of(kind, columns.partition), payloads_in(columns)
    member.source.commit({columns.partition: columns.position(4)}, True)
    member.close(False)
    kind.kept()
    again = Member(kind.make(EVENTS))
    assert {**EVENTS, name: EVENTS[name][4:]} == drain(kind, again, 146) and EVENTS[name][: len(seen)] == seen
    again.close()
    kind.kept()


def test_a_partition_that_is_paused_is_not_read_and_pausing_twice_is_pausing_once(kind):
    member = Member(kind.make({"p0": EVENTS["p0"]}))
    partition = first_columns(member).partition
    member.source.pause([partition])
    member.source.pause([partition])
    assert member.poll(0.01) is None and not member.source.ended
    member.source.resume([partition])
    member.source.resume([partition])
    assert {"p0": EVENTS["p0"]} == drain(kind, member, 100)
    member.close()
    kind.kept()


def test_it_goes_on_where_it_is_told_to_and_a_place_that_there_is_not_changes_nothing(kind):
    member = Member(kind.make({"p0": EVENTS["p0"]}))
    columns = first_columns(member)
    name, third, taken = columns.partition, columns.position(3), payloads_in(columns)
    for wrong in ((name + "9", "start"), (name, 10**9)):
        with pytest.raises(SourceError):
            member.source.seek(*wrong)
    member.columns.clear()
    if len(taken) < 100:
        following = payloads_in(first_columns(member))
        assert taken + following == EVENTS["p0"][: len(taken) + len(following)]
    for to, at in ((third.offset, 3), ("start", 0)):
        assert (third.offset if at else 0) == member.source.seek(name, to).offset
        member.columns.clear()
        assert EVENTS["p0"][at] == payloads_in(first_columns(member))[0]
    assert member.source.seek(name, "end").offset > third.offset and 0 == member.source.lag()[name]
    member.close()
    kind.kept()


def test_lag_is_what_is_there_and_was_not_read(kind):
    member = Member(kind.make({"p0": EVENTS["p0"]}))
    partition, last = first_columns(member).partition, None
    while sum(map(len, member.payloads.values())) < 100:
        lag = member.source.lag().get(partition, 0)
        assert last is None or lag <= last
        last = lag
        member.poll(0.05)
    assert 0 == member.source.lag().get(partition, 0)
    member.close()
    kind.kept()


# ---- the loop that drives a source
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def engine():
    with shardmem.Engine(handler=slow_when_told, shards=2, lane_bytes=1 << 16, max_producers=4) as running:
        yield running


def test_the_runner_pushes_everything_and_commits_only_what_was_handled(engine, tmp_path):
    kind = FileBench(tmp_path)
    with engine.producer() as producer:
        runner = Runner(kind.make(EVENTS), producer)
        runner.run()
        assert runner.finish(True)
        assert 150 == runner.tally.events == producer.outcome()["handled"]
    kind.kept()
    again = Member(kind.make(EVENTS))
    assert {} == drain(kind, again, 1)
    again.close(True)
    kind.kept()


def test_nothing_is_committed_while_it_is_not_handled(engine):
    source = Memory({"p": [b"slow"] * 3 + [b"x"] * 10}, step=1)
    with engine.producer() as producer:
        runner = Runner(source, producer)
        runner.run()
        assert not source.committed or source.committed[-1][0]["p"].offset < 13
        assert runner.finish(True)
        assert 13 == source.committed[-1][0]["p"].offset and source.closed is True


def test_a_rejected_record_ends_the_run_after_the_events_before_it(engine):
    source = Memory({"p": [b"a", b"b", b"bad", b"c"]}, rejects=[b"bad"])
    with engine.producer() as producer:
        runner = Runner(source, producer)
        with pytest.raises(TooManyBad, match="p 2"):
            runner.run()
        assert (2, 2) == (runner.tally.events, runner.tally.places["p"].offset)


@pytest.mark.parametrize(
    "limits, events", [(Limits(max_bad=None), 3), (Limits(max_bad=1), 3), (Limits(max_bad_share=0.5), 3)]
)
def test_rejected_records_are_given_away_and_counted_by_reason(engine, limits, events):
    source, given = Memory({"p": [b"a", b"b", b"bad", b"c"]}, rejects=[b"bad"]), []
    with engine.producer() as producer:
        runner = Runner(source, producer, limits=limits, rejected=given.append)
        runner.run()
        assert (events, 1, {"fake": 1}) == (runner.tally.events, runner.tally.skipped, dict(runner.tally.reasons))
    assert [b"bad"] == [each.data for each in given]


def test_a_runner_that_is_paused_reads_no_more_and_goes_on_elsewhere_when_told_to(engine):
    source, stop = Memory({"p": [b"%d" % i for i in range(20)]}), threading.Event()
    with engine.producer() as producer:
        runner = Runner(source, producer, stop=stop)
        runner.wanted = Pause(True)
        runner.seek(1, "p", 15)
        runner.seek(2, "q", 0)
        running = threading.Thread(target=runner.run)
        running.start()
        deadline = time.monotonic() + 30
        while runner.sought[0] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert (runner.paused.every, 0, {"p"}) == (True, runner.tally.events, source.paused)
        assert (2, "no partition q", 0) == runner.sought and 15 == runner.tally.places["p"].offset
        assert ({"p": Position(15)}, True) in source.committed
        runner.wanted = Pause()
        running.join(30)
        assert 5 == runner.tally.events and not running.is_alive()


def test_a_place_before_a_seek_is_not_written_down_after_it(engine):
    source = Memory({"p": [b"slow", *[b"%d" % i for i in range(13)]]}, step=7)
    with engine.producer() as producer:
        runner = Runner(source, producer)
        source.open(runner._context())
        runner._take(source.poll(7, 0))
        runner._commit(now=True)
        runner.seek(1, "p", "start")
        runner._follow_wishes()
        assert runner.finish(True)
    assert {"p": Position(0)} == source.committed[-1][0]


def test_a_limit_of_events_is_kept_exactly(engine):
    source = Memory(EVENTS)
    with engine.producer() as producer:
        runner = Runner(source, producer, limits=Limits(events=10))
        runner.run()
        assert 10 == runner.tally.events and 10 == runner.tally.places["p0"].offset


@pytest.mark.parametrize("limits, events", [(Limits(events=2), 2), (Limits(max_bad=0), 3)])
def test_the_bytes_of_a_run_that_ends_early_are_those_before_its_end(engine, tmp_path, limits, events):
    (tmp_path / "f").write_bytes(b"1\n2\n3\nbad\n5\n")
    source = FileSource(deque([str(tmp_path / "f")]), FileOptions.of(format="jsonl"), Schema(), 1 << 16)
    with engine.producer() as producer:
        runner = Runner(source, producer, limits=limits)
        with contextlib.suppress(TooManyBad):
            runner.run()
        runner.finish(True)
    assert (events, 2 * events, 2 * events) == (
        runner.tally.events,
        runner.tally.bytes,
        runner.tally.places[str(tmp_path / "f")].offset,
    )


def test_a_rate_is_kept(engine):
    with engine.producer() as producer:
        runner = Runner(Memory({"p": [b"x"] * 40}, step=4), producer, limits=Limits(rate=100))
        started = time.monotonic()
        runner.run()
        assert 0.3 < time.monotonic() - started


def test_an_interrupt_ends_a_run_that_waits_for_room_and_says_what_was_accepted(engine):
    source = Memory({"p": [b"slow" + bytes(20_000)] * 40})
    with engine.producer() as producer:
        runner = Runner(source, producer)
        threading.Timer(0.5, producer.interrupt).start()
        with pytest.raises(ShardmemError, match="interrupted"):
            runner.run()
        outcome = producer.outcome()
        assert outcome["accepted"] == runner.tally.events < 40
        assert outcome["refused"]["stopped"] > 0
