"""What only a source on Kafka does, on librdkafka's mock cluster."""

from __future__ import annotations

import logging
import time

import pytest

from shardmem.sources.contract import BrokerUnavailable, Position
from support.benches import PATIENCE, KafkaBench, KafkaPythonBench, Member


@pytest.fixture(params=[KafkaBench, KafkaPythonBench], ids=["c", "python"])
def bench(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


def says_so(member):
    try:
        member.poll(0.01)
    except BrokerUnavailable as error:
        return str(error)
    return None


def test_a_broker_that_went_away_is_waited_for_by_name_until_it_answers(bench):
    bench.create_topic("t", 1)
    member = Member(bench.source(["t"], session=12.0))
    member.until(lambda: member.held and member.source.confirmed_ns())
    bench.set_reachable(False)
    deadline = time.monotonic() + PATIENCE
    while (said := says_so(member)) is None:
        assert time.monotonic() < deadline
    assert said.startswith("Kafka: ")
    bench.set_reachable(True)
    while says_so(member) is not None:
        assert time.monotonic() < deadline + PATIENCE
    member.close()


def test_a_broker_without_the_new_protocol_is_joined_by_the_old_one(bench, caplog):
    bench.broker.tell("classic")
    bench.create_topic("t", 2)
    bench.produce("t", 0, [(b"k", b"1")])
    member = Member(bench.source(["t"]))
    with caplog.at_level(logging.WARNING):
        assert {"t": 2} == member.source.partition_counts(PATIENCE)
    assert "joining by the old one" in caplog.text
    member.until(lambda: member.payloads.get("t/0") == [b"1"])
    assert 45 == member.source.session
    member.close()


def test_where_latest_begins_is_committed_at_once_and_counts_as_nothing(bench):
    bench.create_topic("t", 1)
    bench.produce("t", 0, [(b"k", b"%d" % at) for at in range(5)])
    first = Member(bench.source(["t"], start="latest"))
    first.until(lambda: first.held and first.source.lag() == {"t/0": 0})
    assert {"t/0": None} == first.source.committed(["t/0"], PATIENCE)
    first.close()  # before it has handled or committed anything
    bench.produce("t", 0, [(b"k", b"later")])
    second = Member(bench.source(["t"], start="latest"))
    second.until(lambda: second.payloads.get("t/0") == [b"later"])
    second.close()


def test_a_topic_that_is_shorter_than_what_was_committed_is_read_again_and_that_is_said(bench, caplog):
    bench.create_topic("t", 1)
    bench.produce("t", 0, [(b"k", b"%d" % at) for at in range(3)])
    first = Member(bench.source(["t"]))
    first.until(lambda: len(first.payloads.get("t/0", [])) == 3)
    first.source.commit({"t/0": Position(1000)}, True)
    first.close()
    second = Member(bench.source(["t"]))
    with caplog.at_level(logging.WARNING):
        second.until(lambda: len(second.payloads.get("t/0", [])) == 3)
    assert "t/0: was to go on at offset 1000, and the broker has no such offset: going on at 0" in caplog.text
    second.close()
