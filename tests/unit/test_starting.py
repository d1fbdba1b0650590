"""Workers that the system refuses, that nobody counts against the handler, and spares."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shardmem.config import Config
from shardmem.errors import SegmentError
from shardmem.runtime.child import ExitCode
from shardmem.runtime.handler import HandlerRef
from shardmem.supervisor import spares, takeover, workers
from shardmem.supervisor.descriptors import RESERVE, Descriptors
from shardmem.supervisor.prestart import Prestarted
from shardmem.supervisor.spares import Spares
from support.rig import segments_of


class Memory:
    """The words of a control segment that starting a worker needs."""

    def worker_alive(self, shard: int) -> bool:
        return False


class Notes(list[tuple[str, str]]):
    def note(self, kind: str, text: str, shard: int | None = None, logged: bool = False) -> None:
        self.append((kind, text))


class NoDescriptors(Descriptors):
    def __init__(self) -> None:
        self.before, self._reserve = 1024, []


class Started:
    alive = ready = False
    pid = 4711


def made(memory: Memory, notes: Notes) -> workers.Workers:
    return workers.Workers(
        memory,  # type: ignore[arg-type]
        {0: SimpleNamespace(segment=SimpleNamespace(name="inbox"))},  # type: ignore[dict-item]
        Config.of(name="ticks", handler="module:handle"),
        HandlerRef("module:handle"),
        Prestarted(),
        is_stopping=lambda shard: False,
        changed=lambda: None,
        history=notes,  # type: ignore[arg-type]
        descriptors=NoDescriptors(),
    )


def test_a_start_that_the_system_refuses_is_no_crash_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [OSError(errno.EAGAIN, "Resource temporarily unavailable"), OSError(errno.EMFILE, "Too many open files")]
    begun: list[Any] = []

    def process(*values: Any, **more: Any) -> Any:
        if refusals:
            raise refusals.pop(0)
        begun.append(values)
        return Started()

    monkeypatch.setattr(workers, "WorkerProcess", process)
    monkeypatch.setattr(workers, "REFUSED_FIRST", 0.001)
    notes, memory = Notes(), Memory()

    async def run() -> workers.Workers:
        started = made(memory, notes)
        started.start(0)
        async with asyncio.timeout(60) if sys.version_info >= (3, 11) else _Anything():
            while not begun:
                await asyncio.sleep(0.001)
        return started

    found = asyncio.run(run())
    assert [kind for kind, _ in notes] == ["not_done"] and "RLIMIT_NPROC" in notes[0][1]
    assert found.failed() == {} and found.describe() == {}


def test_a_worker_that_finds_its_shard_taken_is_no_failure_and_the_one_that_has_it_is_adopted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes, memory, adopted, begun = Notes(), Memory(), list[int](), list[Any]()

    class Taken:
        shard, pid, taken, failure, exit_code = 0, 4711, True, None, 4

    def process(loop: Any, orders: Any, spare: Any, *, on_report: Any, on_exit: Any) -> Any:
        begun.append(Taken())
        loop.call_soon(on_exit, begun[-1])
        if len(begun) == 2:
            memory.worker_alive = lambda shard: True  # type: ignore[method-assign]
        return begun[-1]

    monkeypatch.setattr(workers, "WorkerProcess", process)
    monkeypatch.setattr(workers, "pidfd_of_worker", lambda control, inbox, shard: 7)
    monkeypatch.setattr(workers, "AdoptedWorker", lambda loop, control, shard, pidfd, exited: adopted.append(shard))

    async def run() -> workers.Workers:
        started = made(memory, notes)
        started.start(0)
        async with asyncio.timeout(60) if sys.version_info >= (3, 11) else _Anything():
            while not adopted:
                await asyncio.sleep(0.001)
        return started

    found = asyncio.run(run())
    assert (adopted, len(begun)) == ([0], 2), "the first time, whoever had it was dead by then"
    assert found.failed() == {} and found.describe() == {} and notes == []


def test_a_stop_adopts_no_worker_that_was_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the place of the process that hears of its death: some stops never ended."""
    memory, adopted = Memory(), list[int]()
    monkeypatch.setattr(workers, "WorkerProcess", lambda *values, **more: Started())
    monkeypatch.setattr(workers, "pidfd_of_worker", lambda control, inbox, shard: 7)
    monkeypatch.setattr(workers, "AdoptedWorker", lambda loop, control, shard, pidfd, exited: adopted.append(shard))

    async def run() -> None:
        made_here = made(memory, Notes())
        made_here.start(0)
        async with asyncio.timeout(60) if sys.version_info >= (3, 11) else _Anything():
            while made_here.of(0) is None:
                await asyncio.sleep(0.001)
        memory.worker_alive = lambda shard: True  # type: ignore[method-assign]
        made_here.stop_starting()
        assert isinstance(made_here.of(0), Started)

    asyncio.run(run())
    assert adopted == []


class _Anything:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


def test_a_process_can_be_started_when_all_other_descriptors_are_taken() -> None:
    code = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from shardmem.runtime.child import Child
from shardmem.supervisor.descriptors import Descriptors
descriptors = Descriptors()
try:
    while True: os.open("/dev/null", os.O_RDONLY)
except OSError: pass
try: Child("worker")
except OSError as error: print(error.errno)
with descriptors.lent(): child = Child("worker")
child.kill(); print(child.wait(60))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(errno.EMFILE), "-9"], done.stderr


