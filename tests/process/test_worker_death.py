"""Workers are killed: nothing accepted is lost or reordered, at most the batch in hand comes again, and others notice
nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem.client.client import socket_path
from shardmem.memory.engine_segment import ControlSegment
from shardmem.runtime.child import python_command
from support.checker import accounting, check
from support.daemon import Daemon
from support.programs import sends
from support.recorder import payload
from support.rig import PATIENCE, Log, Program, Rig, drained, expect_clean, keys_of_shard, segments_of, wait_until

ROWS = 32  # of a batch: the most that one kill may repeat


def shard_of(engine: Any, shard: int = 0) -> dict[str, Any]:
    return next(each for each in engine.status()["shards"] if each["id"] == shard)


def push(producer: shardmem.Producer, log: Log, key: int, numbers: range) -> None:
    for number in numbers:
        log.rows("offered", 1, [key], [number])
        producer.push(key, payload(1, key, number))
        log.rows("accepted", 1, [key], [number])


def wait_restarted(engine: Any, shard: int, pid: int) -> dict[str, Any]:
    def back() -> dict[str, Any] | None:
        found = shard_of(engine, shard)
        return found if found["pid"] != pid and found["phase"] == "ready" and found["alive"] else None

    return wait_until(back, f"shard {shard} has another worker than pid {pid}")


class Books:
    """Looks at the accounting again and again while a block runs."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._stop, self.wrong, self.looks = engine, threading.Event(), [], 0
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            self.wrong += accounting(self._engine.status())
            self.looks += 1

    def __enter__(self) -> Books:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_killed_worker_is_started_again_at_its_head_while_the_other_shard_goes_on(rig: Rig, engine_name: str) -> None:
    first, second = (keys_of_shard(shard, 2, 1)[0] for shard in (0, 1))
    with (
        rig.engine(engine_name, shards=2, batch_rows=ROWS) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        with rig.hold(0) as release:
            push(producer, log, first, range(5))
            rig.wait_held(0)
            before = shard_of(engine)
            os.kill(before["pid"], signal.SIGKILL)
            push(producer, log, second, range(50))
            wait_until(lambda: shard_of(engine, 1)["handled"] == 50, "the other shard goes on")
            push(producer, log, first, range(5, 40))
            after = wait_restarted(engine, 0, before["pid"])
            assert after["incarnation"] == before["incarnation"] + 1 and after["state"] == "active"
            release()
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine), duplicates=ROWS)
        shard = wait_until(lambda: shard_of(engine)["crashes"] and shard_of(engine), "the crash is in the status")
        assert (
            shard["crashes"] == shard["recent_crashes"] == 1
            and shard["last_exit"] == "killed by SIGKILL, perhaps out of memory"
        )
        assert shard["restarting_in_s"] is None and shard_of(engine, 1)["crashes"] == 0
    assert segments_of(engine_name) == []


@pytest.mark.parametrize(
    "point", ["poll.taken", "commit.entered", "commit.marked", "commit.counted", "commit.released"]
)
def test_a_worker_killed_at_a_named_point_life_after_life_loses_and_reorders_nothing(
    rig: Rig, engine_name: str, point: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv(
        "SHARDMEM_POINT", f"{point}:8:{signal.SIGKILL:d}"
    )  # every life ends when it comes there the 8th time
    with rig.engine(
        engine_name, shards=1, batch_rows=ROWS, lane_bytes=1 << 16
    ) as engine:  # frames of more than a batch
        monkeypatch.delenv("SHARDMEM_POINT")
        with (
            Books(engine) as books,
            Program(sends.push_some, rig, engine=engine_name, producer=1, blocks=20, rows=50) as program,
        ):
            assert program.hear(40)["pushed"] == 1000
            assert program.end() == 0
        status = drained(engine)
        crashes = wait_until(lambda: engine.status()["shards"][0]["crashes"], f"a life ended at {point}")
        assert books.wrong == [] and books.looks
    expect_clean(rig, status, duplicates=crashes * ROWS)
    assert status["accounting"]["handled"] == 1000


@pytest.mark.timeout(90)
def test_random_kills_of_workers_under_load_keep_every_promise(rig: Rig, engine_name: str) -> None:
    seed = int(os.environ.get("SHARDMEM_SEED", time.time_ns() % 10**6))
    print(f"SHARDMEM_SEED={seed}")
    chance, kills, handled = random.Random(seed), 0, {0: 0, 1: 0}
    with rig.engine(engine_name, shards=2, batch_rows=ROWS, lane_bytes=1 << 14, max_restarts=1000) as engine:
        programs = [Program(sends.push_until_over, rig, engine=engine_name, producer=number) for number in (1, 2)]
        for program in programs:
            program.hear()
        with Books(engine) as books:
            until = time.monotonic() + 3
            while time.monotonic() < until or kills < 3:  # a busy machine starts workers slowly
                victim = chance.choice(list(engine.status()["shards"]))
                if victim["alive"] and victim["phase"] == "ready" and victim["handled"] > handled[victim["id"]]:
                    with contextlib.suppress(ProcessLookupError):  # the next life has not said its pid yet
                        os.kill(victim["pid"], signal.SIGKILL)
                        kills += 1
                        handled[victim["id"]] = victim["handled"]
                threading.Event().wait(chance.random() * 0.4)
        assert books.wrong == [] and books.looks
    status = engine.status()
    for program in programs:
        with program:
            assert program.hear() == {"ended": "NotRunning"} and program.end() == 0
    logs = expect_clean(rig, status, duplicates=kills * ROWS)
    assert len({(row["shard"], row["incarnation"]) for row in logs.handled[["shard", "incarnation"]]}) >= 3


@pytest.mark.parametrize("victim", [0, 1], ids=["source", "target"])
def test_a_handoff_waits_for_the_next_life_of_a_worker_that_is_killed_in_the_middle(
    rig: Rig, engine_name: str, victim: int
) -> None:
    keys = keys_of_shard(0, 2, 6)
    with (
        rig.engine(engine_name, shards=2, batch_rows=ROWS) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        with rig.hold(0) as release:
            for key in keys:
                push(producer, log, key, range(5))
            rig.wait_held(0)
            done: list[dict[str, Any]] = []
            slots = list(range(0, 1024, 2))
            mover = threading.Thread(target=lambda: done.append(engine.move(slots, 1)))
            mover.start()
            wait_until(lambda: any(each["phase"] == "draining" for each in engine.status()["handoffs"]), "it drains")
            pid = shard_of(engine, victim)["pid"]
            os.kill(pid, signal.SIGKILL)
            for key in keys:
                push(producer, log, key, range(5, 10))
            wait_restarted(engine, victim, pid)
            assert not done
            release()
        mover.join(PATIENCE)
        assert done and len(done[0]["moved"]) == 512
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine), duplicates=ROWS)
        assert shard_of(engine, 0)["slots"] == 0


