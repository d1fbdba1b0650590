"""Engines start, drain, stop, are interrupted and are orphaned: nothing accepted is lost and nothing is left behind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardmem
from support.checker import check, no_loss
from support.daemon import Daemon
from support.programs import engines, sends
from support.recorder import RECORD, parse, payload, records
from support.rig import (
    PATIENCE,
    SMALL_LANE,
    Log,
    Program,
    Rig,
    drained,
    expect_clean,
    keys_of_shard,
    process_is_gone,
    run_program,
    segments_of,
    sleeps_in_futex,
    wait_until,
)

LONG = 60.0  # seconds that anything may take on a busy machine


def push(producer: shardmem.Producer, log: Log, numbers: range, key: int = 1, test_producer: int = 1) -> None:
    for number in numbers:
        log.rows("offered", test_producer, [key], [number])
        producer.push(key, payload(test_producer, key, number))
        log.rows("accepted", test_producer, [key], [number])


# ---- parents ---------------------------------------------------------------------------------------------------------


def test_an_engine_whose_parent_is_killed_drains_and_leaves_nothing(rig: Rig, engine_name: str) -> None:
    with Program(engines.parent, rig, engine=engine_name, calls=40) as parent:
        pids = parent.hear()["pids"]
        parent.kill()
        parent.process.wait()
        wait_until(lambda: all(map(process_is_gone, pids)), "supervisor and workers have ended")
    assert segments_of(engine_name) == []
    logs = rig.logs()
    assert len(logs.accepted) == 2000 and check(logs) == []


@pytest.mark.parametrize("name", [True, False], ids=["named", "unnamed"])
def test_an_engine_whose_parent_is_killed_waits_for_the_batch_in_hand(rig: Rig, engine_name: str, name: bool) -> None:
    with rig.hold() as release:
        with Program(engines.parent, rig, engine=engine_name if name else None, calls=4) as parent:
            told = parent.hear()
            parent.kill()
            parent.process.wait()
        with shardmem.Client(told["engine"]) as client:
            wait_until(lambda: client.status()["engine"]["state"] == "draining", "the supervisor has noticed")
            assert client.status()["accounting"]["in_flight"] == 200
        assert not any(map(process_is_gone, told["pids"]))
        release()
        wait_until(lambda: all(map(process_is_gone, told["pids"])), "supervisor and workers have ended")
    assert segments_of(told["engine"]) == []
    assert check(rig.logs()) == []


def test_leaving_the_block_does_not_wait_for_children_forked_inside_it(engine_name: str) -> None:
    reply = run_program(engines.forks_that_outlive_the_block)
    assert reply["took"] < 5


@pytest.mark.parametrize("how, code, handled", [("exit", 0, 2), ("push", 0, 3), ("error", 1, 2)])
def test_a_forked_child_that_leaves_the_block_ends_and_leaves_the_engine_alone(
    engine_name: str, how: str, code: int, handled: int
) -> None:
    assert run_program(engines.child_that_leaves_the_block, how=how, stderr=None) == {
        "codes": [code],
        "handled": handled,
    }


def test_an_error_in_the_block_is_not_hidden_and_the_engine_ends(rig: Rig, engine_name: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        with rig.engine(engine_name, shards=1) as engine, engine.producer() as producer:
            producer.push(1, payload(1, 1, 0))
            raise KeyError("mine")
    assert segments_of(engine_name) == []
    assert len(rig.logs().handled) == 1


def test_an_engine_can_be_stopped_twice_and_still_be_asked(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, shards=1).start()
    with engine.producer() as producer:
        producer.push(1, payload(1, 1, 0))
    first = engine.stop()
    assert first["accounting"]["handled"] == 1 and engine.status() == first
    assert engine.stop() == first
    with pytest.raises(shardmem.ShardmemError, match="already started"):
        engine.start()


def test_an_engine_that_was_never_started_says_so(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name)
    with pytest.raises(shardmem.NotRunning, match="never started"):
        engine.stop()
    with pytest.raises(shardmem.NotRunning, match="not running"):
        engine.status()


def test_an_embedded_engine_whose_supervisor_is_killed_leaves_nothing_when_its_block_ends(rig: Rig) -> None:
    engine = rig.engine(None, shards=2)
    with engine:
        status = engine.status()
        engine._end_revival()  # else there may be another by then
        os.kill(status["supervisor"]["pid"], signal.SIGKILL)
        wait_until(lambda: not engine.status()["supervisor"]["alive"], "the supervisor is dead")
    pids = [shard["pid"] for shard in status["shards"]]
    try:
        wait_until(lambda: all(map(process_is_gone, pids)), "workers have ended", timeout=5)
        assert segments_of(engine.name) == []
    finally:
        for pid in pids:
            if not process_is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        for entry in segments_of(engine.name):
            os.unlink(f"/dev/shm/{entry}")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_whose_supervisor_dies_before_it_is_ready_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("SHARDMEM_POINT", f"spawn.started:{workers}:{signal.SIGKILL:d}")
    engine = rig.engine(None, shards=3)
    with pytest.raises(shardmem.ShardmemError, match="was killed by SIGKILL"):
        engine.start()
    assert segments_of(engine.name) == []  # and of its workers the fixture finds whatever lives


def test_workers_and_producers_carry_on_without_a_supervisor(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as daemon:
        status = daemon.ready()
        with shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
            push(producer, log, range(10))
            daemon.process.kill()
            daemon.process.wait()
            for key in range(20):
                push(producer, log, range(10, 20), key=key)
            producer.flush(PATIENCE)
        with shardmem.Client(engine_name) as client:
            assert client.status()["supervisor"]["alive"] is False
            expect_clean(rig, client.status())
    for entry in segments_of(engine_name):
        os.unlink(f"/dev/shm/{entry}")
    for shard in status["shards"]:  # the end of the block has killed them
        wait_until(lambda: process_is_gone(shard["pid"]), "the worker has ended")


# ---- signals ---------------------------------------------------------------------------------------------------------


def test_term_drains_and_removes_everything(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as daemon:
        daemon.ready()
        with rig.hold() as release, shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
            for key in range(10):
                push(producer, log, range(50), key=key)
            daemon.process.terminate()
            wait_until(lambda: producer._attached.seat.control.state == "draining", "it drains")
            with pytest.raises(shardmem.NotRunning, match="draining"):
                producer.push(1, b"too late", timeout=0)
            release()
            code, last = daemon.end()
        assert code == 0 and last["status"]["accounting"]["handled"] == 500
        expect_clean(rig, last["status"])
    assert segments_of(engine_name) == []


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,), (signal.SIGQUIT,)],
    ids=["second TERM", "INT", "QUIT"],
)
def test_a_stop_now_ends_after_the_batch_in_hand_and_keeps_the_rest_for_the_next_run(
    rig: Rig, engine_name: str, signals: tuple[int, ...]
) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as daemon:
        daemon.ready()
        with rig.hold() as release, shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
            for shard in (0, 1):
                push(producer, log, range(1), key=keys_of_shard(shard, 2, 1)[0])
                rig.wait_held(shard)
            for key in range(100, 110):
                push(producer, log, range(50), key=key)
            for number in signals:
                daemon.process.send_signal(number)
                if number == signal.SIGTERM:
                    wait_until(lambda: producer._attached.seat.control.state != "running", "the signal has arrived")
            wait_until(lambda: producer._attached.seat.control.state == "stopped", "it stops")
            with pytest.raises(shardmem.NotRunning):
                producer.push(1, b"", timeout=0)
            with pytest.raises(shardmem.NotRunning, match="in shared memory"):
                producer.flush(PATIENCE)
            release()
            code, last = daemon.end()
        assert code == 0 and last["status"]["accounting"]["in_flight"] == 500 and segments_of(engine_name)
    with Daemon(rig, engine_name, "--shards", "2") as daemon:
        daemon.ready()
        with shardmem.Client(engine_name) as client:
            status = drained(client)
        expect_clean(rig, status)
        assert status["accounting"]["handled"] == 502
        daemon.process.terminate()
        assert daemon.end()[0] == 0
    assert segments_of(engine_name) == []


def test_a_stop_now_kills_a_worker_that_does_not_come_back_and_does_not_call_it_a_fault(
    rig: Rig, engine_name: str
) -> None:
    """The handler holds its batch for longer than the grace; the batch comes again in the next run."""
    engine = rig.engine(engine_name, handler="support.handlers.waiting:Deaf", shards=1).start()
    try:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, range(5))
            rig.wait_held(0)
        began = time.monotonic()
        assert engine.stop(now=True)["accounting"]["in_flight"] == 5
        assert time.monotonic() - began < 15
    finally:
        with rig.engine(engine_name, shards=1) as engine:
            expect_clean(rig, drained(engine))


def leave(rig: Rig, name: str, count: int, **settings: Any) -> None:
    """An engine that was stopped with so many events in shared memory."""
    records_engine = "dtype" in settings
    engine = rig.engine(name, shards=1, **settings).start()
    with rig.hold() as release, engine.producer() as producer:
        for number in range(count + 1):
            if records_engine:
                producer.send(records(1, [1], [number]))
            else:
                producer.push(1, payload(1, 1, number))
            if number == 0:
                rig.wait_held(0)
        ending = threading.Thread(target=engine.stop, args=(True,))
        ending.start()
        wait_until(lambda: producer._attached.seat.control.state == "stopped", "it stops")
        release()
        ending.join(PATIENCE)
    assert engine.status()["accounting"]["in_flight"] == count


@pytest.mark.parametrize("schema", [{}, {"dtype": RECORD, "key": "key"}], ids=["events", "records"])
def test_what_is_left_is_handled_by_the_next_run_before_anything_is_pushed(
    rig: Rig, engine_name: str, schema: dict
) -> None:
    leave(rig, engine_name, 3, **schema)
    with rig.engine(engine_name, shards=1, **schema) as engine:
        assert drained(engine)["accounting"]["handled"] == 4
    assert segments_of(engine_name) == []


@pytest.mark.parametrize("method", ["push", "push_many", "push_columns", "send"])
def test_a_producer_blocked_when_the_engine_stops_now_is_told_what_was_not_accepted(
    rig: Rig, engine_name: str, method: str
) -> None:
    schema = {"dtype": RECORD, "key": "key"} if method == "send" else {}
    engine = rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE, **schema).start()
    told: list[tuple[str, list[int], int]] = []  # text, numbers in the rest, how many were offered
    with rig.hold() as release, engine.producer() as producer:

        def block() -> None:
            offered, numbers = 0, list(range(500))
            data = [payload(1, 1, number) for number in numbers]
            try:
                if method == "push":
                    while True:
                        offered += 1
                        producer.push(1, data[0])
                offered = 500
                if method == "push_many":
                    producer.push_many([1] * 500, data)
                elif method == "push_columns":
                    producer.push_columns(np.ones(500, "i8"), b"".join(data), np.arange(501) * len(data[0]))
                else:
                    producer.send(records(1, [1] * 500, numbers))
            except shardmem.NotRunning as error:
                told.append((str(error), numbers_of(error.rest, method), offered))
            except Exception as error:
                told.append((f"not what was expected: {error!r}", [], offered))

        thread = threading.Thread(target=block)
        thread.start()
        wait_until(lambda: sleeps_in_futex(os.getpid(), thread.native_id), "the call is blocked")
        rig.wait_held(0)
        ending = threading.Thread(target=engine.stop, args=(True,))
        ending.start()
        thread.join(LONG)
        release()
        ending.join(LONG)
        assert not thread.is_alive() and not ending.is_alive()
    (text, rest, offered) = told[0]
    assert engine_name in text and "not what was expected" not in text, text
    assert method == "push" or rest == list(range(offered - len(rest), offered))
    accounts = [engine.status()["accounting"]]
    with rig.engine(engine_name, lane_bytes=SMALL_LANE, shards=1, **schema) as engine:
        # A worker that stands at the gate is killed after five seconds, and a machine that is busy may give its
        # producer none of them: then the memory stays, with what it is told later.
        accounts.append(drained(engine)["accounting"])
    counts = offered - len(rest), {"stopped": len(rest)}
    assert counts in [(each["accepted"], each["refused"]) for each in accounts]


def numbers_of(rest: Any, method: str) -> list[int]:
    if method == "send":
        return rest["number"].tolist()
    if method == "push_columns":
        _, data, offsets = rest
        return [parse(data[a:b])[2] for a, b in zip(offsets, offsets[1:])]
    return [parse(data)[2] for data in (rest[1:] if method == "push" else rest[1])]


# ---- the end of an engine, seen by producers -------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(3))
def test_what_is_accepted_while_the_engine_drains_is_handled(rig: Rig, engine_name: str, turn: int) -> None:
    """Producers push without a pause until they are told that it is over."""
    with rig.engine(engine_name, shards=2, lane_bytes=1 << 14) as engine:
        programs = [Program(sends.push_until_over, rig, engine=engine_name, producer=number) for number in range(3)]
        for program in programs:
            program.hear()
        wait_until(lambda: engine.status()["accounting"]["accepted"] > 500 * (turn + 1), "they push")
    status = engine.status()
    for program in programs:
        with program:
            assert program.hear() == {"ended": "NotRunning"}
            assert program.end() == 0
    expect_clean(rig, status)


@pytest.mark.parametrize("method", ["push", "push_many", "push_columns", "send"])
def test_a_producer_of_an_engine_that_has_ended_says_so(rig: Rig, engine_name: str, method: str) -> None:
    engine = rig.engine(engine_name, shards=1, **({"dtype": RECORD, "key": "key"} if method == "send" else {})).start()
    producer = engine.producer()
    offer = {
        "push": lambda: producer.push(1, b""),
        "push_many": lambda: producer.push_many([1], [b""]),
        "push_columns": lambda: producer.push_columns(np.ones(1, "i8"), b"", np.zeros(2, "i8")),
        "send": lambda: producer.send(np.zeros(1, RECORD)),
    }[method]
    offer()
    engine.stop()
    with pytest.raises(shardmem.NotRunning, match=f"{engine_name}.*stopped"):
        offer()
    producer.flush(PATIENCE)
    producer.close()
    producer.close()
    with pytest.raises(shardmem.NotRunning, match="closed"):
        offer()
    with pytest.raises(shardmem.NotRunning, match="closed"):
        producer.flush()


def test_a_producer_that_does_not_reconnect_knows_no_other_engine_of_the_name(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine:
        old = engine.producer(reconnect=False)
    with rig.engine(engine_name, shards=1) as engine, engine.producer() as new, old:
        with pytest.raises(shardmem.NotRunning):
            old.push(1, b"")
        new.push(1, payload(1, 1, 0))
        new.flush(PATIENCE)
        assert engine.status()["accounting"]["accepted"] == 1


def test_connecting_to_nothing_names_what_is_here(rig: Rig, engine_name: str) -> None:
    with pytest.raises(
        shardmem.NotRunning, match=f"(?s)no engine named '{engine_name}'.*shardmem run --name {engine_name}"
    ):
        shardmem.connect(engine_name)
    with rig.engine(f"{engine_name}-here", shards=1):
        with pytest.raises(shardmem.NotRunning, match=f"engines here: .*{engine_name}-here"):
            shardmem.connect(engine_name)
    began = time.monotonic()
    with pytest.raises(shardmem.NotRunning):
        shardmem.connect(engine_name, wait=0.3)
    assert 0.3 <= time.monotonic() - began < 2


def test_a_producer_can_wait_for_its_engine_to_start(rig: Rig, engine_name: str) -> None:
    with Program(sends.wait_for_engine, rig, engine=engine_name) as program:
        assert program.hear() == {"waiting": True}
        with rig.engine(engine_name, shards=1) as engine:
            assert program.hear() == {"accepted": True}
            assert program.end() == 0
            assert drained(engine)["accounting"]["handled"] == 1


def test_a_script_can_wait_until_an_engine_is_ready(rig: Rig, engine_name: str) -> None:
    def wait(seconds: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shardmem", "status", engine_name, "--wait", seconds, "--json"],
            capture_output=True,
            text=True,
            env=rig.environment,
        )

    early = wait("0.1")
    assert early.returncode == 1 and f"engine '{engine_name}' is not ready after 0.1 s" in early.stderr
    with Daemon(rig, engine_name, "--shards", "2") as daemon:
        document = json.loads(wait("30").stdout)
        assert ["ready"] * 2 == [shard["phase"] for shard in document["shards"]]
        os.kill(daemon.process.pid, signal.SIGTERM)
        assert daemon.end()[0] == 0


# ---- a name is taken once --------------------------------------------------------------------------------------------


def test_an_engine_is_reached_from_another_environment_than_its_own(
    rig: Rig, engine_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another TMPDIR a live supervisor "did not answer ([Errno 2])"."""
    (runtime := tmp_path.parents[3] / engine_name[-6:]).mkdir(mode=0o700)  # short enough for the address of a socket
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with rig.engine(engine_name, shards=1) as engine:
            assert (runtime / "shardmem" / f"{engine_name}.sock").is_socket()
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
            with shardmem.Client(engine_name) as client:
                assert client.rebalance()["done"]
            assert engine.status()["engine"]["socket"] == str(runtime / "shardmem" / f"{engine_name}.sock")
    finally:
        shutil.rmtree(runtime)


