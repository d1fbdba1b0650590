"""Every named point of every process: killed there, stopped there, or refused what it needs there. The engine goes
on."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import shardmem
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import points
from support.chaos import SLOTS, Daemons, inexact
from support.checker import accounting, check
from support.handlers.counting import POISON
from support.programs.source import Source
from support.recorder import payload
from support.rig import PATIENCE, SEND_POINTS, Log, Rig, drained, is_stopped, segments_of, slot_of, wait_until

ROWS = 16  # of a batch: the most that one kill may repeat
LONG = 90.0  # seconds that something may take on a machine that is busy
WHILE = 1.0  # seconds that a process stays stopped


class Point(NamedTuple):
    """who passes it: "producer", "worker" (of a stateless handler), "keeper" (a worker of a stateful one),
    "supervisor", "source", "worker of a source", "publisher". how it is provoked. killed: the file whose tests kill at
    it, if others than these. refused: the test of what happens when it is refused what it needs there."""

    who: str
    how: str
    killed: str = ""
    refused: str = ""


FLOW, POISONED, MOVE = "events", "an event that fails", "move half of a shard's slots to the other"
MORE, FEWER, AGAIN = "scale from 2 to 3", "scale from 3 to 2", "a killed supervisor is started again"
ORIGINS, PRODUCERS, DEATHS, STATE, TAKEOVER = (
    "test_origins.py",
    "test_killed_producers.py",
    "test_worker_death.py",
    "test_state.py",
    "test_takeover.py",
)

TABLE = {
    **{name: Point("producer", FLOW, PRODUCERS) for name in SEND_POINTS},  # stopped by the same tests
    "send.claimed": Point("producer", FLOW, PRODUCERS, "test_shared_memory.py"),
    "send.waiting": Point("producer", "a full lane", PRODUCERS),
    "ring.taken": Point("producer", "a worker that sleeps", PRODUCERS),
    "poll.taken": Point("worker", FLOW, DEATHS),
    "commit.entered": Point("worker", FLOW, DEATHS),
    "commit.marked": Point("worker", FLOW, DEATHS),
    "commit.counted": Point("worker", FLOW, DEATHS),
    "commit.released": Point("worker", FLOW, DEATHS),
    "park.raised": Point("worker", FLOW),
    "room.taken": Point("worker", "full lanes"),
    "origin.calling": Point("source", "a push with an origin", ORIGINS),
    "origin.pushed": Point("source", "a push with an origin", ORIGINS),
    "outbox.confirmed": Point("publisher", "a message of a handler", "test_outbox.py"),
    "shed.lost": Point("worker of a source", "the epoch of a partition ends", ORIGINS),
    "aside.stored": Point("worker", POISONED, "", "test_a_quarantine_file_that_cannot_grow_makes_its_shard_wait"),
    "aside.acting": Point("worker", POISONED),
    "aside.marked": Point("worker", POISONED),
    "save.begun": Point("keeper", FLOW, STATE, "test_a_state_file_that_cannot_grow_ends_its_worker_and_loses_nothing"),
    "save.saved": Point("keeper", FLOW, STATE),
    "save.marked": Point("keeper", FLOW, STATE),
    "move.saved": Point("worker of a move", MOVE, STATE),
    "move.copied": Point("worker of a move", MOVE, STATE),
    "spawn.created": Point("supervisor", MORE, TAKEOVER, "test_an_inbox_that_cannot_be_reserved_changes_nothing"),
    "remove.retired": Point("supervisor", FEWER, TAKEOVER),
    "spawn.started": Point("supervisor", MORE, TAKEOVER, "test_a_worker_process_that_cannot_be_started_is_tried_again"),
    "remove.unlinked": Point("supervisor", FEWER, TAKEOVER),
    "handoff.begun": Point("supervisor", MOVE, TAKEOVER),
    "handoff.rerouted": Point("supervisor", MOVE, TAKEOVER),
    "handoff.draining": Point("supervisor", MOVE, TAKEOVER),
    "handoff.drained": Point("supervisor", MOVE, TAKEOVER),
    "handoff.releasing": Point("supervisor", MOVE, TAKEOVER),
    "handoff.released": Point("supervisor", MOVE, TAKEOVER),
    "retire.counted": Point("supervisor", FEWER),
    "takeover.locked": Point("supervisor", AGAIN, TAKEOVER),
    "takeover.adopted": Point("supervisor", AGAIN, TAKEOVER),
}
HERE = Path(__file__).parent
HERE_TOO = "SHARDMEM_ALL_POINTS" in os.environ  # points at which other tests kill are killed at here as well


def of(*who: str) -> list[str]:
    return [name for name, point in TABLE.items() if point.who in who]


def killed(*who: str) -> list[str]:
    return [name for name in of(*who) if HERE_TOO or not TABLE[name].killed]


def test_every_point_is_in_the_table() -> None:
    assert set(TABLE) == set(points()), (
        "a point that is new has to be killed at, stopped at, and written into the table"
    )
    for name, point in TABLE.items():
        if point.killed and point.killed != PRODUCERS:
            assert f'"{name}"' in (HERE / point.killed).read_text(), f"{point.killed} does not kill at {name}"
        assert not point.refused or point.refused in globals() or (HERE / point.refused).exists(), point.refused


# ---- the engine ------------------------------------------------------------------------------------------------------


class Field:
    """An engine under `shardmem run` that goes through point after point."""

    def __init__(self, directory: Path, name: str, handler: str) -> None:
        self.rig, self.name, self.stateful = Rig(directory), name, handler == "support.handlers.counting:Counting"
        self.daemons = Daemons(
            self.rig,
            name,
            handler,
            strategy="support.arming:Arming",
            batch_rows=ROWS,
            lane_bytes=4096,
            max_shards=3,
            on_error="retry",
            retry_backoff=0.001,
            max_attempts=3,
        )
        self._next, self._numbering = 1, threading.Lock()

    def source(self, log: Log) -> Source:
        return Source(self._number(), log, keys=32)

    def _number(self) -> int:
        """Of a producer. Two threads take one at a time, and it stays theirs."""
        with self._numbering:
            self._next += 1
            return self._next

    def shard(self, shard: int) -> dict[str, Any]:
        return next(each for each in self.client.status()["shards"] if each["id"] == shard)

    def active(self) -> list[int]:
        return [shard["id"] for shard in self.client.status()["shards"] if shard["state"] == "active"]

    def scale(self, shards: int) -> None:
        if len(self.active()) != shards:
            self.client.scale_to(shards)

    def move_half(self) -> None:
        owners, _ = self.control.slot_table()
        slots = {shard: [slot for slot in range(SLOTS) if owners[slot] == shard] for shard in self.active()}
        source, target = sorted(slots, key=lambda shard: -len(slots[shard]))[:2]
        self.client.move(slots[source][::2], target)

    def restart(self, **environment: str) -> None:
        self.daemons.all[-1].kill()
        self.daemons.all[-1].wait()
        self.daemons.start(**environment)

    @contextlib.contextmanager
    def feeding(self, *, poisoned: bool = False) -> Iterator[None]:
        """Bursts that fill lanes, and between them nothing, so that workers fall asleep."""
        over, failed = threading.Event(), []

        def feed() -> None:
            try:
                with shardmem.connect(self.name, spin_us=0) as producer, Log(self.rig.directory) as log:
                    source = self.source(log)
                    while not over.is_set():
                        for method in ("push_many", "push_columns"):
                            source.push(producer, method, 150, 40)
                        if poisoned and not failed:
                            log.rows("offered", source.id, [POISON], [0])
                            producer.push(POISON, payload(source.id, POISON, 0))
                            failed.append("")
                        producer.flush(2 * PATIENCE)
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(2 * PATIENCE)
        assert not any(failed) and not thread.is_alive(), f"the producer did not get on: {failed}"

    def others_go_on(self, seconds: float, *without: int) -> None:
        """Events of slots that neither move nor belong to these shards are handled all the time."""
        owners, _ = self.control.slot_table()
        moving = {each["slot"] for each in self.client.status()["handoffs"]}
        keys = [
            key for key in range(1000) if (slot := slot_of(key, SLOTS)) not in moving and owners[slot] not in without
        ]
        with shardmem.connect(self.name) as producer, Log(self.rig.directory) as log:
            me = self._number()
            number, until, over = 0, time.monotonic() + seconds, threading.Event()
            while keys and (not number or time.monotonic() < until):
                log.rows("offered", me, [keys[0]], [number])
                producer.push(keys[0], payload(me, keys[0], number), timeout=PATIENCE)
                log.rows("accepted", me, [keys[0]], [number])
                producer.flush(PATIENCE)
                number += 1
                over.wait(0.01)

    def expect_clean(self, duplicates: int = 0) -> dict[str, Any]:
        """All that was begun is finished, all that was accepted is handled, and nothing is wrong with how."""
        wait_until(lambda: not self.client.status()["handoffs"], "handoffs are finished")
        wait_until(
            lambda: {shard["state"] for shard in self.client.status()["shards"]} == {"active"}, "all shards are active"
        )
        document = drained(self.client)
        logs = self.rig.logs()
        allowed = len(logs.handled) if self.stateful else duplicates
        assert check(logs.of(range(self._checked, self._next + 1)), allowed) == []
        if self.stateful:
            assert inexact(logs, self.rig.directory / "state" / f"{self.name}.state") == []
        assert accounting(document, drained=True, removed=True) == []
        self._checked = self._next + 1
        return document

    @contextlib.contextmanager
    def running(self) -> Iterator[Field]:
        with self.daemons:
            self.daemons.start()
            self.daemons.ready()
            self._checked = 0
            with shardmem.Client(self.name) as self.client:
                self.control = ControlSegment.attach(self.name)
                yield self
                self.expect_clean()
                self.control.close()
            self.daemons.all[-1].terminate()
            assert self.daemons.all[-1].wait(PATIENCE) == 0, self.daemons.tail()
            assert segments_of(self.name) == []


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, make_engine_name: Callable[[str], str]) -> Iterator[Field]:
    with Field(
        tmp_path_factory.mktemp("worker"), make_engine_name("points"), "support.handlers.counting:Lingering"
    ).running() as field:
        yield field


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory, make_engine_name: Callable[[str], str]) -> Iterator[Field]:
    with Field(
        tmp_path_factory.mktemp("keeper"), make_engine_name("points"), "support.handlers.counting:Counting"
    ).running() as field:
        yield field


@pytest.fixture
def field(request: pytest.FixtureRequest, point: str) -> Field:
    return request.getfixturevalue("worker" if TABLE[point].who == "worker" else "keeper")


# ---- killed and stopped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", killed("worker", "keeper"))
def test_a_worker_killed_at_any_point_leaves_nothing_undone(field: Field, point: str) -> None:
    field.scale(2)
    before, aside = field.shard(0), field.client.status()["accounting"]["quarantined"]
    poisoned = TABLE[point].how == POISONED
    victim = _shard_of_poison(field) if poisoned else 0
    before = field.shard(victim)
    field.rig.arm(victim, point, 1, signal.SIGKILL)
    with field.feeding(poisoned=poisoned):
        wait_until(lambda: field.shard(victim)["incarnation"] == before["incarnation"] + 1, f"a worker died at {point}")
    document = field.expect_clean(duplicates=ROWS)
    assert document["accounting"]["quarantined"] - aside == poisoned


@pytest.mark.parametrize("point", of("worker", "keeper"))
def test_a_worker_stopped_at_any_point_keeps_nobody_else_waiting_and_goes_on(field: Field, point: str) -> None:
    field.scale(2)
    poisoned, aside = TABLE[point].how == POISONED, field.client.status()["accounting"]["quarantined"]
    victim = _shard_of_poison(field) if poisoned else 0
    before = field.shard(victim)
    field.rig.arm(victim, point, 1, signal.SIGSTOP)
    with field.feeding(poisoned=poisoned):
        with _stopped(before["pid"], point):
            field.others_go_on(WHILE, victim)
    document = field.expect_clean()
    assert field.shard(victim)["incarnation"] == before["incarnation"]
    assert document["accounting"]["quarantined"] - aside == poisoned


@pytest.mark.parametrize("point", killed("supervisor"))
def test_a_supervisor_killed_at_any_point_is_followed_by_one_that_finishes_its_work(field: Field, point: str) -> None:
    done = _provoke(field, point, signal.SIGKILL)
    with field.feeding():
        assert field.daemons.all[-1].wait(PATIENCE) == -signal.SIGKILL, f"the supervisor died at {point}"
        field.others_go_on(0)
        field.daemons.start()
        field.daemons.ready()
        assert [type(each) for each in done()] in ([], [shardmem.NotRunning])
    field.expect_clean()


def test_a_drain_goes_on_with_the_slots_that_a_killed_supervisor_had_in_motion(keeper: Field) -> None:
    """They were moved twice: the drain was planned before the new supervisor had looked which slots were on their
    way."""
    keeper.scale(3)
    armed = keeper.rig.arm("supervisor", "handoff.draining", 1, signal.SIGKILL)
    wait_until(lambda: not armed.exists(), "the supervisor is armed")
    with keeper.feeding():
        with pytest.raises(shardmem.NotRunning):
            keeper.client.drain(2)
        keeper.daemons.start()
        keeper.daemons.ready()
        wait_until(lambda: len(keeper.active()) == 2, "the drain is finished")
    keeper.expect_clean()


@pytest.mark.parametrize("point", of("supervisor"))
def test_a_supervisor_stopped_at_any_point_keeps_nobody_waiting_and_goes_on(field: Field, point: str) -> None:
    done = _provoke(field, point, signal.SIGSTOP)
    with field.feeding():
        with _stopped(field.daemons.all[-1].pid, point):
            field.others_go_on(WHILE)
        field.daemons.ready()
        assert done() == []
    field.expect_clean()


@contextlib.contextmanager
def _stopped(pid: int, point: str) -> Iterator[None]:
    wait_until(lambda: is_stopped(pid), f"process {pid} was stopped at {point}")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _shard_of_poison(field: Field) -> int:
    return int(field.control.slot_table()[0][slot_of(POISON, SLOTS)])


def _provoke(field: Field, point: str, number: int) -> Callable[[], list[Exception]]:
    """Has the supervisor armed, and asks for what leads it there. What is returned waits for the answer: errors."""
    how = TABLE[point].how
    if how == AGAIN:
        field.restart(SHARDMEM_POINT=f"{point}:1:{number:d}")
        return list
    field.scale(3 if how == FEWER else 2)
    armed, errors = field.rig.arm("supervisor", point, 1, number), []
    wait_until(lambda: not armed.exists(), "the supervisor is armed")

    def ask() -> None:
        try:
            {MORE: lambda: field.client.scale_to(3), FEWER: lambda: field.client.scale_to(2), MOVE: field.move_half}[
                how
            ]()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def answer() -> list[Exception]:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the command was answered"
        return errors

    return answer


# ---- refused ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _limited(pid: int, what: int, most: int) -> Iterator[None]:
    """A limit stands in for a full disk and a full /dev/shm: what is beyond it fails, as it does there."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (most, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def _new_worker(field: Field, shard: int) -> int:
    """Whose log is still short: it may not be the first to meet the limit."""
    before = field.shard(shard)
    os.kill(before["pid"], signal.SIGKILL)

    def next_one() -> int | None:
        now = field.shard(shard)
        return now["pid"] if now["incarnation"] > before["incarnation"] and now["phase"] == "ready" else None

    return wait_until(next_one, "the worker is replaced")


