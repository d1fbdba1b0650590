"""The history of an engine: bounded, whole, oldest first, and told once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmem.memory.native import lib
from shardmem.status.figures import HISTORY_KINDS, LEVELS
from shardmem.status.observer import Observer
from shardmem.supervisor.history import LONGEST, MOST, TOGETHER, History

DOCS = Path(__file__).parents[2] / "docs"


class Board:
    """A history that writes here, and a clock that stands still."""

    def __init__(self, room: int = lib.SM_BOARD_BYTES) -> None:
        self.now, self.text, self.room, self.posts = 1000.0, b'{"events":[],"quarantined":0}', room, 0
        self.history = History(self.post, room, lambda: self.now)

    def post(self, text: bytes) -> None:
        assert len(text) <= self.room
        self.text, self.posts = text, self.posts + 1

    @property
    def events(self) -> list[dict[str, Any]]:
        return json.loads(self.text)["events"]

    @property
    def texts(self) -> list[str]:
        return [each["text"] for each in self.events]


def status(*quarantined: int, broken: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "accounting": {"quarantined": sum(quarantined)},
        "shards": [
            {"id": number, "quarantined": count, "broken_lanes": list(broken)}
            for number, count in enumerate(quarantined)
        ],
    }


def test_the_last_64_are_kept_oldest_first_with_time_kind_shard_and_level():
    board = Board()
    for number in range(100):
        board.now += 1
        board.history.note("worker_died", f"number {number}", number % 3)

    assert [f"number {number}" for number in range(100 - MOST, 100)] == board.texts
    assert {"at": 1100.0, "kind": "worker_died", "shard": 0, "text": "number 99", "level": "warning"} == board.events[
        -1
    ]


@pytest.mark.parametrize("letter", ["x", "é", "\N{SNAKE}", "\udce4", '"', "\x00"])
def test_the_longest_sentences_in_any_alphabet_never_overflow_the_board_and_the_newest_stays(letter):
    board = Board()
    for number in range(MOST):
        board.history.note("shard_failed", f"{number} " + letter * 10_000, 1023)
        assert len(board.texts[-1]) <= LONGEST and board.texts[-1].startswith(f"{number} ")
    assert 3 < len(board.events) <= MOST
    assert [int(text.split()[0]) for text in board.texts] == list(range(MOST - len(board.events), MOST)), (
        "the oldest go"
    )


def test_a_sentence_is_one_line_and_the_same_again_replaces_itself():
    board = Board()
    for _ in range(3):
        board.now += 1
        board.history.note("not_done", "ValueError:\n  in the strategy")
    board.history.note("not_done", "ValueError:\n  in the strategy", 1)

    assert [("ValueError: in the strategy", 1003.0, None), ("ValueError: in the strategy", 1003.0, 1)] == [
        (each["text"], each["at"], each["shard"]) for each in board.events
    ]


def test_events_that_go_to_quarantine_are_one_entry_a_minute_and_shard_and_the_same_count_is_no_news():
    board = Board()
    for count in (0, 3, 3, 5):
        board.now += 1
        board.history.look(0, count)
        board.history.look(1, 1)
    posts = board.posts
    said = sorted((each["shard"], each["text"].partition(" quarantined")[0]) for each in board.events)
    assert [(0, "5 events were"), (1, "1 event was")] == said
    for _ in range(1000):
        board.history.look(0, 5)
    assert posts == board.posts, "nothing happened, and the board was written"
    board.now += TOGETHER
    board.history.look(0, 6)
    assert board.texts[-1].startswith("1 event was quarantined: ")


def test_a_shard_whose_number_is_used_again_counts_from_nothing():
    board = Board()
    board.history.look(2, 5)
    board.history.forget(2)
    board.now += TOGETHER
    board.history.look(2, 1)
    assert board.texts[-1].startswith("1 event was")


def test_a_lane_that_breaks_is_told_once():
    board = Board()
    for broken in ([], [3], [3], [3, 4]):
        board.history.look(1, 0, broken)
    assert [3, 4] == [int(text.partition("producer ")[2].split()[0]) for text in board.texts]
    assert {"error"} == {each["level"] for each in board.events}


def test_the_next_supervisor_goes_on_with_the_history_and_tells_what_went_to_quarantine_meanwhile():
    first, second = Board(), Board()
    first.history.note("started", "it runs")
    first.history.look(0, 2)
    said = json.loads(first.text)
    second.history.take_up(said["events"], said["quarantined"], status(2, 3, broken=(7,)))
    second.history.look(0, 2, [7])
    second.history.look(1, 4, [7])

    assert first.texts == second.texts[:2]
    said = [" ".join(text.split()[:6]) for text in second.texts[2:]]
    assert ["3 events were quarantined while there", "1 event was quarantined: 'shardmem quarantine"] == said


def test_a_takeover_in_which_nothing_happened_tells_nothing_and_keeps_all():
    first, second = Board(), Board()
    for number in range(MOST):
        first.history.note("moved", f"{number}")
    said = json.loads(first.text)
    second.history.take_up(said["events"], said["quarantined"], status(0))
    second.history.note("took_over", "from one that was gone")
    assert first.texts[1:] + ["from one that was gone"] == second.texts


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b'{"events": 3, "quarantined": 0}',
        b'{"events": []}',
        b"\xff\xfe",
        b'{"events": [{"at": 1}], "quarantined": 0}',
    ],
)
def test_a_damaged_board_is_an_empty_history(loopback, text):
    engine = loopback()
    lib.sm_post(engine.control.address, lib.SM_BOARD_EVENTS, text, len(text))
    observer = Observer(engine.control)
    assert ([], 0) == observer.history()
    observer.close()


def test_every_kind_has_a_level_and_a_line_in_the_manual():
    manual = (DOCS / "operations.md").read_text()
    assert set(HISTORY_KINDS.values()) == set(LEVELS)
    assert [] == [kind for kind in HISTORY_KINDS if f"`{kind}`" not in manual]
    with pytest.raises(KeyError):
        Board().history.note("novelty", "nobody declared it")
