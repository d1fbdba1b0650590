"""[source] of a broker, of the user's own kind, and what of it may be shown."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest

import shardmem
from shardmem.errors import ConfigError
from shardmem.host.brokers import brokers
from shardmem.schema import Schema
from shardmem.sources.configured import sources_in
from shardmem.sources.contract import Position
from shardmem.sources.kinds import EngineContext, without_secrets
from shardmem.testing import FakeBroker

FAKE = {"kind": "fake", "broker": "b.db", "topics": ["t", "u"]}
CONTEXT = EngineContext("e", "s", "d", Schema(), 100)


class Own:
    """A source of the user's own, as far as anybody asks."""

    def __init__(self, path, size=1):
        self.given = path, size

    def open(self, context): ...

    poll = pause = resume = seek = lag = commit = close = open


class OwnBroker(Own):
    committed = partition_counts = start = confirmed_ns = Own.open


class Lacking:
    def open(self, context): ...


@pytest.fixture(autouse=True)
def my_sources(monkeypatch):
    """A module of the user's, with these classes."""
    made = types.ModuleType("my_sources")
    made.Own, made.OwnBroker, made.Lacking = Own, OwnBroker, Lacking
    monkeypatch.setitem(sys.modules, "my_sources", made)


def test_a_broker_has_settings_of_its_kind_and_of_every_broker():
    (made,) = sources_in({**FAKE, "session": "3s", "drain_timeout": "5s", "partitions": 8, "rate": 10}, Schema())
    assert ("fake", 10, 5.0, 1.0, True, 8) == (
        made.name,
        made.rate,
        made.ownership.drain_timeout,
        made.ownership.commit_interval,
        made.ownership.fence,
        made.ownership.partitions,
    )
    assert (("t", "u"), None, "earliest", 3.0) == (made.own.topics, made.own.group, made.own.start, made.own.session)
    (as_url,) = sources_in("fake:/x/b.db?topics=t,u&group=g&fence=false", Schema())
    assert ("/x/b.db", ("t", "u"), "g", False) == (
        as_url.own.broker,
        as_url.own.topics,
        as_url.own.group,
        as_url.ownership.fence,
    )


@pytest.mark.parametrize(
    "table, part",
    [
        ({**FAKE, "topics": []}, "source.topics is missing"),
        ({**FAKE, "topics": ["t", "t"]}, "source.topics=t,t names one twice"),
        ({**FAKE, "start": "first"}, "source.start='first' is not one of earliest, latest"),
        ({**FAKE, "drain_timeout": "soon"}, "source.drain_timeout='soon' is not a duration"),
        ({**FAKE, "partitions": 2000}, "source.partitions=2,000 is outside 1 to 1,024"),
        ({**FAKE, "group": "$NO_SUCH_VARIABLE"}, "source.group='$NO_SUCH_VARIABLE' names a variable that is not set"),
        ([FAKE, {**FAKE, "name": "b"}], "source.kind is that of a broker in two sources"),
        ({"kind": "no.such:Thing"}, "source.kind='no.such:Thing' cannot be loaded: ModuleNotFoundError"),
        ({"kind": "my_sources:Lacking"}, "has no poll and no pause"),
        ({"kind": "my_sources:Own", "topics": ["t"], "name": "a b"}, "source.name='a b' is not usable"),
    ],
)
def test_what_is_wrong_with_it_is_said(table, part):
    with pytest.raises(ConfigError) as caught:
        sources_in(table, Schema())
    assert part in str(caught.value)


def test_a_class_of_the_users_own_gets_the_table_by_name():
    (made,) = sources_in({"kind": "my_sources:Own", "path": "x", "size": 3, "rate": 5}, Schema())
    assert ("own", ("x", 3), None) == (made.name, made.kind.open_source(made.own, CONTEXT).given, made.ownership)
    (broker,) = sources_in({"kind": "my_sources:OwnBroker", "path": "x", "fence": False}, Schema())
    assert not broker.ownership.fence and {"path": "x"} == broker.own
    with pytest.raises(ConfigError, match="refuses its settings"):
        broker.kind.open_source({"pfad": 1}, CONTEXT)


def test_a_value_may_be_a_variable_and_no_secret_is_shown(monkeypatch):
    monkeypatch.setenv("GROUP_HERE", "g7")
    (made,) = sources_in({**FAKE, "group": "$GROUP_HERE", "instance": "${GROUP_HERE}"}, Schema())
    assert ("g7", "g7") == (made.own.group, made.own.instance)
    table = {"kind": "kafka", "kafka": {"sasl.password": "hush", "ssl.key.pem": "hush", "sasl.username": "ann"}}
    hidden = {"kind": "kafka", "kafka": {"sasl.password": "***", "ssl.key.pem": "***", "sasl.username": "ann"}}
    assert [hidden] == without_secrets([table])
    assert "nats://***@n1/t?token=***&group=g" == without_secrets("nats://ann:hush@n1/t?token=hush&group=g")


def test_doctor_asks_the_broker_and_judges_partitions_against_slots(tmp_path):
    broker = FakeBroker(str(tmp_path / "b.db"))
    table = {**FAKE, "broker": broker.path, "topics": ["t"]}
    config = _config(source=table, slots=64)
    assert [("warning", "there is no topic t")] == [(each.level, each.found) for each in brokers(config)]
    broker.create_topic("t", 8)
    assert [("ok", "t: 8 partitions, 8 slots for each")] == [(each.level, each.found) for each in brokers(config)]
    for changes, level in (
        ({"slots": 16}, "warning"),
        ({"slots": 4}, "error"),
        ({"source": {**table, "partitions": 4}}, "error"),
        ({"source": {**table, "drain_timeout": "5m"}}, "warning"),
    ):
        assert [level] == [each.level for each in brokers(dataclasses.replace(config, **changes))], changes
    broker.set_reachable(False)
    (found,) = brokers(config)
    assert "error" == found.level and "does not answer" in found.found
    broker.close()


def _config(**settings):
    from shardmem.config import Config

    config, faults = Config.checked({"name": "e", "handler": "app:handle", **settings})
    assert not faults
    return config


def test_a_fenced_commit_raises_what_the_package_exports(tmp_path):
    broker = FakeBroker(str(tmp_path / "b.db"))
    broker.create_topic("t", 1)
    first = broker.join("g", ["t"], 60.0)
    assert ["t/0"] == broker.heartbeat(first, [])
    broker.expel("g", first.member)
    with pytest.raises(shardmem.Superseded):
        broker.commit(first, {"t/0": Position(1)})
    assert {"t/0": None} == broker.committed("g", ["t/0"])
    broker.close()