def test_an_inbox_that_cannot_be_reserved_changes_nothing(worker: Field) -> None:
    worker.scale(2)
    with worker.feeding():
        before = segments_of(worker.name)
        with _limited(worker.daemons.all[-1].pid, resource.RLIMIT_FSIZE, 4096):
            with pytest.raises(shardmem.ShardmemError, match="inbox"):
                worker.client.scale_to(3)
        assert segments_of(worker.name) == before and worker.active() == [0, 1]
        worker.client.scale_to(3)
    worker.expect_clean()


def _first_of_reserve(pid: int) -> int:
    """The lowest descriptor that it keeps open for nothing else than to have one."""
    return min(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir() if int(each.name) > 2 and _is_spare(each))


def _is_spare(descriptor: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(descriptor) == os.devnull
    return False


@pytest.mark.timeout(3 * LONG)
def test_a_worker_process_that_cannot_be_started_is_tried_again(rig: Rig, engine_name: str) -> None:
    engine = rig.engine(engine_name, shards=1)
    with engine, engine.producer() as producer, Log(rig.directory) as log:
        supervisor = engine.status()["supervisor"]["pid"]
        used = len(os.listdir(f"/proc/{supervisor}/fd"))
        # with its reserve given up it has room for the pipe of the reports, and not for all that a start takes
        with _limited(supervisor, resource.RLIMIT_NOFILE, _first_of_reserve(supervisor) + 3):
            os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)

            def refused_for_long() -> bool:
                shard = engine.status()["shards"][0]
                is_refused = "no process could be started: Too many open files" in (shard["last_exit"] or "")
                return is_refused and (shard["restarting_in_s"] or 0.0) > 1.0  # the first wait is 0.1 s

            wait_until(refused_for_long, "it could not be started, again and again", LONG)
            assert engine.status()["shards"][0]["crashes"] == 1, "a start that is refused is no crash"
        source = Source(1, log)
        source.push(producer, "push_many", 100, 40)
        producer.flush(LONG)
        wait_until(
            lambda: len(os.listdir(f"/proc/{supervisor}/fd")) <= used,
            "what was opened for those that did not start is closed",
            LONG,
        )
        assert check(rig.logs()) == []


