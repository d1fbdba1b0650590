"""What every source keeps to. Each kind gets a maker: make(events) -> a source of one or two partitions with these
payloads."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque

import numpy as np
import pytest

import shardmem
from shardmem.errors import ShardmemError
from shardmem.schema import Schema
from shardmem.sources.contract import Columns, Position, Rejected, SourceContext, SourceError
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.positions import Positions
from shardmem.sources.files.source import FileSource
from shardmem.sources.runner import Limits, Runner, TooManyBad
from support.handlers.waiting import slow_when_told


class FakeSource:
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


class Fakes:
    """partition -> place is kept here as a broker keeps it."""

    def __init__(self, _):
        self.start, self.made = {}, []

    def make(self, partitions):
        source = FakeSource(partitions, self.start)
        self.made.append(source)
        return source

    def kept(self):
        for positions, _ in self.made[-1].committed:
            self.start.update({name: position.offset for name, position in positions.items()})


class Files:
    def __init__(self, directory):
        self.directory, self.positions = directory, None

    def make(self, partitions):
        names = deque()
        for name, events in partitions.items():
            (self.directory / name).write_bytes(b"".join(event + b"\n" for event in events))
            names.append(str(self.directory / name))
        self.positions = Positions(str(self.directory / "positions"))
        return FileSource(names, FileOptions.of(), Schema(), 1 << 16, positions=self.positions, block=256)

    def kept(self):
        self.positions.close()


EVENTS = {"p0": [b"a%d" % i for i in range(100)], "p1": [b"b%d" % i for i in range(50)]}


@pytest.fixture(params=[Fakes, Files], ids=["fake", "files"])
def kind(request, tmp_path):
    return request.param(tmp_path)


def context(stop=None):
    told = []
    made = SourceContext(logging.getLogger(), time.time, stop or threading.Event(), assigned=told.extend)
    made.told = told
    return made


def payloads_in(columns):
    data, offsets = bytes(columns.payloads[0]), columns.payloads[1]
    spans = offsets.tolist() if offsets.ndim == 2 else list(zip(offsets.tolist(), offsets[1:].tolist()))
    return [data[first:last] for first, last in spans]


def drain(source, taken=None):
    found, places = taken if taken is not None else {}, {}
    while not source.ended:
        columns = source.poll(1 << 16, 0.05)
        if columns is not None:
            name = columns.partition.rpartition("/")[2]
            found.setdefault(name, []).extend(payloads_in(columns) if len(columns) else [])
            assert columns.next.offset >= places.get(name, 0)
            places[name] = columns.next.offset
            source.commit({columns.partition: columns.next}, True)
    return found


def test_every_event_comes_once_and_in_the_order_of_its_partition(kind):
    source = kind.make(EVENTS)
    made = context()
    source.open(made)
    assert EVENTS == drain(source)
    assert {"p0", "p1"} == {name.rpartition("/")[2] for name in made.told}
    source.close(True)
    kind.kept()


def test_offsets_rise_and_name_the_place_of_each_event(kind):
    source = kind.make(EVENTS)
    source.open(context())
    last = {}
    while not source.ended:
        columns = source.poll(1 << 16, 0.05)
        if columns is not None and len(columns):
            places = [columns.position(i).offset for i in range(len(columns))]
            assert sorted(set(places)) == places and places[0] >= last.get(columns.partition, 0)
            assert columns.position(len(columns)) == columns.next
            last[columns.partition] = columns.next.offset
    source.close(False)
    kind.kept()


def test_the_first_events_of_columns_end_where_the_next_one_begins(kind):
    source = kind.make(EVENTS)
    source.open(context())
    columns = source.poll(1 << 16, 0.05)
    first = columns.first(3)
    assert payloads_in(columns)[:3] == payloads_in(first) and 3 == len(first)
    assert columns.position(3) == first.next
    source.close(False)
    kind.kept()


def test_what_was_committed_does_not_come_again_and_what_was_not_does(kind):
    source = kind.make(EVENTS)
    source.open(context())
    columns = source.poll(1 << 16, 0.05)
    seen = payloads_in(columns)
    source.commit({columns.partition: columns.position(4)}, True)
    source.close(False)
    kind.kept()
    again = kind.make(EVENTS)
    again.open(context())
    assert {**EVENTS, "p0": EVENTS["p0"][4:]} == drain(again) and EVENTS["p0"][: len(seen)] == seen
    again.close(True)
    kind.kept()


def test_a_partition_that_is_paused_is_not_read_and_pausing_twice_is_pausing_once(kind):
    source = kind.make({"p0": EVENTS["p0"]})
    source.open(context())
    columns = source.poll(1 << 16, 0.05)
    taken = payloads_in(columns)
    source.pause([columns.partition])
    source.pause([columns.partition])
    assert source.poll(1 << 16, 0.01) is None and not source.ended
    source.resume([columns.partition])
    source.resume([columns.partition])
    found = drain(source, {"p0": taken})
    assert EVENTS["p0"] == found["p0"]
    source.close(True)
    kind.kept()


def test_it_goes_on_where_it_is_told_to_and_a_place_that_there_is_not_changes_nothing(kind):
    source = kind.make({"p0": EVENTS["p0"]})
    source.open(context())
    columns = source.poll(1 << 16, 0.05)
    name, third, taken = columns.partition, columns.position(3), payloads_in(columns)
    for wrong in ((name + "x", "start"), (name, 10**9)) if isinstance(source, FileSource) else ((name + "x", "start"),):
        with pytest.raises(SourceError):
            source.seek(*wrong)
    following = payloads_in(source.poll(1 << 16, 0.05))
    assert taken + following == EVENTS["p0"][: len(taken) + len(following)]
    assert third.offset == source.seek(name, third.offset).offset
    assert EVENTS["p0"][3] == payloads_in(source.poll(1 << 16, 0.05))[0]
    assert 0 == source.seek(name, "start").offset
    assert taken == payloads_in(source.poll(1 << 16, 0.05))
    assert source.seek(name, "end").offset > third.offset and {name: 0} == dict(source.lag())
    assert {} == drain(source)
    source.close(True)
    kind.kept()


def test_lag_is_what_is_there_and_was_not_read(kind):
    source = kind.make({"p0": EVENTS["p0"]})
    source.open(context())
    last = None
    while (columns := source.poll(1 << 16, 0.05)) is not None:
        ((name, lag),) = source.lag().items() if source.lag() else ((columns.partition, 0),)
        assert name == columns.partition and (last is None or lag < last)
        last = lag
    assert last == 0
    source.close(True)
    kind.kept()


# ---- the loop that drives a source
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def engine():
    with shardmem.Engine(handler=slow_when_told, shards=2, lane_bytes=1 << 16, max_producers=4) as running:
        yield running


def test_the_runner_pushes_everything_and_commits_only_what_was_handled(engine, kind):
    source = kind.make(EVENTS)
    with engine.producer() as producer:
        runner = Runner(source, producer)
        runner.run()
        assert runner.finish(True)
        assert 150 == runner.tally.events == producer.outcome()["handled"]
    kind.kept()
    again = kind.make(EVENTS)
    again.open(context())
    assert {} == {name: events for name, events in drain(again).items() if events}
    again.close(True)
    kind.kept()


def test_nothing_is_committed_while_it_is_not_handled(engine):
    source = FakeSource({"p": [b"slow"] * 3 + [b"x"] * 10}, step=1)
    with engine.producer() as producer:
        runner = Runner(source, producer)
        runner.run()
        assert not source.committed or source.committed[-1][0]["p"].offset < 13
        assert runner.finish(True)
        assert 13 == source.committed[-1][0]["p"].offset and source.closed is True


def test_a_rejected_record_ends_the_run_after_the_events_before_it(engine):
    source = FakeSource({"p": [b"a", b"b", b"bad", b"c"]}, rejects=[b"bad"])
    with engine.producer() as producer:
        runner = Runner(source, producer)
        with pytest.raises(TooManyBad, match="p 2"):
            runner.run()
        assert (2, 2) == (runner.tally.events, runner.tally.places["p"].offset)


@pytest.mark.parametrize(
    "limits, events", [(Limits(max_bad=None), 3), (Limits(max_bad=1), 3), (Limits(max_bad_share=0.5), 3)]
)
def test_rejected_records_are_given_away_and_counted_by_reason(engine, limits, events):
    source, given = FakeSource({"p": [b"a", b"b", b"bad", b"c"]}, rejects=[b"bad"]), []
    with engine.producer() as producer:
        runner = Runner(source, producer, limits=limits, rejected=given.append)
        runner.run()
        assert (events, 1, {"fake": 1}) == (runner.tally.events, runner.tally.skipped, dict(runner.tally.reasons))
    assert [b"bad"] == [each.data for each in given]


def test_a_runner_that_is_paused_reads_no_more_and_goes_on_elsewhere_when_told_to(engine):
    source, stop = FakeSource({"p": [b"%d" % i for i in range(20)]}), threading.Event()
    with engine.producer() as producer:
        runner = Runner(source, producer, stop=stop)
        runner.wants_pause = True
        runner.seek(1, "p", 15)
        runner.seek(2, "q", 0)
        running = threading.Thread(target=runner.run)
        running.start()
        deadline = time.monotonic() + 30
        while runner.sought[0] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert (runner.is_paused, 0, {"p"}) == (True, runner.tally.events, source.paused)
        assert (2, "no partition q", 0) == runner.sought and 15 == runner.tally.places["p"].offset
        assert ({"p": Position(15)}, True) in source.committed
        runner.wants_pause = False
        running.join(30)
        assert 5 == runner.tally.events and not running.is_alive()


def test_a_place_before_a_seek_is_not_written_down_after_it(engine):
    source = FakeSource({"p": [b"slow", *[b"%d" % i for i in range(13)]]}, step=7)
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
    source = FakeSource(EVENTS)
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
        runner = Runner(FakeSource({"p": [b"x"] * 40}, step=4), producer, limits=Limits(rate=100))
        started = time.monotonic()
        runner.run()
        assert 0.3 < time.monotonic() - started


def test_an_interrupt_ends_a_run_that_waits_for_room_and_says_what_was_accepted(engine):
    source = FakeSource({"p": [b"slow" + bytes(20_000)] * 40})
    with engine.producer() as producer:
        runner = Runner(source, producer)
        threading.Timer(0.5, producer.interrupt).start()
        with pytest.raises(ShardmemError, match="interrupted"):
            runner.run()
        outcome = producer.outcome()
        assert outcome["accepted"] == runner.tally.events < 40
        assert outcome["refused"]["stopped"] > 0
