"""Which worker has lived long enough."""

from __future__ import annotations

import pytest

from shardmem.policy import Recycling
from shardmem.policy.recycling import YOUNG


@pytest.mark.parametrize(
    "limits, life, part",
    [
        ({"batches": 10}, (10, 0.0, 0), "recycle_batches=10"),
        ({"age": 60.0}, (0, 61.0, 0), "recycle_age=60 s"),
        ({"rss": 1000}, (0, 0.0, 1000), "recycle_rss=1,000"),
        ({"batches": 10}, (9, 1e9, 1 << 40), None),
        ({"age": 60.0}, (1 << 40, 59.0, 1 << 40), None),
        ({}, (1 << 40, 1e9, 1 << 40), None),
    ],
)
def test_a_worker_is_due_at_its_limit_and_at_no_other(limits, life, part):
    why = Recycling(**limits).due(*life)
    assert (why is None) if part is None else part in why
    assert Recycling(**limits).wanted == bool(limits)


@pytest.mark.parametrize(
    "rss, base, watched, is_due",
    [
        (1000, 400, YOUNG, True),
        (1 << 40, 400, YOUNG - 1, False),
        (1999, 1000, 1e9, False),
        (2000, 1000, YOUNG, True),
        (1000, 0, YOUNG, True),
    ],
)
def test_a_worker_is_not_replaced_for_memory_that_a_fresh_one_takes_too(rss, base, watched, is_due):
    assert is_due == (Recycling(rss=1000).due(0, 1e9, rss, base, watched) is not None)
