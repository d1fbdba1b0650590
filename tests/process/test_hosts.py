"""Two hosts in one group: whatever happens to one of them nothing is lost and the order of first handling is kept;
nothing is repeated when partitions move as planned, or when only a source or a supervisor dies."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from support.hosts import PLANNED, UNPLANNED, Hosts

EVENTS = int(os.environ.get("SHARDMEM_EVENTS", 3000))
RUNS = int(os.environ.get("SHARDMEM_RUNS", 1))
PACE = 3000 if EVENTS < 10_000 else 15_000  # events of a second
LEAST = 1 if EVENTS < 10_000 else 5  # faults of each phase


@pytest.mark.timeout(400 + EVENTS / 1000)
@pytest.mark.parametrize("run", range(RUNS))
def test_two_hosts_lose_nothing_keep_the_order_and_repeat_only_what_they_have_to(
    tmp_path: Path, engine_name: str, run: int
) -> None:
    seed = int(os.environ.get("SHARDMEM_SEED", time.time_ns() // 1000 % 10**6)) + run
    print(f"SHARDMEM_SEED={seed}")
    hosts = Hosts(tmp_path, engine_name[:24], seed, EVENTS, PACE)
    with hosts.running():
        hosts.phase(PLANNED, EVENTS // 2, LEAST)
        hosts.judge(duplicates=0)
        if not hosts.violations:
            hosts.phase(UNPLANNED, EVENTS - EVENTS // 2, LEAST)
            hosts.judge(duplicates=None)
        hosts.stop()
    print(json.dumps({"faults": hosts.faults, "events": len(hosts.offered), "repeated": hosts.repeated}))
    assert not hosts.violations, "\n".join([f"SHARDMEM_SEED={seed}, logs in {tmp_path}", *hosts.violations[:20]])
