"""Two hosts in one group: whatever happens to one of them nothing is lost and the order of first handling is kept;
nothing is repeated when partitions move as planned, or when only a source or a supervisor dies. On Apache Kafka with
three brokers also: state is exactly once, guarded sinks are exact, and a host that was away handles nothing old."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from support.hosts import Hosts

EVENTS = int(os.environ.get("SHARDMEM_EVENTS", 3000))
RUNS = int(os.environ.get("SHARDMEM_RUNS", 1))
MORE = EVENTS >= 10_000
PACE = 15_000 if MORE else 3000  # events of a second
ON_KAFKA = 6000  # three brokers have their share of the machine


def seed_of(run: int) -> int:
    seed = int(os.environ.get("SHARDMEM_SEED", time.time_ns() // 1000 % 10**6)) + run
    print(f"SHARDMEM_SEED={seed}", flush=True)
    return seed


def expect_good(hosts: Hosts, seed: int, began: float, **more: object) -> None:
    print(
        json.dumps(
            {
                "seed": seed,
                **more,
                "events": len(hosts.offered),
                "seconds": round(time.monotonic() - began),
                "repeated": hosts.repeated,
                "late": hosts.late,
                "stale": hosts.stale,
                "faults": hosts.faults,
                "violations": len(hosts.violations),
            }
        ),
        flush=True,
    )
    assert not hosts.violations, "\n".join([f"SHARDMEM_SEED={seed}", *hosts.violations[:20]])


@pytest.mark.timeout(400 + EVENTS / 500)
@pytest.mark.parametrize("run", range(RUNS))
def test_two_hosts_lose_nothing_keep_the_order_and_repeat_only_what_they_have_to(
    tmp_path: Path, engine_name: str, run: int
) -> None:
    from support.brokers.groups import FakeGroup

    seed, began, group = seed_of(run), time.monotonic(), FakeGroup(tmp_path)
    hosts = Hosts(tmp_path, engine_name[:24], group, seed, EVENTS, PACE)
    with hosts.running():
        hosts.phase(group.planned, EVENTS // 2, 5 if MORE else 1)
        hosts.judge(duplicates=0)
        if not hosts.violations:
            hosts.phase(group.others, EVENTS - EVENTS // 2, 5 if MORE else 1)
            hosts.judge(duplicates=None)
        hosts.stop()
    expect_good(hosts, seed, began)


@pytest.mark.timeout(1800 + EVENTS / 250)
@pytest.mark.skipif(not MORE, reason="three brokers of Apache Kafka: tox -e hosts")
@pytest.mark.parametrize("run", range(RUNS))
def test_two_hosts_on_three_brokers_keep_every_promise_whatever_is_killed_frozen_or_cut_off(
    tmp_path: Path, engine_name: str, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.brokers import kafka

    if (why := kafka.why_not()) is not None:
        pytest.skip(why)
    from support.brokers.groups import KafkaGroup

    seed, began = seed_of(run), time.monotonic()
    name = f"{engine_name[:20]}-{seed}"
    group = KafkaGroup(tmp_path, ("classic", "consumer")[seed % 2])
    monkeypatch.setenv("SINK", group.sink)
    with group.running([f"{name}-a", f"{name}-b"]):
        hosts = Hosts(tmp_path, name, group, seed, EVENTS, ON_KAFKA)
        with hosts.running():
            for faults, duplicates in ((group.planned, 0), (group.others, None)):
                hosts.phase(faults, EVENTS // 2, len(faults))
                hosts.judge(duplicates)
                hosts.violations += group.judge(hosts.hosts, hosts.numbers)
                if hosts.violations:
                    break
            hosts.stop()
        network = type(next(iter(group.networks.values()))).__name__
    expect_good(hosts, seed, began, protocol=group.protocol, network=network)
