"""A table with one row per key: what comes again, and who comes too late, changes nothing."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings

import shardmem
from shardmem import sinks
from support.deliveries import deliveries
from support.origins import batch_of

MADE = "create table latest (id bigint primary key, value text)"


def latest(database):
    return dict(database.run("select id, value from latest"))


def sink_of(database):
    return sinks.upsert(database.connect, "latest", key="id", columns="value")


def write(sink, events, **place):
    batch = batch_of(((key, b"", offset) for key, offset in events), **place)
    return sink.write(batch, [(key, f"{key}@{offset}") for key, offset in events])


def test_the_last_row_of_a_key_is_written_and_counts_once(database):
    database.run(MADE)

    assert 2 == write(sink_of(database), [(1, 10), (2, 11), (1, 12)])
    assert {1: "1@12", 2: "2@11"} == latest(database)


def test_a_batch_that_comes_again_changes_nothing(database):
    database.run(MADE)
    sink = sink_of(database)

    assert [2, 0] == [write(sink, [(1, 10), (2, 11)]) for _ in range(2)]


def test_an_old_owner_that_was_frozen_writes_no_stale_key(database):
    """514 of 2,000 keys ended with an old value when nothing guarded them."""
    database.run(MADE)
    old, new = sink_of(database), sink_of(database)
    events = [(offset % 2000, offset) for offset in range(6000)]
    write(old, events[:2000])
    write(new, events[1000:])
    at_once = [events[first : first + 500] for first in range(2000, 4000, 500)]

    assert 0 == sum(write(old, each) for each in at_once), "rows that the new owner has written since were changed"
    assert {key: f"{key}@{4000 + key}" for key in range(2000)} == latest(database)


def test_an_event_of_another_topic_or_partition_is_written_in_any_case(database):
    database.run(MADE)
    sink = sink_of(database)
    write(sink, [(1, 100)])

    assert 1 == write(sink, [(1, 7)], partition=4)
    assert 1 == write(sink, [(1, 5)], partition=4, topic="views")
    assert {1: "1@5"} == latest(database)
    assert [("views", 4, 5)] == database.run("select _topic, _partition, _offset from latest")


def test_events_without_an_origin_are_written_in_any_case(database):
    database.run(MADE)
    sink, plain = sink_of(database), shardmem.Batch.of([(1, b"")])
    write(sink, [(1, 100)])

    assert [1, 1] == [sink.write(plain, [(1, text)]) for text in ("a", "b")]
    assert {1: "b"} == latest(database)
    assert 1 == write(sink, [(1, 3)]), "and are no bar to events that have one"


def test_rows_that_were_there_before_are_replaced(database):
    database.run(MADE, "insert into latest values (1, 'old')")

    assert 1 == write(sink_of(database), [(1, 0)])
    assert {1: "1@0"} == latest(database)


def test_rows_may_be_mappings_and_none_writes_nothing(database):
    database.run("create table orders (shop text, id bigint, item text, primary key (shop, id))")
    sink = sinks.upsert(database.connect, "orders", key=["shop", "id"], columns=["item"])
    batch = batch_of([("a", b"", 1), ("b", b"", 2), ("c", b"", 3)])

    rows = [{"id": 7, "item": "tea", "shop": "x", "price": 3}, None, ("x", np.int64(8), "pot")]
    assert 2 == sink.write(batch, rows)
    assert [("x", 7, "tea"), ("x", 8, "pot")] == database.run("select shop, id, item from orders order by id")


def test_fields_of_records_are_rows_without_further_words(database):
    database.run("create table trades (symbol bigint primary key, price double precision)")
    records = np.array([(5, 1.5), (6, 2.5), (5, 3.5)], [("symbol", "u8"), ("price", "f8")])

    sinks.upsert(database.connect, "trades", key="symbol", columns="price").write(
        shardmem.Batch.of(records, key="symbol")
    )
    assert [(5, 3.5), (6, 2.5)] == database.run("select symbol, price from trades order by symbol")


def test_key_and_payload_of_events_are_rows_without_further_words(sqlite):
    sqlite.run("create table pages (name text primary key, body blob)")

    sinks.upsert(sqlite.connect, "pages", key="name", columns="body").write(batch_of([("a", b"1", 0), ("a", b"2", 1)]))
    assert [("a", b"2")] == sqlite.run("select name, body from pages")


def test_more_rows_than_fit_into_a_statement_are_one_transaction(database):
    database.run("create table latest (id bigint primary key, value text check (value <> 'bad'))")
    sink, batch = sink_of(database), batch_of((key, b"", key) for key in range(1300))
    rows = [(key, "good") for key in range(1300)]
    with pytest.raises(Exception, match="(?i)check"):
        sink.write(batch, [*rows[:-1], (1299, "bad")])

    assert {} == latest(database)
    assert 1300 == sink.write(batch, rows)


@settings(deadline=None)
@given(deliveries())
def test_whoever_writes_and_however_often_a_row_is_of_the_newest_event_that_came(drawn):
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(MADE)
        writers = [sinks.upsert(connection, "latest", key="id", columns="value") for _ in range(3)]
        newest: dict[int, int] = {}
        for writer, offsets in drawn.batches:
            write(writers[writer], [(drawn.keys[offset], offset) for offset in offsets])
            for offset in offsets:
                newest[drawn.keys[offset]] = max(offset, newest.get(drawn.keys[offset], -1))
            found = dict(connection.execute("select id, value from latest").fetchall())
            assert {key: f"{key}@{offset}" for key, offset in newest.items()} == found


# ---- the table and the connection ------------------------------------------------------------------------------------


def test_a_column_that_the_table_lacks_is_named_and_nothing_is_added(database):
    database.run(MADE)
    sink = sinks.upsert(database.connect, "latest", key="id", columns=["value", "price"])

    with pytest.raises(shardmem.ConfigError, match="table latest has no column 'price'; it has id, value"):
        sink.write(batch_of([(1, b"", 0)]), [(1, "a", 2.0)])
    database.run("select id, value from latest")
    with pytest.raises(Exception, match="_offset"):
        database.run("select _offset from latest")


def test_names_are_taken_as_they_are_spelt(database):
    database.run("""create table "Order %s; drop" ("group" bigint primary key, "a ""b" text)""")

    sinks.upsert(database.connect, "Order %s; drop", key="group", columns='a "b').write(
        batch_of([(1, b"", 0)]), [(1, "x")]
    )
    assert [(1, "x")] == database.run("""select "group", "a ""b" from "Order %s; drop" """)


@pytest.mark.parametrize("key, columns", [((), "value"), ("id", "id"), ("id", ["value", "_offset"])])
def test_names_that_say_nothing_or_twice_the_same_are_refused(key, columns):
    with pytest.raises(shardmem.ConfigError, match="not different names"):
        sinks.upsert(sqlite3.connect, "latest", key=key, columns=columns)


@pytest.mark.parametrize("rows", [[], [(1, "a")], [(1, "a")] * 3])
def test_a_row_for_each_event_is_needed(database, rows):
    database.run(MADE)
    with pytest.raises(ValueError, match="for a batch of 2 events"):
        sink_of(database).write(batch_of([(1, b"", 0), (2, b"", 1)]), rows)
    assert {} == latest(database)


def test_a_row_of_another_length_is_an_error(database):
    database.run(MADE)
    with pytest.raises(ValueError, match="a row of 3 values for id, value"):
        sink_of(database).write(batch_of([(1, b"", 0)]), [(1, "a", "b")])


def test_a_sink_that_makes_its_connection_travels_to_workers(tmp_path):
    path = str(tmp_path / "a.sqlite")
    sqlite3.connect(path).execute(MADE)
    sink = pickle.loads(pickle.dumps(sinks.upsert(partial(sqlite3.connect, path), "latest", key="id", columns="value")))

    assert 1 == write(sink, [(1, 0)])


@pytest.mark.parametrize("mode", [{}, {"isolation_level": None}, {"isolation_level": "EXCLUSIVE"}])
def test_a_connection_in_any_mode_of_transactions_will_do(tmp_path, mode):
    connection = sqlite3.connect(tmp_path / "a.sqlite", **mode)
    connection.execute(MADE)
    write(sinks.upsert(connection, "latest", key="id", columns="value"), [(1, 0)])

    assert not connection.in_transaction
    assert [(1, "1@0")] == sqlite3.connect(tmp_path / "a.sqlite").execute("select id, value from latest").fetchall()


@pytest.mark.parametrize("autocommit", [False, True])
def test_postgresql_commits_in_either_mode(postgresql, autocommit):
    postgresql.run(MADE)
    with postgresql.connect() as connection:
        connection.autocommit = autocommit
        write(sinks.upsert(connection, "latest", key="id", columns="value"), [(1, 0)])
        assert {1: "1@0"} == latest(postgresql)
