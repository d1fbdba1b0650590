"""What is downstream is away: nothing is lost, quarantined or reordered, everything answers, and work resumes by
itself."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import shardmem
from support.recorder import payload
from support.rig import PATIENCE, Rig, drained, wait_until

KEYS, SENT = 40, 400


def settings(rig: Rig) -> dict[str, Any]:
    rig.tell("away", "yes")
    return {"handler": "support.handlers.failing:Away", "auto_scale": False, "max_shards": 4, "retry_max_wait": 0.5}


def send(producer: shardmem.Producer, first: int = 0) -> None:
    numbers = range(first, first + SENT)
    keys = [number % KEYS for number in numbers]
    producer.push_many(keys, [payload(1, key, number) for key, number in zip(keys, numbers)])


def all_wait(engine: shardmem.Engine) -> bool:
    shards = [shard for shard in engine.status()["shards"] if shard["in_flight"]]
    return bool(shards) and all(shard["condition"] == "waiting" for shard in shards)


def expect_all_in_order(rig: Rig, status: Any, count: int) -> None:
    assert (count, 0, 0) == tuple(status["accounting"][name] for name in ("handled", "quarantined", "in_flight"))
    rows = rig.logs().handled["number"].tolist()
    assert sorted(rows) == list(range(count))
    for key in range(KEYS):
        mine = [number for number in rows if number % KEYS == key]
        assert mine == sorted(mine), f"key {key} is out of order"


def test_an_outage_outlives_worker_and_supervisor_and_all_is_handled_in_order_after_it(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, min_shards=2, **settings(rig)) as engine, engine.producer() as producer:
        send(producer)
        wait_until(lambda: all_wait(engine), "every shard waits")
        shard = engine.status()["shards"][0]
        assert "ConnectionError: the sink is away" in shard["reason"] and shard["waiting_s"] >= 0
        assert {"waiting"} == {each["kind"] for each in engine.status()["findings"] if each["level"] != "info"}
        os.kill(shard["pid"], signal.SIGKILL)
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        send(producer, SENT)
        wait_until(
            lambda: (
                engine.status()["supervisor"]["incarnation"] == 2
                and engine.status()["shards"][0]["pid"] != shard["pid"]
            ),
            "both have successors",
            timeout=PATIENCE,
        )
        wait_until(lambda: all_wait(engine), "every shard waits again", timeout=PATIENCE)
        assert 0 == engine.status()["accounting"]["handled"]
        (rig.directory / "away").unlink()
        producer.flush(PATIENCE)
        expect_all_in_order(rig, drained(engine), 2 * SENT)


def test_while_every_shard_waits_commands_answer_and_slots_go_on_in_order(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=2, **settings(rig)) as engine, engine.producer() as producer:
        send(producer)
        wait_until(lambda: all_wait(engine), "every shard waits")
        engine.scale_to(3, timeout=2)
        wait_until(lambda: len([s for s in engine.status()["shards"] if s["state"] == "active"]) == 3, "a shard more")
        engine.move([1, 2, 3], 2, timeout=2)
        send(producer, SENT)
        before = {shard["id"]: shard["pid"] for shard in engine.status()["shards"]}
        engine.reload(timeout=2)
        wait_until(
            lambda: all(shard["pid"] != before.get(shard["id"]) for shard in engine.status()["shards"][:2]),
            "workers that wait are started again in their place",
            timeout=PATIENCE,
        )
        wait_until(lambda: any(s["condition"] == "waiting" for s in engine.status()["shards"]), "they wait too")
        (rig.directory / "away").unlink()
        producer.flush(PATIENCE)
        wait_until(lambda: not engine.status()["handoffs"], "slots have arrived", timeout=PATIENCE)
        expect_all_in_order(rig, drained(engine), 2 * SENT)


def test_a_stop_in_an_outage_ends_and_the_next_run_handles_what_stayed(rig: Rig, engine_name: str) -> None:
    rules = settings(rig)
    with rig.engine(engine_name, shards=1, **rules) as engine, engine.producer() as producer:
        send(producer)
        wait_until(lambda: all_wait(engine), "the shard waits")
        began = time.monotonic()
    assert time.monotonic() - began < 5 + 20
    (rig.directory / "away").unlink()
    with rig.engine(engine_name, shards=1, **rules) as engine:
        expect_all_in_order(rig, drained(engine), SENT)
