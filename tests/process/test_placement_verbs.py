"""What is said of placement by hand: cordon, pin, moves suspended. It stands, is in `status`, and a takeover keeps
it."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import shardmem
from shardmem import ConfigError, ShardmemError
from shardmem.policy import Pinned
from support.recorder import payload
from support.rig import PATIENCE, Rig, wait_until

SLOTS = 32
ELASTIC: dict[str, Any] = {"slots": SLOTS, "min_shards": 2, "max_shards": 4}


def said(engine: shardmem.Engine) -> dict[str, Any]:
    """What the board has of placement."""
    status = engine.status()
    return {"cordoned": status["cordoned"], "pins": status["pins"], "suspended": status["moves"]["suspended"]}


def slots_of(engine: shardmem.Engine) -> dict[int, int]:
    return {shard["id"]: shard["slots"] for shard in engine.status()["shards"]}


def kinds(engine: shardmem.Engine) -> set[str]:
    return {each["kind"] for each in engine.status()["findings"]}


def test_a_cordoned_shard_keeps_what_it_has_and_takes_nothing_until_it_is_uncordoned(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, **ELASTIC) as engine:
        assert engine.cordon(1) == {"cordoned": [1], "pins": [], "suspended": False}
        engine.move(f"0-{SLOTS - 1}", 0)
        with pytest.raises(ConfigError, match="shard 1 is cordoned and takes no slots"):
            engine.move([0], 1)
        assert engine.rebalance()["moved"] == [] and slots_of(engine) == {0: SLOTS, 1: 0}
        wait_until(lambda: said(engine)["cordoned"] == [1], "status says so")
        assert engine.uncordon(1)["cordoned"] == []
        with pytest.raises(ConfigError, match="shard 1 is not cordoned"):
            engine.uncordon(1)
        engine.rebalance()
        assert slots_of(engine) == {0: SLOTS // 2, 1: SLOTS // 2}


def test_pinned_slots_stay_where_they_were_sent_until_they_are_unpinned(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, **ELASTIC) as engine:
        answer = engine.pin("0-19", 1)
        assert answer["done"] and answer["pins"] == [{"shard": 1, "slots": "0-19"}]
        engine.rebalance()
        owners = [engine.where(key) for key in range(200)]
        assert {each["shard"] for each in owners if each["slot"] < 20} == {1}
        wait_until(lambda: said(engine)["pins"] == answer["pins"], "status says so")
        assert engine.unpin("5-19")["pins"] == [{"shard": 1, "slots": "0-4"}]
        engine.rebalance()
        assert slots_of(engine) == {0: SLOTS // 2, 1: SLOTS // 2}


def test_suspended_moves_are_a_finding_and_what_is_asked_by_hand_goes_on(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, **ELASTIC) as engine:
        assert engine.suspend_moves()["suspended"]
        wait_until(lambda: "suspended" in kinds(engine), "status says so")
        assert engine.status()["moves"]["held_back"] == "moves are suspended by hand"
        assert engine.move([0, 2, 4, 6, 8, 10], 1)["done"] and slots_of(engine) == {0: 10, 1: 22}
        engine.scale_to(3)
        assert slots_of(engine) == {0: 10, 1: 22, 2: 0}
        assert engine.drain(0)["done"] and slots_of(engine) == {1: 22, 2: 10}
        assert not engine.resume_moves()["suspended"]
        wait_until(lambda: "suspended" not in kinds(engine), "status says so")


def test_what_was_said_by_hand_stands_when_another_supervisor_takes_over(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, **ELASTIC) as engine:
        engine.cordon(0)
        engine.pin("0-3,9", 1)
        engine.suspend_moves()
        before = said(engine)
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        assert before == {"cordoned": [0], "pins": [{"shard": 1, "slots": "0-3,9"}], "suspended": True}
        assert engine.unpin("0")["pins"] == [{"shard": 1, "slots": "1-3,9"}], "by the next supervisor"
        after = wait_until(lambda: said(engine) != before and said(engine), "status says so")
        assert after == {**before, "pins": [{"shard": 1, "slots": "1-3,9"}]}


def test_pins_that_there_is_no_room_to_keep_are_refused_and_change_nothing(rig: Rig, engine_name: str) -> None:
    slots = 4096
    with rig.engine(engine_name, slots=slots, shards=1) as engine:
        with pytest.raises(ConfigError, match="pin whole ranges"):
            engine.pin(range(0, slots, 2), 0)
        assert said(engine)["pins"] == []
        engine.pin(range(slots), 0)
        with pytest.raises(ConfigError, match="pin whole ranges"):
            engine.unpin(range(0, slots, 2))
        assert said(engine)["pins"] == [{"shard": 0, "slots": f"0-{slots - 1}"}]
        assert engine.unpin(range(slots))["pins"] == []


def test_a_pin_of_the_strategy_that_was_taken_back_stays_so_at_a_takeover(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, strategy=Pinned({0: 0, 1: 1}), **ELASTIC) as engine:
        assert engine.unpin([0])["pins"] == [{"shard": 1, "slots": "1"}]
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        assert engine.pin([2], 1)["pins"] == [{"shard": 1, "slots": "1-2"}], "by the next supervisor"


def test_a_strategy_that_raises_moves_nothing_by_itself_and_a_drain_is_completed_all_the_same(
    rig: Rig, engine_name: str
) -> None:
    with (
        rig.engine(engine_name, strategy="support.strategies:Raising", **ELASTIC) as engine,
        engine.producer() as producer,
    ):
        assert engine.scale_to(3)["moved"] == [], "it has no plan, and the new shard waits for one"
        complaint = "strategy Raising: rebalance raised KeyError: 'no\\nplan'"
        wait_until(lambda: engine.status()["moves"]["complaints"] == [complaint], "status says so")
        assert "strategy" in kinds(engine)
        with pytest.raises(ShardmemError, match="rebalance raised KeyError"):
            engine.rebalance()
        assert engine.drain(0)["done"]
        assert sum(slots_of(engine).values()) == SLOTS and 0 not in slots_of(engine)
        for number in range(100):
            producer.push(number, payload(1, number, number))
        producer.flush(PATIENCE)


def test_an_engine_of_a_fixed_number_of_shards_says_why_slots_do_not_move(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, slots=SLOTS, shards=2) as engine:
        moves = engine.status()["moves"]
        assert not moves["automatic"] and moves["held_back"].startswith("the number of shards is fixed")
        assert engine.status()["findings"] == []
