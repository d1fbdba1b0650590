"""Whatever dies, at whatever moment, together or one after the other: every promise is kept."""

from __future__ import annotations

import json
import os
import time

import pytest

from support.chaos import Chaos
from support.rig import Rig

SECONDS = float(os.environ.get("SHARDMEM_CHAOS_SECONDS", 6))


@pytest.mark.timeout(SECONDS * 2 + 200)
@pytest.mark.parametrize(
    "handler, stateful",
    [
        ("support.handlers.counting:Lingering", False),
        ("support.handlers.counting:Counting", True),
        pytest.param(
            "support.handlers.counting:CountingByKey",
            True,
            marks=pytest.mark.skipif("SHARDMEM_CHAOS_SECONDS" not in os.environ, reason="tox -e stress, chaos"),
        ),
    ],
)
def test_whatever_is_killed_at_random_every_promise_is_kept(
    rig: Rig, engine_name: str, handler: str, stateful: bool
) -> None:
    seed = int(os.environ.get("SHARDMEM_SEED", time.time_ns() // 1000 % 10**6))
    print(f"SHARDMEM_SEED={seed}")
    chaos = Chaos(rig, engine_name, handler, stateful=stateful, seed=seed, seconds=SECONDS)
    chaos.run()
    print(json.dumps(chaos.figures))
    assert not chaos.violations, "\n".join([f"SHARDMEM_SEED={seed}, logs in {rig.directory}", *chaos.violations[:20]])
