"""Looking into a running engine: all engines in a list, its settings, its log, and where a worker is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardmem
from shardmem.errors import ConfigError, NotRunning, ShardmemError
from shardmem.runtime import log_file
from support.daemon import Daemon
from support.recorder import payload
from support.rig import PATIENCE, Rig, wait_until


def cli(*arguments: str, code: int = 0, **how: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shardmem", *arguments], capture_output=True, text=True, timeout=60, **how
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture
def daemon(rig: Rig, engine_name: str, tmp_path: Path) -> Iterator[Daemon]:
    environment = {"SHARDMEM_BATCH_ROWS": "64", "SHARDMEM_HTTP_TOKEN": "open sesame"}
    flags = ("--shards", "1", "--slots", "32", "--state-dir", str(tmp_path))
    with Daemon(rig, engine_name, *flags, environment=environment) as found:
        found.ready()
        yield found


def test_a_list_the_settings_the_log_and_the_stacks_of_an_engine(
    rig: Rig, daemon: Daemon, engine_name: str, tmp_path: Path
) -> None:
    with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client, rig.hold(0):
        producer.push(1, payload(1, 1, 0))
        rig.wait_held(0)

        (line,) = [each for each in json.loads(cli("ls", "--json")) if each["name"] == engine_name]
        assert (line["state"], line["shards"], line["in_flight"], line["verdict"]) == ("running", 1, 1, "healthy")
        assert line["pid"] == daemon.process.pid and engine_name in cli("ls")

        rows = {row["name"]: row for row in json.loads(cli("config", engine_name, "--json"))["settings"]}
        assert (rows["batch_rows"]["value"], rows["batch_rows"]["place"]) == (64, "SHARDMEM_BATCH_ROWS")
        assert rows["slots"]["place"] == "--slots" and rows["lane_bytes"]["from"] == "default"
        assert rows["http_token"]["value"] == "set, and not shown" and "open sesame" not in json.dumps(rows)
        assert "would change nothing" in cli("config", engine_name, "--slots", "64", code=2)

        found = client.stacks(0)
        assert "in pass_gate" in found["text"] and found["pid"] == client.status()["shards"][0]["pid"]
        assert "in pass_gate" in cli("stacks", engine_name, "0") and found["text"].startswith(("Current", "Thread"))
        assert "shard 0, worker pid" in cli("stacks", engine_name), "of all workers, where none is named"
        assert client.stacks(0)["text"].count("in pass_gate") == 1, "nothing of the earlier answers"
        os.kill(found["pid"], signal.SIGSTOP)
        try:
            with pytest.raises(ShardmemError, match="T .stopped"):
                client.stacks(0, timeout=0.2)
        finally:
            os.kill(found["pid"], signal.SIGCONT)
        with pytest.raises(ConfigError, match="there is no shard 5"):
            client.stacks(5)

    records = [json.loads(each) for each in cli("logs", engine_name, "--json").splitlines()]
    assert any("the engine is running" in each["message"] and each["shard"] is None for each in records)
    assert {each["engine"] for each in records} == {engine_name} and (tmp_path / f"{engine_name}.log").exists()
    following = subprocess.Popen(
        [sys.executable, "-m", "shardmem", "logs", engine_name, "--follow", "--lines", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None and following.stdout.readline(), "it has found the log"
    cli("stop", engine_name)
    said, _ = following.communicate(timeout=PATIENCE)
    assert "supervisor/1 INFO stopped with 0 events not handled" in said, said
    assert "stopped with 0 events" in cli("logs", engine_name, "--state-dir", str(tmp_path), "--level", "info")
    assert "there is no log" in cli("logs", engine_name, "--state-dir", str(tmp_path / "other"), code=1)


def test_a_worker_that_closed_its_descriptors_or_is_gone_is_not_signalled(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, "support.handlers.waiting:ClosesDescriptors", shards=1) as engine:
        with shardmem.Client(engine_name) as client:
            pid = client.status()["shards"][0]["pid"]
            with pytest.raises(NotRunning, match="its handler has closed its descriptors"):
                client.stacks(0)
            assert client.status()["shards"][0]["pid"] == pid and client.status()["shards"][0]["crashes"] == 0
            engine._end_revival()
            os.kill(client.status()["supervisor"]["pid"], signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not client.status()["shards"][0]["alive"], "its worker is dead")
            with pytest.raises(NotRunning, match="shard 0 has no worker"):
                client.stacks(0)


def test_a_log_begins_a_new_file_when_it_is_large_and_both_are_read(tmp_path: Path) -> None:
    from shardmem.client.log import Log, wanted

    path = str(tmp_path / "e.log")
    for number in range(3):
        with open(path, "a") as file:
            for shard in range(3):
                file.write(json.dumps({"message": f"{number}.{shard}", "level": "info", "shard": shard}) + "\n")
        if number < 2:
            large(path)
            log_file.turn(path)
    log = Log(path, os.getuid())
    assert [each["message"] for each in log.last(4, wanted())] == ["1.2", "2.0", "2.1", "2.2"]
    assert [each["message"] for each in log.last(9, wanted(shard=1))] == ["1.1", "2.1"]
    coming = log.follow(wanted(level="warning"), lambda: False)
    large(path)
    with open(path, "a") as file:
        file.write('not json\n{"message": "late", "level": "error"}\n')
    log_file.turn(path)
    with open(path, "w") as file:
        file.write('{"message": "new", "level": "error"}\n{"message": "half')
    assert [next(coming)["message"], next(coming)["message"]] == ["late", "new"]
    log.close()


def large(path: str) -> None:
    """As large as a log gets, in the middle of a line of its own."""
    with open(path, "a") as file:
        file.write(" " * log_file.LARGEST + "\n")