def test_a_supervisor_raises_its_soft_limit_of_descriptors_and_remembers_what_it_was() -> None:
    code = """
import resource
import signal
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
from shardmem.supervisor.descriptors import Descriptors
print(Descriptors().before, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["100", "200", "200"], done.stderr


def test_the_reserve_is_taken_again_and_given_up_at_the_end() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = Descriptors()
    try:
        kept = list(descriptors._reserve)
        with descriptors.lent():
            assert not any(os.path.exists(f"/proc/self/fd/{each}") for each in kept)
        assert len(descriptors._reserve) == RESERVE
        descriptors.close()
        assert descriptors._reserve == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Waiting:
    """A spare: the end of a pipe that says when it has imported all."""

    def __init__(self, shard: int) -> None:
        self.shard, self.ended = shard, False
        self.read_end, self.write_end = os.pipe()
        self.reports = self
        self.closed = False

    def fileno(self) -> int:
        return self.read_end

    def read(self) -> list[Any]:
        return [os.read(self.read_end, 100)]

    def poll(self) -> int | None:
        return 3 if self.ended else None

    def kill(self) -> None:
        self.ended = True

    def wait(self) -> int:
        return 3

    def close(self) -> None:
        if not self.closed:
            os.close(self.read_end)
            os.close(self.write_end)
        self.closed = True


def in_loop(work: Callable[[Spares, list[Waiting]], Any], kept: int = 1) -> None:
    made: list[Waiting] = []

    def start(shard: int) -> Any:
        made.append(Waiting(shard))
        return made[-1]

    async def run() -> None:
        found = Spares(asyncio.get_running_loop(), kept, start)
        try:
            await work(found, made)
        finally:
            found.close()
        assert found.take() is None

    asyncio.run(run())


def test_one_death_keeps_no_spare_and_the_second_does_and_no_more_import_at_once_than_help() -> None:
    async def work(found: Spares, made: list[Waiting]) -> None:
        found.died(5)
        await asyncio.sleep(0.01)
        assert made == []
        for _ in range(10):
            found.died(5)
        while len(made) < spares.AT_ONCE:
            await asyncio.sleep(0.001)
        assert [each.shard for each in made] == [5] * spares.AT_ONCE
        os.write(made[0].write_end, b"prepared")
        while len(made) < spares.MOST:
            await asyncio.sleep(0.001)
        made[0].ended = True
        assert found.take() is made[1]  # type: ignore[comparison-overlap]
        made[1].close()

    in_loop(work)


def test_a_spare_is_kept_once_a_worker_is_ready_and_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "SETTLED", 0.001)

    async def work(found: Spares, made: list[Waiting]) -> None:
        found.keep(2)
        await asyncio.sleep(0.02)
        assert made == []  # no worker is ready: perhaps none ever will be
        found.settle(3)
        while len(made) < 2:
            await asyncio.sleep(0.001)
        for each in made:
            os.write(each.write_end, b"prepared")
        assert found.take() is made[0]  # type: ignore[comparison-overlap]
        made[0].close()
        while len(made) < 3:
            await asyncio.sleep(0.001)
        found.keep(0)
        while not (made[1].ended and made[2].ended):
            await asyncio.sleep(0.001)
        assert found.take() is None

    in_loop(work)


def test_with_no_spares_not_even_frequent_deaths_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "SETTLED", 0.0)

    async def work(found: Spares, made: list[Waiting]) -> None:
        found.settle(0)
        for _ in range(10):
            found.died(0)
        await asyncio.sleep(0.02)
        assert made == []

    in_loop(work, kept=0)


# ---- the start of an engine ------------------------------------------------------------------------------------------


def test_workers_that_were_started_first_are_taken_if_they_live_and_the_rest_end() -> None:
    with contextlib.closing(Prestarted(4)) as prestarted:
        dead, taken, kept, too_many = prestarted._waiting
        dead.kill()
        dead.wait()
        assert prestarted.take() is taken and taken.poll() is None
        prestarted.keep(1)
        assert too_many.returncode == -signal.SIGKILL and kept.poll() is None
    assert kept.returncode == -signal.SIGKILL and prestarted.take() is None
    taken.stdin.close()
    assert taken.wait(60) == ExitCode.BOOT  # nobody had orders for it
    taken.close()


def test_what_a_supervisor_does_not_need_until_workers_are_ready_is_not_imported_before() -> None:
    """aiohttp alone took as long as a worker takes to start, and they share the cores."""
    program = "import sys, shardmem.supervisor.lifeline; print({'aiohttp', 'psutil', 'rich', 'click'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_workers_are_started_before_the_supervisor_imports_what_it_needs() -> None:
    program = (
        "import sys, shardmem.supervisor.embedded; print({'numpy', 'asyncio', 'shardmem.config'} & {*sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_a_start_that_has_no_descriptor_left_for_its_role_leaves_nothing(
    engine_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(segment: object, byte: int) -> None:
        raise SegmentError("no descriptor is left")

    monkeypatch.setattr(takeover.lease.Lease, "take", refuse)
    with pytest.raises(SegmentError, match="no descriptor"):
        takeover.take_role(Config.of(name=engine_name, handler="module:handle"))
    assert segments_of(engine_name) == []