def test_an_engine_that_drains_starts_a_killed_worker_again_and_drains(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, shards=1, batch_rows=ROWS).start()
    with rig.hold() as release, engine.producer() as producer, Log(rig.directory) as log:
        push(producer, log, 1, range(100))
        rig.wait_held(0)
        pid = shard_of(engine)["pid"]
        ending = threading.Thread(target=engine.stop)
        ending.start()
        wait_until(lambda: producer._attached.seat.control.state == "draining", "it drains")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: producer._attached.seat.control.view_shard(0).pid != pid, "another worker has come")
        release()
        ending.join(PATIENCE)
    assert not ending.is_alive()
    expect_clean(rig, engine.status(), duplicates=ROWS)
    assert segments_of(engine_name) == []


def test_workers_that_die_in_turn_while_an_engine_starts_do_not_keep_it_from_running(
    rig: Rig, engine_name: str
) -> None:
    """It waited for a moment at which all were ready; with deaths in turn there was none, and handoffs stood still."""
    engine = rig.engine(engine_name, handler="support.handlers.waiting:Hesitating", shards=2)
    with contextlib.ExitStack() as stack:
        second_life, other_shard = (stack.enter_context(rig.locked(name)) for name in ("open-0-2", "open-1-1"))
        starting = threading.Thread(target=engine.start, daemon=True)
        starting.start()
        control = ControlSegment.attach(engine_name, wait=PATIENCE)
        wait_until(lambda: control.worker_phase(0) == "ready", "the first shard is ready")
        first = control.view_shard(0)  # it says so to its supervisor before it looks for events
        wait_until(lambda: control.view_shard(0).heartbeat_ns > first.entered_ns, "it has said that it is ready")
        os.kill(control.view_shard(0).pid, signal.SIGKILL)
        wait_until(lambda: control.view_shard(0).incarnation == 2, "its second life has begun")
        other_shard()
        starting.join(PATIENCE)
        assert not starting.is_alive() and control.worker_phase(0) == "booting"
        second_life()
        control.close()
    with engine.producer() as producer:
        producer.push_many(list(range(100)), [payload(1, key, 0) for key in range(100)])
        producer.flush(PATIENCE)
    engine.stop()
    assert segments_of(engine_name) == []


def test_a_stop_now_does_not_wait_for_a_move_whose_worker_is_dead(rig: Rig, engine_name: str) -> None:
    """Nobody starts that worker any more, so the move never ends; its answer was waited for during 60 s."""
    key = keys_of_shard(0, 2, 1)[0]
    with Daemon(rig, engine_name, "--shards", "2") as daemon, rig.hold(0):
        daemon.ready()
        with shardmem.Client(engine_name) as client:
            with shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
                push(producer, log, key, range(5))
            rig.wait_held(0)
            mover = threading.Thread(
                target=lambda: _ignoring(shardmem.NotRunning, client.move, list(range(0, 1024, 2)), 1)
            )
            mover.start()
            wait_until(lambda: any(each["phase"] == "draining" for each in client.status()["handoffs"]), "it drains")
            pid = shard_of(client, 0)["pid"]
            daemon.process.send_signal(signal.SIGINT)
            wait_until(lambda: not os.path.exists(socket_path(engine_name)), "it stops")
            os.kill(pid, signal.SIGKILL)
            assert daemon.process.wait(PATIENCE) == 0
            mover.join(PATIENCE)
    with rig.engine(engine_name, shards=2) as engine:
        drained(engine)
    assert check(rig.logs()) == []


