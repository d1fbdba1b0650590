"""One sick member holds up only itself: a shard in a long batch, one that has failed, a producer stopped inside a send.

What does not need them is done as if they were well; what does, answers at its deadline with who is waited for, and is
done when they go on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import shardmem
from shardmem import Client, ConfigError, HandlerError, ShardmemError
from shardmem.policy import Pinned
from support.programs import sends
from support.recorder import payload
from support.rig import PATIENCE, Program, Rig, is_stopped, segments_of, slot_of, wait_until

SLOTS = 64
SHORT = 0.4  # the deadline of a command that cannot be done in time
POISON = 999
FAILING = "support.handlers.failing:FailingBehindTheGate"
LOOKED_AT = 1.0  # seconds in one batch: long enough for the supervisor to call it long, and to have looked


def shards_of(engine: shardmem.Engine) -> dict[int, dict[str, Any]]:
    return {shard["id"]: shard for shard in engine.status()["shards"]}


def slots_of(engine: shardmem.Engine) -> dict[int, int]:
    return {shard: each["slots"] for shard, each in shards_of(engine).items()}


def key_of(engine: shardmem.Engine, shard: int) -> int:
    return next(key for key in range(10_000) if engine.where(key)["shard"] == shard)


def at_rest(engine: shardmem.Engine) -> bool:
    status = engine.status()
    return not status["handoffs"] and all(shard["state"] == "active" for shard in status["shards"])


def fail(rig: Rig, engine: shardmem.Engine, shard: int) -> None:
    """Its handler raises, and it is given up (on_error="stop")."""
    rig.tell("poison", str(POISON))
    with engine.producer() as producer:
        key = key_of(engine, shard)
        producer.push(key, payload(1, key, POISON))
    wait_until(lambda: shards_of(engine)[shard]["state"] == "failed", f"shard {shard} has failed")
    (rig.directory / "poison").unlink()


@contextmanager
def long_batch(rig: Rig, engine: shardmem.Engine, shard: int) -> Iterator[Callable[[], None]]:
    with rig.hold(shard) as release, engine.producer() as producer:
        key = key_of(engine, shard)
        producer.push(key, payload(2, key, 0))
        rig.wait_held(shard)
        wait_until(
            lambda: (shards_of(engine)[shard]["in_hand_s"] or 0) > LOOKED_AT, "the supervisor knows that it is long"
        )
        yield release


# ---- what is sick is told of, and holds up nobody --------------------------------------------------------------------


def test_a_long_batch_and_a_failed_shard_hold_up_no_command_that_does_not_need_them(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, FAILING, shards=4, max_shards=6, slots=SLOTS, on_error="stop") as engine:
        fail(rig, engine, 1)
        with long_batch(rig, engine, 0):
            assert engine.move([2], 3)["done"]
            assert engine.pin([6], 3)["done"]
            assert engine.unpin([6])["pins"] == []
            assert engine.cordon(2)["cordoned"] == [2] and engine.uncordon(2)["cordoned"] == []
            assert engine.suspend_moves()["suspended"] and not engine.resume_moves()["suspended"]
            assert engine.rebalance()["done"]
            grown = engine.scale_to(4)
            assert grown["done"] and len(grown["added"]) == 1
            assert engine.drain(3)["done"]
            assert engine.scale_to(2, timeout=PATIENCE)["done"]
            left = slots_of(engine)
            assert set(left) == {0, 1, 2} and sum(left.values()) == SLOTS
        assert engine.reload()["done"]


NEEDS_A_SHARD: dict[str, Callable[[shardmem.Engine], dict[str, Any]]] = {
    "move": lambda e: e.move([0, 3], 1, timeout=SHORT),
    "pin": lambda e: e.pin([0, 3], 1, timeout=SHORT),
    "drain": lambda e: e.drain(0, timeout=SHORT),
    "reload": lambda e: e.reload(timeout=SHORT + 2),
}


@pytest.mark.parametrize("verb", NEEDS_A_SHARD)
def test_what_needs_a_shard_in_a_long_batch_names_it_at_the_deadline_and_is_done_when_the_batch_is_over(
    rig: Rig, engine_name: str, verb: str
) -> None:
    with rig.engine(engine_name, shards=3, max_shards=4, slots=SLOTS) as engine:
        with long_batch(rig, engine, 0) as release:
            pid = shards_of(engine)[0]["pid"]
            answer = NEEDS_A_SHARD[verb](engine)
            assert not answer["done"]
            waiting = next(each for each in answer["waiting_for"] if each.get("shard") == 0)
            assert waiting["pid"] == pid and set(waiting["slots"]) <= set(range(0, SLOTS, 3))
            assert answer["late"] and "shard 0" in waiting["text"]
            release()
            wait_until(lambda: at_rest(engine) and not engine.status()["accounting"]["in_flight"], f"{verb} is done")
        assert sum(slots_of(engine).values()) == SLOTS
        assert (0 in slots_of(engine)) == (verb in ("move", "pin"))


NEEDS_A_HANDOFF = {**NEEDS_A_SHARD, "scale": lambda e: e.scale_to(2, timeout=SHORT)}


@pytest.mark.parametrize("verb", NEEDS_A_HANDOFF)
def test_what_needs_a_producer_stopped_inside_a_send_names_it_at_the_deadline_and_is_done_when_it_goes_on(
    rig: Rig, engine_name: str, verb: str
) -> None:
    with (
        rig.engine(engine_name, shards=3, max_shards=4, slots=SLOTS) as engine,
        Program(sends.stopped_inside_send, rig, engine=engine_name, point="send.routed") as program,
    ):
        pid = program.hear()["pid"]
        wait_until(lambda: is_stopped(pid), "it has stopped")
        answer = NEEDS_A_HANDOFF[verb](engine)
        assert not answer["done"]
        waiting = next(each for each in answer["waiting_for"] if "seat" in each)
        assert waiting["pid"] == pid and f"producer pid {pid}" in waiting["text"]
        # the youngest: a reload goes on to the others meanwhile
        some = max(shard for shard, each in shards_of(engine).items() if each["state"] == "active")
        assert engine.cordon(some)["cordoned"] == [some] and engine.uncordon(some)["cordoned"] == []
        assert engine.suspend_moves()["suspended"] and not engine.resume_moves()["suspended"]
        program.kill(signal.SIGCONT)
        assert program.hear() == {"ended": "accepted"}
        assert program.end() == 0
        wait_until(lambda: at_rest(engine) and not engine.status()["accounting"]["in_flight"], f"{verb} is done")
        assert sum(slots_of(engine).values()) == SLOTS


@pytest.mark.parametrize("verb", NEEDS_A_SHARD)
def test_what_was_under_way_is_done_by_the_supervisor_that_takes_over(rig: Rig, engine_name: str, verb: str) -> None:
    with rig.engine(engine_name, shards=3, max_shards=4, slots=SLOTS) as engine:
        with long_batch(rig, engine, 0) as release:
            assert not NEEDS_A_SHARD[verb](engine)["done"]
            os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
            some = next(shard for shard, each in shards_of(engine).items() if each["state"] == "active")
            assert engine.cordon(some)["cordoned"] == [some], "by the next supervisor"
            release()

            def is_done() -> bool:
                gone = at_rest(engine) and not engine.status()["accounting"]["in_flight"]
                return gone and (0 in slots_of(engine)) == (verb in ("move", "pin"))

            wait_until(is_done, f"{verb} is done", 60)
        assert sum(slots_of(engine).values()) == SLOTS


# ---- failed shards ---------------------------------------------------------------------------------------------------


def test_a_failed_shard_is_refused_as_a_source_with_reason_and_remedy_and_reload_brings_it_back(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, FAILING, shards=3, max_shards=4, slots=SLOTS, on_error="stop") as engine:
        fail(rig, engine, 1)
        for call in (lambda: engine.drain(1), lambda: engine.move([1], 0), lambda: engine.pin([1], 0)):
            with pytest.raises(ConfigError, match=r"shard 1 has failed.*cannot stand number 999.*shardmem reload"):
                call()
        assert slots_of(engine) == {0: 22, 1: 21, 2: 21}
        assert engine.scale_to(1)["removed"] == [2], "it is not counted as active"
        assert shards_of(engine)[1]["state"] == "failed"
        done = engine.reload()
        assert done["done"] and {"from": 1, "to": 1} == done["reloaded"][0]
        assert engine.drain(1)["done"]
        assert list(slots_of(engine).values()) == [SLOTS]


def test_a_shard_that_fails_in_the_middle_of_a_move_holds_up_no_other_and_reload_ends_the_move(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, FAILING, shards=3, max_shards=4, slots=SLOTS, on_error="stop") as engine:
        rig.tell("poison", str(POISON))
        with engine.producer() as producer, rig.hold(1) as release:
            key = key_of(engine, 1)
            producer.push(key, payload(1, key, POISON))
            rig.wait_held(1)
            assert not engine.move([1, 4], 0, timeout=SHORT)["done"]
            release()
            wait_until(lambda: shards_of(engine)[1]["state"] == "failed", "it has failed")
            assert engine.move([2], 0)["done"]
            (rig.directory / "poison").unlink()
            assert engine.reload()["done"]
            wait_until(lambda: at_rest(engine), "the move is done")
        assert engine.drain(next(iter(slots_of(engine))))["done"]


def test_a_reload_frees_the_one_before_it_that_waits_for_a_shard_which_has_failed_since(
    rig: Rig, engine_name: str
) -> None:
    """Each waited for the other: the second for its turn, the first for a handoff from the shard that had failed."""
    with rig.engine(engine_name, FAILING, shards=3, max_shards=4, slots=SLOTS, on_error="stop") as engine:
        rig.tell("poison", str(POISON))
        with engine.producer() as producer, rig.hold(1) as release:
            key = key_of(engine, 1)
            producer.push(key, payload(1, key, POISON))
            rig.wait_held(1)
            assert not engine.move(range(1, SLOTS, 3), 0, timeout=SHORT)["done"]
            late = engine.reload(timeout=SHORT)
            assert not late["done"] and late["waiting_for"]
            release()

            def failed_again() -> bool:  # after that reload has come to it
                shard = shards_of(engine)[1]
                return shard["state"] == "failed" and shard["incarnation"] == 2

            wait_until(failed_again, "it has been started again, and has failed again", 60)
            (rig.directory / "poison").unlink()
            assert engine.reload(timeout=60)["done"]
            wait_until(lambda: at_rest(engine), "the move is done")
        assert {each["state"] for each in shards_of(engine).values()} == {"active"}


# ---- stop ------------------------------------------------------------------------------------------------------------


def test_a_stop_in_the_middle_of_a_move_ends_when_all_is_handled(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, FAILING, shards=2, slots=SLOTS, drain_timeout=None) as engine:
        with engine.producer() as producer, rig.hold(1) as release:
            key = key_of(engine, 1)
            producer.push(key, payload(1, key, 0))
            rig.wait_held(1)
            assert not engine.move(range(1, SLOTS, 2), 0, timeout=SHORT)["done"]
            for number in range(1, 50):
                producer.push(key, payload(1, key, number))
            with Client(engine_name) as client:
                stopping = threading.Thread(target=engine.stop)
                stopping.start()
                wait_until(lambda: client.status()["engine"]["state"] == "draining", "it is being stopped")
            release()
            stopping.join(60)
            assert not stopping.is_alive(), "the target keeps the events of these slots back for good"
    accounting = engine.status()["accounting"]
    assert accounting["accepted"] == accounting["handled"] and not accounting["in_flight"]


def test_a_stop_ends_although_a_shard_that_was_to_hand_over_has_failed(rig: Rig) -> None:
    engine = rig.engine(None, FAILING, shards=2, slots=SLOTS, on_error="stop", drain_timeout=None).start()
    rig.tell("poison", str(POISON))
    with engine.producer() as producer, rig.hold(1) as release:
        key = key_of(engine, 1)
        producer.push(key, payload(1, key, POISON))
        rig.wait_held(1)
        assert not engine.move(range(1, SLOTS, 2), 0, timeout=SHORT)["done"]
        producer.push(key, payload(1, key, 1))  # is kept back by shard 0, until shard 1 has handed over
        release()
        wait_until(lambda: shards_of(engine)[1]["state"] == "failed", "it has failed")
    stopping = threading.Thread(target=lambda: pytest.raises(HandlerError, engine.stop))
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()


def test_the_policy_neither_drains_a_failed_shard_nor_grows_for_it(rig: Rig, engine_name: str) -> None:
    policy = {"metrics_window": 0.3, "cooldown": 0.2, "scale_down_delay": 0.5}
    with rig.engine(
        engine_name, FAILING, min_shards=1, max_shards=3, slots=SLOTS, on_error="stop", policy=policy
    ) as engine:
        engine.scale_to(3)
        fail(rig, engine, 1)
        wait_until(lambda: shards_of(engine)[1]["state"] == "failed", "it has failed")
        engine.scale_to("auto")
        wait_until(lambda: len([s for s in shards_of(engine).values() if s["state"] == "active"]) == 1, "one is left")
        wait_until(lambda: engine.status()["decisions"][-1]["cause"] == "steady", "it is content")
        assert shards_of(engine)[1]["state"] == "failed" and shards_of(engine)[1]["slots"] == 21
        assert {each["kind"] for each in engine.status()["decisions"]} == {"none", "down"}
        assert engine.reload()["done"]


# ---- refusals and strategies -----------------------------------------------------------------------------------------


def test_a_refused_scale_changes_nothing(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=2, max_shards=4, slots=SLOTS) as engine:
        engine.scale_to(4)
        engine.scale_to("auto")
        before = slots_of(engine)
        with pytest.raises(ShardmemError, match="min_shards=2"):
            engine.scale_to(1)
        assert slots_of(engine) == before and at_rest(engine)
        wait_until(lambda: engine.status()["auto_scale"], "the policy goes on")
        assert engine.scale_to(3)["removed"] == [3]


@pytest.mark.parametrize("strategy", ["Still", "Raising", "Leaving", "Odd"])
def test_a_drain_is_done_whatever_the_strategy_does(rig: Rig, engine_name: str, strategy: str) -> None:
    with rig.engine(
        engine_name, min_shards=1, max_shards=3, slots=SLOTS, strategy=f"support.strategies:{strategy}"
    ) as engine:
        engine.scale_to(2)
        assert engine.drain(0)["done"] and slots_of(engine) == {1: SLOTS}
        assert engine.scale_to(2)["done"] and engine.scale_to(1)["done"]
        wait_until(lambda: engine.status()["shards"], "the board is written")
        assert engine.move("0-63", next(iter(slots_of(engine))))["done"]


def test_a_strategy_that_takes_long_delays_no_answer_beyond_its_deadline(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=2, max_shards=3, slots=SLOTS, strategy="support.strategies:Slow") as engine:
        answer = engine.scale_to(3, timeout=3)
        while not answer["done"]:
            answer = engine.scale_to(3, timeout=3)
        answers = [engine.move([slot], 1) for slot in range(20)]
        assert all(each["done"] for each in answers)
        late = engine.drain(0, timeout=0.1)
        assert late["done"] or any("strategy" in each["text"] for each in late["waiting_for"])
        wait_until(lambda: 0 not in slots_of(engine), "it is drained", 3 * PATIENCE)


def test_pins_of_a_strategy_apply_from_the_start(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, slots=SLOTS, strategy=Pinned({0: 1, 2: 1})) as engine:
        keys = [next(key for key in range(10_000) if slot_of(key, SLOTS) == slot) for slot in (0, 2)]
        wait_until(lambda: [engine.where(key)["shard"] for key in keys] == [1, 1], "the pinned slots are there")


def test_slots_follow_the_load_by_themselves_after_a_scale_by_hand(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=1, max_shards=3, slots=SLOTS) as engine:
        engine.scale_to(2)
        engine.move(f"0-{SLOTS - 1}", 0)
        with engine.producer() as producer:
            for number in range(3):
                for key in range(2000):
                    producer.push(key, payload(1, key, number))

            def moved() -> bool:
                for key in range(200):
                    producer.push(key, payload(2, key, next(numbers)))
                return slots_of(engine)[1] > 0 or "by themselves" in engine.status()["moves"]["held_back"]

            numbers = iter(range(10**9))
            wait_until(moved, "slots have moved, or status says why not", 2 * PATIENCE)
            producer.flush(PATIENCE)


# ---- commands at the same moment -------------------------------------------------------------------------------------


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each answers or raises."""
    answers: list[Any] = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def run(number: int) -> None:
        gate.wait()
        try:
            answers[number] = calls[number]()
        except ShardmemError as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
        assert not thread.is_alive(), answers
    return answers