def test_a_state_file_that_cannot_grow_ends_its_worker_and_loses_nothing(keeper: Field) -> None:
    keeper.scale(2)
    with _limited(_new_worker(keeper, 0), resource.RLIMIT_FSIZE, 8192), Log(keeper.rig.directory) as log:
        with shardmem.connect(keeper.name) as producer:
            source = keeper.source(log)

            def has_failed() -> bool:
                source.push(producer, "push_many", 8, 10)
                last_exit = keeper.shard(0)["last_exit"] or ""
                return "the state file" in last_exit and "cannot be used" in last_exit

            wait_until(has_failed, "its worker has failed, and says why", 60)
    keeper.daemons.ready()
    keeper.expect_clean()


@pytest.mark.timeout(3 * LONG)
def test_a_quarantine_file_that_cannot_grow_makes_its_shard_wait(worker: Field) -> None:
    worker.scale(2)
    victim, aside = _shard_of_poison(worker), worker.client.status()["accounting"]["quarantined"]
    with _limited(_new_worker(worker, victim), resource.RLIMIT_FSIZE, 4096), shardmem.connect(worker.name) as producer:
        producer.push(POISON, payload(0, POISON, 0))
        waiting = wait_until(
            lambda: (shard := worker.shard(victim))["condition"] == "waiting" and shard, "the shard waits", LONG
        )
        assert "the quarantine file" in waiting["error"] and "cannot be used" in waiting["error"]
        assert waiting["state"] == "active" and worker.client.status()["accounting"]["quarantined"] == aside
    wait_until(
        lambda: worker.client.status()["accounting"]["quarantined"] == aside + 1, "it goes on when there is room", LONG
    )
    worker.daemons.ready()
    worker.expect_clean()
