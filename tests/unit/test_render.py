"""A status document as text: what `shardmem status` shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shardmem.console import render
from shardmem.status.observer import Observer


@pytest.fixture
def lines(loopback):
    """Of the status in 80 columns, with changes to its first shard."""

    def of(**changes):
        observer = Observer(loopback(shards=2).control)
        document = observer.status()
        observer.close()
        document["shards"][0].update(changes)
        with Console(width=80, file=io.StringIO()) as console:
            console.print(render.status(document))
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    return of


def test_the_largest_figures_are_not_cut_at_80_columns(lines):
    said = lines(
        condition="restarting",
        pid=4194304,
        alive=True,
        slots=65536,
        handled=999.4e6,
        in_flight=999.4e6,
        fill_ratio=1.0,
        busy=1.0,
        latency_p50_us=536.9e3,
        latency_p99_us=998.9e6,
    )

    (row,) = (line for line in said if "65536" in line)
    assert [
        "0",
        "active,",
        "restarting",
        "4194304",
        "65536",
        "999",
        "M",
        "999",
        "M",
        "100%",
        "100%",
        "537ms",
        "999s",
    ] == row.split()


@pytest.mark.parametrize(
    "state, condition, shown",
    [
        ("active", "busy", "active "),
        ("active", "idle", "active "),
        ("active", "slow", "active, slow"),
        ("active", "stuck", "active, stuck"),
        ("draining", "slow", "draining, slow"),
        ("failed", "failed", "failed "),
        ("provisioning", "starting", "provisioning "),
    ],
)
def test_how_a_shard_is_doing_is_said_unless_all_is_well(lines, state, condition, shown):
    assert any(
        line.split()[:1] == ["0"] and line.strip()[1:].strip().startswith(shown)
        for line in lines(state=state, condition=condition)
    )


SOURCE = {
    "kind": "file",
    "name": "file",
    "state": "running",
    "events": 3,
    "skipped": 0,
    "lag_bytes": 4,
    "lag_events": None,
    "group": None,
    "waits_for": None,
    "last_commit_age_s": 0.5,
    "error": None,
}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "source file: running, 3 events, 4 bytes behind, committed 0.5 s ago"),
        ({"lag_bytes": 0}, "source file: running, 3 events, committed 0.5 s ago"),
        (
            {"skipped": 1, "lag_bytes": None, "last_commit_age_s": None},
            "source file: running, 3 events, 1 record skipped",
        ),
        (
            {"state": "waiting", "lag_bytes": None, "lag_events": 2, "waits_for": "k1:9092 does not answer"},
            "source file: waiting, 3 events, 2 events behind, committed 0.5 s ago, waits: k1:9092 does not answer",
        ),
        ({"state": "failed", "error": "a.log, line 2: is not JSON"}, "line 2: is not JSON"),
    ],
)
def test_a_source_is_a_line_that_says_how_it_is(changes, expected):
    assert expected in render.source_line({**SOURCE, **changes})


def test_sources_are_shown_with_their_files_and_how_far_behind_they_are_in_each():
    place = {"offset": 1234, "at": "line 7", "lag": 4, "state": "owned"}
    waiting = {**place, "lag": None, "state": "paused"}
    sources = [{**SOURCE, "reasons": {"not JSON": 2}, "partitions": {"a.log": place, "b.gz": waiting}}]
    assert [
        "source file: running, 3 events, 4 bytes behind, committed 0.5 s ago",
        "  2 records skipped: not JSON",
        "  a.log: byte 1,234, line 7",
        "  b.gz: byte 1,234, line 7, paused",
    ] == render.source_lines(sources)
    assert ["source file: 4 bytes, committed 0.5 s ago", "  a.log: 4 bytes", "  b.gz: not known"] == render.lag_lines(
        sources
    )
    broker = {**SOURCE, "name": "kafka", "group": "g", "lag_bytes": None, "lag_events": 4, "reasons": {}}
    held = {"offset": 1234, "at": "", "committed": 1230, "lag": 4, "state": "owned"}
    broker["partitions"] = {"t/0": held, "t/1": {**held, "committed": None}}
    assert [
        "  t/0: offset 1,234, committed 1,230, owned",
        "  t/1: offset 1,234, committed nothing, owned",
    ] == render.source_lines([broker])[1:]
    outbox = {**SOURCE, "name": "outbox", "kind": "outbox", "lag_bytes": None, "lag_events": 1}
    assert "source outbox: running, 3 messages, 1 message behind, committed 0.5 s ago" == render.source_line(outbox)
    both = [broker, outbox]
    assert ["source kafka: 4 events, committed 0.5 s ago", "  t/0: 4 events"] == render.lag_lines(both)[:2]
    assert not any("outbox" in line for line in render.lag_lines(both))
    assert "source file: not known, committed 0.5 s ago" == render.lag_lines([{**sources[0], "lag_bytes": None}])[0]


def test_a_line_of_figures_that_is_too_long_ends_between_two_of_them(loopback):
    observer = Observer(loopback(shards=2).control)
    document = observer.status()
    observer.close()
    document["accounting"] |= {
        "offered": 10**9,
        "accepted": 10**9,
        "handled": 10**9,
        "quarantined": 10**6,
        "in_flight": 1,
    }

    with Console(width=80, file=io.StringIO()) as console:
        console.print(render.status(document))

    first = next(line for line in console.file.getvalue().splitlines() if line.startswith("offered"))
    assert first.rstrip().endswith("refused 0")
    assert "\nhandled 1,000,000,000 · quarantined 1,000,000 · in flight 1" in console.file.getvalue()