def test_the_last_scale_counts_also_while_shards_of_an_earlier_one_are_joining(rig: Rig, engine_name: str) -> None:
    with rig.engine(
        engine_name, "support.handlers.waiting:Hesitating", min_shards=1, max_shards=4, slots=SLOTS
    ) as engine:
        with rig.locked("open-2-1"), rig.locked("open-3-1"):
            first = engine.scale_to(4, timeout=SHORT)
            assert not first["done"] and {each["shard"] for each in first["waiting_for"]} >= {2, 3}
            again = engine.scale_to(4, timeout=SHORT)
            assert again["added"] == [] and not again["done"], "they are on their way"
            fewer = engine.scale_to(2)
            assert fewer["done"] and fewer["shards"] == [0, 1]
            wait_until(lambda: set(slots_of(engine)) == {0, 1}, "the others are gone")
        assert not [each for each in engine.status()["events"] if each["kind"] == "not_done"], "nothing has failed"


def test_commands_of_several_clients_at_the_same_moment_are_all_answered_and_one_state_is_left(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, min_shards=1, max_shards=4, slots=SLOTS) as engine:
        engine.scale_to(3)
        answers = at_once(
            lambda: engine.scale_to(4), lambda: engine.scale_to(2), lambda: engine.drain(0), lambda: engine.reload()
        )
        assert all(isinstance(each, ShardmemError) or each["done"] for each in answers), answers
        assert not isinstance(answers[3], ShardmemError), answers[3]
        wait_until(lambda: at_rest(engine), "it is at rest")
        assert sum(slots_of(engine).values()) == SLOTS
        answers = at_once(lambda: engine.reload(), lambda: engine.reload(), lambda: engine.scale_to(1))
        assert not [each for each in answers if isinstance(each, ShardmemError)], answers
        wait_until(lambda: at_rest(engine), "it is at rest")
        assert list(slots_of(engine).values()) == [SLOTS]
    assert segments_of(engine_name) == []


