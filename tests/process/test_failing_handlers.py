"""A handler that fails: which event did it is said, its events stay, other shards go on, and nothing is left behind."""

from __future__ import annotations

import gc
import re
import time
from typing import Any

import numpy as np
import pytest

import shardmem
from support.checker import accounting, no_loss
from support.recorder import RECORD, payload, records
from support.rig import PATIENCE, SMALL_LANE, Log, Rig, drained, expect_clean, keys_of_shard, segments_of, wait_until

CANNOT_LOAD = {
    "no_such_module_of_ours:handle": "no_such_module_of_ours",
    "support.recorder:no_such_name": "no_such_name",
    "support.handlers.failing:NOT_A_HANDLER": "int: neither a function nor a Handler",
    "support.handlers.failing:FailingToBuild": "RuntimeError: no blueprint",
    "support.handlers.failing:FailingToOpen": "the warehouse is closed",
    "broken_module_of_ours:handle": "SyntaxError",
    "raising_module_of_ours:handle": "ZeroDivisionError",
    "exiting_module_of_ours:handle": "SystemExit: no DATABASE_URL",
}


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """A handler that raises stops its shard here; test_quarantine.py is about the other ways."""
    rig.defaults["on_error"] = "stop"
    return rig


def push(producer: shardmem.Producer, log: Log, key: int, numbers: range) -> None:
    """Each in a frame of its own."""
    for number in numbers:
        log.rows("offered", 1, [key], [number])
        producer.push(key, payload(1, key, number))
        log.rows("accepted", 1, [key], [number])


