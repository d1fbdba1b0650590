"""The sources of an engine: a process each, started when the engine is ready, started again when it dies, told to end
before the engine drains. One that an earlier supervisor started is left alone while it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import Any

from shardmem.config import Config
from shardmem.runtime.child import ExitCode, SourceOrders, launch
from shardmem.sources.configured import sources_in, tables_in
from shardmem.status.sources import is_alive, source_status

FIRST, MOST = 0.2, 30.0  # seconds before a source that died is started again
LOOK = 0.5  # seconds between two looks at one that is not our child
WELL = 60.0  # seconds after which the next death is the first again

log = logging.getLogger("shardmem.sources")


class Sources:
    """`start` once, `stop` once; `ended` waits until none is left."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._names = [each.name for each in sources_in(config.source, config.schema)]
        self._tables = [{**table, "name": name} for table, name in zip(tables_in(config.source), self._names)]
        self._tasks: list[asyncio.Task[None]] = []
        self._pids: dict[str, int] = {}  # those that live, of whoever's making
        self._stopping = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._care(table)) for table in self._tables]

    def stop(self, now: bool = False) -> None:
        """They take no more, and end when what they have pushed was handled; now: at once."""
        self._stopping = True
        for name in self._names:
            self._signal(name, signal.SIGKILL if now else signal.SIGTERM)

    async def ended(self, grace: float) -> None:
        """Until they have; those that have not by then are killed."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        self.stop(now=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _care(self, table: dict[str, Any]) -> None:
        name, delay = table["name"], FIRST
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            code = await (self._adopted(name) if self._is_alive(name) else self._run(name, table))
            if code in (ExitCode.OK, ExitCode.CONFIG) or self._stopping:
                return
            if asyncio.get_running_loop().time() - began > WELL:
                delay = FIRST
            if code is not None and code != ExitCode.ALREADY:
                log.warning("source %s ended with code %d; it starts again in %.3g s", name, code, delay)
            await asyncio.sleep(delay)
            delay = min(MOST, 2 * delay)

    async def _run(self, name: str, table: dict[str, Any]) -> int:
        """A process from its start to its end; its exit code."""
        config = self._config
        settings = {"log_format": config.log_format, "log_level": config.log_level}
        orders = SourceOrders(config.name, table, settings, config.directory)
        try:
            process = launch("source", orders)
        except OSError as error:
            log.warning("source %s: no process could be started: %s", name, error)
            return ExitCode.FAILED
        self._pids[name] = process.pid
        if self._stopping:
            self._signal(name, signal.SIGTERM)
        loop, ended, pidfd = asyncio.get_running_loop(), asyncio.Event(), process.pidfd
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            if not ended.is_set():
                process.kill()
            code = process.wait()
            self._pids.pop(name, None)
            process.reports.close()
        return code

    async def _adopted(self, name: str) -> None:
        """Of an earlier supervisor: no child, so the lock says when it has ended."""
        said = source_status(self._config.directory, self._config.name, name)
        if said is not None:
            self._pids[name] = int(said["pid"])
            log.info("source %s: pid %d of an earlier supervisor goes on", name, said["pid"])
        while self._is_alive(name):
            await asyncio.sleep(LOOK)
        self._pids.pop(name, None)

    def _is_alive(self, name: str) -> bool:
        return is_alive(self._config.directory, self._config.name, name)

    def _signal(self, name: str, number: int) -> None:
        pid = self._pids.get(name)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError, OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if _is_source(pid):
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)


def _is_source(pid: int) -> bool:
    """Not another process that was given its number since."""
    with open(f"/proc/{pid}/cmdline", "rb") as command:
        return b"shardmem.sources.process" in command.read()
