"""Handlers are told which slots they gain and lose: before the first event, after the last, and again after a crash."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest

import shardmem
from shardmem import HandlerError
from support.checker import check
from support.recorder import payload
from support.rig import PATIENCE, Log, Rig, drained, expect_clean, wait_until

SLOTS = 16
LONG = 90.0  # seconds that something may take on a machine that is busy
EVERY = set(range(SLOTS))


def told(rig: Rig) -> list[tuple[str, int, int, list[int]]]:
    """(what, shard, incarnation, slots) in the order in which it happened."""
    path = rig.directory / "told"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def owners(lines: list[tuple[str, int, int, list[int]]]) -> dict[int, tuple[int, int]]:
    """slot -> (shard, incarnation) that was told last that it has it. Fails when two have a slot at once."""
    found: dict[int, tuple[int, int]] = {}
    for what, shard, incarnation, slots in lines:
        for slot in slots:
            if what == "gained":
                before = found.get(slot)
                assert before is None or before[0] == shard, f"slot {slot}: {shard} gained what {before} has not lost"
                found[slot] = shard, incarnation
            elif what == "lost":
                assert found.pop(slot) == (shard, incarnation)
            else:
                assert found.get(slot) == (shard, incarnation), f"{shard} handles slot {slot} of {found.get(slot)}"
    return found


def push(rig: Rig, producer: shardmem.Producer, numbers: range) -> None:
    keys = [number % 40 for number in numbers]
    with Log(rig.directory) as log:
        log.rows("offered", 1, keys, list(numbers))
        producer.push_many(keys, [payload(1, key, number) for key, number in zip(keys, numbers)])
        log.rows("accepted", 1, keys, list(numbers))


def slots_of(found: dict[int, tuple[int, int]], shard: int) -> set[int]:
    return {slot for slot, (owner, _) in found.items() if owner == shard}


@pytest.mark.parametrize("handler", ["support.handlers.owning:Owner", "support.handlers.owning:StatefulOwner"])
def test_a_handler_gains_its_slots_before_their_first_event_and_loses_them_before_another_gains_them(
    rig: Rig, engine_name: str, handler: str
) -> None:
    settings: dict[str, Any] = {"handler": handler, "slots": SLOTS, "shards": 2, "max_shards": 3}
    with rig.engine(engine_name, **settings) as engine, engine.producer() as producer:
        assert set(owners(told(rig))) == EVERY, "what they own when the engine starts"
        push(rig, producer, range(300))
        engine.move([0, 2, 4], 1)
        push(rig, producer, range(300, 600))
        engine.scale_to(3)
        push(rig, producer, range(600, 900))
        engine.drain(0)
        push(rig, producer, range(900, 1200))
        producer.flush(PATIENCE)
        found = owners(told(rig))
        assert set(found) == EVERY
        assert {shard["id"]: shard["slots"] for shard in engine.status()["shards"]} == {
            shard: len(slots_of(found, shard)) for shard in (1, 2)
        }
        assert drained(engine)["accounting"]["handled"] == 1200
        assert check(rig.logs(), 0) == []
    assert {what for what, *_ in told(rig)} == {"gained", "lost", "handles"}


def test_a_restarted_worker_gains_its_slots_again(rig: Rig, engine_name: str) -> None:
    with (
        rig.engine(engine_name, "support.handlers.owning:Owner", slots=SLOTS, shards=2) as engine,
        engine.producer() as producer,
    ):
        engine.move([0], 1)
        before = owners(told(rig))
        os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: engine.status()["shards"][0]["incarnation"] == 2, "a second life")
        push(rig, producer, range(100))
        producer.flush(PATIENCE)
        after = owners(told(rig))
        assert slots_of(after, 0) == slots_of(before, 0) == {2, 4, 6, 8, 10, 12, 14}
        assert {incarnation for shard, incarnation in after.values() if shard == 0} == {2}
        assert [each for each in told(rig) if each[:3] == ("gained", 0, 2)] == [
            ("gained", 0, 2, [2, 4, 6, 8, 10, 12, 14])
        ]


def test_a_worker_killed_in_a_handoff_gains_what_it_still_has(rig: Rig, engine_name: str) -> None:
    with (
        rig.engine(engine_name, "support.handlers.owning:Owner", slots=SLOTS, shards=2) as engine,
        engine.producer() as producer,
    ):
        with rig.hold(0) as release:
            push(rig, producer, range(200))
            rig.wait_held(0)
            late = engine.move([0, 2], 1, timeout=0.2)
            assert not late["done"]
            os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
            wait_until(lambda: any(each[:3] == ("gained", 0, 2) for each in told(rig)), "a second life")
            release()
        producer.flush(PATIENCE)
        wait_until(lambda: not engine.status()["handoffs"], "the handoff is over")
        assert slots_of(owners(told(rig)), 1) >= {0, 2}, "it was handed over by the second life"


def test_a_gained_that_raises_at_the_start_is_a_boot_failure(rig: Rig, engine_name: str) -> None:
    rig.tell("refuse-gained", "")
    with pytest.raises(HandlerError, match=r"gained\(8 slots from [01] on\).*OSError: no room for more"):
        rig.engine(engine_name, "support.handlers.owning:Owner", slots=SLOTS, shards=2).start()


@pytest.mark.timeout(3 * LONG)
@pytest.mark.parametrize(("method", "shard"), [("gained", 1), ("lost", 0)])
def test_one_that_raises_in_a_handoff_fails_its_worker_and_the_handoff_ends_with_the_next(
    rig: Rig, engine_name: str, method: str, shard: int
) -> None:
    with (
        rig.engine(engine_name, "support.handlers.owning:Owner", slots=SLOTS, shards=2) as engine,
        engine.producer() as producer,
    ):
        rig.tell(f"refuse-{method}", "")
        assert not engine.move([0, 2], 1, timeout=0.5)["done"]
        failed = wait_until(
            lambda: next((each for each in engine.status()["shards"] if each["error"]), None), "it has failed", LONG
        )
        assert failed["id"] == shard
        # its next life may have failed too by now: at its start, when it gains all that it has
        slots = r"\d+ slots from [01] on" if method == "gained" else "2 slots from 0 on"
        assert re.match(rf"{method}\({slots}\) of the handler of shard {shard} raised OSError", failed["error"])
        (rig.directory / f"refuse-{method}").unlink()
        engine.reload()
        push(rig, producer, range(200))
        producer.flush(LONG)
        found = owners(told(rig))
        assert set(found) == EVERY
        expect_clean(rig, drained(engine))