def test_a_move_whose_target_drains_meanwhile_says_so_and_does_not_wait(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=3, max_shards=4, slots=SLOTS) as engine:
        with long_batch(rig, engine, 0) as release:
            waiting = threading.Thread(target=lambda: answers.extend(at_once(lambda: engine.move("0-63", 2))))
            answers: list[Any] = []
            waiting.start()
            wait_until(lambda: engine.status()["handoffs"], "the move is under way")
            assert not engine.drain(2, timeout=SHORT)["done"]
            waiting.join(PATIENCE)
            assert "do not go to shard 2: it takes no slots any more" in str(answers[0])
            release()
            wait_until(lambda: at_rest(engine) and set(slots_of(engine)) == {0, 1}, "it is drained")


def test_what_was_said_of_a_shard_by_hand_holds_for_its_successor(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=2, max_shards=4, slots=SLOTS) as engine:
        engine.cordon(0)
        engine.pin("0-9", 1)
        successor = {each["from"]: each["to"] for each in engine.reload()["reloaded"]}
        pins = [{"shard": successor[1], "slots": "0-9"}]
        answer = engine.suspend_moves()
        assert (answer["cordoned"], answer["pins"]) == ([successor[0]], pins)


def test_shards_of_which_all_others_are_cordoned_are_not_drained(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, min_shards=1, max_shards=3, slots=SLOTS) as engine:
        engine.scale_to(2)
        engine.cordon(1)
        with pytest.raises(ShardmemError, match="nobody would take the slots of shard 0: all others are cordoned"):
            engine.drain(0)
        assert at_rest(engine) and sum(slots_of(engine).values()) == SLOTS
        assert engine.scale_to(1)["removed"] == [1]
