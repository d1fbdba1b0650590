"""Engines that are fed by Apache Kafka: the source is killed, hosts come and go."""

from __future__ import annotations

import os
import signal

import pytest

import shardmem
from shardmem.sources.kafka.sessions import session_of
from support.brokers import kafka
from support.brokers.hosts import Host, Producer, committed, counted, create_topic, end, expected

pytestmark = [pytest.mark.skipif(kafka.why_not() is not None, reason=str(kafka.why_not())), pytest.mark.timeout(240)]


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """All workers of a run share one."""
    with kafka.shared(tmp_path_factory.getbasetemp().parent / "kafka") as bootstrap:
        yield bootstrap


@pytest.fixture
def topic(broker):
    return create_topic(broker)


@pytest.fixture
def host(tmp_path, broker, topic):
    made = []

    def host(**library):
        made.append(Host(tmp_path, broker, topic, **library))
        return made[-1]

    yield host
    end(made)


def test_a_source_that_is_killed_repeats_nothing_and_commits_what_was_handled(broker, topic, host):
    producer = Producer(broker, topic)
    producer.put_one(0, key=b"a", value=None, timestamp=1234567890123, headers=[("trace", b"\x01")])
    producer.put_one(1, key=None, value=b"0")
    producer.put(4000)
    first = host(**{"group.instance.id": "one"})
    first.wait("handled", lambda: len(first.handled()) >= 1000)
    before = first.source()["pid"]
    os.kill(before, signal.SIGKILL)
    producer.put(4000)
    first.wait("started again", lambda: (first.source() or {}).get("pid") not in (None, before))
    first.wait("all handled", lambda: counted(first).keys() == expected(producer).keys())
    assert counted(first) == expected(producer)
    rows = {(row[0], row[1]): row[2:] for row in first.handled()}
    assert ["a", None, 1234567890123, ["trace"]] == rows[0, 0] and None is rows[1, 0][0]
    first.stop()
    assert dict(producer.count) == committed(broker, topic)
    again = host(**{"group.instance.id": "one"})
    producer.put(40)
    again.wait("the rest handled", lambda: len(again.handled()) >= 40)
    assert counted(first, again) == expected(producer)


def test_the_session_is_what_the_broker_says_it_is(broker):
    assert (6.0, 0.3) == session_of({"bootstrap.servers": broker}, "g", 30.0)


def test_hosts_that_come_and_go_in_good_order_repeat_nothing(broker, topic, host):
    producer = Producer(broker, topic)
    first = host()
    first.wait("all partitions", lambda: len(first.partitions()) == 4)
    producer.put(400)
    second = host()
    second.wait("half of them", lambda: len(second.partitions()) == 2 and len(first.partitions()) == 2)
    producer.put(400)
    second.wait("handled", lambda: counted(first, second).keys() == expected(producer).keys())
    assert second.handled()
    first.stop()
    producer.put(400)
    second.wait("taken over", lambda: counted(first, second).keys() == expected(producer).keys())
    assert counted(first, second) == expected(producer)


COUNTING = """
import shardmem
class handle(shardmem.Handler):
    n = shardmem.KeyedState(int, default=0)
    def handle(self, batch):
        for key, _ in batch:
            self.n[key] += 1
"""


def test_equal_partitions_of_two_topics_are_on_one_host_wherever_they_move_and_their_keys_have_one_state(
    broker, topic, host, tmp_path
):
    other = create_topic(broker)
    producers = [Producer(broker, topic), Producer(broker, other)]
    given = {"more": [other], "app": COUNTING, "tables": f'[state]\nremote = "file://{tmp_path}/remote"'}

    def put():
        for producer in producers:
            producer.put(400)

    def together(here):
        names = [name.split("/") for name in here.partitions()]
        numbers = [{number for name, number in names if name == each} for each in (topic, other)]
        return numbers[0] == numbers[1] and len(numbers[0])

    first = host(**given)
    first.wait("all partitions", lambda: together(first) == 4)
    put()
    second = host(**given)
    second.wait("half of both", lambda: together(second) == 2 == together(first))
    put()
    first.stop()
    second.wait("all of both", lambda: together(second) == 4)
    put()
    with shardmem.Client(second.name) as client:
        keys = [b"k%d" % number for number in range(40)]
        second.wait("counted", lambda: [client.state("n", key) for key in keys] == [3 * 2 * 10] * 40)


@pytest.mark.skipif(not kafka.MORE, reason="three brokers: tox -e hosts")
def test_brokers_that_are_killed_and_come_back_lose_and_repeat_nothing(tmp_path):
    cluster, hosts = kafka.KafkaCluster(tmp_path / "cluster", 3, 256), []
    try:
        topic = create_topic(cluster.bootstrap, replicas=3)
        producer = Producer(cluster.bootstrap, topic)
        for _ in range(2):
            hosts.append(Host(tmp_path, cluster.bootstrap, topic))
        hosts[0].wait("shared", lambda: [len(each.partitions()) for each in hosts] == [2, 2])
        for number in (1, 2, 3, 1):
            producer.put(2000)
            cluster.kill(number)
            producer.put(2000)
            hosts[0].wait("handled", lambda: counted(*hosts).keys() == expected(producer).keys())
            cluster.start(number)
            cluster.await_ready(number)
        assert counted(*hosts) == expected(producer)
        for each in hosts:
            each.stop()
        assert dict(producer.count) == committed(cluster.bootstrap, topic)
    finally:
        end(hosts)
        cluster.close()
