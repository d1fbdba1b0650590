"""Stuck is told from slow and from idle; a stuck worker is killed, and nothing is taken from it before it is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict
from typing import Any

import shardmem
from shardmem.config import Config
from shardmem.runtime.child import python_command
from shardmem.runtime.handler import HandlerRef
from support.daemon import Daemon
from support.recorder import payload
from support.rig import PATIENCE, Log, Rig, drained, expect_clean, keys_of_shard, process_is_gone, wait_until


def shard_of(engine: Any, shard: int = 0) -> dict[str, Any]:
    return next(each for each in engine.status()["shards"] if each["id"] == shard)


def in_condition(engine: Any, word: str, shard: int = 0) -> dict[str, Any]:
    return wait_until(
        lambda: (found := shard_of(engine, shard))["condition"] == word and found, f"shard {shard} is {word}"
    )


def push(producer: shardmem.Producer, log: Log, key: int, numbers: range) -> None:
    for number in numbers:
        log.rows("offered", 1, [key], [number])
        producer.push(key, payload(1, key, number))
        log.rows("accepted", 1, [key], [number])


def test_a_stopped_worker_is_stuck_and_is_followed_by_another_once_it_is_dead(rig: Rig, engine_name: str) -> None:
    first, second = (keys_of_shard(shard, 2, 1)[0] for shard in (0, 1))
    with (
        rig.engine(engine_name, shards=2, stall_timeout=0.3) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        before = in_condition(engine, "idle")
        os.kill(before["pid"], signal.SIGSTOP)
        push(producer, log, first, range(20))
        push(producer, log, second, range(20))
        stuck = in_condition(engine, "stuck")
        assert "not a sign for" in stuck["reason"] and stuck["pid"] == before["pid"]
        after = wait_until(
            lambda: (found := shard_of(engine))["incarnation"] > before["incarnation"] and found["alive"] and found,
            "another worker has come",
        )
        assert process_is_gone(before["pid"]) and after["state"] == "active"
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))
        shard = wait_until(lambda: shard_of(engine)["crashes"] and shard_of(engine), "the end is in the status")
        assert "it was stuck" in shard["last_exit"] and shard_of(engine, 1)["crashes"] == 0
        told = ["started", "stuck", "worker_died", "worker_started"]
        wait_until(lambda: [each["kind"] for each in engine.status()["events"]] == told, f"the history says {told}")


def test_a_batch_without_a_deadline_is_slow_however_long_it_is_in_hand(rig: Rig, engine_name: str) -> None:
    with (
        rig.engine(engine_name, shards=1, stall_timeout=0.25) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        with rig.hold():
            push(producer, log, 1, range(5))
            rig.wait_held(0)
            before = in_condition(engine, "slow")  # after four times the stall_timeout
            assert 1 < before["in_hand_s"] < 1 + PATIENCE
            assert "in hand" in before["reason"]
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))
        assert shard_of(engine)["incarnation"] == before["incarnation"]
        in_condition(engine, "idle")


def test_a_batch_beyond_its_deadline_gets_its_worker_dumped_and_killed_and_comes_again(
    rig: Rig, engine_name: str
) -> None:
    rig.tell(
        "settings.toml",
        f'name = "{engine_name}"\nhandler = "support.handlers.waiting:Hangs"\nshards = 1\nbatch_deadline = 0.4\n'
        "stall_timeout = 1\nmax_producers = 8\n",
    )
    rig.tell("hang", "")
    with Daemon(rig, str(rig.directory / "settings.toml")) as daemon:
        before = daemon.ready()["shards"][0]
        with (
            shardmem.connect(engine_name) as producer,
            shardmem.Client(engine_name) as client,
            Log(rig.directory) as log,
        ):
            push(producer, log, 1, range(5))
            stuck = in_condition(client, "stuck")
            assert "batch_deadline=0.4 s" in stuck["reason"]
            wait_until(
                lambda: client.status()["shards"][0]["incarnation"] > before["incarnation"], "another worker has come"
            )
            (rig.directory / "hang").unlink()
            producer.flush(PATIENCE)
            expect_clean(rig, drained(client), duplicates=5)
        daemon.process.terminate()
        _, error = daemon.process.communicate(timeout=PATIENCE)
        assert "in hang" in error and "waiting.py" in error, "the stacks are in the log"
        assert "is stuck: its batch is in hand for" in error and daemon.process.returncode == 0


def test_a_worker_that_moves_again_in_time_is_left_alone(rig: Rig, engine_name: str) -> None:
    with (
        rig.engine(engine_name, shards=1, stall_timeout=2.0) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        before = shard_of(engine)
        os.kill(before["pid"], signal.SIGSTOP)
        heart = producer._attached.seat.control.view_shard(0).heartbeat_ns
        push(producer, log, 1, range(5))
        os.kill(before["pid"], signal.SIGCONT)
        producer.flush(PATIENCE)
        wait_until(lambda: producer._attached.seat.control.view_shard(0).heartbeat_ns > heart, "its heart beats")
        expect_clean(rig, drained(engine))
        assert shard_of(engine)["incarnation"] == before["incarnation"]


def test_an_engine_ends_although_a_worker_is_stopped(rig: Rig, engine_name: str) -> None:
    """It has been told to end, and cannot hear it."""
    engine = rig.engine(engine_name, shards=2, stall_timeout=0.3).start()
    with engine.producer() as producer, Log(rig.directory) as log:
        push(producer, log, 1, range(5))
        producer.flush(PATIENCE)
    os.kill(shard_of(engine)["pid"], signal.SIGSTOP)
    expect_clean(rig, engine.stop())


def test_a_successor_of_a_worker_that_is_only_stopped_is_refused_and_after_the_kill_nothing_of_the_old_one_runs(
    rig: Rig, engine_name: str
) -> None:
    """Given up for dead, it could wake again and write: so nobody may follow it before the kernel says that it is
    dead."""
    with rig.engine(engine_name, shards=1) as engine, engine.producer() as producer, Log(rig.directory) as log:
        push(producer, log, 1, range(5))
        producer.flush(PATIENCE)
        old = shard_of(engine)
        os.kill(old["pid"], signal.SIGSTOP)
        said = start_successor(rig, engine_name)
        assert said == {"taken": True}
        assert shard_of(engine)["incarnation"] == old["incarnation"], "the refused one has left no trace"
        os.kill(old["pid"], signal.SIGCONT)  # it wakes, and is still the one
        push(producer, log, 1, range(5, 10))
        producer.flush(PATIENCE)
        assert shard_of(engine)["pid"] == old["pid"]
        os.kill(old["pid"], signal.SIGSTOP)
        os.kill(old["pid"], signal.SIGKILL)
        push(producer, log, 1, range(10, 15))
        producer.flush(PATIENCE)
        assert process_is_gone(old["pid"]) and shard_of(engine)["incarnation"] == old["incarnation"] + 1
        expect_clean(rig, drained(engine))


def start_successor(rig: Rig, name: str) -> dict[str, Any]:
    """A worker process started by hand, as a supervisor would; what it reports."""
    read_end, write_end = os.pipe()
    orders = {
        "engine": name,
        "shard": 0,
        "handler": asdict(HandlerRef.of("support.recorder:Recorder")),
        "settings": Config.of(name=name, handler="support.recorder:Recorder").worker_settings(),
        "reports": write_end,
        "ended": None,
        "forgiven": False,
    }
    process = subprocess.run(
        python_command("worker"),
        input=json.dumps(orders).encode() + b"\n",
        pass_fds=(write_end,),
        env=rig.environment,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
    )
    os.close(write_end)
    with os.fdopen(read_end) as reports:
        said = json.loads(reports.readline())
    assert process.returncode == 4
    return said


def test_an_engine_at_rest_is_looked_at_seldom_and_its_workers_are_not_stuck(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, stall_timeout=1) as engine, engine.producer() as producer:
        with Log(rig.directory) as log:
            push(producer, log, 1, range(5))
        producer.flush(PATIENCE)
        control, beats = producer._attached.seat.control, list[int]()

        def rests() -> bool:
            beat = control.view_engine().heartbeat_ns
            beats.extend([beat] if beat not in beats[-1:] else [])
            return len(beats) > 1 and beats[-1] - beats[-2] > 1e9

        wait_until(rests, "the supervisor looks seldom")
        assert [shard["condition"] for shard in engine.status()["shards"]] == ["idle"] * 2
        expect_clean(rig, drained(engine))
        assert [shard["crashes"] for shard in engine.status()["shards"]] == [0, 0]
