"""The checker finds each kind of violation that is planted, names it, and finds nothing in a clean run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from support.checker import EVENT, HANDLED, Logs, accounting, check


def clean_run() -> Logs:
    """2 producers, 3 keys, 4 events each; keys 0 and 1 on shard 0, key 2 moves from shard 0 to shard 1 half-way."""
    events = [(producer, key, number) for number in range(4) for producer in (1, 2) for key in range(3)]
    handled = []
    for at, (producer, key, number) in enumerate(events):
        shard = int(key == 2 and number >= 2)
        handled.append((producer, key, number, shard, 1, key, 1, 100 * at, 100 * at + 50))
    rows = np.array(events, EVENT)
    return Logs(rows, rows.copy(), np.empty(0, EVENT), np.array(handled, HANDLED))


def at(logs: Logs, producer: int, key: int, number: int) -> int:
    rows = logs.handled
    return int(np.flatnonzero((rows["producer"] == producer) & (rows["key"] == key) & (rows["number"] == number))[0])


def without(rows: np.ndarray, index: int) -> np.ndarray:
    return np.delete(rows, index)


def test_a_clean_run_has_no_violation() -> None:
    assert check(clean_run()) == []


def test_an_empty_run_has_no_violation() -> None:
    assert check(Logs()) == []


def test_a_lost_event_is_found_and_named() -> None:
    logs = clean_run()
    logs.handled = without(logs.handled, at(logs, 2, 1, 3))
    assert check(logs) == ["event 3 of producer 2, key 1, was accepted but never handled"]


def test_an_event_that_was_only_offered_may_be_handled_or_not() -> None:
    logs = clean_run()
    logs.accepted = logs.accepted[:-2]  # the last two calls were cut short
    assert check(logs) == []
    logs.handled = logs.handled[:-1]  # and one of the two did not get through
    assert check(logs) == []


def test_an_invented_event_is_found() -> None:
    logs = clean_run()
    logs.handled["number"][at(logs, 1, 0, 3)] = 77
    assert [text for text in check(logs) if "never offered" in text] == [
        "event 77 of producer 1, key 0, was handled but never offered"
    ]


def test_a_refused_event_that_is_handled_is_found() -> None:
    logs = clean_run()
    logs.refused, logs.accepted = logs.accepted[-1:], logs.accepted[:-1]
    assert check(logs) == ["event 3 of producer 2, key 2, was handled although it was refused"]


def test_a_torn_event_is_found() -> None:
    logs = clean_run()
    logs.handled["good"][7] = 0
    assert len(found := check(logs)) == 1 and "torn" in found[0]


def test_two_events_handled_in_the_wrong_order_are_found() -> None:
    logs = clean_run()
    one, two = at(logs, 1, 1, 1), at(logs, 1, 1, 2)
    logs.handled["number"][[one, two]] = [2, 1]
    assert check(logs) == ["order: producer 1, key 1: number 1 was first handled (shard 0) after number 2 (shard 0)"]


def test_a_wrong_order_across_shards_is_found() -> None:
    logs = clean_run()
    early, late = at(logs, 2, 2, 1), at(logs, 2, 2, 2)
    logs.handled["start"][late] = logs.handled["start"][early] - 5  # the new owner began before the old one was done
    logs.handled["end"][late] = logs.handled["start"][late] + 1
    assert any(text.startswith("order: producer 2, key 2: number 1") for text in check(logs))


def test_order_within_one_batch_is_the_order_of_its_rows() -> None:
    logs = clean_run()
    logs.handled["start"], logs.handled["end"] = 0, 10
    logs.handled["shard"] = 0
    assert check(logs) == []
    logs.handled = logs.handled[::-1]
    assert any(text.startswith("order") for text in check(logs))


def test_a_second_handling_out_of_order_is_a_duplicate_and_no_violation_of_order() -> None:
    logs = clean_run()
    again = logs.handled[:1].copy()
    again["start"], again["end"] = 9000, 9010
    logs.handled = np.concatenate([logs.handled, again])
    assert check(logs, duplicates=1) == []
    assert check(logs) == [
        "duplicates: 1 handlings beyond the first, 0 are allowed; event 0 of producer 1, key 0, was handled 2 times"
    ]


def test_two_owners_of_a_slot_at_a_time_are_found() -> None:
    logs = clean_run()
    old, new = at(logs, 2, 2, 1), at(logs, 1, 2, 2)
    logs.handled["end"][old] = logs.handled["start"][new] + 1
    assert len(found := check(logs)) == 1
    assert found[0].startswith("owners: slot 2 was handled by shard 0 (incarnation 1) until")


def test_two_incarnations_of_a_shard_at_a_time_are_found() -> None:
    logs = clean_run()
    logs.handled["incarnation"][at(logs, 1, 0, 3) :] = 2
    logs.handled["end"][at(logs, 2, 0, 2)] = logs.handled["end"][at(logs, 1, 0, 3)]
    assert any("(incarnation 2)" in text for text in check(logs))


def test_an_overlap_hidden_behind_a_short_batch_is_found() -> None:
    logs = Logs()
    logs.handled = np.array(
        [(1, 0, 0, 0, 1, 5, 1, 0, 100), (1, 0, 1, 0, 1, 5, 1, 10, 20), (1, 0, 2, 1, 1, 5, 1, 50, 60)], HANDLED
    )
    logs.offered = logs.accepted = np.array([(1, 0, number) for number in range(3)], EVENT)
    assert any(text.startswith("owners: slot 5") for text in check(logs))


def test_many_violations_of_one_kind_are_summed_up() -> None:
    logs = clean_run()
    logs.handled = logs.handled[:0]
    assert len(found := check(logs)) == 6 and found[-1] == "... and 19 more of these"


def test_a_row_cut_short_by_a_death_is_left_out(tmp_path: Any) -> None:
    logs = clean_run()
    (tmp_path / "offered-1").write_bytes(logs.offered.tobytes())
    (tmp_path / "accepted-1").write_bytes(logs.accepted.tobytes()[:-3])
    (tmp_path / "handled-0-1").write_bytes(logs.handled.tobytes())
    read = Logs.read(tmp_path)
    assert len(read.accepted) == len(logs.accepted) - 1
    assert check(read) == []


STATUS = {
    "shards": [
        {"id": 0, "accepted": 10, "handled": 6, "quarantined": 1, "skipped": 0, "shed": 1, "in_flight": 2},
        {"id": 1, "accepted": 5, "handled": 5, "quarantined": 0, "skipped": 0, "shed": 0, "in_flight": 0},
    ],
    "producers": [{"accepted": 11, "refused": {"full": 2}}, {"accepted": 4, "refused": {"timeout": 1}}],
    "accounting": {
        "offered": 18,
        "accepted": 15,
        "refused": {"full": 2, "timeout": 1},
        "handled": 11,
        "quarantined": 1,
        "skipped": 0,
        "shed": {"oldest": 1},
        "in_flight": 2,
    },
}


def test_a_status_that_adds_up_has_no_violation() -> None:
    assert accounting(STATUS) == []


@pytest.mark.parametrize(
    "where, key, said",
    [
        ("accounting", "offered", "offered = accepted + refused"),
        ("accounting", "handled", "in total"),
        ("accounting", "in_flight", "in total"),
        ("accounting", "accepted", "sum over shards"),
        ("shards", "handled", "shard 0"),
        ("shards", "accepted", "shard 0"),
        ("producers", "accepted", "sum over producers"),
    ],
)
def test_a_status_that_does_not_add_up_is_found(where: str, key: str, said: str) -> None:
    document = copy.deepcopy(STATUS)
    part: Any = document[where] if where == "accounting" else document[where][0]
    part[key] += 1
    assert any(said in text for text in accounting(document)), accounting(document)


def test_a_refusal_that_is_not_counted_is_found() -> None:
    document: Any = copy.deepcopy(STATUS)
    document["accounting"]["refused"]["full"] -= 1
    assert any("offered" in text for text in accounting(document))
    assert any("refused = sum over producers" in text for text in accounting(document))


def test_two_errors_that_cancel_out_in_total_are_found_per_shard() -> None:
    document: Any = copy.deepcopy(STATUS)
    document["shards"][0]["handled"] += 1
    document["shards"][1]["handled"] -= 1
    assert [text for text in accounting(document) if "shard 0" in text] and [
        text for text in accounting(document) if "shard 1" in text
    ]


def test_events_in_flight_after_a_drain_are_found() -> None:
    assert any("shard 0" in text for text in accounting(STATUS, drained=True))
