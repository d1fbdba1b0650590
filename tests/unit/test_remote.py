"""Snapshots where other hosts find them: in a directory, and in an object store."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardmem.errors import ConfigError, ShardmemError, StateError
from shardmem.remote.address import target_of
from shardmem.remote.snapshots import Snapshots, name_of
from shardmem.remote.targets import RemoteError, Target
from shardmem.remote.uploads import Uploaded, Uploads
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.state_files import restored_files
from shardmem.state_settings import RemoteSettings
from support.partitions import LAYOUT, Host, fill

INTERVAL = 30.0


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """An object store on this machine."""
    server_of = pytest.importorskip("moto.server")
    pytest.importorskip("boto3")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"b{abs(hash(request.node.name))}-{os.getpid()}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["directory", "bucket"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "directory":
        return target_of(f"file://{tmp_path}/remote%20place")
    return target_of(f"s3://{request.getfixturevalue('bucket')}/some/prefix")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    with contextlib.ExitStack() as stack:

        def made(name: str) -> Host:
            found = Host(tmp_path / name / "e.state", engine=hash(name) & 0xFFFF)
            stack.callback(found.close)
            return found

        yield made


# ---- a target --------------------------------------------------------------------------------------------------------


def test_what_is_put_is_there_under_its_name_until_it_is_deleted(target: Target, tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for name, content in (("a/1", b"one"), ("a/2", b"two" * 5_000_000), ("b/1", b"")):
        path.write_bytes(content)
        target.put(name, str(path))
        target.get(name, str(other))
        assert content == other.read_bytes()
    assert ["a/1", "a/2"] == sorted(target.names("a/"))
    assert ["a/1", "a/2", "b/1"] == sorted(target.names(""))
    target.delete(["a/1", "never"])
    assert ["a/2", "b/1"] == sorted(target.names(""))
    with pytest.raises(RemoteError, match="a/1 cannot be read"):
        target.get("a/1", str(other))
    assert [] == target.names("none/")


def test_a_directory_never_shows_half_a_file(tmp_path: Path) -> None:
    target = target_of(f"file://{tmp_path}/remote")
    with pytest.raises(RemoteError, match="a/1 cannot be written: No such file"):
        target.put("a/1", str(tmp_path / "none"))
    assert [] == target.names("") and [] == [each for _, _, files in os.walk(tmp_path) for each in files]


@pytest.mark.parametrize("url", ["ftp://host/x", "file://other/x", "file:relative", "s3:///prefix", "/path", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="neither file:///directory nor s3://bucket/prefix"):
        target_of(url)


# ---- snapshots -------------------------------------------------------------------------------------------------------


def names(target: Target) -> list[str]:
    return sorted(target.names(""))


def test_a_snapshot_that_a_commit_names_is_restored_elsewhere(target: Target, hosts: Callable[[str], Host]) -> None:
    here, there = hosts("here"), hosts("there")
    fill(here.shard(0, range(32)), range(32), b"x", 1)
    ours, theirs = Snapshots(target, here.files, LAYOUT), Snapshots(target, there.files, LAYOUT)
    ids = {number: ours.take(number) for number in range(3)}
    for number, id in ids.items():
        theirs.restore(number, id)
    there.shard(0, range(32))
    assert [here.content(number) for number in range(3)] == [there.content(number) for number in range(3)]
    assert names(target) == sorted(name_of(*each) for each in ids.items())


def test_one_that_was_uploaded_and_not_committed_is_never_used_and_is_deleted_when_two_newer_are_committed(
    target: Target, hosts: Callable[[str], Host]
) -> None:
    here, there = hosts("here"), hosts("there")
    ours = Snapshots(target, here.files, LAYOUT)
    taken = []
    for turn in range(3):
        fill(here.shard(0, range(32)), range(32), b"%d" % turn, turn)
        taken.append(ours.take(1))
        if turn < 2:
            ours.committed(1, taken[-1])
    assert len(set(taken)) == 3 and len(names(target)) == 3  # of two committed ones, none is old
    theirs = Snapshots(target, there.files, LAYOUT)
    theirs.restore(1, taken[1])
    there.shard(0, range(32))
    fill(there.stores[0], range(32), b"theirs", 7)
    for turn in range(2):
        fill(there.stores[0], range(32), b"theirs", 8 + turn)
        theirs.committed(1, theirs.take(1))
    left = names(target)
    assert name_of(1, taken[0]) not in left and name_of(1, taken[1]) not in left
    assert name_of(1, taken[2]) in left  # its number is that of the first of the two that are kept
    fill(there.stores[0], range(32), b"theirs", 10)
    theirs.committed(1, theirs.take(1))
    assert len(names(target)) == 2 and name_of(1, taken[2]) not in names(target)


def test_a_damaged_snapshot_and_one_that_is_gone_change_nothing(tmp_path: Path, hosts: Callable[[str], Host]) -> None:
    here, there = hosts("here"), hosts("there")
    fill(here.shard(0, range(32)), range(32), b"x", 1)
    fill(there.shard(0, range(32)), range(32), b"mine", 2)
    target = target_of(f"file://{tmp_path}/remote")
    id = Snapshots(target, here.files, LAYOUT).take(0)
    theirs, before = Snapshots(target, there.files, LAYOUT), there.content(0)
    path = tmp_path / "remote" / name_of(0, id)
    path.write_bytes(path.read_bytes()[:-100])
    for wrong, text in ((id, "check sum"), (f"9-{'0' * 16}", "cannot be read"), ("../x", "is not a snapshot")):
        with pytest.raises(ShardmemError, match=text):
            theirs.restore(0, wrong)
    there.stores[0].claim(range(32))
    assert before == there.content(0) and {} == restored_files(there.directory)
    with pytest.raises(StateError):
        theirs.go_on(0, "no id")


def test_a_host_that_looks_ahead_restores_without_the_remote(tmp_path: Path, hosts: Callable[[str], Host]) -> None:
    here, there = hosts("here"), hosts("there")
    fill(here.shard(0, range(32)), range(32), b"x", 1)
    target = target_of(f"file://{tmp_path}/remote")
    ours, theirs = Snapshots(target, here.files, LAYOUT), Snapshots(target, there.files, LAYOUT)
    ids = {number: ours.take(number) for number in range(3)}
    theirs.look_ahead(owned={2})
    for name in names(target):
        os.unlink(tmp_path / "remote" / name)
    for number in (0, 1):
        theirs.restore(number, ids[number])
    with pytest.raises(RemoteError):
        theirs.restore(2, ids[2])
    there.shard(0, range(32))
    assert here.content(1) == there.content(1)
    theirs.look_ahead(owned=set())
    assert [] == os.listdir(os.path.join(there.directory, "standby"))


# ---- beside the reading ----------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A target that answers when it may, and fails when it is told to."""

    url = "file:///gate"

    def __init__(self) -> None:
        self.opened, self.fails, self.held = threading.Event(), False, dict[str, bytes]()
        self.opened.set()

    def put(self, name: str, path: str) -> None:
        assert self.opened.wait(60)
        if self.fails:
            raise RemoteError("file:///gate: out of order")
        self.held[name] = Path(path).read_bytes()

    def get(self, name: str, path: str) -> None:
        Path(path).write_bytes(self.held[name])

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.held if name.startswith(prefix)]

    def delete(self, names: Any) -> None:
        for name in list(names):
            del self.held[name]


