"""The machine is as weak as the hardware it stands for: the known litmus tests come out as they must.

Each runs two programs to their end and asks whether a forbidden or allowed outcome is reached.
"""

from __future__ import annotations

import pytest

from .explorer import explore
from .machine import (
    ACQUIRE,
    PLAIN,
    RELEASE,
    SEQ_CST,
    Machine,
    claim,
    increment,
    label,
    let,
    load,
    stop,
    store,
    wait,
    wake,
)


def _outcomes(order, left, right, words):
    machine = Machine({"left": [*left, stop()], "right": [*right, stop()]}, words, order)
    seen = set()

    def final(state):
        done = machine.at_end(state, "left") and machine.at_end(state, "right")
        if done:
            seen.add(tuple(value for process in state.procs for value in process.regs))
        return done

    explore(machine.initial(), machine.steps, invariant=machine.invariant, final=final)
    return seen


@pytest.mark.parametrize(
    "order, stores, loads, both_miss",
    [
        ("x86", RELEASE, ACQUIRE, True),
        ("x86", SEQ_CST, ACQUIRE, False),  # the store pays on x86, so an acquire load hides the mistake
        ("arm", SEQ_CST, ACQUIRE, True),
        ("arm", RELEASE, SEQ_CST, True),
        ("arm", SEQ_CST, SEQ_CST, False),
    ],
)
def test_two_that_store_and_then_look_can_miss_each_other_unless_all_four_accesses_are_seq_cst(
    order, stores, loads, both_miss
):
    left = [store("x", 1, stores), load("a", "y", loads)]
    right = [store("y", 1, stores), load("b", "x", loads)]
    assert ((0, 0) in _outcomes(order, left, right, {"x": 0, "y": 0})) == both_miss


@pytest.mark.parametrize(
    "order, data, flag, reordered",
    [("x86", PLAIN, PLAIN, False), ("arm", PLAIN, PLAIN, True), ("arm", PLAIN, RELEASE, False)],
)
def test_a_message_is_there_when_its_flag_is_if_the_flag_is_a_release_store(order, data, flag, reordered):
    left = [store("message", 1, data), store("flag", 1, flag)]
    right = [load("a", "flag"), load("b", "message")]
    assert ((1, 0) in _outcomes(order, left, right, {"message": 0, "flag": 0})) == reordered


@pytest.mark.parametrize(
    "order, after, overtaken", [("x86", PLAIN, False), ("arm", PLAIN, True), ("arm", RELEASE, False)]
)
def test_a_plain_store_may_overtake_a_release_store_before_it(order, after, overtaken):
    left = [store("first", 1, RELEASE), store("second", 1, after)]
    right = [load("a", "second"), load("b", "first")]
    assert ((1, 0) in _outcomes(order, left, right, {"first": 0, "second": 0})) == overtaken


@pytest.mark.parametrize("order", ["x86", "arm"])
def test_a_process_sees_its_own_stores_at_once(order):
    left = [store("x", 1, PLAIN), load("a", "x")]
    assert _outcomes(order, left, [], {"x": 0}) == {(1,)}


@pytest.mark.parametrize("order", ["x86", "arm"])
def test_a_wait_never_sleeps_through_a_value_that_has_changed(order):
    left = [let("expected", 0), wait("bell", "expected")]
    right = [increment("bell"), wake("bell")]
    assert _outcomes(order, left, right, {"bell": 0}) == {(0,)}


@pytest.mark.parametrize("order", ["x86", "arm"])
def test_a_store_made_before_a_kill_is_seen_by_the_successor(order):
    """The successor begins when the dead one's stores have drained, in whatever order that was."""
    program = [
        store("x", 1, PLAIN),
        store("y", 1, RELEASE),
        stop(),
        label("successor"),
        load("x", "x"),
        load("y", "y"),
        claim("y without x", lambda r: r.x or not r.y),
        stop(),
    ]
    machine = Machine({"one": program}, {"x": 0, "y": 0}, order, killable=["one"], kills=2)
    found = explore(
        machine.initial(), machine.steps, invariant=machine.invariant, final=lambda state: machine.at_end(state, "one")
    )
    assert found.states > 10, found


def test_time_passes_only_when_nothing_else_can_happen():
    sleeper = [let("expected", 0), wait("bell", "expected"), load("x", "x"), claim("woke early", lambda r: r.x), stop()]
    late = [store("x", 1, RELEASE), stop()]
    machine = Machine({"sleeper": sleeper, "late": late}, {"bell": 0, "x": 0}, "arm", expiries=1)
    explore(
        machine.initial(),
        machine.steps,
        invariant=machine.invariant,
        final=lambda state: machine.at_end(state, "sleeper"),
    )
