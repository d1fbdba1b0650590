"""The log of a real engine: supervisor and worker write the same form, and say who they are."""

from __future__ import annotations

import json
import signal

import pytest

import shardmem
from support.daemon import Daemon

HANDLER = """
def handle(batch):
    raise ValueError("never")

def quiet(batch):
    pass
"""


@pytest.fixture
def handlers(tmp_path, monkeypatch):
    (tmp_path / "handlers_of_logs.py").write_text(HANDLER)
    return {"PYTHONPATH": str(tmp_path)}


def test_supervisor_and_worker_write_nothing_but_json_lines_that_say_who_they_are(rig, engine_name, handlers):
    with Daemon(
        rig,
        engine_name,
        "--shards",
        "1",
        "--log-format",
        "json",
        "--max-attempts",
        "1",
        handler="handlers_of_logs:handle",
        environment=handlers,
    ) as daemon:
        daemon.ready()
        with shardmem.connect(engine_name) as producer:
            producer.push(5, b"x")
            producer.flush(timeout=30)
        daemon.process.send_signal(signal.SIGTERM)
        _, error = daemon.process.communicate(timeout=30)

    found = [json.loads(line) for line in error.splitlines()]
    assert found and {engine_name} == {line["engine"] for line in found}, error
    running = next(line for line in found if "is running" in line["message"])
    assert (None, 1, "info") == (running["shard"], running["incarnation"], running["level"])
    aside = next((line for line in found if "in quarantine" in line["message"]), None)
    assert aside is not None, error
    assert (0, 1, 0, "error") == (aside["shard"], aside["incarnation"], aside["seat"], aside["level"]) and aside[
        "slot"
    ] >= 0


def test_a_level_is_the_level_of_supervisor_and_workers(rig, engine_name, handlers):
    with Daemon(
        rig,
        engine_name,
        "--shards",
        "1",
        "--log-format",
        "json",
        "--log-level",
        "error",
        handler="handlers_of_logs:quiet",
        environment=handlers,
    ) as daemon:
        daemon.ready()
        daemon.process.send_signal(signal.SIGTERM)
        _, error = daemon.process.communicate(timeout=30)

    assert "" == error
