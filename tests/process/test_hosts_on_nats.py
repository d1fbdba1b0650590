"""Two engines as two hosts on one NATS stream, writing into one database: killed, frozen, and exact all the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from shardmem.client.client import Client
from shardmem.errors import ShardmemError
from support.nats import NatsServer

APP = """
import os, sqlite3
import shardmem
from shardmem import sinks

def connect():
    return sqlite3.connect(os.environ["OUT"], timeout=5)

class Counts(shardmem.Handler):
    def open(self, context):
        self.once = sinks.transaction(connect)
        self.latest = sinks.upsert(connect, "latest", key="key", columns="number")

    def handle(self, batch):
        with self.once as tx:
            for key, number in tx.fresh(batch):
                tx.connection.execute(
                    "insert into counts values (?, 1) on conflict (key) do update set n = n + 1", [key]
                )
        self.latest.write(batch, [(key, int(number)) for key, number in batch])
"""
PATIENCE = 90.0


class Host:
    def __init__(self, name, directory, server, out):
        self.name, self.directory, self._environ = name, directory, {**os.environ, "OUT": str(out)}
        directory.mkdir()
        (directory / "app.py").write_text(APP)
        source = {"kind": "nats", "topics": ["t"], "group": "g"}
        lines = [f"{key} = {json.dumps(value)}" for key, value in source.items()]
        (directory / "engine.toml").write_text(
            f'name = "{name}"\nhandler = "app:Counts"\nshards = 2\nspares = 0\n[source]\n'
            + "\n".join(lines)
            + f'\n[source.nats]\nservers = ["{server.address}"]\nsession = "2s"\nmember = "{name}"\n'
        )
        self.start()

    def start(self):
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardmem", "run", "engine.toml"],
                cwd=self.directory,
                env=self._environ,
                stderr=log,
            )

    def processes(self):
        return [self.process, *psutil.Process(self.process.pid).children(recursive=True)]

    def signal(self, number):
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(each.pid, number)

    def source(self):
        with contextlib.suppress(ShardmemError, IndexError):
            return Client(self.name).status()["sources"][0]
        return {}

    def held(self):
        source = self.source()
        return [name for name, said in source.get("partitions", {}).items() if said.get("state") == "owned"]

    def close(self):
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path):
    made = NatsServer(tmp_path / "jetstream")
    yield made
    made.close()


@pytest.mark.timeout(300)
def test_each_event_is_applied_once_when_a_source_is_killed_and_a_host_is_frozen_and_comes_back(
    server, tmp_path, engine_name
):
    out = tmp_path / "out.sqlite"
    with contextlib.closing(sqlite3.connect(out)) as database:
        database.execute("create table counts (key text primary key, n bigint)")
        database.execute("create table latest (key text primary key, number bigint)")
    server.create_stream("t", 4)
    published = []

    def publish(count):
        numbers = range(len(published), len(published) + count)
        published.extend(f"k{number % 40}" for number in numbers)
        server.publish([(f"in.t.{published[number]}", b"%d" % number, None) for number in numbers])

    def until(condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, [
                (host.held(), host.source(), (host.directory / "log").read_text()[-2000:]) for host in hosts
            ]
            time.sleep(0.1)

    def counts():
        with contextlib.closing(sqlite3.connect(out, timeout=30)) as database:
            return dict(database.execute("select key, n from counts").fetchall())

    hosts = [Host(f"{engine_name}-{letter}", tmp_path / letter, server, out) for letter in "ab"]
    a, b = hosts
    try:
        publish(500)
        until(lambda: len(a.held()) == 2 and len(b.held()) == 2)
        publish(500)
        os.kill(a.source()["pid"], signal.SIGKILL)
        publish(500)
        until(lambda: sum(counts().values()) >= 1500)
        publish(500)
        a.signal(signal.SIGSTOP)
        publish(500)
        until(lambda: len(b.held()) == 4)
        a.signal(signal.SIGCONT)
        publish(500)
        until(lambda: sum(counts().values()) >= 3000 and len(a.held()) == 2)
        assert counts() == Counter(published)
        for host in hosts:
            host.process.send_signal(signal.SIGTERM)
        assert [0, 0] == [host.process.wait(PATIENCE) for host in hosts]
        with contextlib.closing(sqlite3.connect(out)) as database:
            latest = dict(database.execute("select key, number from latest").fetchall())
        assert counts() == Counter(published)
        assert latest == {key: number for number, key in enumerate(published)}
    finally:
        for host in hosts:
            host.close()
