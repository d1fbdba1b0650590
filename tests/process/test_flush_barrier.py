"""flush is a barrier: when it returns, handlers have returned from everything that was pushed before."""

from __future__ import annotations

import threading
import time

import pytest

import shardmem
from support.checker import no_loss
from support.programs.source import Source
from support.recorder import RECORD, payload
from support.rig import PATIENCE, SMALL_LANE, Log, Rig, drained, expect_clean, keys_of_shard


@pytest.mark.parametrize(
    "method, lane_bytes",
    [
        ("push", SMALL_LANE),
        ("push_many", SMALL_LANE),
        ("push_many", 1 << 20),
        ("push_columns", SMALL_LANE),
        ("send", SMALL_LANE),
        ("send", 1 << 20),
    ],
)
def test_after_a_flush_everything_pushed_before_has_been_handled(
    rig: Rig, engine_name: str, method: str, lane_bytes: int
) -> None:
    schema = {"dtype": RECORD, "key": "key"} if method == "send" else {}
    with rig.engine(
        engine_name, handler="support.handlers.waiting:Slow", shards=3, lane_bytes=lane_bytes, **schema
    ) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            source = Source(1, log, keys=30)
            for size in (1, 1, 3, 20, 100, 1, 50):
                source.push(producer, method, size, 30)
                producer.flush()
                assert no_loss(rig.logs()) == []
            producer.flush(0)  # nothing is left, so there is nothing to wait for
        expect_clean(rig, drained(engine))


def test_a_flush_of_a_producer_that_pushed_nothing_returns_at_once(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine, rig.hold():
        with engine.producer() as idle:
            idle.flush(0)


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_flush_with_a_timeout_gives_up_in_time_and_says_which_shard(
    rig: Rig, engine_name: str, timeout: float
) -> None:
    with rig.engine(engine_name, shards=1) as engine, engine.producer() as producer:
        with rig.hold():
            producer.push(1, payload(0, 1, 0))
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="shard 0"):
                producer.flush(timeout)
            assert timeout <= time.monotonic() - began < timeout + 1.0
        producer.flush(PATIENCE)
        assert engine.status()["accounting"]["handled"] == 1


def test_a_flush_does_not_wait_for_what_is_pushed_after_it_began(rig: Rig, engine_name: str) -> None:
    """Another thread keeps pushing; flush ends all the same."""
    with rig.engine(engine_name, handler="support.handlers.waiting:Gated", shards=1, lane_bytes=SMALL_LANE) as engine:
        with engine.producer() as producer:
            done = threading.Event()

            def push() -> None:
                while not done.is_set():
                    producer.push(1, bytes(100))

            thread = threading.Thread(target=push)
            thread.start()
            for _ in range(20):
                producer.flush(PATIENCE)
            done.set()
            thread.join()


def test_a_flush_does_not_wait_for_other_producers(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine, rig.hold(1), engine.producer() as one, engine.producer() as other:
        other.push_many(list(range(50)), [payload(0, key, 0) for key in range(50)])
        key = keys_of_shard(0, 2, 1)[0]
        one.push(key, payload(1, key, 0))
        one.flush(PATIENCE)
        with pytest.raises(TimeoutError):
            other.flush(0.05)


def test_a_flush_after_a_failure_says_so_instead_of_waiting(rig: Rig, engine_name: str) -> None:
    rig.tell("poison", "0")
    engine = rig.engine(None, handler="support.handlers.failing:Failing", shards=1, on_error="stop")
    with pytest.raises(shardmem.HandlerError, match="cannot stand number 0"), engine:
        with engine.producer() as producer:
            producer.push(1, payload(0, 1, 0))
            with pytest.raises(shardmem.HandlerError, match="shard 0.*cannot stand number 0"):
                producer.flush(PATIENCE)
