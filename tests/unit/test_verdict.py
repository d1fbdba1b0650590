"""What is wrong with an engine, and what to do, from its status document."""
from __future__ import annotations

import copy

import pytest

from shardmem.console.render import verdict
from shardmem.runtime.verdict import findings, is_well

SHARD = {"id": 1, "state": "active", "condition": "idle", "reason": "nothing is waiting", "alive": True, "error": "",
         "last_exit": None, "broken_lanes": [], "fill_ratio": 0.1}
WELL = {"engine": {"name": "ticks", "state": "running"},
        "supervisor": {"alive": True, "pid": 7, "heartbeat_age_s": 0.2},
        "shards": [SHARD], "handoffs": [{"slot": 3, "from": 0, "to": 1, "phase": "drain", "age_s": 0.1, "late": False}],
        "accounting": {"in_flight": 0, "refused": {"sampled": 9, "full": 0}, "quarantined": 0}}


def with_(path, value):
    document = copy.deepcopy(WELL)
    node = document
    *way, last = path
    for part in way:
        node = node[part]
    node[last] = value
    return document


def test_an_engine_that_is_well_has_nothing_found():
    assert [] == findings(WELL)
    assert ["well"] == [line.plain for line in verdict([])]


@pytest.mark.parametrize("path, value, level, text, remedy", [
    (("supervisor", "alive"), False, "problem", "no supervisor: workers and producers go on", "run it again"),
    (("supervisor", "heartbeat_age_s"), 11.0, "problem", "has not gone round for 11 s", "kill -9 7"),
    (("engine", "state"), "draining", "note", "it drains: 0 events", "--now"),
    (("shards", 0), {**SHARD, "condition": "failed", "error": "no file"}, "problem", "shard 1 failed: no file", "reload"),
    (("shards", 0), {**SHARD, "condition": "stuck", "reason": "for 9 s"}, "problem", "shard 1 is stuck: for 9 s", "log"),
    (("shards", 0), {**SHARD, "condition": "restarting", "last_exit": "killed by SIGKILL"}, "warning", "killed by SIGKILL", "log"),
    (("shards", 0), {**SHARD, "condition": "slow", "reason": "50% full"}, "warning", "shard 1 is slow: 50% full", "scale"),
    (("shards", 0), {**SHARD, "broken_lanes": [4]}, "problem", "lane of producer 4", "new producer"),
    (("shards", 0), {**SHARD, "fill_ratio": 0.95}, "warning", "lanes of shard 1 are 95% full", "lane_bytes"),
    (("handoffs", 0, "late"), True, "warning", "slot 3 from shard 0 to 1 in phase drain", "waits for"),
    (("accounting", "refused"), {"full": 3, "sampled": 2}, "note", "refused since it began: full 3", "producers"),
    (("accounting", "quarantined"), 5, "note", "5 events were set aside since it began", "quarantine list"),
])
def test_what_is_wrong_is_said_once_with_a_remedy(path, value, level, text, remedy):
    (found,) = findings(with_(path, value))

    assert level == found["level"] and text in found["text"] and remedy in found["remedy"], found
    assert is_well([found]) == (level == "note")
    assert f"{level}: {found['text']} -> {found['remedy']}" in [line.plain for line in verdict([found])]


@pytest.mark.parametrize("waiting, level, remedy", [(0, "warning", "gc ticks"), (5, "problem", "it handles them")])
def test_an_engine_of_which_nothing_runs_says_what_waits(waiting, level, remedy):
    document = with_(("supervisor", "alive"), False)
    document["shards"][0]["alive"], document["shards"][0]["condition"] = False, "dead"
    document["accounting"]["in_flight"] = waiting
    (found,) = findings(document)

    assert level == found["level"] and f"{waiting} events wait" in found["text"] and remedy in found["remedy"]


def test_the_worst_comes_first():
    document = with_(("accounting", "quarantined"), 1)
    document["shards"] = [{**SHARD, "fill_ratio": 1.0}, {**SHARD, "id": 2, "condition": "failed", "error": "x"}]

    assert ["problem", "warning", "note"] == [each["level"] for each in findings(document)]