@pytest.mark.parametrize("handler, reason", CANNOT_LOAD.items())
def test_a_handler_that_cannot_start_is_a_clear_error_and_leaves_nothing(
    rig: Rig, engine_name: str, handler: str, reason: str, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(rig.directory)
    rig.tell("broken_module_of_ours.py", "def handle(:\n")
    rig.tell("raising_module_of_ours.py", "1 / 0\n")
    rig.tell("exiting_module_of_ours.py", "raise SystemExit('no DATABASE_URL')\n")
    with pytest.raises(shardmem.HandlerError, match=f"shard . cannot start.*{re.escape(reason)}"):
        rig.engine(engine_name, handler=handler, shards=2).start()
    assert segments_of(engine_name) == []
    gc.collect()  # a file or a process that was not closed is a warning, and warnings are errors


def test_a_state_directory_that_cannot_be_written_to_is_a_configuration_error_before_there_is_anything(
    rig: Rig, engine_name: str
) -> None:
    with pytest.raises(shardmem.ConfigError, match="state_dir='/proc/nowhere' cannot be written to by uid"):
        rig.engine(engine_name, state_dir="/proc/nowhere").start()
    assert [] == segments_of(engine_name)


def test_a_handler_that_hangs_in_open_is_given_up_after_boot_timeout(rig: Rig, engine_name: str) -> None:
    began = time.monotonic()
    with pytest.raises(shardmem.HandlerError, match="boot_timeout=1 s.*open"):
        rig.engine(engine_name, handler="support.handlers.waiting:Hanging", shards=1, boot_timeout=1).start()
    assert 1 <= time.monotonic() - began < 15
    assert segments_of(engine_name) == []


def test_an_engine_whose_worker_is_not_ready_in_time_logs_why(rig: Rig, engine_name: str, capfd) -> None:
    with pytest.raises(shardmem.HandlerError):
        rig.engine(engine_name, handler="support.handlers.waiting:Hanging", shards=1, boot_timeout=1).start()
    assert "was not ready within boot_timeout=1 s" in capfd.readouterr().err


def test_an_exception_is_reported_with_the_event_that_caused_it(rig: Rig) -> None:
    rig.tell("poison", "13")
    engine = rig.engine(None, handler="support.handlers.failing:Failing", shards=1)
    event = payload(1, 7, 13, 20)
    report = (
        "handler of shard 0 raised ValueError: cannot stand number 13 at the event with key 7, sequence 3 of producer "
        "0, " + re.escape(f"payload {event!r}")
    )
    with pytest.raises(shardmem.HandlerError, match=report), engine, engine.producer() as producer:
        with rig.hold():
            producer.push(0, payload(1, 0, 0))
            rig.wait_held(0)
            producer.push_many([5, 6, 7, 8], [payload(1, 5, 11), payload(1, 6, 12), event, payload(1, 8, 14)])
        with pytest.raises(shardmem.HandlerError, match=report):
            producer.flush(PATIENCE)
        shard = engine.status()["shards"][0]
        assert shard["state"] == "failed" and re.search(report, shard["error"])
    assert engine.status()["accounting"]["in_flight"] == 4


@pytest.mark.parametrize("key, shown", [("a text", "'a text'"), (b"\x00bytes", r"b'\\x00bytes'"), (None, "None")])
def test_the_report_names_keys_of_every_kind(rig: Rig, key: Any, shown: str) -> None:
    engine = rig.engine(None, handler="support.handlers.failing:FailingAtOnce", shards=1)
    with pytest.raises(
        shardmem.HandlerError, match=f"KeyError: 'at once' at the event with key {shown}, .*payload b'data'"
    ):
        with engine, engine.producer() as producer:
            producer.push(key, b"data")
            with pytest.raises(shardmem.HandlerError):
                producer.flush(PATIENCE)


def test_the_report_of_records_names_the_batch(rig: Rig) -> None:
    engine = rig.engine(None, handler="support.handlers.failing:FailingAtOnce", shards=1, dtype=RECORD, key="key")
    with pytest.raises(
        shardmem.HandlerError, match="KeyError: 'at once' at the batch of 3 events, keys 5 to 9, sequences 0"
    ):
        with engine, engine.producer() as producer:
            producer.send(records(1, [5, 7, 9], [0, 0, 0]))
            with pytest.raises(shardmem.HandlerError):
                producer.flush(PATIENCE)


@pytest.mark.parametrize("handler", ["FailingAfterList", "FailingOnSecondLook"])
def test_the_report_names_no_event_when_it_cannot_know_which(rig: Rig, handler: str) -> None:
    """The batch was iterated to its end, and only then did the handler fail: the last event is not the cause."""
    engine = rig.engine(None, handler=f"support.handlers.failing:{handler}", shards=1)
    with pytest.raises(shardmem.HandlerError) as caught:
        with engine, engine.producer() as producer:
            producer.push_many([1, 2, 3], [b"guilty", b"innocent", b"last, and innocent"])
            with pytest.raises(shardmem.HandlerError):
                producer.flush(PATIENCE)
    assert "last, and innocent" not in str(caught.value)


def test_events_of_a_failed_shard_stay_and_a_mended_handler_gets_them_in_order(rig: Rig, engine_name: str) -> None:
    rig.tell("poison", "25")
    bad, good = keys_of_shard(0, 2, 1)[0], keys_of_shard(1, 2, 1)[0]
    engine = rig.engine(engine_name, handler="support.handlers.failing:Failing", shards=2)
    with (
        pytest.raises(shardmem.HandlerError, match=f"cannot stand number 25.*start engine '{engine_name}' again"),
        engine,
    ):
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, bad, range(50))
            wait_until(lambda: engine.status()["shards"][0]["state"] == "failed", "shard 0 has failed")
            push(producer, log, bad, range(50, 60))
            push(producer, log, good, range(100, 150))
            wait_until(lambda: engine.status()["shards"][1]["handled"] == 50, "shard 1 goes on")
    status = engine.status()
    assert accounting(status) == []
    assert status["shards"][1]["in_flight"] == 0 < status["accounting"]["in_flight"]
    assert segments_of(engine_name)
    with shardmem.Client(engine_name) as client:  # and can be looked at while nobody runs it
        assert client.status()["accounting"]["in_flight"] == status["accounting"]["in_flight"]
        assert "cannot stand number 25" in client.status()["shards"][0]["error"]
    (rig.directory / "poison").unlink()
    with rig.engine(engine_name, handler="support.handlers.failing:Failing", shards=2) as engine:
        status = drained(engine)
        expect_clean(rig, status, duplicates=25)
        assert status["accounting"]["handled"] == 110
        assert [shard["error"] for shard in status["shards"]] == ["", ""]
    assert segments_of(engine_name) == []


