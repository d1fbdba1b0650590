"""Fixtures for all tests: engine names that never clash, and a look around at the end for what was left behind."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from shardmem.places import runtime_directories
from support.postgresql import Server, programs, serving

# A control socket of an engine has an address of 107 bytes, and names here are long.
if len(os.fsencode(os.path.join(tempfile.gettempdir(), f"shardmem-{os.getuid()}", 64 * "n" + ".sock"))) > 107:
    os.environ["TMPDIR"], tempfile.tempdir = "/tmp", None

SHM = "/dev/shm"
TIMEOUT = 60
GRACE = 20.0  # a process that has been told to end, or lost its parent as it booted, is gone by then on a busy machine
SESSION = f"t{os.getpid()}x{secrets.token_hex(2)}"

# Inherited by every process that a test starts, however far down, so that orphans are found too.
_SESSION_MARK, _TEST_MARK = "PYTEST_SHARDMEM_SESSION", "PYTEST_SHARDMEM_TEST"
os.environ[_SESSION_MARK] = SESSION

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a run in the background of a script: what it starts would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        raise pytest.UsageError("pytest-timeout is not installed: a test that hangs would hang the session")
    if config.getoption("timeout", None) or config.getini("timeout"):
        return
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


def unique_name(label: str) -> str:
    """An engine name: this session, the label and a random part; at most 64 characters."""
    return f"{SESSION}-{re.sub(r'[^A-Za-z0-9]+', '-', label).strip('-')[:32]}-{secrets.token_hex(3)}"


@pytest.fixture(scope="session")
def make_engine_name() -> Callable[[str], str]:
    """For fixtures that live longer than a test; what they leave is found at the end of the session."""
    return unique_name


@pytest.fixture
def engine_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name for this test alone. Names that begin with it are its too. Nothing of them may outlive the test."""
    name = unique_name(request.node.name.removeprefix("test_"))
    monkeypatch.setenv(_TEST_MARK, name)
    yield name
    _expect_nothing(f"test {request.node.name}", lambda entry: name in entry, lambda: _marked(_TEST_MARK, name))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """One for all tests of this process that want it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if (found := programs()) is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    with serving(found) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the session when a segment of its engines, or a process that it started, is still there at the end."""
    yield
    unnamed = f"shardmem.engine-{os.getpid()}-"
    _expect_nothing(
        "the session",
        lambda entry: SESSION in entry or entry.startswith(unnamed),
        lambda: {**_marked(_SESSION_MARK, SESSION), **_children()},
    )


def _expect_nothing(whose: str, is_ours: Callable[[str], bool], processes: Callable[[], dict[int, str]]) -> None:
    """What is left is removed before the complaint: one mistake should not spoil the tests that follow."""
    deadline = time.monotonic() + GRACE
    while (left := processes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    segments = sorted(filter(is_ours, os.listdir(SHM)))
    for entry in segments:
        os.unlink(os.path.join(SHM, entry))
    # a supervisor that was killed leaves its socket, and the files of an engine without a state_dir
    for directory in filter(os.path.isdir, runtime_directories()):
        for entry in filter(is_ours, os.listdir(directory)):
            path = os.path.join(directory, entry)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    found = [f"process {pid}: {command}" for pid, command in left.items()] + [f"{SHM}/{entry}" for entry in segments]
    if found:
        pytest.fail(f"{whose} left behind:\n  " + "\n  ".join(found), pytrace=False)


def _marked(variable: str, value: str) -> dict[int, str]:
    """Living processes, other than this one, that were started with the variable set so."""
    wanted, found = f"{variable}={value}".encode(), {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    marked = wanted in file.read().split(b"\0")
            except OSError:
                continue
            if marked and (command := _command(int(entry))):
                found[int(entry)] = command
    return found


def _children() -> dict[int, str]:
    """Living children of this process, forked ones too."""
    found = {child.pid: _command(child.pid) for child in psutil.Process().children()}
    return {pid: command for pid, command in found.items() if command}


def _command(pid: int) -> str:
    """How the process was started; empty when it is gone, a zombie, or a helper of the standard library's own."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    if state in "ZX" or "multiprocessing.resource_tracker" in command:
        return ""
    return command or "(no command line)"