def test_a_socket_that_was_removed_is_made_again_and_found(rig: Rig, engine_name: str) -> None:
    """A cleaner of temporary files had been there: scale, reload, stop said that the supervisor did not answer."""
    with rig.engine(engine_name, shards=1) as engine, shardmem.Client(engine_name) as client:
        assert client.rebalance()["done"]
        path = Path(client.status()["engine"]["socket"])
        path.unlink()
        wait_until(path.exists, "it is made again", 3 * PATIENCE)
        assert client.rebalance()["done"]
        assert engine.scale_to(1)["done"]


def test_a_second_engine_of_the_same_name_is_refused_and_the_first_goes_on(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1) as engine, engine.producer() as producer, Log(rig.directory) as log:
        push(producer, log, range(5))
        pid = engine.status()["supervisor"]["pid"]
        with pytest.raises(
            shardmem.AlreadyRunning, match=f"'{engine_name}' is already run by process {pid}"
        ) as refused:
            rig.engine(engine_name, shards=1).start()
        assert "another name" in (refused.value.hint or "") and "shardmem.connect" in (refused.value.hint or "")
        gc.collect()
        with Daemon(rig, engine_name) as daemon:
            code, last = daemon.end()
            assert code == 4 and f"already run by process {pid}" in last["error"]
        push(producer, log, range(5, 10))
        producer.flush(PATIENCE)
        expect_clean(rig, drained(engine))


