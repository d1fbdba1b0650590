"""Keyed state and timers in a real engine. That they are exact at every point of death is in test_state.py."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import shardmem
from shardmem.client.client import socket_path
from shardmem.console.cli import main
from shardmem.runtime.quarantine import Quarantine
from support.rig import Rig, drained, keys_of_shard, wait_until
from support.state import kept


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"slots": 32, "state_dir": str(tmp_path / "state"), "checkpoint_interval": 0.05}


def files(settings: dict[str, Any], name: str) -> str:
    return os.path.join(settings["state_dir"], f"{name}.state")


def kill_all(engine: Any) -> None:
    for shard in engine.status()["shards"]:
        os.kill(shard["pid"], signal.SIGKILL)


def expect_seen_from_outside(engine: shardmem.Engine, keys: list[Any], value: int) -> None:
    """By Engine and Client, on the command line, over HTTP."""
    with shardmem.Client(engine.name) as client:
        for key in keys:
            assert value == client.state("visits", key) == engine.state("visits", key)
        assert client.state("visits", "nobody") is None
    got = CliRunner().invoke(main, ["state", "get", engine.name, "visits", "17", "--json"])
    assert (0, "17", value) == (got.exit_code, json.loads(got.stdout)["key"], json.loads(got.stdout)["value"])
    counted = CliRunner().invoke(main, ["state", "count", engine.name])
    assert (0, f"visits  {len(keys)} values\n") == (counted.exit_code, counted.stdout)
    status, answer = asked(engine.name, "/state/visits/-17")
    assert (200, -17, value) == (status, answer["key"], answer["value"])
    assert 404 == asked(engine.name, "/state/visits/nobody")[0]


def asked(name: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(connection):
        connection.sock.connect(socket_path(name))
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_keys_keep_their_type_across_deaths_moves_and_another_number_of_shards(
    rig: Rig, engine_name: str, settings: dict[str, Any]
) -> None:
    keys = [17, "17", b"17", -17, (1 << 64) - 1]
    for run in (1, 2):
        with (
            rig.engine(engine_name, "support.handlers.keyed:Typed", shards=3 - run, **settings) as engine,
            engine.producer() as producer,
        ):
            for count in range(1, 4):
                producer.push_many(keys * count, [b""] * len(keys) * count)
                producer.flush(60)
                if run == 1 and count == 2:
                    kill_all(engine)
                    engine.move(range(32), to=1)
            drained(engine)
            saved = max(engine.status()["shards"], key=lambda shard: shard["checkpoints"])
            assert saved["checkpoints"] and 0 < saved["last_checkpoint_s"] <= saved["checkpoint_s"]
            expect_seen_from_outside(engine, keys, 6 * run)
        assert dict.fromkeys(keys, 6 * run) == kept(files(settings, engine_name), "visits")


def test_a_value_that_cannot_be_saved_is_the_fault_of_its_event_which_is_set_aside(
    rig: Rig, engine_name: str, settings: dict[str, Any]
) -> None:
    keys = keys_of_shard(0, 2, 500, slots=32)
    key = next(key for key in keys if key + 1 not in keys)
    wrong = [b"wrong type", b"changed in place", b"too large", b"other key"]
    settings |= {"handler": "support.handlers.keyed:Misusing", "retry_backoff": 0.01, "on_error": "quarantine"}
    with rig.engine(engine_name, shards=2, **settings) as engine, engine.producer() as producer:
        for what in wrong:
            producer.push_many([key] * 9, [b"", b"", b"", what, b"", b"", b"", b"", b""])
            producer.flush(60)
        assert (32, 4) == tuple(drained(engine)["accounting"][name] for name in ("handled", "quarantined"))
    assert 32 == kept(files(settings, engine_name), "visits")[key]
    quarantine = Quarantine(os.path.join(settings["state_dir"], f"{engine_name}.quarantine"))
    events = list(quarantine.events())
    quarantine.close()
    assert wrong == [event.payload for event in events]
    for event in events:
        assert f"key {key + (event.payload == b'other key')}" in event.reason and "StateError" in event.reason


def test_every_value_expires_once_although_workers_are_killed_and_slots_move(
    rig: Rig, engine_name: str, settings: dict[str, Any]
) -> None:
    with (
        rig.engine(engine_name, "support.handlers.keyed:Expiring", shards=2, **settings) as engine,
        engine.producer() as producer,
    ):
        for turn in range(2):
            producer.push_many(list(range(200)), [b""] * 200)
            producer.flush(60)
            kill_all(engine)
            engine.move(range(32), to=turn % 2)
        directory = files(settings, engine_name)
        wait_until(lambda: sum(kept(directory, "expired").values()) >= 400, "every value has expired", 60)
    assert dict.fromkeys(range(200), 2) == kept(directory, "expired")
    assert {} == kept(directory, "short")


def test_an_entity_comes_to_life_again_without_an_event_wherever_its_slot_is(
    rig: Rig, engine_name: str, settings: dict[str, Any]
) -> None:
    with (
        rig.engine(engine_name, "support.handlers.keyed:Counter", shards=2, **settings) as engine,
        engine.producer() as producer,
    ):
        ref = producer.ref("ann")
        assert (ref.slot, ref.shard) == (engine.where("ann")["slot"], engine.where("ann")["shard"])
        for _ in range(3):
            assert ref.tell(b"one")
        producer.flush(60)
        assert {"events": 3, "lives": 1} == attributes(engine)
        os.kill(engine.status()["shards"][ref.shard]["pid"], signal.SIGKILL)
        wait_until(lambda: attributes(engine) == {"events": 3, "lives": 2}, "it lives again after a crash", 60)
        engine.move([ref.slot], to=1 - ref.shard)
        wait_until(lambda: attributes(engine) == {"events": 3, "lives": 3}, "it lives again after a move", 60)
        assert ref.shard == engine.where("ann")["shard"]


def attributes(engine: shardmem.Engine) -> Any:
    found = engine.state("entities", "ann")
    return found and found.value[0]


def test_a_timer_whose_handler_raises_is_tried_again_and_holds_up_no_other(
    rig: Rig, engine_name: str, settings: dict[str, Any]
) -> None:
    settings |= {"handler": "support.handlers.keyed:Stubborn"}
    with rig.engine(engine_name, shards=1, **settings) as engine, engine.producer() as producer:
        producer.push_many(list(range(20)), [b""] * 20)
        producer.flush(60)
        directory = files(settings, engine_name)
        wait_until(lambda: len(kept(directory, "fired")) == 19, "all but one have fired", 60)
        producer.push(100, b"")
        producer.flush(60)
        rig.tell("mended", "")
        wait_until(lambda: len(kept(directory, "fired")) == 21, "the last one has fired too", 60)
        assert "active" == engine.status()["shards"][0]["state"]
    assert set(kept(directory, "fired").values()) == {1}
    assert dict.fromkeys([*range(20), 100], 1) == kept(directory, "visits")
