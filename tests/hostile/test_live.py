"""Words of shared memory change under a running engine, under load, while everything is killed and commanded: nobody
of ours dies of it, every command answers, and nothing is lost beyond the lanes that were damaged."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import ffi, lib
from shardmem.memory.segment import path_of
from shardmem.runtime.quarantine import QuarantineReader, is_there
from support.checker import Logs
from support.programs import enduring
from support.rig import TESTS, Program, Rig, segments_of, wait_until

EPISODE = 8.0  # seconds of damage
LIMIT = 90.0  # seconds that anything may take on a busy machine
TIMEOUT = 3  # of commands that wait
SLOTS, LANE, SEATS = 64, 1 << 14, 8
MAD = 6  # the seat whose lanes are damaged; nobody takes it
FATAL = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "Fatal Python error", "Traceback")
WORDS = (0, 1, 2, 3, 4, 5, 149, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Places:
    """Where what is, as (file, offset, length)."""

    def __init__(self, engine: str) -> None:
        control = ControlSegment.attach(engine)
        offsets, lengths = ffi.new("uint64_t[]", 8), ffi.new("uint64_t[]", 8)
        count = lib.sm_control_ranges(control.geometry, offsets, lengths)
        head, slots, holds, moves, boards, partitions, shards = [(offsets[i], lengths[i]) for i in range(count)]
        each, file = shards[1] // control.room, path_of(control.segment.name)
        of_shards = [shards[0] + each * shard for shard in range(4)]
        self.by_target = {
            "slot words": [(file, *slots)],
            "states": [(file, 2304, 4), *((file, at, 4) for at in of_shards)],
            "shards": [(file, at, 128) for at in of_shards],
            "workers": [(file, at + 128, 128) for at in of_shards],
            "attempts": [(file, at + 256, 32) for at in of_shards],
            "counters": [(file, at + 384, 2048) for at in of_shards],
            "seats": [(file, head[0] + 4096, head[1] - 4096)],
            "holds": [(file, *holds), (file, *moves)],
            "boards": [(file, *boards)],
            "partitions": [(file, *partitions)],
            "supervisor": [(file, 2304, 128)],
            "headers": [(path_of(entry), 0, 56) for entry in segments_of(engine) if ".inbox." in entry],
            "foreign lanes": [
                (path_of(entry), at, length)
                for entry in segments_of(engine)
                if ".inbox." in entry
                for at, length in ((1024 + 4 * MAD, 4), (4096 + (4096 + LANE) * MAD, 4096 + LANE))
            ],
        }
        control.close()


class Vandal(threading.Thread):
    """Damages the places of one target, a few words at a time, by write(2): it touches no mapping."""

    def __init__(self, places: list[tuple[str, int, int]], draw: random.Random) -> None:
        super().__init__(daemon=True)
        self._files = {name: os.open(name, os.O_RDWR) for name in {place[0] for place in places}}
        self._places, self._draw, self.over, self.count = places, draw, threading.Event(), 0

    def run(self) -> None:
        draw = self._draw
        while not self.over.wait(draw.choice([0.0, 0.001, 0.05])):
            name, offset, length = draw.choice(self._places)
            size = draw.choice([4, 8]) if length >= 8 else 4
            at = offset + draw.randrange(length // size) * size
            if draw.randrange(2):
                word = draw.choice(WORDS) if draw.randrange(4) else draw.getrandbits(64)
            else:
                word = int.from_bytes(os.pread(self._files[name], size, at), "little") ^ 1 << draw.randrange(8 * size)
            os.pwrite(self._files[name], (word & (1 << 8 * size) - 1).to_bytes(size, "little"), at)
            self.count += 1

    def stop(self) -> None:
        self.over.set()
        self.join()
        for descriptor in self._files.values():
            os.close(descriptor)


class Engine:
    """`shardmem run` as often as it takes; `complaints` is what nobody may see."""

    def __init__(self, rig: Rig, name: str, figures: Counter[str]) -> None:
        self.rig, self.name, self.log, self.figures = rig, name, rig.directory / "supervisors", figures
        self.complaints: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        command = ["run", "support.recorder:Recorder", "--name", self.name, "--min-shards", "2", "--max-shards", "4"]
        command += ["--slots", str(SLOTS), "--lane-bytes", str(LANE), "--max-producers", str(SEATS), "--no-auto-scale"]
        command += ["--drain-timeout", "20", "--state-dir", str(self.rig.directory / "state"), "--stall-timeout", "5"]
        with open(self.log, "ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "shardmem", *command],
                cwd=TESTS,
                env=self.rig.environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self._processes.append(process)
        self.command("status", self.name, "--wait", str(LIMIT))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._processes[-1]

    def command(self, *arguments: str) -> int:
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "shardmem", *arguments],
                capture_output=True,
                text=True,
                timeout=LIMIT + TIMEOUT,
                env=self.rig.environment,
            )
        except subprocess.TimeoutExpired:
            self.complaints.append(f"{arguments} is not answered after {LIMIT + TIMEOUT:g} s")
            return -1
        self.figures["commands"] += 1
        self.figures["longest_command_s"] = max(self.figures["longest_command_s"], round(time.monotonic() - began))
        if done.returncode < 0 or "Traceback" in done.stderr:
            self.complaints.append(f"{arguments}: code {done.returncode}: {done.stderr[-3000:]}")
        return done.returncode

    def workers(self) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and int(entry) != self.process.pid:
                    if os.getsid(int(entry)) in {process.pid for process in self._processes}:
                        found.append(int(entry))
        return found

    def kill_everything(self) -> None:
        for pid in [self.process.pid, *self.workers()]:
            self.figures["kills"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not [pid for pid in self.workers() if is_alive(pid)], "all workers are gone", LIMIT)

    def quarantined(self) -> int:
        path = self.rig.directory / "state" / f"{self.name}.quarantine"
        if not is_there(str(path)):
            return 0
        with QuarantineReader(str(path)) as quarantine:
            return quarantine.count()

    def judge(self) -> list[str]:
        said = self.log.read_text(errors="replace")
        self.complaints += [line for line in said.splitlines() if any(word in line for word in FATAL)][:5]
        codes = [process.returncode for process in self._processes]
        self.complaints += [f"a supervisor ended with {code}" for code in codes if code not in (None, 0, 1, 3, 4, -9)]
        return self.complaints

    def end(self) -> None:
        print(self.log.read_text(errors="replace")[-6000:])
        self.kill_everything()
        for entry in segments_of(self.name):
            os.unlink(path_of(entry))


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def commands(draw: random.Random, name: str) -> list[list[str]]:
    waits = ["--timeout", str(TIMEOUT)]
    return [
        ["status", name],
        ["status", name, "--json"],
        ["top", name, "--once"],
        ["where", name, "7"],
        ["gc", "--dry-run", name],
        ["doctor", name],
        ["scale", name, str(draw.randint(2, 4)), *waits],
        ["move", name, f"{draw.randrange(32)}-{draw.randrange(32, 64)}", "--to", str(draw.randrange(3)), *waits],
        ["rebalance", name, *waits],
        ["reload", name, *waits],
    ]


def damage(engine: Engine, target: str, draw: random.Random) -> int:
    """For EPISODE seconds, with commands and deaths. How many words."""
    vandal = Vandal(Places(engine.name).by_target[target], draw)
    kills, until = draw.randrange(2), time.monotonic() + EPISODE
    vandal.start()
    try:
        while time.monotonic() < until:
            engine.command(*draw.choice(commands(draw, engine.name)))
            if kills and draw.randrange(3) == 0:
                victims = engine.workers()
                engine.figures["kills"] += 1
                if draw.randrange(3) == 0 or not victims:
                    os.kill(engine.process.pid, signal.SIGKILL)
                    engine.process.wait()
                    engine.start()
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(draw.choice(victims), signal.SIGKILL)
            if engine.process.poll() is not None:
                engine.start()
    finally:
        vandal.stop()
    return vandal.count


def lost(logs: Logs) -> int:
    """Events that were accepted and never handled."""
    names = ("producer", "key", "number")
    accepted, handled = ({tuple(row) for row in rows[list(names)].tolist()} for rows in (logs.accepted, logs.handled))
    return len(accepted - handled)


@pytest.mark.skipif("SHARDMEM_MINUTES" not in os.environ, reason="a campaign of minutes: tox -e hostile")
@pytest.mark.parametrize(
    "target",
    [
        "slot words",
        "states",
        "shards",
        "workers",
        "attempts",
        "counters",
        "seats",
        "holds",
        "boards",
        "partitions",
        "supervisor",
        "foreign lanes",
        "headers",
    ],
)
def test_damage_under_load_kills_nobody_and_loses_nothing_beyond_the_lane(
    target: str, tmp_path: Path, engine_name: str, draws: Callable[[], Iterator[random.Random]], figures: Counter[str]
) -> None:
    for number, draw in enumerate(draws()):
        directory = tmp_path / str(number)
        directory.mkdir()
        rig = Rig(directory)
        engine = Engine(rig, f"{engine_name[:55]}-{number}", figures)
        try:
            engine.start()
            with contextlib.ExitStack() as stack:
                producers = [
                    stack.enter_context(Program(enduring.push_through, rig, engine=engine.name, producer=seat))
                    for seat in range(2)
                ]
                for producer in producers:
                    producer.hear(LIMIT)
                words = damage(engine, target, draw)
                # What was damaged may stay so: the next supervisor finds it.
                engine.kill_everything()
                engine.start()
                for producer in producers:
                    producer.say(stop=True)
                    told = producer.hear(LIMIT)
                    assert told["calls"] > 0 and producer.end(LIMIT, None) == 0
            # a damaged count of tries may have one set aside that would have been handled
            wait_until(
                lambda: lost(rig.logs()) <= engine.quarantined(), f"{target}: nothing that was accepted is lost", LIMIT
            )
            engine.command("stop", engine.name, "--now", "--timeout", "30")
            assert engine.process.wait(LIMIT) in (0, 1)
            figures.update(words=words, events=len(rig.logs().accepted), connects=told["connects"])
            assert engine.judge() == []
        finally:
            engine.end()