def test_of_many_engines_started_at_once_under_one_name_exactly_one_runs(rig: Rig, engine_name: str) -> None:
    daemons = [Daemon(rig, engine_name, "--shards", "1") for _ in range(4)]
    try:
        losers = [
            daemon
            for daemon in daemons
            if daemon.process.stdout and json.loads(daemon.process.stdout.readline())["event"] == "ended"
        ]
        assert [daemon.process.wait(PATIENCE) for daemon in losers] == [4] * 3
        winner = next(daemon for daemon in daemons if daemon not in losers)
        with shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
            push(producer, log, range(10))
            producer.flush(PATIENCE)
        winner.process.terminate()
        assert winner.end()[0] == 0
    finally:
        for daemon in daemons:
            daemon.__exit__()
    assert segments_of(engine_name) == []
    assert check(rig.logs()) == []


def test_the_next_run_must_fit_what_was_left(rig: Rig, engine_name: str) -> None:
    leave(rig, engine_name, 1, slots=64)
    with pytest.raises(shardmem.ConfigError, match="slots is 64 there and 1024 here.*old settings"):
        rig.engine(engine_name, shards=1).start()
    with pytest.raises(shardmem.ConfigError, match="schema"):
        rig.engine(engine_name, shards=1, slots=64, dtype=RECORD, key="key").start()
    with rig.engine(engine_name, shards=1, slots=64) as engine:
        assert drained(engine)["accounting"]["handled"] == 2