def test_events_that_fail_again_stay_again(rig: Rig, engine_name: str) -> None:
    rig.tell("poison", "3")
    for run in range(3):
        engine = rig.engine(engine_name, handler="support.handlers.failing:Failing", shards=1)
        with pytest.raises(shardmem.HandlerError, match="cannot stand number 3"), engine:
            if run == 0:
                with engine.producer() as producer, Log(rig.directory) as log:
                    push(producer, log, 1, range(6))
            wait_until(lambda: engine.status()["shards"][0]["state"] == "failed", "failed again")
    (rig.directory / "poison").unlink()
    with rig.engine(engine_name, handler="support.handlers.failing:Failing", shards=1) as engine:
        drained(engine)
    assert no_loss(rig.logs()) == []


def test_the_events_of_an_unnamed_engine_are_said_to_be_gone(rig: Rig) -> None:
    rig.tell("poison", "0")
    engine = rig.engine(None, handler="support.handlers.failing:Failing", shards=1)
    with pytest.raises(shardmem.HandlerError, match="1 accepted events were not handled; they are lost"):
        with engine, engine.producer() as producer:
            producer.push(1, payload(1, 1, 0))
    assert segments_of(engine.name) == []


@pytest.mark.parametrize("method", ["push", "push_many", "push_columns"])
def test_a_producer_blocked_on_a_shard_that_fails_gets_the_reason(rig: Rig, method: str) -> None:
    rig.tell("poison", "0")
    engine = rig.engine(None, handler="support.handlers.failing:Failing", shards=1, lane_bytes=SMALL_LANE)
    with pytest.raises(shardmem.HandlerError), engine, engine.producer() as producer:
        with pytest.raises(shardmem.HandlerError, match="shard 0.*cannot stand number 0"):
            while True:
                if method == "push":
                    producer.push(1, payload(1, 1, 0))
                elif method == "push_many":
                    producer.push_many([1] * 50, [payload(1, 1, 0)] * 50)
                else:
                    data = payload(1, 1, 0)
                    producer.push_columns(np.ones(50, "i8"), data * 50, np.arange(51) * len(data))


def test_a_handler_that_raises_system_exit_fails_at_its_event_and_ends_no_worker(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, handler="support.handlers.failing:Leaving", shards=1, on_error="retry") as engine:
        with engine.producer() as producer:
            producer.push(1, payload(1, 1, 0))
            wait_until(lambda: engine.status()["accounting"]["quarantined"] == 1, "it is set aside")
        assert engine.status()["shards"][0]["crashes"] == 0


def test_a_handler_that_fails_in_close_is_reported_and_its_events_count_as_handled(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, handler="support.handlers.failing:FailingToClose", shards=1)
    with (
        pytest.raises(shardmem.HandlerError, match="the last page cannot be written"),
        engine,
        engine.producer() as producer,
    ):
        producer.push(1, payload(1, 1, 0))
        producer.flush(PATIENCE)
    assert accounting(engine.status(), drained=True) == []
    assert segments_of(engine_name) == []


def test_a_chatty_report_is_cut_and_breaks_nothing(rig: Rig) -> None:
    engine = rig.engine(None, handler="support.handlers.failing:FailingAtLength", shards=1)
    with pytest.raises(shardmem.HandlerError, match="é{500}"), engine, engine.producer() as producer:
        producer.push("k" * 2000, bytes(5000))
        with pytest.raises(shardmem.HandlerError):
            producer.flush(PATIENCE)
        assert engine.status()["shards"][0]["error"].startswith("the handler of shard 0 raised ValueError: éé")
