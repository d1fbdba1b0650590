"""State through deaths and a handoff: every run ends with each event counted once and each timer fired once in the
state, and planted faults are caught."""

from __future__ import annotations

import functools

import pytest

from .explorer import explore, find_violation
from .state_model import Expiry, Faults, Model, expiry_final, expiry_invariant, expiry_steps


def test_each_event_is_counted_once_and_each_timer_fires_once_whoever_dies_whenever() -> None:
    explored = Model().explore()
    print(explored)
    assert explored.states > 400


@pytest.mark.parametrize("fault", Faults._fields)
def test_each_planted_fault_is_caught(fault: str) -> None:
    violation = Model(Faults(**{fault: True})).violation()
    assert violation is not None
    print(violation)


def wanted() -> dict:
    return {"invariant": expiry_invariant, "final": expiry_final, "unhelpful": lambda label: label == "dies"}


def test_a_value_expires_once_its_time_is_over_and_not_before_whatever_comes_at_the_same_time() -> None:
    assert explore(Expiry(), expiry_steps, **wanted()).states > 100


@pytest.mark.parametrize("fault", ["blind", "unarmed"])
def test_an_expiry_that_races_an_event_is_caught(fault: str) -> None:
    steps = functools.partial(expiry_steps, **{fault: True})
    assert find_violation(Expiry(), steps, **wanted()) is not None