# ---- a drain and a producer that is stopped inside a send ------------------------------------------------------------


@pytest.mark.parametrize(
    "point, ended",
    [
        ("send.locked", "NotRunning"),
        ("send.marked", "NotRunning"),
        ("send.routed", "accepted"),
        ("send.published", "accepted"),
    ],
)
def test_a_drain_waits_for_a_send_that_has_begun_and_splits_none(
    rig: Rig, engine_name: str, point: str, ended: str
) -> None:
    """The engine's end finds a producer stopped inside a send. What that send then says is the truth."""
    with rig.engine(engine_name, shards=1, drain_timeout=None) as engine:
        program = stopped(rig, engine_name, point)
        ending = threading.Thread(target=engine.stop)
        ending.start()
        wait_until(lambda: state_of(engine_name) in ("draining", None), "it drains")
        program.kill(signal.SIGCONT)
        with program:
            assert program.hear()["ended"] == ended
            program.end()
        ending.join(PATIENCE)
        assert not ending.is_alive()
    expect_clean(rig, engine.status())
    assert segments_of(engine_name) == []


def test_a_drain_does_not_wait_for_a_producer_that_was_killed_inside_a_send(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1, drain_timeout=None):
        with stopped(rig, engine_name, "send.copied") as program:
            program.kill()
            program.process.wait()
    assert segments_of(engine_name) == []
    assert no_loss(rig.logs()) == []


