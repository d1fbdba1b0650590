"""Commands of the command line that change placement, and what they say when they are late."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import shardmem
from support.daemon import Daemon
from support.recorder import payload
from support.rig import PATIENCE, Rig, keys_of_shard, wait_until

SLOTS = 32


@pytest.fixture
def daemon(rig: Rig, engine_name: str) -> Iterator[Daemon]:
    with Daemon(rig, engine_name, "--min-shards", "2", "--max-shards", "3", "--slots", str(SLOTS)) as found:
        found.ready()
        yield found
        cli("stop", engine_name)
        found.end()


def cli(*arguments: str, code: int = 0, **how: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shardmem", *arguments], capture_output=True, text=True, timeout=60, **how
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def test_cordon_pin_and_moves_answer_with_what_stands(daemon: Daemon, engine_name: str) -> None:
    assert "cordoned: 1; no slot is pinned; the strategy may move slots" in cli("cordon", engine_name, "1").stdout
    assert "shard 1 is cordoned" in cli("pin", engine_name, "0-3", "--to", "1", code=2).stderr
    assert "no shard is cordoned" in cli("uncordon", engine_name, "1").stdout
    pinned = cli("pin", engine_name, "0-3", "--to", "1").stdout
    assert "pinned to shard 1: 0-3" in pinned and "2 slots from shard 0 to shard 1" in pinned
    assert "moves are suspended" in cli("moves", engine_name, "suspend").stdout
    answer = json.loads(cli("unpin", engine_name, "1-3", "--json").stdout)
    assert answer == {"cordoned": [], "pins": [{"shard": 1, "slots": "0"}], "suspended": True}
    assert "moves are suspended" in wait_until(
        lambda: (text := cli("status", engine_name).stdout) and "suspended" in text and text, "status says so"
    )
    assert "the strategy may move slots" in cli("moves", engine_name, "resume").stdout


def test_where_says_slot_and_shard_of_a_key_with_the_supervisor_dead(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, slots=SLOTS) as engine:
        shards = {shard["id"]: shard for shard in engine.status()["shards"]}
        expected = engine.where("AAPL")
        engine._end_revival()
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        wait_until(lambda: not engine.status()["supervisor"]["alive"], "the supervisor is dead")
        found = json.loads(cli("where", engine_name, "AAPL", "--json").stdout)
        assert found == expected and found["pid"] == shards[found["shard"]]["pid"]
        (key,) = keys_of_shard(1, 2, 1, SLOTS)
        text = cli("where", engine_name, str(key), "--int").stdout
        assert text == f"slot {key_slot(key)}: shard 1 (pid {shards[1]['pid']}, incarnation 1)\n"
        assert f"no KEY follows it. For the key {engine_name}:" in cli("where", engine_name, code=2).stderr
        assert "shard" in cli("where", engine_name, engine_name).stdout
        assert "key='x' is not an integer" in cli("where", engine_name, "x", "--int", code=2).stderr


def key_slot(key: int) -> int:
    return shardmem.Context("", 0, 0, SLOTS, None).slot(key)  # type: ignore[arg-type]


def test_a_command_that_is_late_says_who_is_waited_for_and_goes_on_in_the_background(
    rig: Rig, daemon: Daemon, engine_name: str
) -> None:
    (key,) = keys_of_shard(0, 2, 1, SLOTS)
    with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client:
        with rig.hold(0):
            producer.push(key, payload(1, key, 0))
            rig.wait_held(0)
            pid = client.status()["shards"][0]["pid"]
            slot = str(key_slot(key))
            late = cli("move", engine_name, slot, "--to", "1", "--timeout", "0.3", code=1)
            assert late.stdout == ""
            assert "move is not done yet; it goes on in the background" in late.stderr
            assert "waiting for shard 0 to drain 1 slot" in late.stderr and f"(worker pid {pid})" in late.stderr
            assert late.stderr.count(f"; slots {slot}") == 1
            answer = json.loads(
                cli("move", engine_name, slot, "--to", "1", "--timeout", "0.2", "--json", code=1).stdout
            )
            assert answer["done"] is False and answer["waiting_for"][0]["pid"] == pid
            # the same on a terminal
            ours, theirs = pty.openpty()
            command = [sys.executable, "-m", "shardmem", "move", engine_name, slot, "--to", "1", "--timeout", "1.5"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
                os.close(theirs)
                said = read_all(ours)
                assert process.wait(PATIENCE) == 1
            assert "s: waiting for 1 slot from shard 0 to 1 (draining)" in said
        wait_until(lambda: client.where(key)["shard"] == 1 and not client.status()["handoffs"], "it went on")
        producer.flush(PATIENCE)


def read_all(descriptor: int) -> str:
    """What is written to a terminal until nobody has it open any more."""
    said = b""
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # EIO: its other end is closed
            data = b""
        if not data:
            os.close(descriptor)
            return said.decode()
        said += data
