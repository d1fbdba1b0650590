"""Slots move while events flow: nothing lost, repeated or reordered, one owner at a time, and the books balance."""

from __future__ import annotations

import os
import random
import sys
import threading
import uuid

import numpy as np
import pytest

import shardmem
from support.elastic_load import KEYS, LOG, ROW, SLOTS, Counter, Recorder, Traffic, read_logs, violations


def one_command(engine: shardmem.Engine, chance: random.Random) -> dict:
    active = [shard["id"] for shard in engine.status()["shards"] if shard["state"] == "active"]
    kind = chance.choice(["scale", "move", "move", "rebalance", "drain"])
    if kind == "scale":
        return engine.scale_to(chance.randint(1, 4))
    if kind == "move":
        return engine.move(chance.sample(range(SLOTS), chance.randint(1, SLOTS // 2)), chance.choice(active))
    if kind == "drain" and len(active) > 1:
        return engine.drain(chance.choice(active))
    return engine.rebalance()


def books(document: dict) -> None:
    a = document["accounting"]
    assert a["offered"] == a["accepted"] + sum(a["refused"].values()), a
    assert a["accepted"] == a["handled"] + a["quarantined"] + a["skipped"] + sum(a["shed"].values()) + a["in_flight"], a


@pytest.mark.parametrize("handler, commands, producers", [(Recorder, 16, 4), (Counter, 12, 2)])
def test_random_commands_under_full_load_lose_repeat_and_reorder_nothing(tmp_path, handler, commands, producers):
    seed = int(os.environ.get("SHARDMEM_SEED", uuid.uuid4().int % 10**6))
    print(f"SHARDMEM_SEED={seed}")
    chance = random.Random(seed)
    commands = int(os.environ.get("SHARDMEM_COMMANDS", commands))
    with shardmem.Engine(
        handler=handler(str(tmp_path)),
        dtype=ROW,
        key="key",
        shards=2,
        max_shards=4,
        slots=SLOTS,
        lane_bytes=1 << 15,
        state_dir=str(tmp_path),
    ) as engine:
        traffic, stop = Traffic(engine.name, producers), threading.Event()

        def watch() -> None:
            while not stop.wait(0.01):
                books(engine.status())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(commands):
                done = one_command(engine, chance)
                assert [] == done["late"]
        finally:
            stop.set()
            watcher.join()
            sent = traffic.stop()
        books(engine.status())
    total = sum(sent.values()) * KEYS
    assert total == engine.status()["accounting"]["handled"] == engine.status()["accounting"]["accepted"]
    assert [] == violations(read_logs(tmp_path), sent)


def log(*rows) -> np.ndarray:
    made = np.zeros(len(rows), LOG.descr + [("shard", "u4")])
    for i, (began, ended, slot, key, number, shard) in enumerate(rows):
        made[i] = (began, ended, slot, key, 0, number, shard)
    return made


@pytest.mark.parametrize(
    "planted, part",
    [
        ([(0, 1, 5, 0, 0, 0), (2, 3, 5, 0, 0, 0)], "handled twice"),
        ([(0, 1, 5, 0, 7, 0)], "never sent"),
        ([(0, 1, 5, 0, 1, 0), (2, 3, 5, 0, 0, 0)], "out of order"),
        ([(0, 5, 5, 0, 0, 0), (3, 6, 5, 0, 1, 1)], "two shards at a time"),
    ],
)
def test_the_checker_finds_a_planted_violation(planted, part):
    everything = [(100 + key, 101 + key, 6, key, number, 0) for key in range(1, KEYS) for number in range(2)]
    assert any(part in text for text in violations(log(*planted, *everything), {0: 2}))


def test_the_checker_finds_a_lost_event():
    assert any("lost" in text for text in violations(log((0, 1, 5, 0, 0, 0)), {0: 1}))


def test_going_from_n_to_n_plus_1_shards_moves_no_more_slots_than_it_must():
    with shardmem.Engine(handler="json:loads", shards=1, max_shards=4, slots=64) as engine:
        for shards in (2, 3, 4):
            done = engine.scale_to(shards)
            assert len(done["moved"]) <= -(-64 // shards)
            counts = [shard["slots"] for shard in engine.status()["shards"]]
            assert max(counts) - min(counts) <= 1 and 64 == sum(counts)
        assert [] == engine.rebalance()["moved"]


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda e: e.scale_to(9), "shards=9 is outside 1 to 2"),
        (lambda e: e.scale_to(0), "shards=0 is outside"),
        (lambda e: e.drain(7), "shard 7 is not active; active are [0]"),
        (lambda e: e.drain(0), "is the only one"),
        (lambda e: e.move("1-x", 0), "not a list of numbers or text"),
        (lambda e: e.move([64], 0), "slots 0 to 63"),
        (lambda e: e.move([1], 5), "shard 5 is not active"),
        (lambda e: e.move([], 0), "must name at least one"),
        (lambda e: e.move("0-99999999999999", 0), "slots 0 to 63"),
        (lambda e: e.scale_to("many"), "not a whole number or"),
    ],
)
def test_a_command_that_makes_no_sense_says_why_and_changes_nothing(call, part):
    with shardmem.Engine(handler="json:loads", shards=1, max_shards=2, slots=64) as engine:
        before = engine.status()["shards"][0]["slots"]
        with pytest.raises(shardmem.ConfigError) as caught:
            call(engine)
        assert part in str(caught.value)
        assert before == engine.status()["shards"][0]["slots"]


def test_a_new_worker_that_cannot_start_is_reported_and_the_engine_goes_on(tmp_path):
    (tmp_path / "second.py").write_text(
        "import shardmem, os\nclass H(shardmem.Handler):\n    def open(self, c):\n        if c.shard: raise "
        "RuntimeError('no second')\n"
        "    def handle(self, b): pass\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with shardmem.Engine(handler="second:H", shards=1, max_shards=2) as engine, engine.producer() as producer:
            with pytest.raises(shardmem.HandlerError, match="no second"):
                engine.scale_to(2)
            producer.push(1, b"x")
            producer.flush(10)
            assert [0] == [shard["id"] for shard in engine.status()["shards"]]
    finally:
        sys.path.remove(str(tmp_path))
