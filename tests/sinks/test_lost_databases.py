"""A database that is away is no fault of the events: the handler is told to try later, and its next try finds it."""

from __future__ import annotations

import sqlite3

import pytest

import shardmem
from shardmem import sinks
from support.origins import batch_of

MADE = "create table latest (id bigint primary key, value text)"
BATCH = [(1, b"", 0)]


def put(sink):
    return sink.write(batch_of(BATCH), [(1, "a")])


def test_a_database_that_cannot_be_reached_is_tried_later_and_found_when_it_is_back(tmp_path):
    path = tmp_path / "away" / "a.sqlite"
    sink = sinks.upsert(lambda: sqlite3.connect(path), "latest", key="id", columns="value")
    with pytest.raises(shardmem.Retry, match="unable to open"):
        put(sink)

    path.parent.mkdir()
    sqlite3.connect(path).execute(MADE)
    assert 1 == put(sink)


def test_an_error_of_the_network_is_one_of_the_database():
    def connect():
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(shardmem.Retry, match="the database cannot be reached: .*Connection refused"):
        put(sinks.upsert(connect, "latest", key="id", columns="value"))


def test_another_writer_that_holds_the_file_is_waited_for_by_trying_later(tmp_path):
    holder = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    holder.execute(MADE)
    sink = sinks.upsert(
        lambda: sqlite3.connect(tmp_path / "a.sqlite", timeout=0.01), "latest", key="id", columns="value"
    )
    holder.execute("begin immediate")
    with pytest.raises(shardmem.Retry, match="locked"):
        put(sink)

    holder.execute("rollback")
    assert 1 == put(sink)


def test_a_connection_that_was_closed_is_made_again(sqlite):
    sqlite.run(MADE)
    sink = sinks.upsert(sqlite.connect, "latest", key="id", columns="value")
    put(sink)
    sqlite.connections[-1].close()
    with pytest.raises(shardmem.Retry, match="closed"):
        put(sink)

    assert 0 == put(sink), "what was written is there"


def test_a_server_that_ends_the_session_in_the_middle_is_tried_later_and_nothing_is_applied(postgresql):
    postgresql.run("create table applied_events (id bigint)")
    sink = sinks.transaction(postgresql.connect)
    with pytest.raises(shardmem.Retry, match="terminating connection|closed"), sink as tx:
        for key, _ in tx.fresh(batch_of(BATCH)):
            tx.connection.execute("insert into applied_events values (%s)", [key])
        postgresql.run(f"select pg_terminate_backend({tx.connection.info.backend_pid})")
        tx.connection.execute("insert into applied_events values (2)")

    assert [] == postgresql.run("select * from applied_events")
    with sink as tx:
        assert [(1, b"")] == list(tx.fresh(batch_of(BATCH)))


def test_what_the_database_says_of_a_value_is_a_fault_of_the_event(database):
    database.run("create table latest (id bigint primary key, value text not null)")
    sink = sinks.upsert(database.connect, "latest", key="id", columns="value")
    with pytest.raises(Exception, match="(?i)null") as raised:
        sink.write(batch_of(BATCH), [(1, None)])

    assert not isinstance(raised.value, shardmem.Retry)
    assert 1 == put(sink)


def test_a_table_that_is_not_there_is_no_outage(database):
    sink = sinks.upsert(database.connect, "nowhere", key="id", columns="value")
    with pytest.raises(Exception, match="nowhere") as raised:
        put(sink)
    assert not isinstance(raised.value, shardmem.Retry)


@pytest.mark.parametrize("given", ["dbname=shop", None, 7])
def test_what_is_neither_a_connection_nor_makes_one_is_refused(given):
    with pytest.raises(TypeError, match="neither a connection nor a function"):
        sinks.transaction(given)
