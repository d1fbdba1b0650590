"""[source] with kind = "kafka": what it may say, and what of it is shown to whom."""

from __future__ import annotations

import json
import socket
import threading

import numpy as np
import pytest

from shardmem.errors import ConfigError, Superseded
from shardmem.schema import Schema
from shardmem.sources.configured import sources_in
from shardmem.sources.contract import BrokerUnavailable, Position
from shardmem.sources.kafka import commits, kind
from shardmem.sources.kafka.groups import CLASSIC, CONSUMER, Broker, Group, has_new_protocol
from shardmem.sources.kafka.words import Sort, sort_of
from shardmem.sources.kinds import EngineContext, without_secrets

SERVERS = {"bootstrap.servers": "127.0.0.1:1"}
TABLE = {"kind": "kafka", "topics": ["t"], "kafka": SERVERS}


def faults(**changes):
    with pytest.raises(ConfigError) as caught:
        sources_in({**TABLE, **changes}, changes.pop("schema", Schema()))
    return caught.value.faults


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"topic": "t"}, "topic is not a setting; did you mean topics?"),
        ({"topics": []}, "topics is missing"),
        ({"start": "now"}, "start='now' is not one of earliest, latest"),
        ({"reader": "java"}, "reader='java' is not one of c, python"),
        ({"kafka": {}}, '"bootstrap.servers" is missing'),
        ({"kafka": {**SERVERS, "group.id": "g"}}, "kafka.group.id is not yours to set: write group"),
        ({"kafka": {**SERVERS, "enable": {"auto": {"commit": True}}}}, "kafka.enable.auto.commit is not yours"),
        ({"kafka": {**SERVERS, "partition.assignment.strategy": "range"}}, "use cooperative-sticky"),
        ({"kafka": {**SERVERS, "sasl.password": ["secret"]}}, "kafka.sasl.password is neither text nor a number"),
    ],
)
def test_each_fault_is_named(changes, part):
    found = faults(**changes)
    assert [fault for fault in found if fault.startswith("source.") and part in fault] and "secret" not in str(found)


def test_rows_of_a_dtype_do_not_come_out_of_a_topic():
    with pytest.raises(ConfigError, match="feeds engines of events"):
        sources_in(TABLE, Schema.of(np.dtype([("key", "u8")]), "key"))


def test_what_the_library_does_not_know_it_says_itself():
    pytest.importorskip("confluent_kafka")
    given = {**SERVERS, "bootstrap.server": "x", "socket.timeout.ms": "soon", "client.id": "a"}
    (settings,) = sources_in({**TABLE, "kafka": given}, Schema())
    engine = EngineContext("e", "kafka", "/", Schema(), 1 << 20)
    with pytest.raises(ConfigError) as caught:
        settings.kind.open_source(settings.own, engine)
    assert 2 == len(caught.value.faults)
    assert "kafka.bootstrap.server: " in str(caught.value) and "kafka.socket.timeout.ms: " in str(caught.value)
    (settings,) = sources_in({**TABLE, "reader": "python", "kafka": given}, Schema())
    with pytest.raises(ConfigError, match="kafka: "):
        settings.kind.open_source(settings.own, engine)


def test_a_url_stands_for_a_table():
    url = "kafka://a:9092,b:9092/clicks,views?group=g&start=latest&client.id=me"
    (settings,) = sources_in(url, Schema())
    wanted = settings.own.subscription
    assert (("clicks", "views"), "g", "latest") == (wanted.topics, wanted.group, wanted.start)
    assert {"bootstrap.servers": "a:9092,b:9092", "client.id": "me"} == settings.own.librdkafka


def test_a_name_with_dots_may_be_without_quotes_and_a_value_no_text():
    nested = {"bootstrap": {"servers": "a:1"}, "check": {"crcs": True}, "socket.timeout.ms": 5000}
    settings = kind.settings_of({"topics": ["t"], "kafka": nested}, Schema())
    assert {"bootstrap.servers": "a:1", "check.crcs": "true", "socket.timeout.ms": "5000"} == settings.librdkafka


def test_a_member_may_be_named_after_its_host(monkeypatch):
    monkeypatch.delenv("HOSTNAME", raising=False)
    (settings,) = sources_in({**TABLE, "kafka": {**SERVERS, "group.instance.id": "$HOSTNAME"}}, Schema())
    assert socket.gethostname() == settings.own.librdkafka["group.instance.id"]


