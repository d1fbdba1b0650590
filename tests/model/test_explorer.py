"""The explorer itself: a model is worth as much as what explores it."""

from __future__ import annotations

import pytest

from .explorer import Violation, explore, find_violation


def _counter(top):
    def steps(n):
        if n < top:
            yield "up", n + 1
        if n > 0:
            yield "down", n - 1

    return steps


def test_every_state_is_visited_once():
    found = explore(0, _counter(10), final=lambda n: n == 10)
    assert (found.states, found.transitions, found.depth) == (11, 20, 10)


def test_the_trace_to_a_violation_is_a_shortest_one_and_is_printed_step_by_step():
    def steps(n):
        yield "add one", n + 1
        yield "double", n * 2

    with pytest.raises(Violation) as caught:
        explore(1, steps, invariant=lambda n: "reached 12" if n == 12 else None, limit=10_000)
    assert caught.value.kind == "invariant"
    assert len(caught.value.trace) == 4  # 1 2 3 6 12: no way is shorter
    printed = str(caught.value).splitlines()
    assert len(printed) == 5 and "reached 12" in printed[0] and "12" in printed[-1]


def test_a_stuck_state_is_a_violation_unless_it_is_final():
    steps = {0: [("left", 1), ("right", 2)], 1: [], 2: []}.__getitem__
    found = find_violation(0, steps, final=lambda n: n == 1)
    assert found.kind == "stuck" and found.trace == [("right", 2)]
    assert explore(0, steps, final=lambda n: n > 0).states == 3


def test_a_livelock_is_a_violation_although_a_step_is_always_enabled():
    steps = {0: [("end", 1), ("fall", 2)], 1: [], 2: [("spin", 3)], 3: [("spin", 2)]}.__getitem__
    found = find_violation(0, steps, final=lambda n: n == 1)
    assert found.kind == "trap" and found.trace == [("fall", 2)]
    assert explore(0, steps, final=lambda n: n == 1, traps=False).states == 4


def test_an_unhelpful_step_is_no_way_out_of_a_trap():
    steps = {0: [("publish", 1)], 1: [("kill", 0)]}.__getitem__
    assert explore(0, steps, progress=lambda step: step == "publish").states == 2
    found = find_violation(0, steps, progress=lambda step: step == "publish", unhelpful=lambda step: step == "kill")
    assert found.kind == "trap" and found.trace == [("publish", 1)]


def test_a_model_that_outgrows_its_limit_fails_rather_than_stopping_early():
    with pytest.raises(RuntimeError, match="too big"):
        explore(0, _counter(100), final=lambda n: True, limit=50)
