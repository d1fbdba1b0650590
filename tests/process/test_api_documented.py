"""The control API of a real engine answers whatever it is asked as its OpenAPI document says: status codes, content
types, bodies.

Schemathesis makes the requests, of what makes sense and of what does not. SHARDMEM_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardmem
from shardmem.client.client import socket_path
from shardmem.http.operations import COMMANDS, READS
from support.recorder import payload
from support.rig import PATIENCE, Rig, drained

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None,
    reason="schemathesis is not installed: nobody has compared the control API with its OpenAPI document",
)
TOKEN = "of-this-test"
ALL = len(READS) + len(COMMANDS) - 1  # Schemathesis does not count the document that it has read
ALL_BUT_STOP = f"Operations:       {ALL - 1} selected / {ALL} total"


def schemathesis(url: str, where: Path, *arguments: str) -> str:
    """What it says at its end. It is a program here: its plugin for pytest would cost every other test a second."""
    seed = os.environ.get("SHARDMEM_SEED", str(time.time_ns() % 10**6))
    print(f"SHARDMEM_SEED={seed}")
    command = [
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        "run",
        f"{url}/openapi.json",
        "--seed",
        seed,
        "--no-color",
        "--generation-database",
        "none",
        "--request-timeout",
        str(PATIENCE),
        "--exclude-path",
        "/stop",
        *arguments,
    ]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=100)
    assert 0 == done.returncode, done.stdout[-20_000:] + done.stderr
    return done.stdout


@pytest.fixture
def engine(rig: Rig, engine_name: str) -> Iterator[shardmem.Engine]:
    """One that has handled events, lost a worker and set an event aside, so that there is something of everything to
    show."""
    rig.tell("poison", "3")
    with rig.engine(
        engine_name,
        "support.handlers.failing:Failing",
        shards=2,
        max_shards=4,
        slots=64,
        lane_bytes=1 << 16,
        http_port=0,
        http_token=TOKEN,
        retry_backoff=0.01,
        state_dir=str(rig.directory / "state"),
    ) as engine:
        with engine.producer() as producer:
            for _ in range(3):
                producer.push_many([1] * 9, [payload(1, 1, number) for number in range(9)])
                producer.flush(PATIENCE)
        assert 3 == engine.status()["accounting"]["quarantined"]
        yield engine
        (rig.directory / "poison").unlink()
        with engine.producer() as producer:  # whatever was asked of it, it is well
            producer.push_many(list(range(99)), [payload(2, key, 0) for key in range(99)])
            producer.flush(PATIENCE)
        document = drained(engine)
        assert (1, "running", 0) == (
            document["supervisor"]["incarnation"],
            document["engine"]["state"],
            document["engine"]["slots_unowned"],
        ), document


@contextlib.contextmanager
def on_tcp(path: str) -> Iterator[str]:
    """The address of a port that leads to a unix socket."""

    class Through(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as inner:
                inner.connect(path)
                to = {self.request: inner, inner: self.request}
                while ready := select.select(list(to), [], [], PATIENCE)[0]:
                    for each in ready:
                        if not (data := each.recv(1 << 16)):
                            return
                        to[each].sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Through) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_over_tcp_with_the_token_every_answer_is_as_documented(engine: shardmem.Engine, tmp_path: Path) -> None:
    said = schemathesis(
        engine.status()["engine"]["http"], tmp_path, "-H", f"Authorization: Bearer {TOKEN}", "--max-time", "9"
    )
    assert ALL_BUT_STOP in said and "Fuzzing" in said, said


def test_over_the_unix_socket_every_answer_is_as_documented_and_none_asks_for_a_token(
    engine: shardmem.Engine, tmp_path: Path
) -> None:
    with on_tcp(socket_path(engine.name)) as url:
        said = schemathesis(url, tmp_path, "--phases", "examples,coverage")
    assert ALL_BUT_STOP in said, said