def _ignoring(kind: type[Exception], call: Any, *values: Any) -> None:
    with contextlib.suppress(kind):
        call(*values)


def test_a_worker_whose_supervisor_is_killed_before_it_gives_orders_ends_without_a_word() -> None:
    ended = subprocess.run(python_command("worker"), input=b"", capture_output=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"", b"")


# ---- nothing is given up ---------------------------------------------------------------------------------------------


@pytest.fixture
def fragile(rig: Rig, engine_name: str) -> Iterator[Any]:
    """An engine of one shard that breaks as the test says, and goes on by itself when it does not any more."""
    settings: Any = {"handler": "support.handlers.failing:Fragile", "shards": 1, "max_restarts": 2}
    with rig.engine(engine_name, **settings) as engine:
        yield engine
        for name in ("open", "handle"):
            Path(rig.directory / name).unlink(missing_ok=True)
        wait_until(lambda: shard_of(engine)["state"] == "active" and shard_of(engine)["alive"], "it is started again")
        drained(engine)
    assert check(rig.logs()) == []


def test_a_worker_killed_between_its_two_words_for_ready_was_ready(rig: Rig) -> None:
    with rig.engine(None, handler="support.handlers.failing:Wordless", shards=1, max_restarts=2) as engine:
        os.kill(shard_of(engine)["pid"], signal.SIGKILL)
        wait_until(lambda: shard_of(engine)["crashes"] > 5, "it was killed a few times")
        assert "shard_failed" not in [each["kind"] for each in engine.status()["history"]]


@pytest.mark.parametrize(
    "how, part",
    [("raise", "OSError: as told"), ("9", "times in a row before it was ready, the last time: exit code 9")],
)
def test_a_shard_whose_worker_cannot_boot_counts_as_failed_with_the_reason_and_comes_back_when_it_can(
    rig: Rig, fragile: Any, how: str, part: str
) -> None:
    rig.tell("open", how)
    with fragile.producer() as producer, Log(rig.directory) as log:
        os.kill(shard_of(fragile)["pid"], signal.SIGKILL)
        shard = wait_until(lambda: (it := shard_of(fragile))["state"] == "failed" and it, "it counts as failed")
        assert part in shard["error"] and shard["condition"] == "failed" and part in shard["reason"]
        push(producer, log, 1, range(3))


def test_more_deaths_than_the_budget_allows_are_a_failure_that_says_how_many_and_why(fragile: Any) -> None:
    for _ in range(3):
        pid = shard_of(fragile)["pid"]
        os.kill(pid, signal.SIGABRT)
        wait_restarted(fragile, 0, pid)
    (failed,) = [each["text"] for each in fragile.status()["history"] if each["kind"] == "shard_failed"]
    assert "3 times within 60 s" in failed and "killed by SIGABRT" in failed


def test_kills_from_outside_are_not_held_against_a_shard(fragile: Any) -> None:
    for _ in range(5):
        pid = shard_of(fragile)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_restarted(fragile, 0, pid)
    assert "shard_failed" not in [each["kind"] for each in fragile.status()["history"]]


@pytest.mark.parametrize("how, part", [("raise", "OSError: as told"), ("11", "3 times in a row before it was ready")])
def test_a_first_start_that_cannot_boot_says_why_and_leaves_nothing(
    rig: Rig, engine_name: str, how: str, part: str
) -> None:
    rig.tell("open", how)
    with pytest.raises(shardmem.HandlerError, match=f"shard 0 cannot start: .*{part}"):
        rig.engine(engine_name, handler="support.handlers.failing:Fragile", shards=1).start()
    assert segments_of(engine_name) == []


def test_a_worker_that_was_sent_term_by_somebody_else_is_started_again(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine, engine.producer() as producer, Log(rig.directory) as log:
        pid = shard_of(engine)["pid"]
        os.kill(pid, signal.SIGTERM)
        push(producer, log, 1, range(10))
        wait_restarted(engine, 0, pid)
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))
        assert "nobody had told it to end" in wait_until(
            lambda: shard_of(engine)["last_exit"], "the exit is in the status"
        )


def test_a_crash_with_a_batch_in_hand_is_tried_again_quickly_and_the_wait_shows(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, handler="support.handlers.failing:Fragile", shards=1, batch_rows=ROWS).start()
    with engine.producer() as producer, Log(rig.directory) as log:
        rig.tell("handle", "5")
        push(producer, log, 1, range(3))
        wait_until(lambda: shard_of(engine)["crashes"] >= 2, "it crashed twice")
        (rig.directory / "handle").unlink()
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))
        assert shard_of(engine)["last_exit"] == "exit code 5"
    engine.stop()