def test_drain_timeout_holds_for_a_producer_that_is_stopped_inside_a_send(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, shards=1, drain_timeout=0.5).start()
    with stopped(rig, engine_name, "send.copied") as program:
        ended: list[BaseException] = []

        def stop() -> None:
            try:
                engine.stop()
            except shardmem.ShardmemError as error:
                ended.append(error)

        ending = threading.Thread(target=stop)
        ending.start()
        ending.join(5)
        in_time = not ending.is_alive()
        program.kill()
        ending.join(PATIENCE)
    assert in_time, "drain_timeout is 0.5 s and the engine was still draining after 5 s"
    assert ended and "drain_timeout" in str(ended[0])
    assert segments_of(engine_name), "what it was about to publish is kept"
    for entry in segments_of(engine_name):
        os.unlink(f"/dev/shm/{entry}")


def test_a_second_term_ends_an_engine_that_waits_for_a_stopped_producer(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "1") as daemon:
        daemon.ready()
        with stopped(rig, engine_name, "send.copied") as program:
            daemon.process.terminate()
            wait_until(lambda: state_of(engine_name) == "draining", "it drains")
            daemon.process.terminate()
            try:
                daemon.process.wait(8)
            finally:
                program.kill()
    for entry in segments_of(engine_name):
        os.unlink(f"/dev/shm/{entry}")


def stopped(rig: Rig, name: str, point: str) -> Program:
    """A producer that has stopped itself at the point."""
    program = Program(sends.stopped_inside_send, rig, engine=name, point=point)
    program.hear()
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
    return program


def state_of(name: str) -> str | None:
    try:
        with shardmem.Client(name) as client:
            return client.status()["engine"]["state"]
    except shardmem.NotRunning:
        return None
