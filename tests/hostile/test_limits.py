"""Descriptors and address space that run out, at each limit: an error of ours or none, and nothing is left or taken
away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardmem
from support.rig import TESTS, Rig, segments_of, wait_until

LIMIT = 60.0  # seconds that anything may take on a busy machine
READY_WITHIN = 20.0  # a supervisor that is not ready by then waits for what the limit keeps from it
HANDLER = "support.recorder:Recorder"
PUSH = """
import sys, shardmem
try:
    with shardmem.connect(sys.argv[1]) as producer:
        for key in range(100):
            producer.push(key, b"x", timeout=5)
        producer.flush(30)
    with shardmem.Client(sys.argv[1]) as client:
        client.status()
    print("well")
except (shardmem.ShardmemError, TimeoutError) as error:
    print("ours", error)
except MemoryError:
    print("ours, the interpreter's own")
"""


def limited(kind: str, value: int, *command: str, rig: Rig) -> subprocess.Popen[str]:
    """A Python program under a limit."""
    return subprocess.Popen(
        ["sh", "-c", f'ulimit -{kind} {value}; exec "$@"', "sh", sys.executable, *command],
        cwd=TESTS,
        env=rig.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def limits(draw: Any) -> tuple[str, int]:
    """Of two draws in three descriptors, each number from 16 on in its turn; of the third address space in KiB, about
    what an interpreter with numpy needs."""
    turn, kind = divmod(draw.number, 3)
    if kind < 2:
        return "n", 16 + (2 * turn + kind) % 56
    return "v", draw.randint(300_000, draw.choice([500_000, 900_000]))


@pytest.mark.skipif("SHARDMEM_MINUTES" not in os.environ, reason="a campaign of minutes: tox -e hostile")
def test_a_start_under_a_limit_runs_or_says_why_not_and_leaves_nothing(
    tmp_path: Path, engine_name: str, draws: Callable[[], Iterator[Any]], figures: Counter[str]
) -> None:
    rig = Rig(tmp_path)
    for draw in draws():
        kind, value = limits(draw)
        shards, state = draw.randint(1, 4), str(tmp_path / "state")
        command = ["-m", "shardmem", "run", HANDLER, "--name", engine_name, "--shards", str(shards)]
        process = limited(kind, value, *command, "--max-producers", "4", "--state-dir", state, rig=rig)
        print(f"ulimit -{kind} {value}, {shards} shards", flush=True)
        try:
            until = time.monotonic() + READY_WITHIN
            while process.poll() is None and time.monotonic() < until and not is_ready(engine_name):
                time.sleep(0.05)
            figures["ran" if is_ready(engine_name) else "refused or waited"] += 1
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=LIMIT)
            if kind == "n" or "MemoryError" not in said:
                assert "Traceback" not in said and process.returncode >= 0, said
            wait_until(lambda: not living(process.pid), "all processes are gone", LIMIT)  # noqa: B023
            assert segments_of(engine_name) == [], said
        finally:
            kill_session(process.pid)


def test_whoever_joins_under_a_limit_takes_nothing_away(
    rig: Rig, engine_name: str, draws: Callable[[], Iterator[Any]], figures: Counter[str]
) -> None:
    with rig.engine(engine_name, shards=2, lane_bytes=1 << 22) as engine:
        segments, before = segments_of(engine_name), engine.status()["supervisor"]["pid"]
        for draw in draws():
            kind, value = limits(draw)
            print(f"ulimit -{kind} {value}", flush=True)
            for command in (["-c", PUSH, engine_name], ["-m", "shardmem", "status", engine_name]):
                process = limited(kind, value, *command, rig=rig)
                out, said = process.communicate(timeout=LIMIT)
                figures["did it" if process.returncode == 0 else "refused"] += 1
                assert process.returncode >= 0, (process.returncode, said)
                if kind == "n":
                    assert "Traceback" not in said, said
                    assert process.returncode == 0 or "error:" in said, (process.returncode, out, said)
            assert segments_of(engine_name) == segments
        assert engine.status()["supervisor"]["pid"] == before
        with engine.producer() as producer:
            producer.push(1, b"")


def is_ready(name: str) -> bool:
    try:
        with shardmem.Client(name) as client:
            return client.status()["engine"]["state"] == "running"
    except shardmem.ShardmemError:
        return False


def living(session: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getsid(int(entry)) == session:
                with open(f"/proc/{entry}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] not in "ZX":
                        found.append(int(entry))
        except OSError:
            continue
    return found


def kill_session(session: int) -> None:
    for pid in living(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
