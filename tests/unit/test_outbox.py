"""What handlers send: saved with the state, published in order, removed when the broker has it."""

from __future__ import annotations

import threading
from collections import deque

import pytest

import shardmem
from shardmem.runtime import outbox as module
from shardmem.runtime.outbox import Outbox
from shardmem.runtime.state import StateStore
from shardmem.sources.contract import SourceError
from shardmem.sources.outbox import files as outbox_files
from shardmem.sources.outbox.configured import library_of
from shardmem.sources.outbox.files import ID, OutboxFiles
from shardmem.sources.outbox.publisher import Publisher
from shardmem.sources.wishes import Pause
from shardmem.state.store import Changes
from support.origins import batch_of

SLOTS = 8


class Broker:
    """Confirms when it is told to."""

    def __init__(self, room=1000):
        self.room, self.got, self.answers, self.refuses = room, [], deque(), None

    def produce(self, message, done):
        if len(self.answers) >= self.room:
            return False
        self.got.append(message)
        self.answers.append(done)
        return True

    def poll(self, timeout, answers=None):
        for _ in range(len(self.answers) if answers is None else answers):
            self.answers.popleft()(self.refuses)


class Held(Broker):
    def poll(self, timeout, answers=0):
        super().poll(timeout, answers)


@pytest.fixture
def made(tmp_path):
    stores = []

    def store(shard):
        stores.append(StateStore(str(tmp_path), shard, 1, SLOTS, keep=True))
        stores[-1].begin_life(1, 1)
        return stores[-1]

    yield store
    for each in stores:
        each.leave()


def publisher(tmp_path, broker):
    return Publisher(broker, OutboxFiles(str(tmp_path)), stop=threading.Event())


def save(store, *sent, topic="out"):
    outbox = Outbox(store.backlog)
    for key, value in sent:
        outbox.send(topic, key, value)
    store.save([], Changes(), b"", messages=outbox.unsaved)


def values(broker):
    return [(message.key, message.value) for message in broker.got]


# ---- sending ---------------------------------------------------------------------------------------------------------


def test_a_message_says_of_which_event_it_is_the_same_however_often_that_is_handled(tmp_path):
    outbox, batch = Outbox(lambda: 0), batch_of([("a", b"x", 7), ("b", b"y", 9)])
    for _ in range(2):
        outbox.begin(batch)
        for _key, _payload in batch:
            outbox.send("out", "k", b"1")
            outbox.send("out", "k", b"2")
        outbox.end()
    told = [f"clicks/3/{offset}/{n}" for offset in (7, 9) for n in range(2)]
    assert told * 2 == [message.origin for message in outbox.unsaved]
    outbox.send("out", "k", b"of a timer")
    assert outbox.unsaved[-1].origin is None


@pytest.mark.parametrize("wrong", [("", "k", b""), ("t", 1, b""), ("t", "k", "text"), (None, None, None)])
def test_what_is_no_message_is_refused_when_it_is_sent(wrong):
    outbox = Outbox(lambda: 0)
    with pytest.raises(TypeError):
        outbox.send(*wrong)
    assert [] == outbox.unsaved


def test_a_full_outbox_makes_the_handler_wait(monkeypatch, made):
    monkeypatch.setattr(module, "MOST", 2)
    store = made(0)
    save(store, ("a", b"1"), ("a", b"2"))
    with pytest.raises(shardmem.Retry, match="the outbox is full: 2 messages"):
        Outbox(store.backlog).send("out", "a", b"3")


def test_a_context_without_an_outbox_says_why():
    import logging

    context = shardmem.Context(engine="e", shard=0, incarnation=1, slots=8, log=logging.getLogger())
    with pytest.raises(shardmem.ShardmemError, match="there is no outbox: this context was made by hand"):
        context.outbox  # noqa: B018


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_messages_are_published_in_order_and_removed_when_the_broker_has_them(made, tmp_path):
    store, broker = made(0), Held()
    save(store, ("a", b"1"), ("b", None), (None, b"3"))
    run = publisher(tmp_path, broker)
    run._pass(0)
    assert [(b"a", b"1"), (b"b", None), (None, b"3")] == values(broker) and 3 == store.backlog()
    run._pass(0)
    assert 3 == len(broker.got), "they were handed over twice"
    Broker.poll(broker, 0, 2)
    run._pass(0)
    assert 1 == store.backlog() == run.describe()["lag_events"]
    assert [(ID, b"1/shard-0/1")] == broker.got[0].headers


def test_what_was_not_confirmed_comes_again_with_the_same_id(made, tmp_path):
    store, first, second = made(0), Held(), Broker()
    save(store, ("a", b"1"), ("a", b"2"))
    publisher(tmp_path, first)._pass(0)
    publisher(tmp_path, second)._pass(0)
    assert first.got == second.got and 0 == store.backlog()


