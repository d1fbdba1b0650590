"""One producer object, used across forks and by many threads at once."""

from __future__ import annotations

import signal

import pytest

from support.programs import forks, threads
from support.recorder import RECORD
from support.rig import SMALL_LANE, Rig, drained, expect_clean, run_program

RECORDS = {"dtype": RECORD, "key": "key"}


def test_a_producer_made_before_the_forks_serves_every_child_and_the_parent_at_once(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, lane_bytes=1 << 14) as engine:
        reply = run_program(
            forks.prefork, rig, engine=engine_name, children=4, calls=150, methods=["push", "push_many", "push_columns"]
        )
        assert reply["codes"] == [0] * 4
        status = drained(engine)
        logs = expect_clean(rig, status)
        assert len(logs.accepted) == 1 + 5 * 50 * 41
        assert len(status["producers"]) == 5, "each process has a seat of its own"


def test_a_producer_of_records_made_before_the_forks_serves_every_process(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, lane_bytes=SMALL_LANE, **RECORDS) as engine:
        reply = run_program(forks.prefork, rig, engine=engine_name, children=4, calls=100, methods=["send"])
        assert reply["codes"] == [0] * 4
        logs = expect_clean(rig, drained(engine))
        assert len(logs.accepted) == 1 + 5 * 100 * 20


@pytest.mark.parametrize(
    "small, block, lane_bytes",
    [
        ("push", "push_columns", SMALL_LANE),
        ("push", "push_columns", 1 << 20),
        ("push", "push_many", SMALL_LANE),
        ("push_many", "push_columns", 1 << 16),
        ("send", "send", SMALL_LANE),
        ("send", "send", 1 << 20),
    ],
)
def test_threads_push_through_one_producer_in_order_and_nothing_is_lost(
    rig: Rig, engine_name: str, small: str, block: str, lane_bytes: int
) -> None:
    with rig.engine(engine_name, shards=2, lane_bytes=lane_bytes, **(RECORDS if small == "send" else {})) as engine:
        reply = run_program(
            threads.threads, rig, engine=engine_name, threads=8, calls=200, blocks=4, small=small, block=block
        )
        assert reply["failures"] == []
        logs = expect_clean(rig, drained(engine))
        assert len(logs.accepted) == 8 * 200 + 4 * 2000


@pytest.mark.parametrize("method, schema", [("push_columns", {}), ("push_many", {}), ("send", RECORDS)])
def test_threads_that_open_the_same_lane_together_lose_nothing(
    rig: Rig, engine_name: str, method: str, schema: dict
) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=1 << 20, **schema) as engine:
        run_program(
            threads.first_calls_together, rig, engine=engine_name, method=method, threads=4, turns=15, count=1500
        )
        expect_clean(rig, drained(engine))


@pytest.mark.parametrize("method, schema", [("push", {}), ("push_many", {}), ("push_columns", {}), ("send", RECORDS)])
def test_a_child_forked_while_a_thread_is_inside_a_send_can_push(
    rig: Rig, engine_name: str, method: str, schema: dict
) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=1 << 22, handler="support.recorder:Recorder", **schema) as engine:
        reply = run_program(forks.fork_inside_send, rig, engine=engine_name, children=8, method=method)
        assert -signal.SIGALRM not in reply["codes"], "a child hangs"
        assert reply["codes"] == [0] * 8
        expect_clean(rig, drained(engine))


def test_threads_that_make_the_first_call_in_a_forked_child_share_one_seat(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, max_producers=16) as engine:
        reply = run_program(
            forks.threads_in_a_forked_child, rig, engine=engine_name, children=8, threads=6, stderr=None
        )
        assert reply["codes"] == [0] * 8
        expect_clean(rig, drained(engine))


def test_closing_a_producer_ends_a_push_that_is_blocked_in_another_thread(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE) as engine:
        with rig.hold():
            reply = run_program(threads.close_while_blocked, rig, engine=engine_name)
        assert reply["ended"] == ["NotRunning"]
        drained(engine)
