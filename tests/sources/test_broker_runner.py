"""The loop that drives a source on a broker, with an engine and a broker in a file."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

import shardmem
from shardmem.errors import ConfigError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.remote.snapshots import Snapshots
from shardmem.runtime.partition_state import StateFiles
from shardmem.sources import ownership
from shardmem.sources.broker import BrokerRunner
from shardmem.sources.contract import Position
from shardmem.sources.ownership import OwnershipSettings
from shardmem.sources.wishes import Pause
from shardmem.state_settings import RemoteSettings
from shardmem.testing.broker import FakeBroker
from shardmem.testing.fake import FakeSource
from support.benches import Member
from support.handlers.waiting import slow_when_told

PATIENCE = 60.0


@pytest.fixture
def engine():
    with shardmem.Engine(handler=slow_when_told, shards=2, slots=64, lane_bytes=1 << 14, max_producers=4) as running:
        yield running


@pytest.fixture
def broker(tmp_path):
    made = FakeBroker(str(tmp_path / "broker"))
    yield made
    made.close()


class Run:
    """A runner in a thread of its own."""

    def __init__(self, engine, broker, directory, *, topics=("t",), session=30.0, remote=None, **settings):
        self.stop, self.error, self.rejected = threading.Event(), None, []
        self.producer = shardmem.connect(engine.name, seat="source:fake", backpressure="block")
        self.control = ControlSegment.attach(engine.name)
        self.source = FakeSource(FakeBroker(broker.path), topics, "g", session=session, instance="a")
        self.runner = BrokerRunner(
            self.source,
            self.producer,
            self.control,
            OwnershipSettings(commit_interval=0.1, **settings),
            StateFiles(str(directory / "state"), self.control.geometry.engine_id),
            RemoteSettings(remote=remote),
            lambda what: str(directory / what),
            stop=self.stop,
            rejected=self.rejected.append,
        )
        self.runner.limits.max_bad = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.runner.run()
        except shardmem.ShardmemError as error:
            self.error = error
        self.finished = self.runner.finish(True, grace=PATIENCE)

    def end(self):
        self.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.producer.close()
        self.control.close()


@pytest.fixture
def run(engine, broker, tmp_path):
    with contextlib.ExitStack() as stack:

        def run(**settings):
            made = Run(engine, broker, tmp_path, **settings)
            stack.callback(made.end)
            return made

        yield run


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def committed(broker, partition="t/0"):
    place = broker.committed("g", [partition])[partition]
    return None if place is None else place.offset


def events(count, size=8):
    return [(b"k%d" % (i % 16), b"%d" % i + bytes(size)) for i in range(count)]


def test_everything_is_pushed_handled_and_committed_and_status_says_how_far_it_is(engine, broker, run):
    broker.create_topic("t", 2)
    broker.produce("t", events(500))
    running = run()
    until(lambda: (committed(broker) or 0) + (committed(broker, "t/1") or 0) == 500, "committed")
    said = running.runner.describe()
    assert (500, 0, "g", None) == (said["events"], said["lag_events"], said["group"], said["waits_for"])
    assert {"t/0", "t/1"} == said["partitions"].keys()
    assert {"owned"} == {each["state"] for each in said["partitions"].values()} and 1 == said["epoch"]
    running.end()
    assert running.finished and {"t/0": None, "t/1": None} == broker.owners("g")
    assert 500 == engine.status()["accounting"]["handled"]


def test_partitions_that_come_from_another_host_are_claimed_in_one_commit(broker, run, monkeypatch):
    broker.create_topic("t", 4)
    names, written = [f"t/{number}" for number in range(4)], []
    other = FakeSource(FakeBroker(broker.path), ["t"], "g", session=30.0, instance="other")
    member = Member(other)
    member.until(lambda: len(member.held) == 4)
    other.commit({name: Position(0, '{"e": "other"}') for name in names}, True)
    member.close()
    commit = FakeSource.commit
    monkeypatch.setattr(FakeSource, "commit", lambda *of: (written.append(sorted(of[1])), commit(*of)))
    running = run()
    until(lambda: {"owned"} == {each["state"] for each in running.runner.describe()["partitions"].values()}, "owned")
    assert [names] == written


def test_state_that_is_not_there_is_waited_for_and_said_once_however_often_it_is_tried(
    broker, run, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(ownership, "RETRY", 0.01)
    tries, restore = [], Snapshots.restore
    monkeypatch.setattr(Snapshots, "restore", lambda *of: (tries.append(of[1]), restore(*of)))
    broker.create_topic("t", 1)
    other = FakeSource(FakeBroker(broker.path), ["t"], "g", session=30.0, instance="other")
    member = Member(other)
    member.until(lambda: member.held)
    other.commit({"t/0": Position(0, '{"e": "other", "s": "7-0123456789abcdef"}')}, True)
    member.close()
    with caplog.at_level("INFO", "shardmem.sources"):
        running = run(remote=f"file://{tmp_path}/remote")
        until(lambda: len(tries) > 3, "tried again")
    said = running.runner.describe()
    assert "partition-00000/000000000007-0123456789abcdef.sqlite cannot be read" in said["waits_for"]
    assert None is said["last_commit"] and 1 == sum("wait" in record.message for record in caplog.records)


def test_what_is_handled_and_in_no_snapshot_yet_is_behind(engine, broker, run, tmp_path):
    broker.create_topic("t", 1)
    broker.produce("t", events(20))
    running = run(remote=f"file://{tmp_path}/remote")
    until(lambda: engine.status()["accounting"]["handled"] == 20, "handled")
    assert (20, None) == (running.runner.describe()["lag_events"], committed(broker))


def test_a_full_lane_stops_its_partitions_and_no_event_is_refused_or_lost(engine, broker, run):
    broker.create_topic("t", 1)
    broker.produce("t", [(b"k", b"slow")])
    broker.produce("t", events(3000, 100))
    running = run()
    until(lambda: "full" in {each["state"] for each in running.runner.describe()["partitions"].values()}, "full")
    until(lambda: committed(broker) == 3001, "committed")
    books = engine.status()["accounting"]
    assert (3001, {}, {}) == (books["handled"], books["refused"], books["shed"])


def test_a_broker_that_is_away_is_waited_for_and_said_so(broker, run):
    broker.create_topic("t", 1)
    broker.produce("t", events(10))
    broker.set_reachable(False)
    running = run()
    until(lambda: running.runner.describe()["waits_for"], "waits")
    assert "does not answer" in running.runner.describe()["waits_for"] and running.error is None
    broker.set_reachable(True)
    until(lambda: committed(broker) == 10, "committed")
    assert running.runner.describe()["waits_for"] is None
    broker.set_reachable(False)
    until(lambda: running.runner.describe()["waits_for"], "waits again")
    broker.set_reachable(True)
    broker.produce("t", events(5))
    until(lambda: committed(broker) == 15, "goes on")


def test_a_topic_that_is_not_there_yet_is_waited_for(broker, run):
    running = run()
    until(lambda: running.runner.describe()["waits_for"], "waits")
    assert "no topic t" in running.runner.describe()["waits_for"]
    broker.create_topic("t", 1)
    broker.produce("t", events(3))
    until(lambda: committed(broker) == 3, "committed")


def test_a_topic_that_has_grown_is_refused_until_told(broker, run):
    broker.create_topic("t", 2)
    first = run()
    until(lambda: first.runner.ownership and len(first.runner.ownership.held) == 2, "begun")
    broker.create_topic("t", 3)
    until(lambda: first.error, "refused while it runs")
    assert isinstance(first.error, ConfigError) and "has grown" in str(first.error)
    first.end()
    second = run()
    until(lambda: second.error, "refused when it starts")
    assert "3 partitions of t" in str(second.error) and "partitions = 3" in second.error.hint
    second.end()
    third = run(partitions=4)
    until(lambda: third.error, "told wrong")
    assert "source.partitions=4" in str(third.error)


def test_people_pause_it_and_send_it_elsewhere(engine, broker, run):
    broker.create_topic("t", 1)
    broker.produce("t", events(100))
    running = run()
    until(lambda: committed(broker) == 100, "committed")
    running.runner.wanted = Pause(True)
    until(lambda: running.runner.paused.every, "paused")
    broker.produce("t", events(50))
    running.runner.seek(1, "t/0", 90)
    running.runner.seek(2, "t/9", 0)
    until(lambda: running.runner.sought[0] == 2, "sought")
    assert "not of this host" in running.runner.sought[1] and 90 == committed(broker)
    assert 100 == engine.status()["accounting"]["accepted"]
    running.runner.wanted = Pause()
    until(lambda: committed(broker) == 150, "goes on")
    assert 160 == engine.status()["accounting"]["handled"]


def test_one_partition_is_paused_and_the_others_flow(engine, broker, run):
    broker.create_topic("t", 2)
    running = run()
    running.runner.wanted = Pause(some=frozenset({"t/0"}))
    until(lambda: running.runner.describe()["partitions"].get("t/0", {}).get("state") == "paused", "paused")
    for number in range(2):
        broker.produce("t", events(50), partition=number)
    until(lambda: broker.committed("g", ["t/1"])["t/1"] is not None, "the other one")
    assert {"t/0": None} == broker.committed("g", ["t/0"]) and not running.runner.describe()["paused"]
    running.runner.wanted = Pause()
    until(lambda: engine.status()["accounting"]["handled"] == 100, "goes on")


def test_an_event_that_no_lane_has_room_for_is_rejected_and_the_others_pass(engine, broker, run):
    broker.create_topic("t", 1)
    broker.produce("t", [(b"a", b"1"), (b"a", bytes(20_000)), (b"a", b"2")])
    running = run()
    until(lambda: committed(broker) == 3, "committed")
    assert ["too large"] == [each.reason for each in running.rejected] and "offset 1" in running.rejected[0].text
    assert 2 == engine.status()["accounting"]["handled"] == running.runner.tally.events


def test_whose_session_is_over_takes_its_partitions_up_again_and_what_was_left_is_passed_over(engine, broker, run):
    broker.create_topic("t", 1)
    broker.produce("t", events(10))
    running = run()
    until(lambda: committed(broker) == 10, "committed")
    broker.produce("t", [(b"k", b"slow")] * 20)
    own = running.runner.ownership
    until(lambda: own.held["t/0"].pushed == 30, "pushed")
    broker.expel("g", running.source.membership.member)
    until(lambda: own.held.get("t/0") and own.held["t/0"].epoch > 1, "lost, and taken up again")
    until(lambda: committed(broker) == 30, "handled after all")
    books = engine.status()["accounting"]
    assert books["shed"].get("lost", 0) + books["handled"] == books["accepted"] and books["handled"] >= 30
