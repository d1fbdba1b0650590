"""State of partitions in real engines: exactly once, whatever is killed, pushed again, restored, or moved to another
host."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem.client.quarantine import replay
from shardmem.remote.address import target_of
from shardmem.remote.snapshots import Snapshots
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.quarantine import Quarantine
from shardmem.runtime.state_reader import StateReader
from shardmem.state.partitions import Layout
from shardmem.testing.broker import FakeBroker
from support.daemon import Daemon
from support.partitions import EACH, Feeder, counts
from support.rig import Rig, drained, wait_until

LONG = "SHARDMEM_HOSTS" in os.environ  # see tox.ini
PARTITIONS, SLOTS, EVENTS = 3, 32, 1600
LAYOUT = Layout(SLOTS, PARTITIONS)
FULL = {number: dict.fromkeys(range(EACH), EVENTS // EACH) for number in range(PARTITIONS)}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"slots": SLOTS, "checkpoint_interval": 0.05, "shards": 2, "state_dir": str(tmp_path / "state")}


def files(settings: dict[str, Any], name: str) -> str:
    return os.path.join(settings["state_dir"], f"{name}.state")


@pytest.fixture
def feeding() -> Iterator[Callable[[str], Feeder]]:
    with contextlib.ExitStack() as stack:

        def made(engine: str) -> Feeder:
            feeder = Feeder(engine, PARTITIONS)
            stack.callback(feeder.close)
            return feeder

        yield made


def kill(engine: Any, shard: int | None = None) -> None:
    for each in engine.status()["shards"]:
        if shard is None or each["id"] == shard:
            os.kill(each["pid"], signal.SIGKILL)


def counted(directory: str, handler: str) -> dict[int, dict[Any, Any]]:
    if handler.endswith("Keyed"):
        return counts(directory, "counted", PARTITIONS, SLOTS)
    if handler.endswith("Counter"):
        found = counts(directory, "entities", PARTITIONS, SLOTS)
        return {number: {key: value[0]["counted"] for key, value in keys.items()} for number, keys in found.items()}
    found = {number: {} for number in range(PARTITIONS)}
    with contextlib.closing(StateReader(directory)) as reader:
        import json

        for slot, state in reader.snapshots().items():
            found[slot // LAYOUT.width].update({int(key): value for key, value in json.loads(state).items()})
    return found


@pytest.mark.parametrize("handler", ["Keyed", *(["Counter", "Raw"] if LONG else [])])
def test_events_that_come_again_are_skipped_whoever_is_killed_and_wherever_their_slot_is(
    rig: Rig, engine_name: str, settings: dict[str, Any], feeding: Callable[[str], Feeder], handler: str
) -> None:
    handler = f"support.handlers.hosts:{handler}"
    with rig.engine(engine_name, handler, **settings) as engine:
        feeder = feeding(engine.name)
        for turn in range(4):
            end = (turn + 1) * EVENTS // 4
            for number in range(PARTITIONS):
                feeder.begin(number, 0)
                for first in range(0, end, 300):  # all of it again, from the beginning
                    feeder.push(number, first, min(end, first + 300))
            kill(engine, turn % 2)
            feeder.flush()
            engine.move(range(8), to=turn % 2)
            assert counted(files(settings, engine_name), handler) == {
                number: dict.fromkeys(range(EACH), end // EACH) for number in range(PARTITIONS)
            }
        accounting = drained(engine)["accounting"]
        assert 0 == accounting["quarantined"] and EVENTS * PARTITIONS == accounting["handled"]
        assert accounting["skipped"] == accounting["accepted"] - accounting["handled"] > 0
        if handler.endswith("Keyed"):
            directory = files(settings, engine_name)
            wait_until(lambda: counts(directory, "fired", PARTITIONS, SLOTS) == FULL, "each timer has fired once", 60)


class Hosts:
    """Two engines with the same remote, and what a broker would know: who owns what, and the last commit of each
    partition."""

    def __init__(self, engines: list[Any], feeders: list[Feeder], directories: list[str], remote: str) -> None:
        self.engines, self.feeders, self.directories = engines, feeders, directories
        self.snapshots = [
            Snapshots(target_of(remote), StateFiles(directory, feeder.control.geometry.engine_id), LAYOUT)
            for directory, feeder in zip(directories, feeders)
        ]
        self.committed: dict[int, tuple[int, str | None]] = dict.fromkeys(range(PARTITIONS), (0, None))
        self.pushed = [dict.fromkeys(range(PARTITIONS), 0) for _ in engines]

    def take_up(self, host: int, number: int) -> None:
        offset, id = self.committed[number]
        self.snapshots[host].restore(number, id)
        self.feeders[host].begin(number, offset)
        self.pushed[host][number] = offset

    def push(self, host: int, number: int, end: int) -> None:
        self.feeders[host].push(number, self.pushed[host][number], end)
        self.pushed[host][number] = end

    def commit(self, host: int, number: int, safe: int) -> None:
        """safe: all before it were handled before this call."""
        id = self.snapshots[host].take(number)
        self.committed[number] = safe, id
        self.snapshots[host].committed(number, id)


@pytest.fixture
def hosts(
    rig: Rig, engine_name: str, settings: dict[str, Any], feeding: Callable[[str], Feeder], tmp_path: Path
) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        engines, directories = [], []
        for name in (f"{engine_name}-a", f"{engine_name}-b"):
            own = {**settings, "state_dir": str(tmp_path / name)}
            engines.append(stack.enter_context(rig.engine(name, "support.handlers.hosts:Keyed", **own)))
            directories.append(files(own, name))
        yield Hosts(engines, [feeding(each.name) for each in engines], directories, f"file://{tmp_path}/remote")


def test_a_partition_that_goes_to_another_host_and_back_is_counted_once_though_workers_are_killed_and_hosts_are_lost(
    hosts: Hosts,
) -> None:
    a, b, numbers = 0, 1, range(PARTITIONS)
    for number in numbers:
        hosts.take_up(a, number)
        hosts.push(a, number, 400)
    hosts.feeders[a].flush()
    for number in numbers:
        hosts.push(a, number, 700)  # handled while the snapshot is taken, in part
        hosts.commit(a, number, 400)
        hosts.push(a, number, 800)
    kill(hosts.engines[a], 0)
    hosts.feeders[a].flush()
    for number in numbers:
        hosts.snapshots[a].take(number)  # and its commit is refused: it has been lost
        hosts.take_up(b, number)  # though a goes on with it
        hosts.push(a, number, 1000)
        hosts.feeders[a].end(number)
        hosts.push(b, number, 1200)
    kill(hosts.engines[b])
    hosts.feeders[b].flush()
    assert counted(hosts.directories[b], "Keyed") == {n: dict.fromkeys(range(EACH), 30) for n in numbers}
    for number in numbers:  # in good order
        hosts.commit(b, number, 1200)
        hosts.feeders[b].end(number)
        hosts.take_up(a, number)  # whose files have a state of their own
        hosts.push(a, number, EVENTS)
    kill(hosts.engines[a], 1)
    hosts.feeders[a].flush()
    assert FULL == counted(hosts.directories[a], "Keyed")
    wait_until(
        lambda: counts(hosts.directories[a], "fired", PARTITIONS, SLOTS) == FULL, "each timer has fired once", 60
    )
    for engine in hosts.engines:
        accounting = drained(engine)["accounting"]
        assert 0 == accounting["quarantined"] == accounting["in_flight"]


def test_the_state_of_a_partition_that_is_not_here_is_left_alone_and_its_timers_do_not_fire_here(hosts: Hosts) -> None:
    a, b = 0, 1
    hosts.take_up(a, 0)
    hosts.take_up(b, 1)
    hosts.push(a, 0, 400)
    hosts.feeders[a].flush()
    hosts.commit(a, 0, 400)
    hosts.feeders[a].end(0)
    hosts.take_up(b, 0)
    wait_until(
        lambda: counts(hosts.directories[b], "fired", PARTITIONS, SLOTS)[0] == dict.fromkeys(range(EACH), 10),
        "each timer has fired once",
        60,
    )
    fired = counts(hosts.directories[a], "fired", PARTITIONS, SLOTS)[0]
    with shardmem.connect(hosts.engines[a].name) as producer:
        producer.push(next(key for key in range(99) if shardmem_slot(key) in LAYOUT.slots_of(0)), b"0")
        producer.flush(60)
    assert fired == counts(hosts.directories[a], "fired", PARTITIONS, SLOTS)[0]
    assert 1 == hosts.engines[a].status()["accounting"]["quarantined"]  # there is no state here that it could be of


def shardmem_slot(key: int) -> int:
    from shardmem.state.keys import slot_of

    return slot_of(key, SLOTS)


def test_rejected_and_quarantined_events_are_not_given_again_and_none_behind_one_on_trial_is_lost(
    rig: Rig, engine_name: str, settings: dict[str, Any], feeding: Callable[[str], Feeder]
) -> None:
    settings |= {"retry_backoff": 0.001, "shards": 1}
    with rig.engine(engine_name, "support.handlers.hosts:Picky", **settings) as engine:
        feeder = feeding(engine.name)
        for _ in range(2):
            for number in range(PARTITIONS):
                feeder.begin(number, 0)
                feeder.push(number, 0, EVENTS)
            feeder.flush()
        accounting = drained(engine)["accounting"]
        rejected = EVENTS // 10 * PARTITIONS
        assert (EVENTS * PARTITIONS - rejected, rejected) == (accounting["handled"], accounting["quarantined"])
        assert EVENTS * PARTITIONS == accounting["skipped"]
        with Quarantine(os.path.join(settings["state_dir"], f"{engine_name}.quarantine")) as found:
            given = replay(engine_name, found, None)
        assert [] == given.replayed and rejected == len(given.left)
        assert given.why is not None and "send it to the topic again" in given.why
    directory = files(settings, engine_name)
    assert FULL == counts(directory, "counted", PARTITIONS, SLOTS)
    refused = counts(directory, "refused", PARTITIONS, SLOTS)
    assert dict.fromkeys(range(PARTITIONS), dict.fromkeys(range(EACH), 4)) == refused


# ---- with a broker ---------------------------------------------------------------------------------------------------


class Group:
    """Hosts of one consumer group, each an engine as `shardmem run` starts it, with a remote that all have."""

    def __init__(self, rig: Rig, stack: contextlib.ExitStack, name: str, directory: Path) -> None:
        self.rig, self.stack, self.name, self.directory = rig, stack, name, directory
        self.broker = FakeBroker(str(directory / "broker"))
        self.broker.create_topic("t", PARTITIONS)
        self.produced = 0

    def host(self, which: str) -> Daemon:
        name, file = f"{self.name}-{which}", self.directory / f"{which}.toml"
        file.write_text(
            f'''
            name = "{name}"
            handler = "support.handlers.hosts:Keyed"
            slots = {SLOTS}
            shards = 2
            max_producers = 8
            checkpoint_interval = "50ms"
            drain_timeout = "10s"
            state_dir = "{self.directory / which}"
            [state]
            remote = "file://{self.directory}/remote"
            remote_interval = "300ms"
            [source]
            kind = "fake"
            broker = "{self.broker.path}"
            topics = ["t"]
            group = "g"
            session = "2s"
            commit_interval = "100ms"
            '''
        )
        daemon = self.stack.enter_context(Daemon(self.rig, str(file)))
        daemon.ready()
        return daemon

    def produce(self, events: int) -> None:
        """So many more of each key of each partition."""
        for number in range(PARTITIONS):
            each = [(key, b"%d" % (self.produced + n)) for n in range(events) for key in range(EACH)]
            self.broker.produce("t", each, partition=number)
        self.produced += events

    def status(self, which: str) -> Any:
        with shardmem.Client(f"{self.name}-{which}") as client:
            return client.status()

    def pids(self, which: str) -> list[int]:
        status = self.status(which)
        pids = [each["pid"] for each in (*status["shards"], *status["sources"])]
        return [*pids, status["supervisor"]["pid"]]

    def counted(self, which: str) -> dict[int, dict[Any, Any]]:
        return counts(str(self.directory / which / f"{self.name}-{which}.state"), "counted", PARTITIONS, SLOTS)

    def owned(self, which: str) -> dict[str, Any]:
        return {name: each for source in self.status(which)["sources"] for name, each in source["partitions"].items()}

    def await_counted(self, *hosts: str) -> None:
        """Each partition, by one of these hosts."""
        full = dict.fromkeys(range(EACH), self.produced)

        def is_counted() -> bool:
            found = [self.counted(which) for which in hosts]
            return all(any(each[number] == full for each in found) for number in range(PARTITIONS))

        wait_until(is_counted, f"{self.produced} of each key are counted", 60)


@pytest.fixture
def group(rig: Rig, engine_name: str, tmp_path: Path) -> Iterator[Group]:
    with contextlib.ExitStack() as stack:
        yield Group(rig, stack, engine_name, tmp_path)
    for which in "ab":
        collect(f"{engine_name}-{which}")


def collect(name: str) -> None:
    """What is left in memory of a host that was killed."""
    for path in Path("/dev/shm").glob(f"shardmem.{name}*"):
        path.unlink()


def test_two_hosts_of_a_group_count_every_event_once_though_a_worker_a_source_and_a_whole_host_are_killed(
    group: Group,
) -> None:
    first = group.host("a")
    group.produce(5)
    group.await_counted("a")
    os.kill(group.status("a")["shards"][0]["pid"], signal.SIGKILL)
    group.host("b")
    group.produce(5)
    wait_until(lambda: group.owned("b"), "b has a partition", 60)
    os.kill(group.status("a")["sources"][0]["pid"], signal.SIGKILL)
    group.produce(5)
    group.await_counted("a", "b")
    for pid in group.pids("a"):
        os.kill(pid, signal.SIGKILL)
    first.process.wait()
    group.produce(5)
    group.await_counted("b")
    collect(f"{group.name}-a")
    group.host("a")  # its files are of the past
    wait_until(lambda: group.owned("a"), "a has a partition again", 60)
    group.produce(5)
    group.await_counted("a", "b")
    assert [0, 0] == [group.status(which)["accounting"]["quarantined"] for which in "ab"]
