"""One bad event ends in quarantine with all that is known of it, and only that one; it can be looked at, replayed,
purged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardmem
from shardmem.client.client import _UnixConnection, socket_path
from shardmem.runtime.quarantine import Entry, Quarantine, QuarantineFull
from support.recorder import RECORD, payload, records
from support.rig import PATIENCE, Rig, drained, wait_until


def cli(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shardmem", *arguments], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert code == done.returncode, (done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def quarantined(engine: shardmem.Engine) -> int:
    return engine.status()["accounting"]["quarantined"]


@pytest.fixture
def settings(rig: Rig, tmp_path: Path) -> dict[str, Any]:
    return {
        "handler": "support.handlers.failing:Failing",
        "shards": 1,
        "retry_backoff": 0.01,
        "state_dir": str(tmp_path / "state"),
    }


@pytest.mark.parametrize("on_error", ["retry", "quarantine"])
def test_an_event_that_always_raises_is_set_aside_and_the_rest_flows_on(
    rig: Rig, engine_name: str, settings: dict, on_error: str
) -> None:
    rig.tell("poison", "77")
    with rig.engine(engine_name, on_error=on_error, **settings) as engine, engine.producer() as producer:
        keys, numbers = [number % 5 for number in range(300)], list(range(300))
        producer.push_many(keys, [payload(1, key, number, 3) for key, number in zip(keys, numbers)])
        producer.flush(PATIENCE)
        status = drained(engine)
        assert (300, 299, 1, 0) == tuple(
            status["accounting"][name] for name in ("accepted", "handled", "quarantined", "in_flight")
        )

        (event,) = json.loads(cli("quarantine", "list", "--json", "--engine", engine_name))
        shown = json.loads(cli("quarantine", "show", str(event["id"]), "--json", "--engine", engine_name))
    assert sorted(set(rig.logs().handled["number"].tolist())) == sorted(set(range(300)) - {77})
    assert (2, 77, 0, "exception", "ValueError: cannot stand number 77") == tuple(
        event[name] for name in ("key", "sequence", "shard", "kind", "reason")
    )
    assert event["attempts"] == (3 if on_error == "retry" else 1)
    assert "in handle" in shown["traceback"] and "cannot stand number 77" in shown["traceback"]
    assert payload(1, 2, 77, 3) in (
        shown["payload"].encode()
        if isinstance(shown["payload"], str)
        else __import__("base64").b64decode(shown["payload"]["base64"])
    )


def test_a_quarantined_event_is_replayed_into_a_mended_engine_once(rig: Rig, engine_name: str, settings: dict) -> None:
    rig.tell("poison", "3")
    with rig.engine(engine_name, **settings) as engine, engine.producer() as producer:
        producer.push_many(["a"] * 6, [payload(1, 0, number) for number in range(6)])
        producer.flush(PATIENCE)
        assert "cannot stand number 3" in cli("quarantine", "list", "--engine", engine_name)
        (rig.directory / "poison").unlink()
        assert "1 event replayed" in cli("quarantine", "replay", "--all", "--engine", engine_name)
        assert "the quarantine holds no event to replay; 1 replayed event kept" in cli(
            "quarantine", "list", "--engine", engine_name
        )
        assert "replayed" in cli("quarantine", "list", "--all", "--engine", engine_name)
        drained(engine)
        assert 7 == engine.status()["accounting"]["accepted"]
    assert [0, 1, 2, 4, 5, 3] == rig.logs().handled["number"].tolist()
    assert "1 event purged" in cli(
        "quarantine", "purge", "--all", "--yes", "--engine", engine_name, "--state-dir", settings["state_dir"]
    )


def test_a_quarantined_record_comes_back_as_the_row_it_was(rig: Rig, engine_name: str, settings: dict) -> None:
    settings |= {"handler": "support.quarantine_load:no_odd_ones", "dtype": RECORD, "key": "key"}
    with rig.engine(engine_name, **settings) as engine, engine.producer() as producer:
        producer.send(records(1, [4] * 5, [0, 2, 5, 6, 8]))
        producer.flush(PATIENCE)
        (event,) = json.loads(cli("quarantine", "list", "--json", "--engine", engine_name))
        shown = json.loads(cli("quarantine", "show", str(event["id"]), "--json", "--engine", engine_name))
        assert (4, 5, 1) == tuple(shown["record"][name] for name in ("key", "number", "producer"))
        row = np.frombuffer(
            Quarantine(str(Path(settings["state_dir"]) / f"{engine_name}.quarantine")).events()[0].payload, RECORD
        )
        assert row == records(1, [4], [5])
        assert 1 == quarantined(engine)


def waits(engine: shardmem.Engine) -> bool:
    return engine.status()["shards"][0]["condition"] == "waiting"


def test_a_shard_waits_while_the_quarantine_is_full_and_goes_on_when_it_was_purged(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    settings |= {"handler": "support.quarantine_load:no_odd_ones_of_events", "quarantine_limit": 2}
    with rig.engine(engine_name, retry_max_wait=0.2, **settings) as engine, engine.producer() as producer:
        for text in (b"0", b"1", b"2", b"3", b"4", b"5", b"6"):  # counted as their frames are over
            producer.push(1, text)
        wait_until(lambda: waits(engine), "the shard waits")
        (reason,) = [each["text"] for each in engine.status()["findings"] if each["kind"] == "waiting"]
        assert "holds 2 events, which is its limit (quarantine_limit=2)" in reason and "purge" in reason
        assert (2, 2) == (quarantined(engine), engine.status()["accounting"]["in_flight"])
        cli("quarantine", "purge", "--all", "--yes", "--engine", engine_name)
        producer.flush(PATIENCE)
        assert (4, 3) == (engine.status()["accounting"]["handled"], quarantined(engine))
        assert 1 == len(json.loads(cli("quarantine", "list", "--json", "--engine", engine_name)))


@pytest.mark.parametrize("again", ["reload", "run"])
@pytest.mark.parametrize("handler", ["support.quarantine_load:mendable", "support.quarantine_load:Mendable"])
def test_a_handler_that_fails_on_everything_keeps_all_for_one_that_was_mended(
    rig: Rig, engine_name: str, settings: dict, handler: str, again: str
) -> None:
    """Nothing is quarantined, and nothing of it is held against them."""
    settings |= {"handler": handler, "max_attempts": 2, "retry_backoff": 0.001, "retry_max_wait": 30}

    def fail(engine: shardmem.Engine) -> None:
        with engine.producer() as producer:
            for number in range(30):
                producer.push(number, b"%d" % number)
        wait_until(lambda: waits(engine), "the shard waits")
        assert (30, 0) == (engine.status()["accounting"]["in_flight"], quarantined(engine))
        (rig.directory / "mended").touch()

    if again == "reload":
        with rig.engine(engine_name, **settings) as engine:
            fail(engine)
            assert [0] == [each["from"] for each in engine.reload()["reloaded"]]
            status = drained(engine)
    else:
        with rig.engine(engine_name, **settings) as engine:
            fail(engine)
            engine.stop(now=True)
        with rig.engine(engine_name, **settings) as engine:
            status = drained(engine)
    assert (30, 30, 0, 0) == tuple(
        status["accounting"][name] for name in ("accepted", "handled", "quarantined", "in_flight")
    )


def test_three_events_are_quarantined_without_a_witness_and_the_fourth_brings_them_back_in_order(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    rig.tell("down", "yes")
    settings |= {"handler": "support.handlers.failing:Down", "retry_backoff": 0.001, "retry_max_wait": 0.05}
    with rig.engine(engine_name, **settings) as engine, engine.producer() as producer:
        for number in range(3):
            producer.push(1, payload(1, 1, number))
            producer.flush(PATIENCE)
            assert number + 1 == quarantined(engine)
        producer.push(1, payload(1, 1, 3))
        wait_until(lambda: waits(engine) and not quarantined(engine), "they are taken back")
        assert 4 == engine.status()["accounting"]["in_flight"]
        assert "no event to replay" in cli("quarantine", "list", "--engine", engine_name)
        os.kill(engine.status()["shards"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: engine.status()["shards"][0]["incarnation"] > 1 and waits(engine), "the next one waits too")
        assert (4, 0) == (engine.status()["accounting"]["in_flight"], quarantined(engine))
        (rig.directory / "down").unlink()
        wait_until(lambda: engine.status()["accounting"]["handled"] == 4, "all are handled")
        assert (0, 0) == (engine.status()["accounting"]["in_flight"], quarantined(engine))
        assert "is empty" in cli("quarantine", "list", "--all", "--engine", engine_name)
    assert [0, 1, 2, 3] == rig.logs().handled["number"].tolist()


def test_what_is_asked_of_an_empty_quarantine_is_answered(engine_name: str, tmp_path: Path) -> None:
    where = ["--engine", engine_name, "--state-dir", str(tmp_path)]
    assert "is empty" in cli("quarantine", "list", *where)
    assert "nothing was ever quarantined" in cli("quarantine", "show", "1", *where, code=1)
    store = Quarantine(str(tmp_path / f"{engine_name}.quarantine"), 0)
    with pytest.raises(QuarantineFull):
        store.add(
            Entry(
                "x",
                shard=0,
                slot=0,
                seat=0,
                sequence=0,
                kind="death",
                reason="r",
                traceback="",
                attempts=1,
                key="k",
                payload=b"",
                schema={"kind": "events"},
            )
        )
    store.close()
    assert "there is no event 1" in cli("quarantine", "show", "1", *where, code=1)
    assert "exactly one of IDS and --all" in cli("quarantine", "purge", *where, code=2)


def ask(engine: shardmem.Engine, path: str, **body: Any) -> tuple[int, Any]:
    """Over the unix socket; with a body, a command."""
    with contextlib.closing(_UnixConnection(socket_path(engine.name))) as connection:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_the_control_api_shows_gives_back_and_throws_away_what_is_in_quarantine(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    rig.tell("poison", "3")
    with rig.engine(engine_name, quarantine_limit=9, **settings) as engine, engine.producer() as producer:
        for _ in range(2):
            producer.push_many(["a"] * 6, [payload(1, 0, number) for number in range(6)])
            producer.flush(PATIENCE)
        status, found = ask(engine, "/quarantine")
        assert (200, 2, 9, [2, 1]) == (status, found["count"], found["limit"], [each["id"] for each in found["events"]])
        assert "cannot stand number 3" in found["events"][0]["reason"]
        status, whole = ask(engine, "/quarantine/1")
        assert 200 == status and "in handle" in whole["traceback"] and "a" == whole["key"] and whole["payload"]
        assert 404 == ask(engine, "/quarantine/3")[0] and 409 == ask(engine, "/quarantine/replay", ids=[3])[0]
        (rig.directory / "poison").unlink()
        assert (200, {"replayed": [1, 2], "left": [], "why": None}) == ask(engine, "/quarantine/replay", all=True)
        assert (200, {"replayed": [], "left": [], "why": None}) == ask(engine, "/quarantine/replay", all=True)
        assert 0 == ask(engine, "/quarantine")[1]["count"]
        assert (200, {"purged": 1}) == ask(engine, "/quarantine/purge", ids=[1])
        assert (200, {"purged": 1}) == ask(engine, "/quarantine/purge", all=True)
        assert 14 == drained(engine)["accounting"]["accepted"]
        told = [each["text"] for each in engine.status()["events"] if each["kind"] in ("replayed", "purged")]
        assert ["2 events of the quarantine given back", "1 event of the quarantine thrown away"] == told, told
    assert [3, 3] == rig.logs().handled["number"].tolist()[-2:]


@pytest.mark.parametrize("backpressure", ["block", "drop_newest"])
def test_what_finds_no_room_in_time_stays_in_quarantine_and_is_said(
    rig: Rig, engine_name: str, settings: dict, backpressure: str
) -> None:
    """In a mode that drops, too: what was dropped on its way back would be gone."""
    settings |= {
        "handler": "support.quarantine_load:no_odd_ones_of_events",
        "lane_bytes": 4096,
        "batch_rows": 1,
        "backpressure": backpressure,
    }
    with rig.engine(engine_name, **settings) as engine, engine.producer() as producer:
        for _ in range(3):
            producer.push(1, b"3" * 1501, timeout=PATIENCE)
        producer.flush(PATIENCE)
        assert 3 == ask(engine, "/quarantine")[1]["count"]
        (rig.directory / "mended").touch()
        os.kill(engine.status()["shards"][0]["pid"], signal.SIGSTOP)  # nobody makes room now
        status, given = ask(engine, "/quarantine/replay", all=True, timeout=0.3)
        assert (200, [1, 2], [3]) == (status, given["replayed"], given["left"]) and "is full" in given["why"], given
        assert [3] == [each["id"] for each in ask(engine, "/quarantine")[1]["events"]]
        assert "1 event left in quarantine" in cli(
            "quarantine", "replay", "3", "--engine", engine_name, "--timeout", "0.1", code=1
        )
        os.kill(engine.status()["shards"][0]["pid"], signal.SIGCONT)
        assert [3] == ask(engine, "/quarantine/replay", ids=[3])[1]["replayed"]
        assert 6 == drained(engine)["accounting"]["accepted"]


def test_the_supervisor_answers_and_beats_while_its_quarantine_waits_for_the_file(
    rig: Rig, engine_name: str, settings: dict
) -> None:
    rig.tell("poison", "3")
    with rig.engine(engine_name, **settings) as engine, engine.producer() as producer:
        producer.push_many(["a"] * 6, [payload(1, 0, number) for number in range(6)])
        producer.flush(PATIENCE)
        with contextlib.closing(sqlite3.connect(ask(engine, "/quarantine")[1]["file"], isolation_level=None)) as other:
            other.execute("begin exclusive")
            with ThreadPoolExecutor(1) as pool:
                purge = pool.submit(ask, engine, "/quarantine/purge", all=True)
                with shardmem.Client(engine_name) as client:
                    beat = client._control.view_engine().heartbeat_ns
                    wait_until(
                        lambda: client._control.view_engine().heartbeat_ns > beat + 6e8, "the heart beats on", timeout=4
                    )
                assert 200 == ask(engine, "/livez")[0] and not purge.done(), "the file was not waited for"
                other.execute("rollback")
                assert (200, {"purged": 1}) == purge.result()


@pytest.mark.parametrize("key", [None, 0, -5, (1 << 64) - 1, "text", "n\udce4ive", b"\x00bytes"])
def test_keys_of_every_kind_come_back_as_they_were(tmp_path: Path, key: Any) -> None:
    store = Quarantine(str(tmp_path / "q"), 5)
    for origin in ("a", "a", "b"):
        store.add(
            Entry(
                origin,
                shard=0,
                slot=0,
                seat=0,
                sequence=0,
                kind="death",
                reason="r",
                traceback="",
                attempts=1,
                key=key,
                payload=b"\xff",
                schema={"kind": "events"},
            )
        )
    assert [key, key] == [event.key for event in store.events()]  # the same row of memory again is the same event
    store.close()