SECRETS = (
    "sasl.password",
    "ssl.key.password",
    "ssl.keystore.password",
    "ssl.key.pem",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_neither_shown_nor_printed(name):
    table = {**TABLE, "kafka": {**SERVERS, name: "hush-hush"}}
    assert "hush" not in json.dumps(without_secrets(table)) and "127.0.0.1" in json.dumps(without_secrets(table))
    (settings,) = sources_in(table, Schema())
    assert "hush" not in repr(settings) and "hush-hush" == settings.own.librdkafka[name]


@pytest.mark.parametrize(
    "given, protocol",
    [
        ({}, CONSUMER),
        ({"group.instance.id": "a"}, CLASSIC),
        ({"session.timeout.ms": "6000"}, CLASSIC),
        ({"group.instance.id": "a", "group.protocol": "consumer"}, CONSUMER),
        ({"group.protocol": "classic"}, CLASSIC),
    ],
)
def test_the_new_protocol_is_used_unless_what_is_set_needs_the_old_one(given, protocol):
    group = Group("g", given, "earliest")
    assert protocol == group.protocol == group.settings(4)["group.protocol"]
    assert (protocol == CLASSIC) == ("partition.assignment.strategy" in group.settings(4))
    assert "group.protocol" not in group.settings_outside() and "group.instance.id" not in group.settings_outside()


def test_a_broker_without_the_new_protocol_gets_the_old_one_unless_the_user_has_chosen():
    old = Broker({"t": 1}, has_new_protocol=False)
    group = Group("g", {}, "earliest")
    assert group.falls_back(old) and group.protocol == CLASSIC and not group.falls_back(old)
    assert not Group("g", {"group.protocol": "consumer"}, "earliest").falls_back(old)
    assert not Group("g", {}, "earliest").falls_back(Broker({"t": 1}, has_new_protocol=True))


@pytest.mark.parametrize(
    "lines, has",
    [
        ([], True),
        (["ApiKey Heartbeat (12) Versions 0..4", "ApiKey ConsumerGroupHeartbeat (68) Versions 0..1"], True),
        (["ApiKey Heartbeat (12) Versions 0..4", "ApiKey ConsumerGroupHeartbeat (68) Versions 0..0"], False),
        (["ApiKey Heartbeat (12) Versions 0..4"], False),
    ],
)
def test_which_protocols_a_broker_has_is_read_out_of_what_the_library_logs(lines, has):
    assert has == has_new_protocol(lines)


def test_what_is_fetched_ahead_is_bounded_for_all_partitions_together():
    for partitions in (1, 8, 100, 1000):
        settings = Group("g", {}, "earliest").settings(partitions)
        assert partitions * int(settings["queued.max.messages.kbytes"]) <= max(128, partitions) << 10
    assert "7" == Group("g", {"queued.min.messages": "7"}, "earliest").settings(1)["queued.min.messages"]


def test_a_session_is_that_of_the_protocol():
    group = Group("g", {}, "earliest")
    assert 40 == group.session
    group.of_broker = 6.0, 0.5
    assert 5.5 == group.session
    assert 6 == Group("g", {"session.timeout.ms": "6000"}, "earliest").session


@pytest.mark.parametrize(
    "number, fatal, sort",
    [
        (-195, False, Sort.AWAY),
        (111, True, Sort.HELD),
        (29, False, Sort.FATAL),
        (-169, False, Sort.REFUSED),
        (82, True, Sort.FATAL),
        (1, False, Sort.NOTE),
    ],
)
def test_errors_are_sorted_by_what_they_mean_for_a_source(number, fatal, sort):
    assert sort is sort_of(number, fatal)


class Answers:
    """A member whose commits are answered like this, the last one for ever."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def commit(self, positions, timeout):
        return self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]

    def words(self, number):
        return f"error {number}"


def test_a_commit_in_the_middle_of_a_rebalance_is_tried_again_and_loses_nothing(monkeypatch):
    """What was taken for lost then was nobody's: the library keeps it, and does not assign it once more."""
    monkeypatch.setattr(commits, "SYNC", 0.3)
    known, place = commits.Commits(), {("t", 0): Position(7)}
    known.write(Answers(22, 27, 113, 0), place, threading.Event())
    assert place == known.known and known.confirmed_ns
    for number in (22, 113):
        with pytest.raises(BrokerUnavailable, match=f"error {number}"):
            known.write(Answers(number), place, threading.Event())
    for number in (25, 82, 110, -142):
        with pytest.raises(Superseded):
            known.write(Answers(number), place, threading.Event())
