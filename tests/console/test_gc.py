"""`shardmem gc` among real processes: what lives is left alone, what died goes, and no accepted event is lost
unasked."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import shardmem
from shardmem.host.census import Places, observe
from shardmem.host.gc import _end_workers, gc

APP = """
import os
gate = os.open({gate!r}, os.O_RDWR)
def handle(batch):
    for key, payload in batch:
        os.write(1, b"holds\\n")
        os.read(gate, 1)
"""


class Daemon:
    """`shardmem run` with a handler that stops at each event until `let(n)` lets n of them pass."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.environment = {**os.environ, "TMPDIR": str(directory)}
        gate = os.path.join(directory, "gate")
        os.mkfifo(gate)
        (directory / "app.py").write_text(APP.format(gate=gate))
        self.gate = os.open(gate, os.O_RDWR)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shardmem", "run", "app:handle", "--name", name, "--json"],
            cwd=directory,
            env=self.environment,
            stdout=subprocess.PIPE,
        )
        assert b"ready" in self.process.stdout.readline()
        self.workers = [shard["pid"] for shard in json.loads(self("status", name, "--json"))["shards"]]

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "shardmem", *arguments],
            cwd=self.directory,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert code == done.returncode, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def gc(self, *flags: str) -> dict[str, dict]:
        found = json.loads(self("gc", self.name, "--json", *flags))["findings"]
        return {each["kind"]: each for each in found}

    def holds(self) -> None:
        """Until the handler has an event in hand."""
        while b"holds" not in (line := self.process.stdout.readline()):
            assert line, "the worker ended before it had an event"

    def let(self, events: int) -> None:
        os.write(self.gate, b"x" * events)

    def kill(self) -> None:
        """The supervisor alone. Its standard output stays open in the worker, so `holds` still works."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for pid in self.workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.kill()
        self.process.stdout.close()
        os.close(self.gate)
        for entry in entries(self.name):
            os.unlink(f"/dev/shm/{entry}")


def entries(name: str) -> list[str]:
    return [entry for entry in os.listdir("/dev/shm") if f".{name}." in entry]


@pytest.fixture
def daemon(engine_name):
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is too long for the address of a socket
        made = Daemon(f"gc{engine_name[-6:]}{os.getpid()}", Path(directory))
        yield made
        made.close()


def test_a_running_engine_is_in_use_and_goes_on(daemon):
    assert {"engine"} == set(found := daemon.gc("--end-orphans"))
    assert "keep" == found["engine"]["action"]
    assert f"supervisor pid {daemon.process.pid}, 1 worker," in found["engine"]["reason"]
    assert f"engine {daemon.name!r} in use" in daemon("gc", "--discard", daemon.name, code=1)
    with shardmem.connect(daemon.name) as producer:
        producer.push(1, b"x")
        daemon.let(1)
        producer.flush(20)


def test_orphaned_workers_are_named_and_ended_only_when_asked_and_their_events_stay(daemon):
    with shardmem.connect(daemon.name) as producer:
        producer.push_many([1, 2, 3], [b"x"] * 3)
    daemon.holds()
    daemon.kill()

    named = daemon.gc()
    assert "keep" == named["engine"]["action"] and daemon.workers == named["engine"]["pids"]
    assert (
        f"has live workers (pids {daemon.workers[0]}) and no supervisor; 3 events in flight"
        in named["engine"]["reason"]
    )
    command = f"shardmem gc --end-orphans {daemon.name}"
    assert named["engine"]["remedy"].endswith(command) and "run it again" in named["engine"]["remedy"]
    assert f"`{command}`" in daemon("stop", daemon.name, code=1)
    assert "socket" not in named, "the next supervisor, which may be starting, sees to it"
    foretold = daemon.gc("--end-orphans", "--dry-run")["engine"]
    assert "keep" == foretold["action"]
    assert f"its workers (pids {daemon.workers[0]}) would get TERM" in foretold["remedy"]

    worker = os.pidfd_open(daemon.workers[0])
    daemon.let(3)  # TERM ends it after the batch in hand, or it finds the gate open
    found = {each["kind"]: each for each in json.loads(daemon(*command.split()[1:], "--json"))["findings"]}
    ended = found["engine"]
    assert select.select([worker], [], [], 0)[0], "gc has come back and the worker is still there"
    assert found["socket"]["done"]
    os.close(worker)
    assert ended["done"] and "no event in flight" in ended["reason"] or 0 < ended["events"] <= 3 and not ended["done"]


def test_a_worker_that_does_not_end_is_reported_and_a_process_that_is_not_the_worker_is_never_ended(daemon):
    with shardmem.connect(daemon.name) as producer:
        producer.push(1, b"x")
    daemon.holds()
    daemon.kill()
    places = Places(sockets=str(daemon.directory))

    (engine,) = gc(places, [daemon.name], end_orphans=True, patience=0.1)
    assert "keep" == engine.action and f"pid {daemon.workers[0]} did not end within 0.1 s of TERM" in engine.remedy

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as bystander:
        # as in another PID namespace
        facts = dataclasses.replace(observe(daemon.name, places), workers=((0, bystander.pid),))
        said = _end_workers(facts, 5.0)
        assert f"pid {bystander.pid} cannot be seen from here" in said
        bystander.stdin.close()
        assert 0 == bystander.wait(20), "it got a signal"


def test_what_an_engine_that_died_holds_is_kept_with_the_number_of_its_events_until_it_is_discarded(daemon):
    with shardmem.connect(daemon.name) as producer:
        producer.push_many([1, 2, 3], [b"x"] * 3)
    daemon.holds()
    worker = os.pidfd_open(daemon.workers[0])
    daemon.kill()
    signal.pidfd_send_signal(worker, signal.SIGKILL)
    assert select.select([worker], [], [], 20)[0]
    os.close(worker)

    text = daemon("gc", daemon.name)
    assert f"kept     engine {daemon.name}" in text and "3 events in flight (running, no process uses it)" in text
    assert f"shardmem gc --discard {daemon.name}" in text and "nothing to free" in text
    assert 2 == len(entries(daemon.name))

    would = daemon("gc", "--discard", daemon.name, "--dry-run")
    assert f"would go engine {daemon.name}" in would and "; 3 events would be lost" in would
    assert 2 == len(entries(daemon.name))
    text = daemon("gc", "--discard", daemon.name)
    assert f"removed  engine {daemon.name}" in text and "freed" in text and "; 3 events lost" in text
    assert [] == entries(daemon.name)
