"""What is particular to NATS JetStream, on a server of its own."""

from __future__ import annotations

import threading
import time

import pytest

from shardmem.errors import ConfigError, Superseded
from shardmem.schema import KEY_NONE, KEY_STR, Schema
from shardmem.sources.configured import sources_in, tables_in
from shardmem.sources.contract import Position, SourceError
from shardmem.sources.nats import kind
from support.benches import Member
from support.nats import NatsServer

PATIENCE = 30.0


@pytest.fixture
def server(tmp_path):
    made = NatsServer(tmp_path / "jetstream")
    yield made
    made.close()


def keys_in(columns):
    data, offsets = bytes(columns.keys.data), columns.keys.offsets.tolist()
    kinds = [columns.keys.kinds] * len(columns) if isinstance(columns.keys.kinds, int) else columns.keys.kinds
    return [None if of == KEY_NONE else data[a:b].decode() for of, a, b in zip(kinds, offsets, offsets[1:])]


def read(member, count):
    member.until(lambda: sum(map(len, member.columns)) >= count)
    return member.columns


# ---- what a message is -----------------------------------------------------------------------------------------------


def test_the_server_maps_subjects_to_partitions_and_a_key_stays_in_its_own(server):
    server.create_stream("t", 4)
    server.publish([(f"in.t.user-{number % 10}", b"%d" % number, None) for number in range(60)])
    member = Member(server.source(["t"]))
    found = {}
    for columns in read(member, 60):
        for key, payload in zip(keys_in(columns), member.payloads[columns.partition]):
            assert found.setdefault(key, columns.partition) == columns.partition and payload
    assert {f"user-{number}" for number in range(10)} == set(found) and len(set(found.values())) > 1
    assert {"t": 4} == member.source.partition_counts(PATIENCE)


def test_headers_times_and_what_a_bucket_has_removed_come_with_the_events(server):
    server.create_stream("t", 1)
    before = time.time() * 1000
    numbers = server.publish([("t.0.a", b"1", {"trace": "x", "Key": "k"}), ("t.0.a", None, None), ("t.0", b"", None)])
    member = Member(server.source(["t"], headers=True))
    read(member, 3)

    assert [b"1", None, b""] == member.payloads["t/0"]
    assert numbers == [offset for columns in member.columns for offset in columns.offsets.tolist()]
    first = member.columns[0]
    assert before - 60_000 < first.timestamps[0] < before + 600_000
    data, ends = first.headers
    assert b"\x02\0\0\0\x05\0\0\0trace\x01\0\0\0x\x03\0\0\0Key\x01\0\0\0k" == bytes(data)[ends[0] : ends[1]]
    assert ["a", "a", None] == [key for columns in member.columns for key in keys_in(columns)]


def test_a_header_may_be_the_key(server):
    server.create_stream("t", 1)
    server.publish([("t.0.a", b"1", {"user": "ann"}), ("t.0.b", b"2", None)])
    member = Member(server.source(["t"], key_header="user"))

    assert ["ann", None] == [key for columns in read(member, 2) for key in keys_in(columns)]
    assert {KEY_STR, KEY_NONE} >= {int(each) for each in member.columns[0].keys.kinds}


def test_a_topic_that_nothing_maps_is_one_partition(server):
    server.create_stream("t", 1, subjects=["t", "t.>"], subject_transform=None)
    server.publish([("t.a.b", b"1", None), ("t", b"2", None)])
    member = Member(server.source(["t"]))

    assert ["a.b", None] == [key for columns in read(member, 2) for key in keys_in(columns)]
    assert {"t": 1} == member.source.partition_counts(PATIENCE)


def test_a_mapping_of_the_account_is_said_in_the_settings(server):
    server.create_stream("t", 1, subject_transform=None)
    server.publish([("t.0.a", b"1", None), ("t.2.b", b"2", None)])
    member = Member(server.source(["t"], partitions=3))
    read(member, 2)

    assert {"t/0": [b"1"], "t/2": [b"2"]} == member.payloads and {"t/0", "t/1", "t/2"} == member.held


