"""The supervisor is killed, anywhere: nobody notices, and the next one goes on with everything."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem.config import Config
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import lib
from shardmem.runtime.child import WorkerOrders, launch
from shardmem.runtime.handler import HandlerRef
from shardmem.supervisor.process import AdoptedWorker, pidfd_of_worker
from support.checker import accounting
from support.daemon import Daemon
from support.elastic_load import KEYS, ROW, SLOTS, Counter, Traffic, read_logs, violations
from support.elastic_load import Recorder as Plain
from support.programs import engines, sends
from support.recorder import RECORD, payload, records
from support.rig import (
    PATIENCE,
    SMALL_LANE,
    Log,
    Program,
    Rig,
    drained,
    expect_clean,
    is_stopped,
    process_is_gone,
    run_program,
    segments_of,
    wait_until,
)

LONG = 60.0  # for what has to start processes, on a machine that is busy
STEPS = [
    "handoff.begun",
    "handoff.rerouted",
    "handoff.draining",
    "handoff.drained",
    "handoff.releasing",
    "handoff.released",
    "spawn.created",
    "spawn.started",
    "remove.retired",
    "remove.unlinked",
]


def kill_supervisor(engine: Any) -> int:
    pid = engine.status()["supervisor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_led_by(engine, pid), "the supervisor is dead")
    return pid


def is_led_by(engine: Any, pid: int) -> bool:
    """Another may have come before anybody looks."""
    found = engine.status()["supervisor"]
    return bool(found["alive"] and found["pid"] == pid)


def lives(document: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(shard["id"], shard["pid"], shard["incarnation"]) for shard in document["shards"]]


def push(producer: shardmem.Producer, log: Log, numbers: range, key: int = 1) -> None:
    for number in numbers:
        log.rows("offered", 1, [key], [number])
        producer.push(key, payload(1, key, number))
        log.rows("accepted", 1, [key], [number])


# ---- a daemon --------------------------------------------------------------------------------------------------------


def test_run_after_the_supervisor_was_killed_adopts_the_workers_while_producers_push(
    rig: Rig, engine_name: str
) -> None:
    with (
        Daemon(rig, engine_name, "--shards", "2") as first,
        Daemon(rig, f"{engine_name}-other", "--shards", "1") as other,
    ):
        before = first.ready()
        other.ready()
        with (
            Program(sends.push_until_over, rig, engine=engine_name, producer=1) as program,
            shardmem.Client(engine_name) as client,
        ):
            program.hear()
            first.kill_supervisor()
            accepted = client.status()["accounting"]["accepted"]
            wait_until(
                lambda: client.status()["accounting"]["handled"] > accepted + 100, "workers go on without a supervisor"
            )
            with Daemon(rig, engine_name, "--shards", "2") as second:
                after = second.ready()
                assert lives(after) == lives(before) and after["supervisor"]["incarnation"] == 2
                assert client.scale_to(1)["removed"] == [1]  # an adopted worker is drained, stopped and removed
                second.process.terminate()
                code, last = second.end()
        assert code == 0, last["error"]
        expect_clean_total(rig, last["status"])
        other.process.terminate()
        assert other.end()[0] == 0
    assert segments_of(engine_name) == []


def expect_clean_total(rig: Rig, status: dict[str, Any], duplicates: int = 0) -> None:
    """As expect_clean, for engines of which shards are gone: their counts are in the total."""
    from support.checker import check

    assert check(rig.logs(), duplicates) == []
    total = status["accounting"]
    assert total["in_flight"] == 0 and total["accepted"] == total["handled"] == len(rig.logs().handled)


def test_run_after_everything_was_killed_handles_what_was_left(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as first:
        first.ready()
        with rig.hold(), shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
            for key in range(10):
                push(producer, log, range(20), key=key)
            pids = [shard["pid"] for shard in client_status(engine_name)["shards"]]
            os.killpg(first.process.pid, signal.SIGKILL)
            wait_until(lambda: all(map(process_is_gone, pids)), "all are dead")
            push(producer, log, range(20, 25), key=1)  # producers notice nothing even now
        with Daemon(rig, engine_name, "--shards", "2") as second:
            second.ready()
            with shardmem.Client(engine_name) as client:
                expect_clean(rig, drained(client), duplicates=200)
            second.process.terminate()
            assert second.end()[0] == 0
    assert segments_of(engine_name) == []


def client_status(name: str) -> dict[str, Any]:
    with shardmem.Client(name) as client:
        return client.status()


def test_slot_words_that_name_a_shard_that_is_being_removed_are_set_right_and_its_events_handled(
    rig: Rig, engine_name: str
) -> None:
    """Its removal was tried again at every look, and nothing else was decided any more."""
    with Daemon(rig, engine_name, "--shards", "2") as first:
        first.ready()
        control, client = ControlSegment.attach(engine_name), shardmem.Client(engine_name)
        with rig.hold(1), shardmem.connect(engine_name) as producer:
            producer.push_many(list(range(100)), [b"x"] * 100)
            rig.wait_held(1)
            first.kill_supervisor()
            for shard in (0, 1):
                os.kill(control.view_shard(shard).pid, signal.SIGKILL)
        control.set_shard_state(1, "stopped")
        with Daemon(rig, engine_name, "--shards", "2") as second:
            second.ready()
            wait_until(lambda: [each["id"] for each in client.status()["shards"]] == [0], "it is removed", LONG)
            document = drained(client)
            assert document["accounting"]["handled"] == 100 and document["engine"]["slots_unowned"] == 0
            second.process.terminate()
            assert second.end()[0] == 0
        control.close()


def test_a_takeover_starts_the_worker_that_died_meanwhile_adopts_the_other_and_clears_up(
    rig: Rig, engine_name: str
) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as first:
        before = lives(first.ready())
        first.kill_supervisor()
        os.kill(before[1][1], signal.SIGKILL)
        # An inbox that its supervisor had not told anybody of yet, as it would be after a kill between the two steps.
        Path(f"/dev/shm/shardmem.{engine_name}.inbox.1.2").touch()
        with shardmem.connect(engine_name) as producer, Log(rig.directory) as log:
            for key in range(10):
                push(producer, log, range(10), key=key)
            with Daemon(rig, engine_name, "--shards", "2") as second:
                second.ready()
                producer.flush(PATIENCE)
                after = lives(client_status(engine_name))
                assert after[0] == before[0] and after[1][1] != before[1][1] and after[1][2] == before[1][2] + 1
                assert f"shardmem.{engine_name}.inbox.1.2" not in segments_of(engine_name)
                second.process.terminate()
                code, last = second.end()
                assert code == 0
                expect_clean(rig, last["status"])


def test_an_adopted_worker_that_dies_is_started_again_and_its_end_is_said_to_be_unknown(
    rig: Rig, engine_name: str
) -> None:
    with Daemon(rig, engine_name, "--shards", "1") as first:
        first.ready()
        first.kill_supervisor()
        with Daemon(rig, engine_name, "--shards", "1") as second, shardmem.Client(engine_name) as client:
            pid = second.ready()["shards"][0]["pid"]
            os.kill(pid, signal.SIGKILL)

            def again() -> Any:
                """These are words of their own, not of one moment."""
                found = client.status()["shards"][0]
                return found["pid"] != pid and found["crashes"] and found["alive"] and found

            shard = wait_until(again, "it is started again")
            assert "not known" in shard["last_exit"]
            second.process.terminate()
            assert second.end()[0] == 0


def test_an_adopted_worker_survives_writing_to_pipes_that_nobody_reads(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2", handler="support.recorder:Chatty") as first:
        before = lives(first.ready())
        first.kill_supervisor()
        for stream in (first.process.stdout, first.process.stderr):
            stream.close()
        with (
            Daemon(rig, engine_name, "--shards", "2", handler="support.recorder:Chatty") as second,
            Log(rig.directory) as log,
        ):
            second.ready()
            with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client:
                client.move([0, 1, 2, 3], 1)  # its source says `drained` into a pipe without a reader
                for key in range(10):
                    push(producer, log, range(10), key=key)
                producer.flush(PATIENCE)
                assert lives(client.status()) == before
                expect_clean(rig, drained(client))
                second.process.terminate()
                assert second.end()[0] == 0
        first.process.stdout, first.process.stderr = open(os.devnull), open(os.devnull)


@pytest.mark.parametrize("point", ["takeover.locked", "takeover.adopted"])
def test_a_takeover_that_is_killed_itself_is_taken_over(rig: Rig, engine_name: str, point: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as first:
        before = lives(first.ready())
        first.kill_supervisor()
        with Daemon(rig, engine_name, environment={"SHARDMEM_POINT": f"{point}:1:9"}) as second:
            assert second.process.wait(PATIENCE) == -signal.SIGKILL
            with Daemon(rig, engine_name, "--shards", "2") as third, shardmem.connect(engine_name) as producer:
                assert lives(third.ready()) == before
                with Log(rig.directory) as log:
                    push(producer, log, range(10))
                producer.flush(PATIENCE)
                third.process.terminate()
                assert third.end()[0] == 0
    expect_no_loss(rig)


def expect_no_loss(rig: Rig) -> None:
    from support.checker import check

    assert check(rig.logs()) == []


def test_of_two_that_take_over_at_once_one_does_and_the_other_says_already_running(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as first:
        before = lives(first.ready())
        first.kill_supervisor()
        with Daemon(rig, engine_name, "--shards", "2") as one, Daemon(rig, engine_name, "--shards", "2") as two:
            said = [daemon.process.stdout.readline() for daemon in (one, two)]
            loser, winner = (one, two) if '"ended"' in said[0] else (two, one)
            assert loser.process.wait(PATIENCE) == 4
            assert lives(client_status(engine_name)) == before
            winner.process.terminate()
            assert winner.process.wait(PATIENCE) == 0


def test_settings_that_do_not_fit_are_refused_and_the_engine_goes_on(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "1") as first:
        first.ready()
        first.kill_supervisor()
        with Daemon(rig, engine_name, "--shards", "1", "--slots", "64") as second:
            code, last = second.end()
            assert code == 2 and "slots is 1024 there and 64 here" in last["error"]
        with shardmem.connect(engine_name) as producer:
            producer.push(1, payload(1, 1, 0))
            producer.flush(PATIENCE)
        with Daemon(rig, engine_name, "--shards", "1") as third:
            third.ready()
            third.process.terminate()
            assert third.end()[0] == 0


def test_whoever_asks_a_supervisor_that_hangs_is_told_so_at_once_and_what_helps(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "1") as first:
        pid = first.ready()["supervisor"]["pid"]
        with shardmem.Client(engine_name) as client:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: is_stopped(pid), "it is stopped")
            control = ControlSegment.attach(engine_name)
            lib.sm_supervisor_beat(
                control.address, lib.sm_now_ns() - 11 * 10**9
            )  # as if that had been eleven seconds ago
            control.close()
            helps = rf"has not responded for \d+ s.*-> kill -9 {pid}"
            for name, wanted in {
                "scale": {"shards": 1},
                "drain": {"shard": 0},
                "move": {"slots": "1", "to": 0},
                "rebalance": {},
                "reload": {},
            }.items():
                with pytest.raises(shardmem.NotRunning, match=helps):
                    client.command(name, **wanted)
            with pytest.raises(shardmem.NotRunning, match=helps):
                client.stop()
            with Daemon(rig, engine_name, "--shards", "1") as second:
                code, last = second.end()
                assert code == 4 and re.search(helps, f"{last['error']} {last['hint']}"), last
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: client.status()["supervisor"]["heartbeat_age_s"] < 10, "it goes round again")
            client.stop()
        assert first.end()[0] == 0


# ---- killed in the middle of a handoff, a scale up, a removal --------------------------------------------------------


@pytest.mark.timeout(90)
@pytest.mark.parametrize("handler", [Counter, Plain], ids=["stateful", "stateless"])
def test_supervisors_killed_one_after_the_other_at_every_step_of_their_work_leave_nothing_undone(
    tmp_path: Path, handler: Any, monkeypatch: Any
) -> None:
    """Two producers push all the while. Each supervisor is killed at its point, in the middle of a command or of a
    takeover."""
    points = (
        STEPS if handler is Counter else ["handoff.drained", "handoff.released"]
    )  # elsewhere state makes no difference
    armed, launch = iter(points), shardmem.Engine._launch

    def launch_armed(self: Any) -> Any:
        if point := next(armed, None):
            monkeypatch.setenv("SHARDMEM_POINT", f"{point}:1:{signal.SIGKILL:d}")
        else:
            monkeypatch.delenv("SHARDMEM_POINT")
        return launch(self)

    def at_rest() -> bool:
        # a supervisor may be killed while it finishes what its predecessor had begun, and no command waits
        engine._revive()
        return not engine.status()["handoffs"]

    monkeypatch.setattr(shardmem.Engine, "_launch", launch_armed)
    monkeypatch.setattr("shardmem.client.engine.REVIVALS", len(points) + 1)  # one command may meet all of them
    with shardmem.Engine(
        handler=handler(str(tmp_path)),
        dtype=ROW,
        key="key",
        shards=2,
        max_shards=3,
        slots=SLOTS,
        lane_bytes=1 << 15,
        state_dir=str(tmp_path),
    ) as engine:
        traffic, evens = Traffic(engine.name, 2, pause=0.005), list(range(0, SLOTS, 2))
        commands = itertools.cycle(
            [
                lambda: engine.move(evens, 1),
                lambda: engine.move(evens, 0),
                lambda: engine.scale_to(3),
                lambda: engine.scale_to(2),
            ]
        )
        try:
            for command in itertools.islice(commands, 3 * len(points)):
                command()
                wait_until(at_rest, "no slot is in motion")
                if engine.status()["supervisor"]["incarnation"] > len(points):
                    break
            assert len(engine.scale_to(3)["shards"]) == 3
            owning = [
                shard["id"] for shard in engine.status()["shards"] if shard["state"] == "active" and shard["slots"]
            ]
            assert owning == [0, 1, 2]
            assert engine.scale_to(1)["shards"] == [0]
        finally:
            sent = traffic.stop()
        status = engine.status()
        assert status["supervisor"]["incarnation"] == len(points) + 1, (
            f"a supervisor did not come to its point of {points}"
        )
        assert [(shard["id"], shard["state"], shard["slots"]) for shard in status["shards"]] == [(0, "active", SLOTS)]
        assert [] == [text for text in accounting(status) if "sum over" not in text]
        assert len([name for name in segments_of(engine.name) if ".inbox." in name]) == 1
    total = engine.status()["accounting"]
    assert sum(sent.values()) * KEYS == total["accepted"] == total["handled"]
    assert [] == violations(read_logs(tmp_path), sent)
    assert segments_of(engine.name) == []


def test_a_drain_that_is_resumed_begins_no_handoff_again_that_is_in_motion(tmp_path: Path, monkeypatch: Any) -> None:
    """Else two go over the same slots, both count their holds down, and rows are handled before their state has
    come."""
    monkeypatch.setenv("SHARDMEM_POINT", f"handoff.drained:1:{signal.SIGKILL:d}")
    with shardmem.Engine(
        handler=Counter(str(tmp_path)),
        dtype=ROW,
        key="key",
        shards=2,
        slots=SLOTS,
        lane_bytes=1 << 15,
        state_dir=str(tmp_path),
    ) as engine:
        monkeypatch.delenv("SHARDMEM_POINT")
        traffic = Traffic(engine.name, 2)
        try:
            assert engine.scale_to(1)["shards"] == [0]
        finally:
            sent = traffic.stop()
        assert engine.status()["supervisor"]["incarnation"] == 2
        assert [(shard["id"], shard["slots"]) for shard in engine.status()["shards"]] == [(0, SLOTS)]
    assert [] == violations(read_logs(tmp_path), sent)


# ---- embedded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_an_embedded_engine_whose_supervisor_is_killed_still_drains_at_the_end_of_its_block(
    rig: Rig, engine_name: str, named: bool
) -> None:
    with rig.engine(engine_name if named else None, shards=2) as engine, Log(rig.directory) as log:
        with rig.hold(), engine.producer() as producer:
            before = lives(engine.status())
            kill_supervisor(engine)
            for key in range(20):
                push(producer, log, range(10), key=key)
    assert lives(engine.status()) == before and segments_of(engine.name) == []
    expect_clean(rig, engine.status())


def test_an_embedded_engine_whose_supervisor_is_killed_goes_on_at_its_next_command(rig: Rig, engine_name: str) -> None:
    with (
        rig.engine(engine_name, shards=1, max_shards=3) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        for shards in (2, 3, 1):
            push(producer, log, range(shards * 10, shards * 10 + 10), key=shards)
            killed = kill_supervisor(engine)
            assert len(engine.scale_to(shards)["shards"]) == shards
            assert engine.status()["supervisor"]["pid"] != killed
        producer.flush(PATIENCE)
        assert engine.status()["supervisor"]["incarnation"] == 4
    expect_clean_total(rig, engine.status())


def test_an_embedded_engine_whose_supervisor_is_killed_while_it_drains_drains(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, shards=2).start()
    with rig.hold() as release, engine.producer() as producer, Log(rig.directory) as log:
        for key in range(20):
            push(producer, log, range(10), key=key)
        ending = threading.Thread(target=engine.stop)
        ending.start()
        with shardmem.Client(engine_name) as client:
            wait_until(lambda: client.status()["engine"]["state"] == "draining", "it drains")
            kill_supervisor(client)
            wait_until(lambda: client.status()["supervisor"]["alive"], "another supervisor has come")
        release()
        ending.join(PATIENCE)
    assert not ending.is_alive() and segments_of(engine_name) == []
    expect_clean(rig, engine.status())


@pytest.mark.parametrize("how", ["flush", "push", "another process"])
def test_whoever_waits_for_an_embedded_engine_whose_supervisor_and_worker_were_killed_gets_on(
    rig: Rig, engine_name: str, how: str
) -> None:
    """As when a cgroup runs out of memory. Nobody asks the engine for anything meanwhile."""
    with (
        rig.engine(engine_name, shards=1, lane_bytes=SMALL_LANE) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        push(producer, log, range(10))
        producer.flush(LONG)
        worker = engine.status()["shards"][0]["pid"]
        kill_supervisor(engine)
        os.kill(worker, signal.SIGKILL)
        if how == "another process":
            run_program(sends.push_some, rig, engine=engine_name, producer=2, blocks=4, rows=100, timeout=LONG)
        else:
            push(producer, log, range(10, 20 if how == "flush" else 500))
            producer.flush(LONG)
        assert engine.status()["supervisor"]["incarnation"] >= 2
    expect_clean_total(rig, engine.status())


def test_an_embedded_engine_may_end_while_threads_look_at_it(rig: Rig, engine_name: str) -> None:
    """The memory was unmapped under them."""
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            engine.status()
            with contextlib.suppress(shardmem.NotRunning):
                engine.where("ann")

    with rig.engine(engine_name, shards=1) as engine:
        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
    ended.set()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert segments_of(engine_name) == []


def test_a_child_forked_inside_the_block_does_not_revive_the_engine_of_its_parent(engine_name: str) -> None:
    reply = run_program(engines.fork_without_supervisor, stderr=None)  # it says that it took over
    assert reply["child"] == 0 and reply["incarnation"] == 1


# ---- a worker that cannot be seen ------------------------------------------------------------------------------------


def test_the_death_of_a_worker_in_another_pid_namespace_is_learned_from_its_lease(
    rig: Rig, engine_name: str, monkeypatch: Any
) -> None:
    def unseen(pid: int, flags: int = 0) -> int:
        raise ProcessLookupError(pid)

    async def adopt_and_kill(control: ControlSegment, pid: int) -> AdoptedWorker:
        ended = asyncio.Event()
        monkeypatch.setattr("os.pidfd_open", unseen)
        assert pidfd_of_worker(control, "nothing", 0) is None
        worker = AdoptedWorker(asyncio.get_running_loop(), control, 0, None, lambda _: ended.set())
        assert worker.ready and worker.alive and worker.failure is None
        worker.kill()  # goes nowhere: the number may be anybody's
        os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(ended.wait(), PATIENCE)
        monkeypatch.undo()
        return worker

    with rig.engine(engine_name, shards=1) as engine:
        control = ControlSegment.attach(engine_name)
        worker = asyncio.run(adopt_and_kill(control, engine.status()["shards"][0]["pid"]))
        assert not worker.alive
        control.close()


def test_a_process_that_only_has_the_number_of_a_worker_is_never_taken_for_it(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1):
        control = ControlSegment.attach(engine_name)
        inbox = f"shardmem.{engine_name}.inbox.0.1"
        assert (found := pidfd_of_worker(control, inbox, 0)) is not None
        os.close(found)
        assert pidfd_of_worker(control, "shardmem.another.inbox.0.1", 0) is None
        control.close()


def test_a_worker_that_takes_its_shard_after_the_takeover_looked_for_it_is_taken_up_too(
    rig: Rig, engine_name: str
) -> None:
    """It was waited for as if it were dying: a drain beside it stood still, and a stop did not wait for it."""
    worker = "support.handlers.counting:Lingering"
    with Daemon(rig, engine_name, "--shards", "2", handler=worker) as first:
        first.ready()
        control, client = ControlSegment.attach(engine_name), shardmem.Client(engine_name)
        first.kill_supervisor()
        os.kill(control.view_shard(1).pid, signal.SIGKILL)
        wait_until(lambda: not control.worker_alive(1), "one worker is dead", LONG)
        stopped = {"SHARDMEM_POINT": f"takeover.adopted:1:{signal.SIGSTOP:d}"}
        with Daemon(rig, engine_name, "--shards", "2", handler=worker, environment=stopped) as second:
            wait_until(lambda: is_stopped(second.process.pid), "it has looked for workers", LONG)
            settings = Config.of(name=engine_name, handler=worker).worker_settings()
            late = launch("worker", WorkerOrders(HandlerRef.of(worker), engine_name, 1, settings))
            wait_until(lambda: control.worker_alive(1), "the late one has its shard", LONG)
            second.process.send_signal(signal.SIGCONT)
            second.ready()
            client.command("drain", shard=0, timeout=LONG)
            assert [shard["pid"] for shard in client.status()["shards"]] == [late.pid]
            second.process.terminate()
            assert second.end()[0] == 0 and late.wait(LONG) == 0
            late.close()
        control.close()


def test_a_term_right_after_the_takeover_is_a_stop_like_any_other(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "1") as first:
        first.ready()
        first.kill_supervisor()
        stopped = {"SHARDMEM_POINT": f"takeover.locked:1:{signal.SIGSTOP:d}"}
        with Daemon(rig, engine_name, "--shards", "1", environment=stopped) as second:
            wait_until(lambda: is_stopped(second.process.pid), "it has taken the role", LONG)
            second.process.terminate()
            second.process.send_signal(signal.SIGCONT)
            assert second.end()[0] == 0
    assert segments_of(engine_name) == []


@pytest.mark.parametrize("on_error", ["retry", "stop"])
def test_an_adopted_worker_that_keeps_a_view_or_is_to_stop_at_an_error_has_failed_and_is_not_started_again(
    rig: Rig, on_error: str
) -> None:
    handler = "support.handlers.keeping:Keeper" if on_error == "retry" else "support.handlers.failing:Fragile"
    engine = rig.engine(None, handler=handler, shards=1, on_error=on_error, dtype=RECORD, key="key")
    with pytest.raises(shardmem.HandlerError), engine, engine.producer() as producer:
        kill_supervisor(engine)
        wait_until(lambda: engine.status()["supervisor"]["alive"], "the next one leads", LONG)
        rig.tell("keep", "slice")
        rig.tell("handle", "raise")
        producer.send(records(1, [1], [1]))
        with pytest.raises(shardmem.HandlerError):
            producer.flush(PATIENCE)
        shard = engine.status()["shards"][0]
        assert (shard["condition"], shard["phase"], shard["crashes"]) == ("failed", "halted", 0)
