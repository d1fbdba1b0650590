"""The catalogue of figures and the status document say the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import shardmem
from shardmem.http.answers import COMPONENTS
from shardmem.http.metrics import OF
from shardmem.memory.native import ENGINE_STATES, REASONS, SHARD_STATES, lib
from shardmem.policy import Facts, Limits, condition_of
from shardmem.status.figures import COUNTER, FIGURES, HISTOGRAM, PREFIX, REFUSALS, STATE, Figure, page
from shardmem.status.observer import Observer

OPEN = ("refused", "shed")  # objects whose members are not known beforehand
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def document(loopback) -> dict[str, Any]:
    """Of an engine of which everything can be said: events refused and shed, a slot in motion, a decision, a broken
    lane."""
    engine = loopback(shards=2, lane_bytes=4096)
    with pytest.raises(shardmem.Backpressure):
        engine.producer(backpressure="fail").push_many([1] * 400, [b"x" * 64] * 400)
    lib.sm_move_begin(engine.control.address, 5, 1, 0, lib.sm_now_ns())
    board = json.dumps(
        {
            "decisions": [
                {
                    "kind": "up",
                    "count": 1,
                    "cause": "busy",
                    "reason": "",
                    "age_s": 0.5,
                    "since_s": 1.0,
                    "times": 2,
                    "advice": None,
                }
            ],
            "hot_slots": [{"slot": 3, "shard": 1, "share": 0.8, "alone": True}],
            "auto_scale": True,
            "elastic": True,
            "cordoned": [1],
            "pins": [{"shard": 0, "slots": "3-5"}],
            "limits": {},
        }
    ).encode()
    happened = json.dumps(
        {
            "quarantined": 0,
            "events": [{"at": 1.5, "kind": "started", "shard": 1, "text": "engine e runs", "level": "info"}],
        }
    ).encode()
    lib.sm_post(engine.control.address, lib.SM_BOARD_DECISIONS, board, len(board))
    lib.sm_post(engine.control.address, lib.SM_BOARD_EVENTS, happened, len(happened))
    observer = Observer(engine.control)
    found = observer.status()
    observer.close()
    found["shards"][0]["broken_lanes"] = [0]
    found["accounting"]["shed"] = {"oldest": 3}
    found["findings"][0]["shards"] = [0]
    found["sources"] = [
        {
            "name": "file",
            "kind": "file",
            "pid": 7,
            "alive": True,
            "incarnation": 2,
            "state": "running",
            "paused": False,
            "error": None,
            "seat": 0,
            "events": 5,
            "bytes": 90,
            "skipped": 1,
            "reasons": {"not JSON": 1},
            "lag_bytes": 4,
            "lag_events": 3,
            "group": None,
            "epoch": 2,
            "apart": [],
            "waits_for": None,
            "remote": "file:///shared",
            "remote_error": "no room",
            "remote_error_age_s": 1.5,
            "uploaded_age_s": 30.5,
            "partitions": {"a.log": {"offset": 90, "at": "line 7", "committed": 80, "lag": 4, "state": "owned"}},
            "last_commit_age_s": 0.5,
        }
    ]
    return found


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if path in (
        "engine.schema",
        "sources[].reasons",
        "sources[].partitions",
        "decisions[].advice",
        "findings[].order",
        "events",
    ):
        return
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(
                value, f"{path}{{reason}}" if path.split(".")[-1] in OPEN else f"{path}.{key}".lstrip(".")
            )
    elif isinstance(node, list):
        for each in node:
            yield from leaves(each, f"{path}[]")
    else:
        yield path, node


def unknown(document: dict[str, Any]) -> set[str]:
    """Paths of numbers that no figure declares."""
    return {path for path, value in leaves(document) if isinstance(value, (int, float))} - {
        each.path for each in FIGURES
    }


def absent(document: dict[str, Any], figures: tuple[Figure, ...] = FIGURES) -> set[str]:
    """Figures that the document has not."""
    return {each.path for each in figures if each.path} - {path for path, _ in leaves(document)}


def test_every_number_of_the_document_is_in_the_catalogue_and_the_other_way_round(document):
    assert set() == unknown(document)
    assert set() == absent(document)


def test_a_number_that_nobody_declared_and_a_figure_that_nobody_tells_are_found(document):
    document["shards"][1]["novelty"] = 0.5
    del document["producers"][0]["blocked_s"], document["accounting"]["shed"]["oldest"]
    assert {"shards[].novelty"} == unknown(document)
    assert {"producers[].blocked_s", "accounting.shed{reason}"} == absent(document)


def test_every_figure_can_be_read_and_has_as_many_labels_as_it_says(document):
    for figure in FIGURES:
        found = list(figure.read(document))
        assert found or figure.path is None or figure.path.startswith("decisions"), figure
        named = len(figure.labels) - (figure.kind == STATE and bool(figure.values))
        for labels, _ in found if figure.metric else ():
            assert named == len(labels), figure


def test_folds_and_labels_read_what_is_there(document):
    def read(metric: str) -> dict[tuple[str, ...], Any]:
        return dict(next(each for each in FIGURES if each.metric == PREFIX + metric).read(document))

    assert {(): 1} == read("handoffs") and {(): 1} == read("hot_slots") and {(): 0.8} == read("hot_slot_ratio")
    assert {("0",): 1, ("1",): 0} == read("shard_broken_lanes")
    refused = read("producer_refused_total")
    assert (
        set(REFUSALS) == {reason for _, reason in refused}
        and 0 < refused["0", "full"] == read("refused_total")["full",]
    )
    assert 0 == refused["0", "timeout"], "a reason that did not occur is a zero, so that its first increase is seen"


def test_what_a_state_and_a_reason_can_be_is_what_the_engine_knows():
    by_path = {each.path: set(each.values) for each in FIGURES}
    assert set(ENGINE_STATES) == by_path["engine.state"] and REASONS == REFUSALS
    assert set(SHARD_STATES) - {"none"} == by_path["shards[].state"]
    facts = [
        Facts(*each)
        for each in itertools.product(
            SHARD_STATES, ("booting", "ready"), (True, False), (0.0, 1e6), (None, 0.0, 1e6), (0, 1)
        )
    ]
    facts.append(Facts("active", "ready", True, 0.0, None, waiting=1.0))
    said = {condition_of(each, Limits(), due)[0] for each in facts for due in (None, 1.0)}
    assert said == by_path["shards[].condition"]


def test_names_follow_the_conventions_of_prometheus_and_are_declared_once():
    for each in FIGURES:
        assert each.help and not each.help.endswith("."), each
        if each.metric:
            assert each.metric.startswith(PREFIX) and each.metric.endswith("_total") == (each.kind == COUNTER), each
            assert ("seconds" in each.metric) == (each.unit == "seconds"), each
            assert ("bytes" in each.metric) == (each.unit == "bytes"), each
            assert each.metric.endswith("_ratio") == (each.unit == "share"), each
    for names in ([each.metric for each in FIGURES if each.metric], [each.path for each in FIGURES if each.path]):
        assert len(names) == len(set(names))
    beside = [each for each in FIGURES if each.path is None]
    assert {HISTOGRAM} == {each.kind for each in beside} and OF.keys() == {each.metric for each in beside}


def test_the_page_of_metrics_is_what_the_catalogue_says():
    said = "out of date: python -m shardmem.status.figures > docs/metrics.md"
    assert (DOCS / "metrics.md").read_text() == page(), said


def strict(schema: Any) -> Any:
    """A schema of OpenAPI 3.0 as jsonschema reads it."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") else found


def test_the_document_is_what_openapi_says_of_it_and_what_is_not_is_found(document):
    said = jsonschema.Draft4Validator(strict(COMPONENTS["Status"]))
    assert [] == [error.message for error in said.iter_errors(json.loads(json.dumps(document)))]
    for path, value in [("novelty", 1), ("shards", [{}]), ("auto_scale", 1), ("hot_slots", None)]:
        assert not said.is_valid({**document, path: value}), path
    for key, value in [("novelty", 1), ("state", "odd"), ("latency_p50_us", "x"), ("pid", 1.5), ("alive", 1)]:
        wrong = {**document, "shards": [{**document["shards"][0], key: value}]}
        assert not said.is_valid(wrong), key


def test_slots_of_a_shard_without_a_live_worker_are_unowned(document):
    assert 64 == document["engine"]["slots"] == document["engine"]["slots_unowned"]
