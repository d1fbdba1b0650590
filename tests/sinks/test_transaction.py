"""The user's statements and which events they were for, in one transaction: each event is applied once."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest
from hypothesis import given, settings

import shardmem
from shardmem import sinks
from support.deliveries import deliveries
from support.origins import batch_of

MADE = "create table applied_events (id bigint, place bigint)"


def apply(sink, events, mark="?", **place):
    """What was fresh."""
    batch = batch_of(((key, str(offset).encode(), offset) for key, offset in events), **place)
    with sink as tx:
        fresh = [(key, int(payload)) for key, payload in tx.fresh(batch)]
        for each in fresh:
            tx.connection.execute(f"insert into applied_events values ({mark}, {mark})", each)
    return fresh


def applied(database):
    return database.run("select id, place from applied_events order by place")


def test_what_was_applied_is_not_fresh_again_for_whoever_asks(database):
    database.run(MADE)
    old, new = sinks.transaction(database.connect), sinks.transaction(database.connect)
    events = [(1, 10), (2, 11), (1, 12)]

    assert events == apply(old, events, database.mark)
    assert [(3, 13)] == apply(new, [*events, (3, 13)], database.mark)
    assert [] == apply(old, [*events, (3, 13)], database.mark)
    assert [*events, (3, 13)] == applied(database)


def test_a_block_that_raises_applies_nothing(database):
    database.run(MADE)
    sink, batch = sinks.transaction(database.connect), batch_of([(1, b"", 10)])
    with pytest.raises(KeyError), sink as tx:
        for key, _ in tx.fresh(batch):
            tx.connection.execute(f"insert into applied_events values ({key}, 10)")
        raise KeyError(key)

    assert [] == applied(database)
    assert [(1, 10)] == apply(sink, [(1, 10)], database.mark)


def test_an_event_that_others_of_its_slot_have_passed_is_still_fresh(database):
    """While one that failed waits for its next try, keys that follow it are handled."""
    database.run(MADE)
    sink = sinks.transaction(database.connect)
    apply(sink, [(2, 11), (3, 12)], database.mark)

    assert [(1, 10)] == apply(sink, [(1, 10), (2, 11)], database.mark)


def test_partitions_and_topics_count_for_themselves(database):
    database.run(MADE)
    sink = sinks.transaction(database.connect)
    apply(sink, [(1, 10)], database.mark)

    assert [(1, 10)] == apply(sink, [(1, 10)], database.mark, partition=4)
    assert [(1, 10)] == apply(sink, [(1, 10)], database.mark, topic="views")


def test_events_without_a_key_are_known_by_their_offset(database):
    database.run(MADE)
    sink, batch = sinks.transaction(database.connect), batch_of([(None, b"a", 10), (None, b"b", 12)])
    with sink as tx:
        assert [(None, b"a"), (None, b"b")] == list(tx.fresh(batch))
    with sink as tx:
        assert [(None, b"c")] == list(tx.fresh(batch_of([(None, b"b", 12), (None, b"c", 11)])))


def test_an_event_that_is_twice_in_a_batch_is_fresh_once(database):
    database.run(MADE)
    assert [(1, 10), (1, 11)] == apply(
        sinks.transaction(database.connect), [(1, 10), (1, 11), (1, 10), (1, 11)], database.mark
    )


def test_events_without_an_origin_are_always_fresh(database):
    sink, batch = sinks.transaction(database.connect), shardmem.Batch.of([(1, b"a")])
    for _ in range(2):
        with sink as tx:
            assert [(1, b"a")] == list(tx.fresh(batch))


def test_keys_of_every_kind_are_told_apart(database):
    sink = sinks.transaction(database.connect)
    keys = [7, "7", b"7", -7, 2**63, 2**64 - 1, "", "sieben"]
    batch = batch_of((key, b"", offset) for offset, key in enumerate(keys))
    with sink as tx:
        assert list(range(len(keys))) == tx.fresh_rows(batch).tolist()
    with sink as tx:
        later = batch_of((key, b"", offset) for offset, key in enumerate(keys[::-1], 100))
        assert list(range(len(keys))) == tx.fresh_rows(later).tolist()
        assert [] == tx.fresh_rows(batch).tolist()


def test_rows_of_events_that_are_safe_are_deleted_and_who_comes_too_late_finds_nothing_fresh(database, monkeypatch):
    database.run(MADE)
    sink, events = sinks.transaction(database.connect), [(key, 10 + key) for key in range(5)]
    monkeypatch.setattr(shardmem.Batch, "safe", lambda batch: {("clicks", 3): 13})
    apply(sink, events, database.mark)
    sink.forget()

    assert [(0, 13), (1, 13), (1, 14)] == database.run("select kind, upto from shardmem_applied order by kind, upto")
    assert [] == apply(sinks.transaction(database.connect), events, database.mark)
    assert [(0, 20)] == apply(sink, [(0, 12), (0, 20)], database.mark)


def test_rows_are_deleted_from_time_to_time_without_being_asked_to(sqlite, monkeypatch):
    sqlite.run(MADE)
    monkeypatch.setattr(shardmem.Batch, "safe", lambda batch: {("clicks", 3): 13})
    monkeypatch.setattr("shardmem.sinks.exactly_once.FORGET_EVERY", 0.0)
    apply(sinks.transaction(sqlite.connect), [(1, 10)])

    assert [(0, 13)] == sqlite.run("select kind, upto from shardmem_applied")


@settings(deadline=None)
@given(deliveries())
def test_whoever_handles_and_however_often_each_event_is_applied_once_and_in_order(drawn):
    with contextlib.closing(sqlite3.connect(":memory:")) as connection, pytest.MonkeyPatch.context() as patched:
        connection.execute(MADE)
        handlers = [sinks.transaction(connection) for _ in range(3)]
        came: set[int] = set()
        for handler, offsets in drawn.batches:
            safe = min({*range(len(drawn.keys) + 1)} - came)  # as it was when the batch was taken
            patched.setattr(shardmem.Batch, "safe", lambda batch: {("clicks", 3): safe})
            apply(handlers[handler], [(drawn.keys[offset], offset) for offset in offsets])
            came.update(offsets)
            if handler:
                handlers[handler].forget()
            rows = connection.execute("select id, place from applied_events order by rowid").fetchall()
            assert sorted(came) == sorted(place for _, place in rows)
            for key in set(drawn.keys):
                places = [place for of, place in rows if of == key]
                assert places == sorted(places)


def test_two_owners_at_once_apply_each_event_once(database):
    """One was frozen, and goes on where the other has been for long; both take the same events at the same moment."""
    database.run(MADE, "create table counts (id bigint primary key, n bigint)")
    database.run(*(f"insert into counts values ({key}, 0)" for key in range(7)))
    events = [(offset % 7, offset) for offset in range(400)]
    start, failures = threading.Barrier(2), []

    def own(seed: int) -> None:
        sink = sinks.transaction(database.connect)
        start.wait(30)
        for first in range(0, 400, 20 + seed):
            batch = batch_of((key, b"", offset) for key, offset in events[first : first + 20 + seed])
            while True:
                try:
                    with sink as tx:
                        for key, _ in tx.fresh(batch):
                            tx.connection.execute(f"update counts set n = n + 1 where id = {key}")
                    break
                except shardmem.Retry:
                    continue
                except BaseException as error:
                    failures.append(error)
                    raise

    owners = [threading.Thread(target=own, args=(seed,)) for seed in (0, 1)]
    for each in owners:
        each.start()
    for each in owners:
        each.join(60)

    assert not failures
    wanted = {key: sum(of == key for of, _ in events) for key in range(7)}
    assert wanted == dict(database.run("select id, n from counts"))


def test_fresh_is_asked_within_a_block(sqlite):
    sink = sinks.transaction(sqlite.connect)
    with pytest.raises(RuntimeError, match="with transaction as tx"):
        sink.fresh(batch_of([(1, b"", 0)]))
    with sink, pytest.raises(RuntimeError, match="one block of it at a time"), sink:
        pass
    with sink as tx:
        assert [0] == tx.fresh_rows(batch_of([(1, b"", 0)])).tolist()