@pytest.mark.parametrize(
    "config, settings, error",
    [
        ({"retention": "workqueue"}, {}, "removes messages that were acknowledged"),
        ({}, {"partitions": 3}, "maps topic t to 2 partitions, and nats.partitions=3"),
    ],
)
def test_a_stream_that_cannot_be_read_so_is_an_error_that_says_why(server, config, settings, error):
    server.create_stream("t", 2, **config)
    member = Member(server.source(["t"], **settings))
    with pytest.raises(SourceError, match=error):
        member.until(lambda: False)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_and_started_again_is_read_on_without_a_gap(server):
    server.create_stream("t", 2)
    publishing = [(f"t.{number % 2}.k", b"%d" % number, None) for number in range(3000)]
    server.publish(publishing[:2000])
    member = Member(server.source(["t"], session=60.0))
    read(member, 500)
    server.kill()
    server.start()
    server.publish(publishing[2000:])
    read(member, 3000)

    for half in range(2):
        assert [b"%d" % number for number in range(half, 3000, 2)] == member.payloads[f"t/{half}"]
    assert not [names for what, names in member.told if what == "lost"]


def test_an_owner_that_was_frozen_can_neither_commit_nor_go_on(server):
    """Its session is over and another has its partitions, and it has not heard of it."""
    server.create_stream("t", 1)
    server.publish([("t.0.k", b"%d" % number, None) for number in range(10)])
    frozen = Member(server.source(["t"], session=1.0))
    read(frozen, 10)
    thaw = threading.Event()
    loop = frozen.source._loop._loop
    loop.call_soon_threadsafe(thaw.wait)  # as SIGSTOP does with the process
    other = Member(server.source(["t"], session=1.0))
    other.until(lambda: other.held)
    numbers = [int(offset) for columns in frozen.columns for offset in columns.offsets]
    other.source.commit({"t/0": Position(numbers[5])}, True)
    confirmed = frozen.source.confirmed_ns()
    assert confirmed + 1e9 < time.clock_gettime_ns(time.CLOCK_BOOTTIME), "its workers would still obey its lease"
    thaw.set()
    with pytest.raises(Superseded):
        frozen.source.commit({"t/0": Position(numbers[9] + 1)}, True)
    frozen.until(lambda: ("lost", ["t/0"]) in frozen.told, other)
    assert numbers[5] == other.source.committed(["t/0"], PATIENCE)["t/0"].offset


def test_a_commit_that_does_not_wait_is_written_with_the_next_beat(server):
    server.create_stream("t", 1)
    member = Member(server.source(["t"]))
    member.until(lambda: member.held)
    member.source.commit({"t/0": Position(7, "here")}, False)
    member.until(lambda: member.source.committed(["t/0"], PATIENCE)["t/0"] == Position(7, "here"))


def test_two_processes_of_one_name_are_one_member_and_the_first_is_told(server):
    server.create_stream("t", 1)
    first = Member(server.source(["t"], member="host"))
    first.until(lambda: first.held)
    second = Member(server.source(["t"], member="host"))
    second.until(lambda: second.held)
    with pytest.raises(SourceError, match="another process is member host"):
        first.until(lambda: False)


# ---- settings --------------------------------------------------------------------------------------------------------


def settings_of(table):
    (made,) = sources_in({"kind": "nats", **table}, Schema())
    return made


def test_a_url_is_a_table():
    url = "nats://user:secret@a:4222,b:4222/clicks,views?group=g&stream=S&start=latest"
    (table,) = tables_in(url)
    servers = ["nats://user:secret@a:4222", "nats://user:secret@b:4222"]
    own = {"servers": servers, "stream": "S"}
    assert {"kind": "nats", "topics": ["clicks", "views"], "group": "g", "start": "latest", "nats": own} == table
    made = settings_of(table).own
    assert ("clicks", "views") == made.subscription.topics and tuple(servers) == made.nats.servers


@pytest.mark.parametrize(
    "table, fault",
    [
        ({}, "source.topics is missing"),
        ({"topics": ["t"], "sream": 1}, "source.sream is not a setting"),
        ({"topics": ["t"], "nats": {"server": 1}}, "source.nats.server is not a setting; did you mean servers"),
        ({"topics": ["t"], "nats": {"session": "0.2s"}}, "source.nats.session=0.2 s is outside"),
        ({"topics": ["t"], "nats": {"partitions": 0}}, "source.nats.partitions=0 is outside"),
        ({"topics": ["t"], "group": "a b"}, "source.group='a b' is not usable"),
        ({"topics": ["t.>"]}, "source.topics: t.> has wildcards"),
    ],
)
def test_what_is_wrong_with_settings_is_said_with_their_names(table, fault):
    with pytest.raises(ConfigError) as raised:
        settings_of(table)
    assert any(each.startswith(fault) for each in raised.value.faults), raised.value.faults


def test_records_are_refused():
    with pytest.raises(ConfigError, match="feeds engines of events"):
        kind.settings_of({"topics": ["t"]}, Schema.of([("key", "u8")], "key"))