@pytest.fixture
def beside(hosts: Callable[[str], Host]) -> tuple[Gate, Clock, Uploads]:
    here, gate, clock = hosts("here"), Gate(), Clock()
    fill(here.shard(0, range(32)), range(32), b"x", 1)
    settings = RemoteSettings(remote=gate.url, remote_interval=INTERVAL)
    made = Uploads(Snapshots(gate, here.files, LAYOUT), settings, logging.getLogger("test"), clock)
    return gate, clock, made


def next_of(uploads: Uploads, safe: dict[int, dict[str, int]]) -> list[Uploaded]:
    """What is uploaded, once its threads are done."""
    for held in uploads._partitions.values():
        if held.running is not None:
            held.running.exception(60)
    return uploads.step(safe)


def test_a_partition_is_uploaded_each_interval_if_it_has_moved(beside: tuple[Gate, Clock, Uploads]) -> None:
    _, clock, uploads = beside
    assert [] == uploads.step({1: {"t": 10}})
    clock.now += INTERVAL
    assert [] == uploads.step({1: {"t": 20}})
    (first,) = next_of(uploads, {1: {"t": 30}})
    assert (1, {"t": 20}) == (first.number, first.offsets)
    clock.now += INTERVAL
    uploads.step({1: {"t": 20}})
    assert [] == next_of(uploads, {1: {"t": 20}})
    clock.now += 1
    uploads.step({1: {"t": 40}})
    (second,) = next_of(uploads, {1: {"t": 50}})
    assert {"t": 40} == second.offsets and first.id != second.id


def test_while_the_remote_is_away_nothing_is_uploaded_and_status_says_so_and_then_it_is(
    beside: tuple[Gate, Clock, Uploads],
) -> None:
    gate, clock, uploads = beside
    gate.fails = True
    uploads.step({1: {"t": 0}})
    clock.now += INTERVAL
    for at in range(4):
        uploads.step({1: {"t": at + 1}})
        assert [] == next_of(uploads, {1: {"t": at + 1}})
        assert "out of order" in uploads.describe()["error"]
        clock.now += 2**at
    gate.fails = False
    uploads.step({1: {"t": 9}})
    assert [{"t": 9}] == [each.offsets for each in next_of(uploads, {1: {"t": 9}})]
    assert uploads.describe()["error"] is None and uploads.describe()["uploaded"] is not None


def test_who_gives_a_partition_up_gets_a_snapshot_of_all_of_it_or_none_in_time(
    beside: tuple[Gate, Clock, Uploads],
) -> None:
    gate, clock, uploads = beside
    uploads.step({1: {"t": 1}, 2: {"t": 1}})
    last = uploads.give_up(1, {"t": 7}, 60)
    assert last is not None and {"t": 7} == last.offsets and name_of(1, last.id) in gate.held
    gate.opened.clear()
    assert uploads.give_up(2, {"t": 8}, 0.05) is None
    gate.opened.set()
    assert [] == next_of(uploads, {})


def test_what_is_uploaded_of_a_lost_partition_is_not_to_be_committed(beside: tuple[Gate, Clock, Uploads]) -> None:
    gate, clock, uploads = beside
    uploads.step({1: {"t": 1}})
    clock.now += INTERVAL
    gate.opened.clear()
    uploads.step({1: {"t": 2}})
    running = uploads._partitions[1].running
    uploads.lost(1)
    gate.opened.set()
    assert running is not None and running.result(60).number == 1
    assert [] == uploads.step({1: {"t": 2}})


def test_a_restore_runs_beside_and_says_what_went_wrong(beside: tuple[Gate, Clock, Uploads]) -> None:
    gate, _, uploads = beside
    taken = uploads.give_up(1, {"t": 1}, 60)
    assert taken is not None
    assert uploads.restore(1, taken.id).result(60) is None
    assert uploads.restore(2, None).result(60) is None
    with pytest.raises(StateError, match="is not a snapshot"):
        uploads.restore(1, "x").result(60)


def test_files_of_state_are_given_by_name(tmp_path: Path) -> None:
    assert {} == StateFiles(str(tmp_path / "none"), None).owners(range(8))
