"""A strategy of the user's own is asked in a thread, and nothing waits for what it thinks."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shardmem.policy import LeastSlots, Move, Plan, Undecided, View
from shardmem.supervisor.thinking import Thinking

PATIENCE = 60.0
ALL_ON_ONE = View.of([0, 0, 0, 0], [0, 1])


class Gated:
    """Says what it is told to, when it is let."""

    def __init__(self) -> None:
        self.open, self.asked = threading.Event(), list[View]()
        self.says: list[Move] | Exception = [Move(0, 0, 1), Move(1, 0, 1)]

    def allocate(self, slot: int, view: View) -> int:
        raise AssertionError("while it thinks it is asked nothing else")

    def rebalance(self, view: View) -> list[Move]:
        self.asked.append(view)
        assert self.open.wait(PATIENCE)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def gated() -> Iterator[Gated]:
    strategy = Gated()
    yield strategy
    strategy.open.set()


def answered(thinking: Thinking, strategy: Gated, view: View) -> Plan:
    """The plan, which comes with a later question."""
    for _ in range(10_000):
        try:
            return thinking.plan(strategy, view)
        except Undecided:
            if thinking._asked is not None:
                assert thinking._asked.answered.wait(PATIENCE)
    raise AssertionError("it never answers")


def test_a_strategy_that_thinks_is_not_waited_for_and_its_plan_comes_later(gated: Gated) -> None:
    thinking = Thinking()
    for _ in range(3):
        with pytest.raises(Undecided):
            thinking.plan(gated, ALL_ON_ONE)
    with pytest.raises(Undecided):
        thinking.allocate(gated, 0, ALL_ON_ONE)
    gated.open.set()
    assert answered(thinking, gated, ALL_ON_ONE).moves == gated.says
    assert gated.asked == [ALL_ON_ONE], "once"


def test_of_a_late_plan_what_was_overtaken_is_left_out(gated: Gated) -> None:
    thinking = Thinking()
    with pytest.raises(Undecided):
        thinking.plan(gated, ALL_ON_ONE)
    gated.open.set()
    assert answered(thinking, gated, View.of([1, 0, 0, 0], [0, 1])).moves == [Move(1, 0, 1)]


def test_a_late_plan_without_moves_says_nothing_of_shards_that_came_since(gated: Gated) -> None:
    thinking = Thinking()
    gated.says = []
    with pytest.raises(Undecided):
        thinking.plan(gated, ALL_ON_ONE)
    gated.open.set()
    three = View.of([0, 0, 0, 0], [0, 1, 2])
    assert answered(thinking, gated, three).moves == [] and gated.asked == [ALL_ON_ONE, three]


def test_what_it_raises_is_raised_where_it_is_asked(gated: Gated) -> None:
    thinking = Thinking()
    gated.says = KeyError("no plan")
    gated.open.set()
    with pytest.raises(KeyError, match="no plan"):
        answered(thinking, gated, ALL_ON_ONE)


def test_one_that_takes_long_is_told_of(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardmem.supervisor.thinking.SLOW", 0.0)
    thinking = Thinking()
    assert thinking.complaint == ""
    with pytest.raises(Undecided):
        thinking.plan(gated, ALL_ON_ONE)
    assert "for a plan" in thinking.complaint


def test_a_strategy_of_ours_is_asked_directly() -> None:
    thinking = Thinking()
    assert len(thinking.plan(LeastSlots(relative_limit=1.0), ALL_ON_ONE).moves) == 2 and thinking._thread is None
