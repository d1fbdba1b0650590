"""When a dead worker is started again, with a clock that the test turns."""

from __future__ import annotations

import pytest

from shardmem.policy import Restarts, WorkerDeath
from shardmem.policy.restarts import BOOT_CRASHES, FAILED_FROM, HEALTHY_AFTER, KILLS, LONGEST_WAIT, NARROWING


def idle(seconds: float = 1.0) -> WorkerDeath:
    return WorkerDeath("killed by SIGSEGV", ready=True, in_hand=False, seconds=seconds)


def in_hand(progress: int = 7) -> WorkerDeath:
    return WorkerDeath("died", ready=True, in_hand=True, seconds=0.1, progress=progress)


def killed(*, ready: bool = True, in_hand: bool = False, seconds: float = 0.3, progress: int = 0) -> WorkerDeath:
    return WorkerDeath("killed by SIGKILL", ready, in_hand, seconds, progress, outside=True)


def test_a_first_death_without_a_batch_in_hand_is_chance_and_later_waits_double_up_to_the_longest():
    restarts, now, waits = Restarts(most=100), 0.0, []
    for _ in range(14):
        verdict = restarts.ended(0, idle(), now)
        waits.append(verdict.delay)
        now += verdict.delay + 1.0
    assert [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6] == pytest.approx(waits[:10])
    assert {LONGEST_WAIT} == set(waits[10:])


def test_a_long_life_makes_the_waits_forgotten():
    restarts = Restarts()
    assert [0.0, 0.1] == [restarts.ended(0, idle(), now).delay for now in (0.0, 1.0)]
    assert 0.0 == restarts.ended(0, idle(HEALTHY_AFTER), 100.0).delay


def test_more_deaths_than_the_budget_within_the_window_are_a_failure_with_cause_and_count_and_it_goes_on():
    restarts = Restarts(most=3, window=60.0)
    assert [None] * 3 == [restarts.ended(0, idle(), now).failed for now in (0.0, 10.0, 20.0)]
    verdict = restarts.ended(0, idle(), 30.0)
    assert verdict.failed is not None and 0 < verdict.delay <= LONGEST_WAIT
    assert "4 times within 60 s" in verdict.failed and "killed by SIGSEGV" in verdict.failed


def test_a_shard_that_waits_for_long_counts_as_failed_until_its_next_worker():
    restarts, now = Restarts(most=1000), 0.0
    for _ in range(20):
        verdict = restarts.ended(0, idle(), now)
        assert (verdict.failed is not None) == (verdict.delay >= FAILED_FROM)
        now += verdict.delay + 1.0


def test_a_budget_of_none_fails_at_the_first_death():
    assert Restarts(most=0).ended(0, idle(), 0.0).failed is not None


def test_a_batch_that_is_being_narrowed_down_is_tried_again_at_once_and_takes_nothing_from_the_budget():
    restarts = Restarts(most=1)
    waits = [restarts.ended(0, in_hand(), 0.0).delay for _ in range(15)]
    assert 0.0 == waits[0] and waits == sorted(waits) and 0.1 == waits[-1] < 0.11
    assert restarts.ended(0, idle(), 0.0).failed is None


def test_deaths_with_a_batch_in_hand_fail_when_nothing_at_all_is_handled_between_them_and_are_tried_for_ever():
    restarts = Restarts()
    verdicts = [restarts.ended(0, in_hand(), 0.0) for _ in range(NARROWING + 20)]
    assert all(verdict.failed is None for verdict in verdicts[: NARROWING - 1])
    assert "handled nothing in between" in str(verdicts[NARROWING - 1].failed)
    assert LONGEST_WAIT == verdicts[-1].delay


def test_deaths_with_a_batch_in_hand_go_on_as_long_as_something_is_handled():
    restarts = Restarts()
    lives = [in_hand(turn // (NARROWING - 1)) for turn in range(1000)]
    assert all(restarts.ended(0, life, 0.0).failed is None for life in lives)


def test_crashes_before_ready_are_a_failure_after_three_in_a_row_and_are_tried_for_ever():
    restarts = Restarts()
    early = WorkerDeath("killed by SIGSEGV", ready=False, in_hand=False, seconds=0.1)
    first = [restarts.ended(0, early, 0.0) for _ in range(BOOT_CRASHES - 1)]
    assert [0.1, 0.2] == [verdict.delay for verdict in first] and not any(verdict.failed for verdict in first)
    assert restarts.ended(0, idle(), 0.0).failed is None  # it was ready once: the count begins again
    verdicts = [restarts.ended(0, early, 0.0) for _ in range(30)]
    assert "3 times in a row before it was ready" in str(verdicts[BOOT_CRASHES - 1].failed)
    assert "SIGSEGV" in str(verdicts[-1].failed) and LONGEST_WAIT == verdicts[-1].delay


def test_kills_from_outside_are_not_held_against_the_handler():
    restarts = Restarts(most=3)
    lives = [killed(in_hand=turn % 2 == 0, progress=turn) for turn in range(600)]
    assert {(0.0, None)} == {restarts.ended(0, life, 0.3 * turn) for turn, life in enumerate(lives)}
    assert 0.0 == restarts.ended(0, idle(), 200.0).delay


def test_kills_that_leave_no_life_of_use_are_waited_for_like_any_other_death():
    restarts = Restarts()
    verdicts = [restarts.ended(0, killed(ready=False), 0.0) for _ in range(KILLS + 20)]
    assert {0.0} == {verdict.delay for verdict in verdicts[:KILLS]}
    assert LONGEST_WAIT == verdicts[-1].delay and verdicts[-1].failed is not None
    assert 0.0 == restarts.ended(0, killed(), 0.0).delay  # one of use: the count begins again
    assert 0.0 == restarts.ended(0, killed(ready=False), 0.0).delay


def test_an_event_that_the_kernel_kills_the_worker_for_is_narrowed_down_and_then_fails_the_shard():
    restarts = Restarts()
    verdicts = [restarts.ended(0, killed(in_hand=True, progress=7), 0.0) for _ in range(NARROWING + 1)]
    assert {(0.0, None)} == set(verdicts[: NARROWING - 1]) and verdicts[-1].failed is not None


def test_shards_do_not_pay_for_each_other_and_a_new_one_not_for_the_last_with_its_number():
    restarts = Restarts(most=1)
    assert restarts.ended(0, idle(), 0.0).failed is None and restarts.ended(1, idle(), 0.0).failed is None
    assert restarts.ended(0, idle(), 1.0).failed is not None
    restarts.forget(0)
    assert 0.0 == restarts.ended(0, idle(), 2.0).delay
