"""Workers are replaced while events flow, by age or by order: nothing is lost, repeated or reordered, and nobody
waits."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import shardmem
from support.checker import check
from support.daemon import Daemon
from support.elastic_load import KEYS, ROW, SLOTS, Counter, Traffic, read_logs, violations
from support.recorder import payload
from support.rig import PATIENCE, Log, Rig, drained, segments_of, wait_until

VERSION = """
from support.recorder import Recorder
import os

class Handler(Recorder):
    def open(self, context):
        super().open(context)
        {opening}
        (self.directory / f"version-{{context.shard}}-{{os.getpid()}}").write_text("{version}")
"""


def push(producer: shardmem.Producer, log: Log, numbers: range, keys: range = range(10)) -> None:
    for key in keys:
        for number in numbers:
            log.rows("offered", 1, [key], [number])
            producer.push(key, payload(1, key, number))
            log.rows("accepted", 1, [key], [number])


def pids(document: dict[str, Any]) -> set[int]:
    return {shard["pid"] for shard in document["shards"]}


def versions(rig: Rig, document: dict[str, Any]) -> list[str]:
    """Of the handlers that run."""
    return [(rig.directory / f"version-{shard['id']}-{shard['pid']}").read_text() for shard in document["shards"]]


def expect_exact(rig: Rig, status: dict[str, Any]) -> None:
    total = status["accounting"]
    assert check(rig.logs()) == []
    assert total["in_flight"] == 0 and total["accepted"] == total["handled"] == len(rig.logs().handled)


# ---- recycling -------------------------------------------------------------------------------------------------------


def test_a_worker_over_a_limit_is_replaced_under_load_and_its_state_travels(tmp_path: Path) -> None:
    with shardmem.Engine(
        handler=Counter(str(tmp_path)),
        dtype=ROW,
        key="key",
        shards=1,
        max_shards=1,
        slots=SLOTS,
        lane_bytes=1 << 15,
        state_dir=str(tmp_path),
        recycle_batches=5,
    ) as engine:
        traffic = Traffic(engine.name, 2, pause=0.005)
        try:
            wait_until(
                lambda: len({path.name.split("-")[1] for path in tmp_path.glob("0-*.log")}) >= 3, "two were replaced"
            )
        finally:
            sent = traffic.stop()
        assert engine.status()["engine"]["max_shards"] == 1
    total = engine.status()["accounting"]
    assert sum(sent.values()) * KEYS == total["accepted"] == total["handled"]
    assert [] == violations(read_logs(tmp_path), sent)
    assert segments_of(engine.name) == []


def test_a_limit_of_memory_that_no_worker_can_keep_is_said_once_and_replaces_nobody(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, max_shards=2, recycle_rss="1MiB") as engine:
        before = engine.status()
        said = wait_until(
            lambda: [each["text"] for each in engine.status()["events"] if each["kind"] == "not_done"], "it is said"
        )
        assert re.match(r"a fresh worker takes [\d,]{9,} bytes of memory, and recycle_rss=1,048,576: ", said[0]), said
        engine.rebalance()  # comes behind a replacement, had one begun
        after = engine.status()
        assert pids(after) <= pids(before) and 1 == [each["kind"] for each in after["events"]].count("not_done")


def test_a_successor_that_cannot_boot_is_given_up_and_the_old_worker_goes_on(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, handler="support.handlers.failing:Fragile", shards=1, max_shards=1) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, range(3))
            rig.tell("open", "raise")
            before = engine.status()["shards"]
            with pytest.raises(
                shardmem.HandlerError, match="reload stopped at shard 0, which goes on.*OSError: as told"
            ):
                engine.reload()
            push(producer, log, range(3, 6))
            producer.flush(PATIENCE)
            after = engine.status()["shards"]
            assert [(shard["id"], shard["pid"], shard["state"]) for shard in after] == [(0, before[0]["pid"], "active")]
            (rig.directory / "open").unlink()
            assert engine.reload()["reloaded"] == [{"from": 0, "to": 1}]
            push(producer, log, range(6, 9))
            producer.flush(PATIENCE)
    expect_exact(rig, engine.status())
    assert segments_of(engine_name) == []


# ---- reload ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(rig: Rig, engine_name: str, monkeypatch: Any) -> Any:
    """Two shards that run version 1 of a handler in a module of its own; PYTHONPATH finds it."""
    rig.environment["PYTHONPATH"] = str(rig.directory)
    tell_version(rig, "1")
    tell_settings(rig, engine_name)
    with Daemon(rig, str(rig.directory / "engine.toml")) as daemon:
        daemon.ready()
        yield daemon
        if daemon.process.poll() is None:
            daemon.process.terminate()
            code, last = daemon.end()
            assert code == 0, last["error"]
            expect_exact(rig, last["status"])
    assert segments_of(engine_name) == []


def tell_version(rig: Rig, version: str, opening: str = "pass") -> None:
    # Another size each time: the interpreter takes cached bytecode for current by time in seconds, and size.
    rig.tell("versioned.py", VERSION.format(version=version, opening=opening) + "#" * int(version) + "\n")


def tell_settings(rig: Rig, name: str, **more: Any) -> None:
    settings = {"name": name, "handler": "versioned:Handler", "shards": 2, "max_shards": 2, "max_producers": 8, **more}
    rig.tell("engine.toml", "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in settings.items()))


def test_hup_replaces_every_worker_by_one_that_imports_the_handler_anew(
    rig: Rig, engine_name: str, daemon: Daemon
) -> None:
    with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client, Log(rig.directory) as log:
        push(producer, log, range(5))
        before = client.status()
        assert versions(rig, before) == ["1", "1"]
        tell_version(rig, "2")
        daemon.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        for number in itertools.count(5):
            push(producer, log, range(number, number + 1))
            status = client.status()
            if len(status["shards"]) == 2 and not pids(before) & pids(status):
                break
            assert time.monotonic() < deadline, f"no reload after {number} events of each key"
        producer.flush(PATIENCE)
        assert (
            versions(rig, client.status()) == ["2", "2"] and client.status()["supervisor"]["pid"] == daemon.process.pid
        )
        drained(client)


def test_a_reload_names_what_cannot_change_and_applies_the_rest(rig: Rig, engine_name: str, daemon: Daemon) -> None:
    with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client, Log(rig.directory) as log:
        push(producer, log, range(3))
        tell_settings(rig, engine_name, slots=64, lane_bytes=65536, max_producers=9, stall_timeout=77)
        done = client.reload()
        assert done["not_applied"] == ["slots", "lane_bytes", "max_producers"] and len(done["reloaded"]) == 2
        assert client.status()["engine"]["slots"] == 1024
        push(producer, log, range(3, 6))
        producer.flush(PATIENCE)


def test_a_reload_of_a_handler_that_does_not_load_stops_at_the_first_shard_and_changes_nothing(
    rig: Rig, engine_name: str, daemon: Daemon
) -> None:
    with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client, Log(rig.directory) as log:
        before = client.status()
        tell_version(rig, "2", opening="raise OSError('no such warehouse')")
        with pytest.raises(shardmem.HandlerError, match="reload stopped at shard 0.*no such warehouse"):
            client.reload()
        assert pids(client.status()) == pids(before) and [shard["id"] for shard in client.status()["shards"]] == [0, 1]
        push(producer, log, range(3))
        producer.flush(PATIENCE)


def test_a_reload_of_a_file_that_is_wrong_is_refused_and_changes_nothing(
    rig: Rig, engine_name: str, daemon: Daemon
) -> None:
    with shardmem.Client(engine_name) as client:
        before = client.status()
        tell_settings(rig, engine_name, lane_bites=5)
        with pytest.raises(shardmem.ConfigError, match="lane_bites is not a setting"):
            client.reload()
        assert pids(client.status()) == pids(before)
        tell_settings(rig, engine_name)


def test_a_reload_gives_a_failed_shard_another_chance(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, handler="support.handlers.failing:Fragile", shards=1, max_shards=1) as engine:
        with engine.producer() as producer, Log(rig.directory) as log:
            push(producer, log, range(3))
            producer.flush(PATIENCE)
            rig.tell("open", "raise")
            os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
            wait_until(lambda: engine.status()["shards"][0]["state"] == "failed", "it is given up")
            push(producer, log, range(3, 6))
            (rig.directory / "open").unlink()
            assert [each["from"] for each in engine.reload()["reloaded"]] == [0]  # or it was there again before
            producer.flush(PATIENCE)
            expect_exact(rig, drained(engine))


def test_a_daemon_judges_its_end_by_the_shards_as_they_are_then(rig: Rig, engine_name: str) -> None:
    with Daemon(
        rig, engine_name, "--shards", "1", "--on-error", "stop", handler="support.handlers.failing:Fragile"
    ) as daemon:
        daemon.ready()
        with shardmem.Client(engine_name) as client, shardmem.connect(engine_name) as producer:
            rig.tell("handle", "raise")
            producer.push(1, payload(1, 1, 0))
            wait_until(lambda: client.status()["shards"][0]["state"] == "failed", "it is given up")
            (rig.directory / "handle").unlink()
            client.reload()
            producer.flush(PATIENCE)
        daemon.process.terminate()
        code, last = daemon.end()
        assert (0, None) == (code, last["error"]), "the failure was mended"


def test_a_supervisor_killed_before_a_successor_had_anything_is_followed_by_one_that_gives_it_up(
    rig: Rig, engine_name: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SHARDMEM_POINT", f"spawn.created:1:{signal.SIGKILL:d}")
    with (
        rig.engine(engine_name, shards=1, max_shards=1) as engine,
        engine.producer() as producer,
        Log(rig.directory) as log,
    ):
        monkeypatch.delenv("SHARDMEM_POINT")
        push(producer, log, range(3))
        assert [each["from"] for each in engine.reload()["reloaded"]] == [0]  # killed, taken over, and asked again
        status = engine.status()
        assert status["supervisor"]["incarnation"] == 2 and len(status["shards"]) == 1
        push(producer, log, range(3, 6))
        producer.flush(PATIENCE)
    expect_exact(rig, engine.status())
    assert segments_of(engine_name) == []
