"""Files of /dev/shm that somebody else removes or cuts short under a running engine: an error that says so, and never
the death of the supervisor or of who looks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shardmem
from shardmem.memory.engine_segment import ControlSegment
from support.checker import accounting, check
from support.daemon import Daemon
from support.programs import sends
from support.programs.source import Source
from support.recorder import payload
from support.rig import Log, Program, Rig, drained, keys_of_shard, segments_of, wait_until

SHM = Path("/dev/shm")
LIMIT = 60.0  # seconds; the machine may be busy


def file_of(engine: str, end: str) -> Path:
    return SHM / f"shardmem.{engine}.{end}"


def told(engine: shardmem.Engine | shardmem.Client) -> list[str]:
    return [each["text"] for each in engine.status()["history"] if each["kind"] == "memory_lost"]


def looks_twice(engine: str) -> None:
    """The supervisor has looked at what is there now."""
    control = ControlSegment.attach(engine)
    for _ in range(2):
        before = control.view_engine().heartbeat_ns
        wait_until(lambda: control.view_engine().heartbeat_ns != before, "the supervisor looks again", LIMIT)
    control.close()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "shardmem", *arguments], capture_output=True, text=True, timeout=LIMIT)


def test_a_shard_whose_inbox_was_removed_is_replaced_and_nothing_is_lost(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, max_shards=3) as engine, Log(rig.directory) as log:
        with engine.producer() as producer:
            source = Source(0, log)
            for key in range(40):
                source.push(producer, "push", key, 5)
            file_of(engine_name, "inbox.0.1").unlink()
            for key in range(40):
                source.push(producer, "push", key, 5)
            wait_until(lambda: not engine.status()["shards"][0]["id"] == 0, "shard 0 is replaced", LIMIT)
            for key in range(40):
                source.push(producer, "push", key, 5)
            producer.flush(LIMIT)
        assert any("inbox.0.1 was removed while it was in use" in text for text in told(engine))
        assert accounting(drained(engine), drained=True, removed=True) == []
        assert check(rig.logs()) == []
        assert len(rig.logs().handled) == len(rig.logs().accepted) > 0


def test_a_shard_whose_inbox_was_cut_short_loses_what_it_held_and_nothing_else(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine:
        supervisor = engine.status()["supervisor"]["pid"]
        theirs, others = keys_of_shard(0, 2, 5), keys_of_shard(1, 2, 5)
        with rig.hold(0) as release, engine.producer() as producer:
            for number, key in enumerate(theirs + others):
                producer.push(key, payload(1, key, number))
            rig.wait_held(0)
            wait_until(lambda: engine.status()["accounting"]["handled"] == 5, "shard 1 has handled its own", LIMIT)
            looks_twice(engine_name)
            os.truncate(file_of(engine_name, "inbox.0.1"), 0)
            said = command("status", engine_name)
            text = " ".join(said.stdout.split())  # its lines break where the name of the engine is long
            assert said.returncode == 0 and "cut short" in text, said
            wait_until(lambda: any("has a new inbox" in text for text in told(engine)), "a new inbox", LIMIT)
            release()
            with pytest.raises(shardmem.SegmentCorrupt, match="was cut short .* what it held is lost"):
                producer.flush(LIMIT)
            for number, key in enumerate(theirs + others, 10):
                producer.push(key, payload(1, key, number))
            producer.flush(LIMIT)
        status = engine.status()
        assert status["supervisor"]["pid"] == supervisor and status["supervisor"]["alive"]
        assert any("inbox.0.1 was cut short while it was in use: it has 0 bytes of" in text for text in told(engine))
        assert any("what only the old one held is lost: 5 events when" in text for text in told(engine))
        counts = status["accounting"]
        assert (counts["accepted"], counts["handled"], counts["in_flight"]) == (20, 15, 0)
        assert counts["shed"] == {"oldest": 5}


def test_a_producer_outlives_an_inbox_that_is_cut_short_while_it_pushes_into_it(rig: Rig, engine_name: str) -> None:
    """It is told of it when it flushes, once, and goes on."""
    with rig.engine(engine_name, shards=2) as engine:
        with Program(sends.push_until_told, rig, engine=engine_name, producer=1) as program:
            program.hear(LIMIT)
            os.truncate(file_of(engine_name, "inbox.0.1"), 0)
            wait_until(lambda: any("has a new inbox" in text for text in told(engine)), "a new inbox", LIMIT)
            accepted = engine.status()["shards"][0]["accepted"]
            wait_until(lambda: engine.status()["shards"][0]["accepted"] > accepted + 1000, "it pushes on", LIMIT)
            said = program.ask(LIMIT, over=True)
            assert said["error"] == "SegmentCorrupt" and "inbox.0.1 was cut short" in said["text"], said
            program.say(over=True)
            assert program.end(LIMIT) == 0
        drained(engine)


@pytest.mark.parametrize(
    "harm, text",
    [
        (lambda path: os.truncate(path, 4096), "was cut short while it was in use: it has 4,096 bytes of"),
        (os.unlink, "was removed while it was in use"),
    ],
    ids=["cut short", "removed"],
)
def test_an_engine_whose_control_segment_is_gone_ends_with_an_error_that_says_so(
    rig: Rig, engine_name: str, harm: Callable[[Path], None], text: str
) -> None:
    with Daemon(rig, engine_name, "--shards", "2") as daemon:
        daemon.ready()
        with shardmem.connect(engine_name) as producer:
            for key in range(50):
                producer.push(key, payload(1, key, 0))
            if harm is not os.unlink:
                producer.flush(LIMIT)
        looking = shardmem.Client(engine_name)
        harm(file_of(engine_name, "control"))
        if harm is not os.unlink:
            with pytest.raises(shardmem.SegmentCorrupt, match="control was cut short"):
                looking.status()
            assert command("status", engine_name).returncode == 1
        assert daemon.process.wait(LIMIT) == 1, "it was killed"
        assert daemon.process.stderr is not None
        said = daemon.process.stderr.read()
        assert text in said and "Traceback" not in said, said
        looking.close()
    assert segments_of(engine_name) == []
    assert len(rig.logs().handled) == 50, "what it held is handled first, where it can be"


def test_those_who_look_outlive_memory_that_is_cut_short_under_their_eyes(rig: Rig, engine_name: str) -> None:
    """Between the look at the size and the touch."""
    looks = """
import os, sys
from shardmem.errors import SegmentCorrupt
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.segment import outlive_lost_memory, path_of
outlive_lost_memory()
control = ControlSegment.attach(sys.argv[1])
os.truncate(path_of(control.segment.name), 0)
assert control.view_shard(0).pid == 0 and control.slot_table() and control.board("events") == b""
try:
    control.segment.check_whole()
except SegmentCorrupt as error:
    print("outlived:", error)
"""
    with Daemon(rig, engine_name, "--shards", "1") as daemon:
        daemon.ready()
        found = subprocess.run(
            [sys.executable, "-c", looks, engine_name], capture_output=True, text=True, timeout=LIMIT
        )
        assert found.stdout.startswith("outlived: ") and found.returncode == 0, found
        assert daemon.process.wait(LIMIT) == 1
