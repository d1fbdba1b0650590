"""Stuck is told from slow, slow from busy, busy from idle."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardmem.policy import Facts, Limits, condition_of, stuck

IDLE = Facts(state="active", phase="ready", alive=True, quiet=0.05, in_hand=None)
LIMITS = Limits(stall=30.0, batch=60.0, boot=30.0)


@pytest.mark.parametrize(
    "changes, word, part",
    [
        ({}, "idle", "nothing"),
        ({"in_hand": 0.1, "in_flight": 5}, "busy", "5 events"),
        ({"in_flight": 5}, "busy", "5 events"),
        ({"in_hand": 5.0, "quiet": 5.0, "in_flight": 5}, "slow", "in hand for 5 s"),
        ({"in_flight": 5, "fill": 0.9}, "slow", "90% full"),
        ({"in_flight": 5, "fill": 0.3, "filled_before": 0.1}, "slow", "rising"),
        ({"in_flight": 5, "fill": 0.1, "filled_before": 0.0}, "busy", "5 events"),
        ({"quiet": 31.0}, "stuck", "stall_timeout=30 s"),
        ({"quiet": 90.0, "in_hand": 59.0}, "slow", "in hand for 59 s"),
        ({"quiet": 90.0, "in_hand": 61.0}, "stuck", "batch_deadline=60 s"),
        ({"phase": "booting", "quiet": 5.0}, "starting", "not ready"),
        (
            {"phase": "booting", "waiting": 2.0, "error": "open() of the handler: away"},
            "waiting",
            "away; waiting for 2 s",
        ),
        ({"phase": "booting", "waiting": 2.0}, "waiting", "its next worker starts; waiting for 2 s"),
        ({"phase": "booting", "quiet": 31.0}, "stuck", "boot_timeout=30 s"),
        ({"alive": False, "quiet": 99.0}, "dead", "no worker"),
        ({"state": "failed", "alive": False, "error": "boom"}, "failed", "boom"),
        ({"state": "stopped"}, "stopped", "told to end"),
    ],
)
def test_a_shard_is_in_one_condition_and_the_reason_says_why(changes, word, part):
    found, reason = condition_of(replace(IDLE, **changes), LIMITS)
    assert word == found and part in reason


def test_a_dead_worker_that_is_to_be_started_again_says_when():
    assert ("restarting", "its worker ended; the next one comes in 0.4 s") == condition_of(
        replace(IDLE, alive=False), LIMITS, 0.4
    )


def test_a_batch_may_take_as_long_as_it_likes_without_a_deadline():
    assert stuck(replace(IDLE, quiet=1e6, in_hand=1e6), Limits()) is None


def test_a_dead_worker_is_not_stuck():
    assert stuck(replace(IDLE, alive=False, quiet=1e6), LIMITS) is None
