"""Standard streams and logging that a process of ours cannot lose, and what it was started with."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from shardmem.runtime import child, streams

TESTS = Path(__file__).parents[1]


def run(code: str, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[str]:
    """Python that runs the code, started by the shell as it says."""
    return subprocess.run(
        ["sh", "-c", f"exec {shell}", "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_what_is_written_to_a_terminal_that_is_gone_is_lost_and_no_error() -> None:
    ours, theirs = pty.openpty()
    stream = streams._Lasting(theirs, "w")
    os.close(ours)
    assert (stream.write(b"abc"), stream.write(b"de")) == (3, 2)
    assert os.readlink(f"/proc/self/fd/{theirs}") == os.devnull
    stream.close()


def test_what_is_written_to_a_pipe_that_nobody_reads_is_lost_and_no_error() -> None:
    ours, theirs = os.pipe()
    stream = streams._Lasting(theirs, "w")
    os.close(ours)
    assert stream.write(memoryview(b"abc")) == 3
    stream.close()


def test_what_is_written_to_a_full_disk_is_lost_and_the_next_is_tried_again() -> None:
    with streams._Lasting("/dev/full", "w") as stream:
        assert stream.write(b"abc") == 3
        assert os.readlink(f"/proc/self/fd/{stream.fileno()}") == "/dev/full"


def test_any_other_error_of_a_stream_is_told() -> None:
    ours, theirs = os.pipe()
    stream = streams._Lasting(theirs, "w", closefd=False)
    os.close(ours)
    os.close(theirs)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.write(b"abc")


def test_closed_streams_are_open_in_a_process_of_ours_whose_prints_and_crashes_work() -> None:
    code = """
from shardmem.runtime.child import begin
import faulthandler, os, signal, sys
begin()
print("out"); print("err", file=sys.stderr, flush=True)
assert [os.readlink(f"/proc/self/fd/{each}") for each in range(3)] == ["/dev/null"] * 3
assert faulthandler.is_enabled() and signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
os._exit(5)
"""
    assert run(code, '"$@" <&- >&- 2>&-').returncode == 5


def test_a_pipe_to_a_child_is_no_standard_stream_of_a_program_that_has_closed_its_own() -> None:
    code = """
import os, sys
kept = os.dup(1)
from shardmem.runtime.child import Child
for each in range(3): os.close(each)
child = Child("worker")
found = min(child.stdin.fileno(), child.reports.fileno(), child.pidfd)
closed = [each for each in range(3) if not os.path.exists(f"/proc/self/fd/{each}")]
child.kill(); child.wait(60); child.close()
os.write(kept, f"{found > 2} {closed}".encode())
"""
    assert run(code).stdout == "True [0, 1, 2]"


def test_no_directory_comes_before_the_standard_library_for_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shows_path.py").write_text("import sys\ndef main(): print(sys.path.index(sys.argv[1]), *sys.path)\n")
    monkeypatch.setitem(child.KINDS, "worker", child.Kind("shows_path", lifeline=False))
    library = os.path.dirname(os.__file__)
    told = subprocess.run(
        [*child.python_command("worker"), library],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    ).stdout.split()
    at, path = int(told[0]), told[1:]
    assert path[0] == str(tmp_path) and not any("site-packages" in each for each in path[:at])
    assert str(TESTS.parent) not in path[:at]


def test_the_token_of_the_door_is_not_told_to_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os\ndef main(): return 3 + ('SHARDMEM_HTTP_TOKEN' in os.environ)\n"
    (tmp_path / "shows_token.py").write_text(program)
    monkeypatch.setitem(child.KINDS, "worker", child.Kind("shows_token", lifeline=False))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SHARDMEM_HTTP_TOKEN", "secret")
    started = child.Child("worker")
    assert started.wait(120) == 3
    started.close()


def test_the_loggers_of_a_worker_do_not_heed_how_its_handler_configures_logging() -> None:
    code = """
import logging, logging.config
from shardmem.runtime import logs
worker, user = logging.getLogger("shardmem.worker"), logging.getLogger("user")
logs.set_up("human", "info", "ticks", 1)
logs.keep()
logging.config.dictConfig({
    "version": 1, "formatters": {"f": {"format": "APP %(message)s"}},
    "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}}, "root": {"handlers": ["h"]},
    "loggers": {"user": {"level": "ERROR"}},
})
worker.warning("one"); worker.debug("not this")
logging.disable(logging.CRITICAL)
worker.info("two", extra={"shard": 1}); user.error("nor this")
logging.disable(logging.NOTSET)
user.error("three")
def no_record(*values, **more): raise RuntimeError("a factory of records that no other has")
logging.setLogRecordFactory(no_record)
worker.info("four")
"""
    said = run(code).stderr.splitlines()
    assert [line.rpartition(" ")[2] for line in said] == ["one", "two", "three", "four"]
    assert said[0].endswith("shardmem[ticks] shard 1 WARNING one") and said[2] == "APP three"
