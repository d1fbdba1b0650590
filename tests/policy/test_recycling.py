"""Which worker has lived long enough."""
from __future__ import annotations

import pytest

from shardmem.policy import Recycling


@pytest.mark.parametrize("limits, life, part", [
    (dict(batches=10), (10, 0.0, 0), "recycle_batches=10"), (dict(age=60.0), (0, 61.0, 0), "recycle_age=60 s"),
    (dict(rss=1000), (0, 0.0, 1000), "recycle_rss=1,000"), (dict(batches=10), (9, 1e9, 1 << 40), None),
    (dict(age=60.0), (1 << 40, 59.0, 1 << 40), None), ({}, (1 << 40, 1e9, 1 << 40), None),
])
def test_a_worker_is_due_at_its_limit_and_at_no_other(limits, life, part):
    why = Recycling(**limits).due(*life)
    assert (why is None) if part is None else part in why
    assert Recycling(**limits).wanted == bool(limits)
