"""[source] of an engine: its process is started, watched, started again, adopted and told to end; nothing is missed by
any of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

import shardmem
from shardmem.errors import ConfigError
from shardmem.schema import Schema
from shardmem.sources.configured import sources_in
from shardmem.sources.control import SourcesOf
from shardmem.status.sources import is_alive

APP = """
import os
def handle(batch):
    with open(os.environ["OUT"], "a") as out:
        for key, payload in batch:
            out.write(f"{key} {payload.decode()}\\n")
"""


class Daemon:
    def __init__(self, directory):
        self.directory, self.name = directory, f"source-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.log, self.out, self.processes = directory / "a.log", directory / "out.txt", []
        (directory / "app.py").write_text(APP)
        self.toml()

    def toml(self, **source):
        table = {"kind": "file", "paths": ["*.log"], "key": "1", **source}
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        settings = f'name = "{self.name}"\nhandler = "app:handle"\nshards = 2\nstate_dir = "state"\n'
        (self.directory / "engine.toml").write_text(f"{settings}\n[source]\n" + "\n".join(lines) + "\n")

    def start(self):
        process = subprocess.Popen(
            [sys.executable, "-m", "shardmem", "run", "engine.toml"],
            cwd=self.directory,
            env={**os.environ, "OUT": str(self.out)},
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def write(self, *numbers):
        with open(self.log, "a") as file:
            file.writelines(f"{number} x\n" for number in numbers)

    def seen(self):
        return [int(line.split()[0]) for line in self.out.read_text().splitlines()] if self.out.exists() else []

    def wait(self, what, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not {what}: {self.seen()}"
            time.sleep(0.01)

    def source(self):
        try:
            with shardmem.Client(self.name) as client:
                return (client.status()["sources"] or [None])[0]
        except shardmem.ShardmemError:
            return None

    def running(self):
        source = self.source()
        return source is not None and source["alive"] and source["state"] == "running"

    def stop(self):
        with shardmem.Client(self.name) as client:
            client.stop()


@pytest.fixture
def daemon(tmp_path):
    made = Daemon(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_a_file_feeds_the_engine_from_its_start_to_its_end_and_a_restart_goes_on(daemon):
    daemon.write(1, 2)
    process = daemon.start()
    daemon.wait("handled", lambda: len(daemon.seen()) == 2)
    daemon.write(3)
    daemon.wait("handled", lambda: len(daemon.seen()) == 3)
    daemon.wait("counted", lambda: (daemon.source() or {}).get("events") == 3)
    source = daemon.source()
    assert ("file", "file", True, 1, "running", 0) == tuple(
        source[key] for key in ("name", "kind", "alive", "incarnation", "state", "skipped")
    )
    daemon.stop()
    assert 0 == process.wait(60)
    daemon.write(4)
    daemon.start()
    daemon.wait("handled", lambda: len(daemon.seen()) == 4)
    assert [1, 2, 3, 4] == sorted(daemon.seen())
    daemon.stop()


def test_a_source_that_is_killed_is_started_again_and_misses_nothing(daemon):
    daemon.write(*range(100))
    daemon.start()
    daemon.wait("running", daemon.running)
    for life in (1, 2):
        pid = daemon.source()["pid"]
        daemon.write(*range(100 * life, 100 * life + 100))
        os.kill(pid, signal.SIGKILL)
        daemon.wait("a new life", lambda life=life: daemon.running() and daemon.source()["incarnation"] == life + 1)
    daemon.wait("handled", lambda: set(range(300)) <= set(daemon.seen()))
    daemon.stop()


def test_a_source_outlives_its_supervisor_and_the_next_one_takes_it_up(daemon):
    daemon.write(1)
    first = daemon.start()
    daemon.wait("running", daemon.running)
    pid = daemon.source()["pid"]
    first.kill()
    first.wait()
    daemon.write(2)
    daemon.wait("handled", lambda: len(daemon.seen()) == 2)
    assert daemon.source()["alive"]
    second = daemon.start()
    with shardmem.Client(daemon.name) as client:
        # the lease alone is not enough: a stop that comes before signals are handled would end it
        daemon.wait("taken over", lambda: "took_over" in [each["kind"] for each in client.status()["history"]])
    daemon.write(3)
    daemon.wait("handled", lambda: len(daemon.seen()) == 3)
    assert (pid, 1) == (daemon.source()["pid"], daemon.source()["incarnation"])
    daemon.stop()
    assert 0 == second.wait(60)
    assert not is_alive(str(daemon.directory / "state"), daemon.name, "file")
    assert [1, 2, 3] == sorted(daemon.seen())


def test_records_that_are_no_events_are_counted_by_reason_and_kept_if_so_asked(daemon):
    daemon.toml(format="jsonl", key="k", dead_letter="dead.jsonl")
    daemon.log.write_text('{"k":1}\nno\n{"k":null}\n{"k":2}\n')
    daemon.start()
    daemon.wait("skipped", lambda: (daemon.source() or {}).get("skipped") == 2)
    assert {"not JSON": 1, "null": 1} == daemon.source()["reasons"]
    assert ["no", '{"k":null}'] == [
        json.loads(line)["data"] for line in (daemon.directory / "dead.jsonl").read_text().splitlines()
    ]
    daemon.stop()


def test_a_bad_record_stops_a_source_that_is_told_so_and_its_status_says_why(daemon):
    daemon.toml(format="jsonl", on_bad="stop", key="k")
    daemon.log.write_text('{"k":1}\nno\n')
    daemon.start()
    daemon.wait("failed", lambda: (daemon.source() or {}).get("error"))
    assert "line 2: is not JSON" in daemon.source()["error"]
    with shardmem.Client(daemon.name) as client:
        (found,) = (each for each in client.status()["findings"] if each["kind"] == "source_failed")
    assert "Source file has failed: a.log, line 2" in found["text"] and "error" == found["level"]
    daemon.stop()


def test_a_source_is_paused_and_sent_elsewhere_whoever_lives_and_a_reload_reads_its_table_again(daemon):
    daemon.write(1, 2)
    daemon.start()
    daemon.wait("handled", lambda: len(daemon.seen()) == 2)
    daemon.wait("running", daemon.running)
    sources = SourcesOf.engine(daemon.name)
    said = sources.pause(None, True, 60)
    assert {"source": "file", "paused": True, "partitions": [], "alive": True} == said
    os.kill(daemon.source()["pid"], signal.SIGKILL)  # the next process is paused, too
    daemon.write(3)
    daemon.wait("paused again", lambda: (daemon.source() or {}).get("incarnation") == 2 and daemon.source()["paused"])
    daemon.wait("behind", lambda: (daemon.source() or {}).get("lag_bytes") == 4)
    with shardmem.Client(daemon.name) as client:
        assert ["source_paused"] == [each["kind"] for each in client.status()["findings"]]
    with pytest.raises(ConfigError, match="byte 5 of a.log is inside a line"):
        sources.seek("file", "a.log", 5, 60)
    assert {"source": "file", "partition": "a.log", "offset": 4} == sources.seek("file", str(daemon.log), 4, 60)
    assert not sources.pause(None, False, 60)["paused"]
    daemon.wait("handled", lambda: sorted(daemon.seen()) == [1, 2, 2, 3])
    daemon.toml(paths=["*.data"], key="2")
    with shardmem.Client(daemon.name) as client:
        client.reload(timeout=90)
    (daemon.directory / "b.data").write_text("y 4\n")
    daemon.write(5)
    daemon.wait("handled with the new table", lambda: 4 in daemon.seen())
    assert 5 not in daemon.seen()
    daemon.stop()


@pytest.mark.parametrize(
    "table, part",
    [
        ({"kind": "files", "paths": ["a"]}, "source.kind='files' is not one of file, kafka"),
        ({"kind": "file"}, "source.paths is missing"),
        ({"kind": "file", "paths": ["a"], "fromat": "csv"}, "source.fromat is not a setting; did you mean format?"),
        ({"kind": "file", "paths": ["a"], "key": "x"}, "of lines the key is a field number from 1"),
        ({"kind": "file", "paths": ["a"], "format": "xml"}, "source.format='xml' is not one of"),
        ({"kind": "file", "paths": ["a"], "on_bad": "ignore"}, "source.on_bad='ignore'"),
        ([{"kind": "file", "paths": ["a"], "name": "x"}] * 2, "source.name='x' is the name of two sources"),
    ],
)
def test_what_is_wrong_in_the_table_is_said_before_anything_starts(table, part):
    with pytest.raises(ConfigError, match="source") as caught:
        sources_in(table, Schema())
    assert part in str(caught.value)


def test_a_source_may_be_written_as_a_url():
    (made,) = sources_in("file:/var/log/*.log?format=jsonl&key=user.id&from_end=true&name=logs", Schema())
    own = made.own
    assert ("logs", ("/var/log/*.log",), True, ("user.id",)) == (made.name, own.paths, own.from_end, own.options.key)
