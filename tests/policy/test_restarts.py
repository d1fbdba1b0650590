"""When a dead worker is started again, with a clock that the test turns."""

from __future__ import annotations

import pytest

from shardmem.policy import Restarts, WorkerDeath
from shardmem.policy.restarts import BOOT_CRASHES, FORGOTTEN_AFTER, LONGEST_WAIT, NARROWING


def idle(seconds: float = 1.0) -> WorkerDeath:
    return WorkerDeath("killed by SIGKILL", ready=True, in_hand=False, seconds=seconds)


def test_a_first_death_without_a_batch_in_hand_is_chance_and_later_waits_double_up_to_the_longest():
    restarts, now, waits = Restarts(most=100), 0.0, []
    for _ in range(10):
        verdict = restarts.ended(0, idle(), now)
        waits.append(verdict.delay)
        now += verdict.delay + 1.0
    assert [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2] == pytest.approx(waits[:7]) and {LONGEST_WAIT} == set(waits[7:])


def test_a_long_life_makes_the_waits_forgotten():
    restarts = Restarts()
    assert [0.0, 0.1] == [restarts.ended(0, idle(), now).delay for now in (0.0, 1.0)]
    assert 0.0 == restarts.ended(0, idle(FORGOTTEN_AFTER), 100.0).delay


def test_more_restarts_than_the_budget_within_the_window_are_the_end_and_the_reason_says_cause_and_count():
    restarts = Restarts(most=3, window=60.0)
    assert all(restarts.ended(0, idle(), now).delay is not None for now in (0.0, 10.0, 20.0))
    verdict = restarts.ended(0, idle(), 30.0)
    assert verdict.delay is None and not verdict.boot
    assert "3 times within 60 s" in verdict.reason and "killed by SIGKILL" in verdict.reason


def test_restarts_spread_wider_than_the_window_go_on_for_ever():
    restarts = Restarts(most=3, window=60.0)
    assert all(restarts.ended(0, idle(), 21.0 * turn).delay is not None for turn in range(1000))


def test_a_budget_of_no_restarts_gives_up_at_the_first_death():
    assert Restarts(most=0).ended(0, idle(), 0.0).delay is None


def test_a_batch_that_is_being_narrowed_down_is_tried_again_at_once_and_takes_nothing_from_the_budget():
    restarts = Restarts(most=1)
    waits = [
        restarts.ended(0, WorkerDeath("died", ready=True, in_hand=True, seconds=0.1, progress=7), 0.0).delay
        for _ in range(15)
    ]
    assert 0.0 == waits[0] and waits == sorted(waits) and 0.1 == waits[-1] < 0.11
    assert restarts.ended(0, idle(), 0.0).delay is not None


def test_deaths_with_a_batch_in_hand_end_when_nothing_at_all_is_handled_between_them():
    restarts, verdicts = Restarts(), []
    for _ in range(NARROWING):
        verdicts.append(restarts.ended(0, WorkerDeath("died", ready=True, in_hand=True, seconds=0.1, progress=7), 0.0))
    assert all(verdict.delay is not None for verdict in verdicts[:-1]) and verdicts[-1].delay is None
    assert "handled nothing in between" in verdicts[-1].reason


def test_deaths_with_a_batch_in_hand_go_on_as_long_as_something_is_handled():
    restarts = Restarts()
    lives = [
        WorkerDeath("died", ready=True, in_hand=True, seconds=0.1, progress=turn // (NARROWING - 1))
        for turn in range(1000)
    ]
    assert all(restarts.ended(0, life, 0.0).delay is not None for life in lives)


def test_crashes_before_ready_are_a_boot_failure_after_three_in_a_row():
    restarts = Restarts()
    early = WorkerDeath("killed by SIGSEGV", ready=False, in_hand=False, seconds=0.1)
    assert [0.1, 0.2] == [restarts.ended(0, early, 0.0).delay for _ in range(BOOT_CRASHES - 1)]
    assert restarts.ended(0, idle(), 0.0).delay is not None  # it was ready once: the count begins again
    verdicts = [restarts.ended(0, early, 0.0) for _ in range(BOOT_CRASHES)]
    assert [None] == [verdict.delay for verdict in verdicts if verdict.delay is None] and verdicts[-1].boot
    assert "3 times in a row before it was ready" in verdicts[-1].reason and "SIGSEGV" in verdicts[-1].reason


def test_shards_do_not_pay_for_each_other_and_a_new_one_not_for_the_last_with_its_number():
    restarts = Restarts(most=1)
    assert restarts.ended(0, idle(), 0.0).delay is not None and restarts.ended(1, idle(), 0.0).delay is not None
    assert restarts.ended(0, idle(), 1.0).delay is None
    restarts.forget(0)
    assert 0.0 == restarts.ended(0, idle(), 2.0).delay
