"""Processes of ours in places where others would fall: parents that hide how children end, standard streams that are
closed, a terminal that goes, handlers that fork."""

from __future__ import annotations

import glob
import os
import platform
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import shardmem
from support.handlers.allocating import ROUNDS
from support.programs.orphaning import hide_children
from support.recorder import payload
from support.rig import TESTS, Program, Rig, drained, segments_of, wait_until

LONG = 90.0
BLAS = "OPENBLAS_THREAD_TIMEOUT"


def wait_running(name: str) -> None:
    command = [sys.executable, "-m", "shardmem", "status", name, "--wait", f"{LONG:g}"]
    subprocess.run(command, check=True, cwd=TESTS, stdout=subprocess.DEVNULL)


@pytest.mark.timeout(3 * LONG)
@pytest.mark.parametrize("how", ["ignore", "reap"])
def test_a_program_that_hides_how_children_end_has_its_engine_revived_and_ended(rig: Rig, how: str) -> None:
    with Program(hide_children, rig, how=how) as program:
        told = program.hear(LONG)
        program.end(stderr=None)
    assert told["exit"] == "killed by SIGABRT"
    assert (told["accounting"]["handled"], told["accounting"]["in_flight"]) == (2, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives a heap back so soon, and can be told")
@pytest.mark.parametrize("given", ["", "100000"], ids=["as it comes", "by the environment"])
def test_a_worker_keeps_the_memory_of_arrays_that_its_handler_frees_with_each_batch(
    rig: Rig, engine_name: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 kB is more than glibc keeps at first: three such arrays in each batch made a handler three times as slow."""
    if given:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", given)
    with rig.engine(engine_name, handler="support.handlers.allocating:Allocating", shards=1) as engine:
        with engine.producer() as producer:
            producer.push("k", b"")
            producer.flush(LONG)
    pages = int((rig.directory / "faults").read_text())
    assert pages > 20 * ROUNDS if given else pages < 2 * ROUNDS


@pytest.mark.parametrize("given", [None, "9"], ids=["as it comes", "by the environment"])
def test_threads_of_blas_rest_in_workers_unless_the_environment_says_otherwise(
    rig: Rig, engine_name: str, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turned for 25 ms at the start of every process, and after each call."""
    monkeypatch.delenv(BLAS, raising=False)
    if given:
        monkeypatch.setenv(BLAS, given)
    with rig.engine(engine_name, shards=1) as engine:
        (shard,) = engine.status()["shards"]
        said = Path(f"/proc/{shard['pid']}/environ").read_text().split("\0")
    assert f"{BLAS}={given or 20}" in said and os.environ.get(BLAS) == given


def test_a_forked_child_that_comes_back_from_the_handler_is_no_second_worker(rig: Rig, engine_name: str) -> None:
    told = ["return", "raise", "exit"]
    sent = [told[number // 50] if number % 50 == 0 else str(number) for number in range(150)]
    with rig.engine(engine_name, handler="support.handlers.forking:forking", shards=1, batch_rows=8) as engine:
        with engine.producer() as producer:
            for each in sent:
                producer.push("k", each.encode())
            producer.flush(LONG)
        assert drained(engine)["accounting"]["handled"] == len(sent)
    seen = [line.split() for line in (rig.directory / "seen").read_text().splitlines()]
    assert [what for _, what in seen] == sent and len({pid for pid, _ in seen}) == 1


def run_closed(rig: Rig, name: str, *flags: str) -> subprocess.Popen[bytes]:
    """`shardmem run` with no standard stream open."""
    command = [sys.executable, "-m", "shardmem", "run", "support.handlers.failing:Fragile", "--name", name, *flags]
    return subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=TESTS, env=rig.environment, start_new_session=True
    )


def test_closed_standard_streams_change_nothing_and_a_stop_is_exit_code_0_and_says_what_stays(
    rig: Rig, engine_name: str
) -> None:
    with run_closed(rig, engine_name, "--shards", "1", "--on-error", "stop") as daemon:
        try:
            wait_running(engine_name)
            with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client:
                producer.push(1, payload(1, 1, 0))
                producer.flush(LONG)
                rig.tell("handle", "raise")
                producer.push(1, payload(1, 1, 1))
                wait_until(lambda: client.status()["shards"][0]["state"] == "failed", "it is stopped as wished", LONG)
            told = subprocess.run(
                [sys.executable, "-m", "shardmem", "stop", engine_name], cwd=TESTS, capture_output=True, text=True
            )
            assert (told.returncode, daemon.wait(LONG)) == (0, 0)
            assert "1 event not handled, and in shared memory still: 1 of shard 0" in told.stderr
        finally:
            daemon.kill()
    (rig.directory / "handle").unlink()
    with rig.engine(engine_name, shards=1, max_producers=64) as engine:
        assert drained(engine)["accounting"]["handled"] == 2


def test_an_engine_whose_terminal_is_closed_goes_on_as_under_nohup(rig: Rig, engine_name: str) -> None:
    command = [sys.executable, "-m", "shardmem", "run", "support.handlers.failing:Printing", "--name", engine_name]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["setsid", "-c", *command, "--shards", "1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=TESTS,
        env=rig.environment,
    ) as daemon:
        os.close(theirs)
        try:
            wait_running(engine_name)
            with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client:
                before = client.status()["shards"][0]["pid"]
                os.close(ours)
                for number in range(50):
                    producer.push(1, payload(1, 1, number))
                producer.flush(LONG)
                last = client.stop(timeout=LONG)
            assert (last["accounting"]["quarantined"], last["shards"][0]["pid"]) == (0, before)
            assert daemon.wait(LONG) == 0
        finally:
            daemon.kill()


@pytest.mark.parametrize(
    "limit, shards", [(40, 64), (30, 4)], ids=["for its inboxes", "for who looks at those of its workers"]
)
def test_a_start_that_fails_for_want_of_descriptors_says_so_and_leaves_nothing(
    rig: Rig, engine_name: str, limit: int, shards: int
) -> None:
    command = [sys.executable, "-m", "shardmem", "run", "support.recorder:Recorder", "--name", engine_name]
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command, "--shards", str(shards)],
        cwd=TESTS,
        env=rig.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "errno 24" in done.stderr.lower(), done.stderr
    assert segments_of(engine_name) == []
    places = {tempfile.gettempdir(), "/run", os.environ.get("XDG_RUNTIME_DIR", "/run")}
    left = [each for place in places for each in glob.glob(f"{place}/shardmem*/{engine_name}*")]
    assert [each for each in left if not each.endswith(".log")] == []  # that says why