def test_what_a_new_owner_of_a_slot_sends_comes_after_what_the_old_one_sent(made, tmp_path):
    old, new, broker = made(1), made(0), Held()
    old.claim([3])
    save(old, ("k", b"1"))
    old.give([3])
    save(new, ("other", b"before"))
    new.claim([3])
    save(new, ("k", b"2"))
    run = publisher(tmp_path, broker)
    run._pass(0)
    assert [(b"other", b"before"), (b"k", b"1")] == values(broker), "k 2 may not pass k 1"
    Broker.poll(broker, 0, 2)
    run._pass(0)
    run._pass(0)
    assert [(b"k", b"2")] == values(broker)[2:]


def test_what_a_new_owner_sends_while_its_file_is_read_waits_for_the_old_owner(made, tmp_path, monkeypatch):
    old, new, files = made(0), made(1), OutboxFiles(str(tmp_path))
    old.claim([3])
    new.claim([4])
    save(old, ("k", b"1"))
    look = files._last

    def slowly(path):
        found = look(path)
        if path == new.path:  # the slot comes between two looks into the file
            old.give([3])
            new.claim([3])
            save(new, ("k", b"2"))
        return found

    monkeypatch.setattr(files, "_last", slowly)
    assert [b"1"] == [each.value for each in files.waiting({})]
    monkeypatch.undo()
    assert [b"1"] == [each.value for each in files.waiting({})]


def test_the_file_of_a_shard_that_is_gone_stays_until_all_of_it_is_published(made, tmp_path):
    old, new, broker = made(0), made(1), Broker()
    old.claim([3])
    save(old, ("k", b"1"))
    old.give([3])
    new.claim([3])
    old.close()
    publisher(tmp_path, broker)._pass(0)
    assert [(b"k", b"1")] == values(broker)


def test_a_client_without_room_gets_the_rest_later_and_in_order(made, tmp_path):
    store, broker = made(0), Broker(room=3)
    save(store, *(("k", b"%d" % number) for number in range(10)))
    run = publisher(tmp_path, broker)
    while store.backlog():
        run._pass(0)
    assert [b"%d" % number for number in range(10)] == [value for _, value in values(broker)]


def test_a_message_that_the_broker_refuses_stays_and_is_said(made, tmp_path):
    store, broker = made(0), Broker()
    broker.refuses = "too large"
    save(store, ("a", b"1"), ("a", b"2"))
    with pytest.raises(SourceError, match="the broker refuses a message of a handler: topic out: too large"):
        publisher(tmp_path, broker)._pass(0)
    assert 2 == store.backlog()


def test_a_paused_outbox_publishes_nothing(made, tmp_path):
    store, broker = made(0), Broker()
    save(store, ("a", b"1"))
    run = publisher(tmp_path, broker)
    run.wanted = run.paused = Pause(True)
    run._pass(0)
    assert [] == broker.got and run.describe()["paused"]
    run.wanted = Pause()
    run._pass(0)
    run._pass(0)
    assert [(b"a", b"1")] == values(broker)


def test_what_was_sent_by_then_is_published_or_not(made, tmp_path):
    first, second, files = made(0), made(1), OutboxFiles(str(tmp_path))
    assert {} == files.position() and files.has_published({})
    save(first, ("a", b"1"), ("a", b"2"))
    save(second, ("b", b"1"))
    sent = files.position()
    save(first, ("a", b"3"))
    assert {"shard-0.sqlite": 2, "shard-1.sqlite": 1} == sent and not files.has_published(sent)
    files.remove("shard-0.sqlite", 2)
    assert not files.has_published(sent)
    files.remove("shard-1.sqlite", 1)
    assert files.has_published(sent) and {"shard-0.sqlite": 3} == files.position()


def test_an_end_in_good_order_publishes_what_waits_and_one_in_time_says_what_stays(made, tmp_path, caplog):
    store = made(0)
    save(store, ("a", b"1"))
    assert not publisher(tmp_path, Held()).finish(True, grace=0.2)
    assert "1 messages of handlers are not published" in caplog.text
    assert publisher(tmp_path, Broker()).finish(True, grace=30.0) and 0 == store.backlog()


def test_the_file_of_a_shard_that_is_being_made_or_was_removed_meanwhile_has_nothing_that_waits(
    made, tmp_path, monkeypatch
):
    """A reload makes and removes them while the publisher and the source look."""
    save(made(0), ("k", b"1"))
    (tmp_path / "shard-7.sqlite").touch()
    paths = {number: str(tmp_path / f"shard-{number}.sqlite") for number in (0, 7, 9)}
    monkeypatch.setattr(outbox_files, "shard_files", lambda directory: paths)
    files = OutboxFiles(str(tmp_path))
    assert {"shard-0.sqlite": 1} == files.position() and 1 == files.count()
    assert [b"1"] == [each.value for each in files.waiting({})]
    assert files.has_published({"shard-7.sqlite": 3, "shard-9.sqlite": 3})
    files.remove("shard-9.sqlite", 3)


def test_what_a_source_says_of_its_group_is_not_told_to_the_producer_of_its_broker():
    url = "kafka://a:1/t?group.instance.id=me&session.timeout.ms=6000&client.id=x"
    assert {"bootstrap.servers": "a:1", "client.id": "x"} == library_of({"url": url})
