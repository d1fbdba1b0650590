"""What is downstream is away: nothing is lost, quarantined or reordered, everything answers, and work resumes by
itself."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

import shardmem
from support.recorder import payload
from support.rig import PATIENCE, Rig, drained, slot_of, wait_until

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


def test_a_handler_that_cannot_be_opened_yet_waits_and_no_producer_is_refused(rig: Rig, engine_name: str) -> None:
    rules = {**settings(rig), "handler": "support.handlers.failing:AwayAtOpen"}
    with rig.engine(engine_name, min_shards=2, **rules) as engine, engine.producer() as producer:
        send(producer)
        wait_until(lambda: all_wait(engine), "every shard waits")
        for shard in engine.status()["shards"]:
            assert "open() of the handler: ConnectionError: the sink is away" in shard["reason"]
            assert (shard["state"], shard["crashes"], shard["phase"]) == ("active", 0, "booting")
        killed = engine.status()["shards"][0]
        os.kill(killed["pid"], signal.SIGKILL)
        wait_until(lambda: engine.status()["shards"][0]["pid"] != killed["pid"] and all_wait(engine), "again", 60)
        with pytest.raises(TimeoutError):
            producer.flush(0.3)

        answer = engine.scale_to(3, timeout=600)
        assert not answer["done"] and 2 == answer["waiting_for"][0]["shard"], answer
        assert "its open() waits and tries again: open() of the handler: Conn" in answer["waiting_for"][0]["text"]
        reloaded = engine.reload(timeout=600)["reloaded"]
        assert [{"from": shard, "to": shard} for shard in range(3)] == sorted(reloaded, key=lambda each: each["from"])
        (rig.directory / "away").unlink()
        producer.flush(PATIENCE)
        wait_until(lambda: [0, 1, 2] == [shard["id"] for shard in engine.status()["shards"]], "the third has joined")
        expect_all_in_order(rig, drained(engine), SENT)


def test_what_waits_for_the_sink_is_said_at_once_and_done_when_it_is_back(rig: Rig, engine_name: str) -> None:
    """The deadline of each command is ten minutes, which nobody waits for."""
    with rig.engine(engine_name, min_shards=3, **settings(rig)) as engine, engine.producer() as producer:
        send(producer)
        wait_until(lambda: all_wait(engine), "every shard waits")
        slot = slot_of(0)
        owner = slot % 3
        answers = {
            "move": engine.move(slot, (owner + 1) % 3, timeout=600),
            "drain": engine.drain(2, timeout=600),
            "scale": engine.scale_to(1, timeout=600),
        }
        for what, answer in answers.items():
            assert not answer["done"], what
            for each in answer["waiting_for"]:
                assert "waits and tries again: ConnectionError: the sink is away" in each["text"], what
        (rig.directory / "away").unlink()
        producer.flush(PATIENCE)
        wait_until(lambda: [0] == [shard["id"] for shard in engine.status()["shards"]], "one shard is left", 60)
        expect_all_in_order(rig, drained(engine), SENT)


def test_while_every_shard_waits_commands_answer_and_slots_go_on_in_order(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=2, **settings(rig)) as engine, engine.producer() as producer:
        send(producer)
        wait_until(lambda: all_wait(engine), "every shard waits")
        assert engine.scale_to(3, timeout=600)["done"]
        assert [0, 1, 2] == [shard["id"] for shard in engine.status()["shards"] if shard["state"] == "active"]
        engine.move([1, 2, 3], 2, timeout=2)
        send(producer, SENT)
        before = {shard["id"]: shard["pid"] for shard in engine.status()["shards"]}
        assert engine.reload(timeout=600)["done"]
        after = {shard["id"]: shard["pid"] for shard in engine.status()["shards"]}
        assert not set(before.values()) & set(after.values()), "workers that wait are started again in their place"
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
