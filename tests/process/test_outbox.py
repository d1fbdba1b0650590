"""The outbox from handlers to a broker: killed at each point on the way, nothing is lost, and for each key in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

import shardmem

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import Consumer, TopicPartition  # noqa: E402

from shardmem.sources.outbox.files import ID  # noqa: E402
from shardmem.testing.broker import FakeBroker  # noqa: E402
from support.brokers import kafka  # noqa: E402
from support.brokers.hosts import Producer, committed, create_topic  # noqa: E402
from support.brokers.mock import MockBroker  # noqa: E402

PATIENCE = 60.0
ALL_POINTS = "SHARDMEM_ALL_POINTS" in os.environ
KEYS = [f"k{number}" for number in range(8)]


@pytest.fixture
def broker():
    made = MockBroker()
    made.create("totals", 2)
    yield made
    made.close()


def published(broker, count, topic="totals"):
    """[(key, value, id)] of at least so many messages, in the order of each partition. broker: or its addresses."""
    found = []
    consumer = Consumer(
        {"bootstrap.servers": getattr(broker, "bootstrap", broker), "group.id": "look", "enable.auto.commit": False}
    )
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(2)])
        deadline = time.monotonic() + PATIENCE
        while len({told for *_, told in found}) < count:
            assert time.monotonic() < deadline, (len(found), len({told for *_, told in found}))
            for message in consumer.consume(1000, 0.2):
                if not message.error():
                    found.append((message.key().decode(), message.value(), dict(message.headers())[ID]))
    finally:
        consumer.close()
    return found


def once(found):
    """By key, without those that are there already."""
    seen, of_key = set(), {}
    for key, value, told in found:
        if told not in seen:
            seen.add(told)
            of_key.setdefault(key, []).append(value)
    return of_key


def publisher_of(engine):
    return next((each for each in engine.status()["sources"] if each["name"] == "outbox" and each["alive"]), None)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", ["outbox.confirmed", *(["save.begun", "save.saved"] if ALL_POINTS else [])])
def test_whoever_is_killed_each_message_is_published_in_order(broker, engine_name, tmp_path, monkeypatch, where):
    """Numbers that are there twice have the id of the first."""
    monkeypatch.setenv("SHARDMEM_POINT", f"{where}:3:{signal.SIGKILL.value}")  # in each process that passes it
    settings = {"shards": 2, "max_shards": 3, "state_dir": str(tmp_path), "checkpoint_interval": 0.05}
    with shardmem.Engine(
        engine_name,
        handler="support.handlers.sending:Totals",
        outbox={"kafka": {"bootstrap.servers": broker.bootstrap}},
        **settings,
    ) as engine:
        monkeypatch.delenv("SHARDMEM_POINT")
        with engine.producer() as producer:
            for number in range(30):
                producer.push_many(KEYS, [b"%d" % number] * len(KEYS))
                if number % 10 == 5:
                    producer.flush(PATIENCE)
            producer.flush(PATIENCE)
            assert once(published(broker, 30 * len(KEYS))) == {
                key: [b"%d" % number for number in range(1, 31)] for key in KEYS
            }
        accounting = engine.status()["accounting"]
    assert 0 == accounting["quarantined"] + accounting["in_flight"]


@pytest.mark.timeout(240)
def test_slots_move_and_the_publisher_is_killed_and_order_stays(broker, engine_name, tmp_path):
    with shardmem.Engine(
        engine_name,
        handler="support.handlers.sending:Totals",
        outbox=f"kafka://{broker.bootstrap}",
        shards=None,
        min_shards=1,
        max_shards=3,
        auto_scale=False,
        state_dir=str(tmp_path),
    ) as engine:
        with engine.producer() as producer:
            for number in range(30):
                producer.push_many(KEYS, [b"%d" % number] * len(KEYS))
                if number in (8, 20):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(wait_until(lambda: publisher_of(engine))["pid"], signal.SIGKILL)
                    engine.scale_to(3 if number == 8 else 1)
            producer.flush(PATIENCE)
        assert once(published(broker, 30 * len(KEYS))) == {
            key: [b"%d" % number for number in range(1, 31)] for key in KEYS
        }


@pytest.mark.timeout(240)
def test_a_handler_without_state_sends_what_was_handled_and_a_stop_publishes_the_rest(broker, engine_name):
    with (
        shardmem.Engine(
            engine_name,
            handler="support.handlers.sending:Forwards",
            outbox={"kafka": {"bootstrap": {"servers": broker.bootstrap}}},
            shards=1,
        ) as engine,
        engine.producer() as producer,
    ):
        producer.push_many(KEYS, [b"x"] * len(KEYS))
        producer.flush(PATIENCE)
    assert {key: [b"x"] for key in KEYS} == once(published(broker, len(KEYS)))


@pytest.mark.timeout(240)
def test_an_event_of_a_broker_is_committed_when_what_was_sent_of_it_is_published(broker, engine_name, tmp_path):
    """A host that is lost before leaves it to the next one, which handles the event again."""
    feed = FakeBroker(str(tmp_path / "feed"))
    feed.create_topic("t", 1)
    feed.produce("t", [(key.encode(), b"x") for key in KEYS], partition=0)
    broker.tell("down", 1)
    source = {"kind": "fake", "topics": ["t"], "group": "g", "broker": feed.path, "commit_interval": 0.1}
    with shardmem.Engine(
        engine_name,
        handler="support.handlers.sending:Totals",
        source=source,
        outbox=f"kafka://{broker.bootstrap}",
        shards=1,
        state_dir=str(tmp_path),
    ) as engine:
        wait_until(lambda: engine.status()["accounting"]["handled"] == len(KEYS))
        looks = iter(range(20))  # of two seconds
        wait_until(lambda: feed.committed("g", ["t/0"])["t/0"] is not None or next(looks, None) is None)
        assert {"t/0": None} == feed.committed("g", ["t/0"])
        broker.tell("up", 1)
        wait_until(lambda: (place := feed.committed("g", ["t/0"])["t/0"]) and place.offset == len(KEYS))
        told = [each for *_, each in published(broker, len(KEYS))]
    assert sorted(told) == sorted(f"t/0/{offset}/0".encode() for offset in range(len(KEYS)))
    feed.close()


# ---- on Apache Kafka -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def apache(tmp_path_factory):
    """All workers of a run share one."""
    if (why := kafka.why_not()) is not None:
        pytest.skip(why)
    with kafka.shared(tmp_path_factory.getbasetemp().parent / "kafka") as bootstrap:
        yield bootstrap


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", ["save.saved", *(["save.begun", "outbox.confirmed"] if ALL_POINTS else [])])
def test_from_kafka_to_kafka_who_is_killed_between_send_and_commit_publishes_each_message_under_one_id(
    apache, engine_name, tmp_path, monkeypatch, where
):
    """Only a publisher that is killed publishes one twice."""
    clicks, totals = create_topic(apache), create_topic(apache, partitions=2)
    monkeypatch.setenv("TOTALS", totals)
    monkeypatch.setenv("SHARDMEM_POINT", f"{where}:3:{signal.SIGKILL.value}")
    source = {"kind": "kafka", "topics": [clicks], "group": f"g-{clicks}", "commit_interval": 0.1}
    source["kafka"] = {"bootstrap.servers": apache, "group.instance.id": "one"}
    producer = Producer(apache, clicks)
    producer.put(400)
    with shardmem.Engine(
        engine_name,
        handler="support.handlers.sending:Totals",
        source=source,
        outbox=f"kafka://{apache}",
        shards=2,
        state_dir=str(tmp_path),
        checkpoint_interval=0.05,
    ) as engine:
        monkeypatch.delenv("SHARDMEM_POINT")
        for rounds in range(200):  # a busy machine saves seldom: until it was killed
            producer.put(400)
            time.sleep(0.05)
            killed = sum(shard["crashes"] for shard in engine.status()["shards"])
            if rounds >= 3 and (killed or where == "outbox.confirmed"):
                break
        wait_until(lambda: committed(apache, clicks) == dict(producer.count))
        found = published(apache, sum(producer.count.values()), totals)
    ids = [told.decode() for *_, told in found]
    wanted = {f"{clicks}/{number}/{offset}/0" for number, count in producer.count.items() for offset in range(count)}
    assert wanted == set(ids)
    assert (killed or where == "outbox.confirmed") and (len(ids) == len(wanted) or where == "outbox.confirmed")
    for key, values in once(found).items():
        assert [b"%d" % n for n in range(1, len(values) + 1)] == values, key
