"""Random commands under full load while one shard fails and one is stuck, at random moments: nothing lost or reordered,
one owner at a time, and every command is answered by its deadline.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem import ShardmemError
from support.elastic_load import KEYS, ROW, SLOTS, Sick, Traffic, read_logs, violations
from support.rig import wait_until

DEADLINE, GRACE = 1.0, 20.0  # seconds; the machine may be busy
SETTLED = 60.0


def command(engine: shardmem.Engine, chance: random.Random, shards: list[int]) -> tuple[str, Callable[[], Any]]:
    """One that may well be refused."""
    shard, slots = chance.choice(shards), chance.sample(range(SLOTS), chance.randint(1, SLOTS // 2))
    count = chance.randint(1, 4)
    return chance.choice(
        [
            (f"scale {count}", lambda: engine.scale_to(count, timeout=DEADLINE)),
            (f"move to {shard}", lambda: engine.move(slots, shard, timeout=DEADLINE)),
            (f"pin to {shard}", lambda: engine.pin(slots, shard, timeout=DEADLINE)),
            ("unpin", lambda: engine.unpin(slots)),
            ("rebalance", lambda: engine.rebalance(timeout=DEADLINE)),
            (f"drain {shard}", lambda: engine.drain(shard, timeout=DEADLINE)),
            (f"cordon {shard}", lambda: engine.cordon(shard)),
            (f"uncordon {shard}", lambda: engine.uncordon(shard)),
            ("suspend", engine.suspend_moves),
            ("resume", engine.resume_moves),
            ("reload", lambda: engine.reload(timeout=DEADLINE)),
        ]
    )


def tell(directory: Path, chance: random.Random, shards: list[int]) -> None:
    """A shard falls sick, or gets well."""
    path = directory / chance.choice(["fails", "stuck"])
    if path.exists():
        path.unlink()
    else:
        (directory / "telling").write_text(str(chance.choice(shards)))
        (directory / "telling").replace(path)


def answered(name: str, call: Callable[[], Any], told: list[str]) -> None:
    began = time.monotonic()
    try:
        answer = call()
        if isinstance(answer, dict) and answer.get("done") is False and not answer["waiting_for"]:
            told.append(f"{name}: not done, and nobody is waited for: {answer}")
    except ShardmemError:
        pass  # refused, or what it needs has failed meanwhile
    if time.monotonic() - began > DEADLINE + GRACE:
        told.append(f"{name}: answered after {time.monotonic() - began:.1f} s")


@pytest.mark.timeout(300)
def test_random_commands_while_shards_fail_and_are_stuck_are_answered_and_lose_and_reorder_nothing(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("SHARDMEM_SEED", uuid.uuid4().int % 10**6))
    print(f"SHARDMEM_SEED={seed}")
    chance, told = random.Random(seed), list[str]()
    with shardmem.Engine(
        handler=Sick(str(tmp_path)),
        dtype=ROW,
        key="key",
        min_shards=1,
        max_shards=4,
        slots=SLOTS,
        lane_bytes=1 << 15,
        on_error="stop",
        log_level="error",
        state_dir=str(tmp_path),
    ) as engine:
        engine.scale_to(3)
        traffic = Traffic(engine.name, 3, 0.002)
        for _ in range(int(os.environ.get("SHARDMEM_COMMANDS", 8))):
            shards = [each["id"] for each in engine.status()["shards"]]
            if chance.random() < 0.5:
                tell(tmp_path, chance, shards)
            batch = [command(engine, chance, shards) for _ in range(chance.choice([1, 1, 1, 3]))]
            threads = [threading.Thread(target=answered, args=(*each, told)) for each in batch]
            for thread in threads:
                thread.start()
            for (name, _), thread in zip(batch, threads):
                thread.join(DEADLINE + 3 * GRACE)
                assert not thread.is_alive(), f"{name} was not answered"
        for name in ("fails", "stuck"):
            (tmp_path / name).unlink(missing_ok=True)

        before: dict[tuple[int, int], int] = {}  # what a shard had handled when none was told to fail any more

        def goes_on(shard: Any) -> bool:
            return not shard["slots"] or shard["handled"] > before.setdefault(
                (shard["id"], shard["incarnation"]), shard["handled"]
            )

        def well() -> bool:
            """What has failed is started again, by the reload, until nothing is sick or on its way. A handler that was
            told before may raise a little later, while its shard is still called active: it handles nothing then."""
            for shard in engine.resume_moves()["cordoned"]:  # a shard drains only when another takes its slots
                engine.uncordon(shard)
            status = engine.status()
            states = {each["state"] for each in status["shards"]}
            if "failed" in states:
                answered("the last reload", lambda: engine.reload(timeout=DEADLINE), [])
            return states == {"active"} and not status["handoffs"] and all(goes_on(each) for each in status["shards"])

        wait_until(well, "all are well", SETTLED)
        sent = traffic.stop()
        wait_until(lambda: engine.status()["accounting"]["in_flight"] == 0, "everything is handled", SETTLED)
        accounting = engine.status()["accounting"]
        assert accounting["accepted"] == accounting["handled"] == sum(sent.values()) * KEYS, accounting
    assert told == []
    assert [] == violations(read_logs(tmp_path), sent)
