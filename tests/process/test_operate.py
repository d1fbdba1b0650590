"""What a monitoring system sees of a daemon: health and metrics over TCP, from its start to its end."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

import shardmem
from shardmem.console import render
from shardmem.status.findings.finding import finding
from support.daemon import Daemon
from support.recorder import payload
from support.rig import Rig, drained, segments_of, wait_until


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=20)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
        is_json = response.getheader("Content-Type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text
    finally:
        connection.close()


def test_health_metrics_and_commands_over_tcp(rig: Rig, engine_name: str) -> None:
    token = {"SHARDMEM_HTTP_TOKEN": "s3cret"}
    with Daemon(rig, engine_name, "--shards", "2", "--http-port", "0", environment=token) as daemon:
        ready = daemon.ready()
        url = ready["engine"]["http"]
        assert url.startswith("http://127.0.0.1:")
        assert ask(url, "/livez")[0] == ask(url, "/readyz")[0] == 200
        with Console(width=80, file=io.StringIO()) as console:
            console.print(render.status(ready))
            worse = {
                **ready,
                "findings": [finding("error", "failed", "Shard 1 has failed: \x1b[2J", "Mend it:", "shardmem reload")],
            }
            console.print(render.status(worse))
        assert (
            f"http: {url}" in (said := console.file.getvalue())
            and "running: 2 shards, 1,024 slots" in said
            and ": healthy\n" in said
        ), said
        assert ": failing\nx Shard 1 has failed: \\x1b[2J\n  Mend it: -> shardmem reload\n" in re.sub(
            " +\n", "\n", said
        ), said
        with shardmem.connect(engine_name) as producer, shardmem.Client(engine_name) as client:
            for number in range(100):
                producer.push(number, payload(1, number, 0))
            document = drained(client)
            assert ask(url, "/status")[1]["accounting"] == document["accounting"]
            status, text = ask(url, "/metrics")
            told = {
                (sample.name, sample.labels.get("shard")): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            assert status == 200 and told["shardmem_handled_total", None] == 100
            assert told["shardmem_slots_unowned", None] == 0
            for shard in document["shards"]:
                assert told["shardmem_shard_handled_total", str(shard["id"])] == shard["handled"]
                assert told["shardmem_shard_resident_memory_bytes", str(shard["id"])] > 1 << 20
            assert ask(url, "/rebalance", {})[0] == 401
            assert ask(url, "/rebalance", {}, Authorization="Bearer s3cret")[0] == 200
            with rig.hold(0) as release:
                producer.push_many(list(range(100)), [payload(1, key, 1) for key in range(100)])
                rig.wait_held(0)
                producer.push_many(list(range(100)), [payload(1, key, 2) for key in range(100)])
                daemon.process.send_signal(signal.SIGTERM)
                wait_until(
                    lambda: ask(url, "/readyz")[1]["reasons"] == ["the engine is draining"], "it says that it drains"
                )
                assert ask(url, "/livez")[0] == 200, "an engine that drains is not one to be killed"
                beat = client._control.view_engine().heartbeat_ns
                wait_until(lambda: client._control.view_engine().heartbeat_ns > beat, "its heart beats while it drains")
                status, answer = ask(url, "/scale", {"shards": 1}, Authorization="Bearer s3cret")
                assert (status, answer["kind"]) == (409, "NotRunning")
                assert ask(url, "/stop", {}, Authorization="Bearer s3cret")[1] == {"stopping": True}
                release()
            code, last = daemon.end()
            assert (code, last["status"]["accounting"]["handled"]) == (0, 300), "asked to stop again it did not drain"
    assert segments_of(engine_name) == []


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: nobody but us has read the metrics"
)
def test_prometheus_has_nothing_to_say_against_the_metrics_of_an_engine_that_has_worked(
    rig: Rig, engine_name: str
) -> None:
    with rig.engine(engine_name, shards=2, http_port=0) as engine, engine.producer() as producer:
        producer.push_many(list(range(100)), [payload(1, key, 0) for key in range(100)])
        producer.flush(20)
        status, text = ask(engine.status()["engine"]["http"], "/metrics")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (200, 0, "") == (status, done.returncode, done.stderr) and "_latency_seconds_sum{" in text


def test_a_failed_shard_makes_an_engine_unready_and_leaves_it_alive(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "2", "--http-port", "0", "--max-restarts", "0") as daemon:
        ready = daemon.ready()
        url = ready["engine"]["http"]
        client = shardmem.Client(engine_name)

        def crashed() -> (
            Any
        ):  # its worker crashes whenever it has come back, until it waits for seconds between two lives
            if pid := client.status()["shards"][1]["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSEGV)
            found = ask(url, "/readyz")
            return (
                found[0] == 503 and any(each.startswith("shard 1 failed: ") for each in found[1]["reasons"]) and found
            )

        status, answer = wait_until(crashed, "a shard has failed", 60)
        client.close()
        assert not answer["ready"]
        assert "512 of 1024 slots have no live owner" in answer["reasons"]
        assert ask(url, "/livez")[0] == 200
        daemon.process.terminate()
        assert daemon.end()[0] == 0


def test_the_next_supervisor_answers_where_the_killed_one_did(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "1", "--http-port", "0") as first:
        url = first.ready()["engine"]["http"]
        first.kill_supervisor()
        with shardmem.Client(engine_name) as client:
            assert client.status()["engine"]["http"] is None, "where a dead supervisor listened is no use to anybody"
            with Daemon(rig, engine_name, "--shards", "1", "--http-port", url.rpartition(":")[2]) as second:
                assert second.ready()["engine"]["http"] == url
                status, answer = ask(url, "/readyz")
                assert (status, answer["reasons"]) == (200, [])
                assert client.rebalance()["moved"] == [], "the socket is the second one's"
                second.process.terminate()
                assert second.end()[0] == 0


def test_a_port_that_is_taken_ends_a_daemon_before_it_has_workers(rig: Rig, engine_name: str) -> None:
    with Daemon(rig, engine_name, "--shards", "1", "--http-port", "0") as first:
        port = first.ready()["engine"]["http"].rpartition(":")[2]
        with Daemon(rig, f"{engine_name}-b", "--shards", "1", "--http-port", port) as second:
            said = second.process.communicate(timeout=20)
            assert second.process.returncode == 2 and f"cannot listen on http_port={port}" in said[1]
        assert segments_of(f"{engine_name}-b") == []
        first.process.terminate()
        assert first.end()[0] == 0
