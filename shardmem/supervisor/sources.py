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
from shardmem.status.sources import forget, given_to, is_alive, mark_of, source_status, sources_of

FIRST, MOST = 0.2, 30.0  # seconds before a source that died is started again
LOOK = 0.5  # seconds between two looks at one that is not our child
WELL = 60.0  # seconds after which the next death is the first again

log = logging.getLogger("shardmem.sources")


class Sources:
    """`start` once; `change` when the configuration does; `stop` once; `ended` waits until none is left."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lives: dict[str, _Life] = {}
        self._stopping = False

    def start(self) -> None:
        """Those of the configuration. What an earlier supervisor started, and is none any more, is told to end."""
        config = self._config
        self._lives = {table["name"]: _Life(config, table) for table in _tables(config)}
        for said in sources_of(config.directory, config.name, os.geteuid()):
            if said["name"] not in self._lives:
                _signal(said["pid"] if said["alive"] else None, signal.SIGTERM)
                forget(config.directory, config.name, said["name"])
        for life in self._lives.values():
            life.start()

    async def change(self, config: Config) -> None:
        """To those of this configuration: one whose table is another now ends first, when what it pushed was
        handled. One that has ended or failed begins again."""
        old, new = self._lives, {table["name"]: table for table in _tables(config)}
        self._config = config
        over = [name for name, life in old.items() if new.get(name) != life.table or life.has_ended]
        for name in over:
            old[name].stop()
        for name in over:
            await old[name].ended(None)
            if name not in new:
                forget(config.directory, config.name, name)
        kept = {name: life for name, life in old.items() if name not in over}
        self._lives = kept | {name: _Life(config, table) for name, table in new.items() if name not in kept}
        for name, life in self._lives.items():
            if self._stopping:
                life.stop()
            elif name not in kept:
                life.start()

    def stop(self, now: bool = False) -> None:
        """They take no more, and end when what they have pushed was handled; now: at once. The outbox publishes on:
        what is handled until the workers end is sent, too."""
        self._stopping = True
        for life in self._feeding():
            life.stop(now)

    async def ended(self, grace: float) -> None:
        """Until they have; those that have not by then are killed."""
        await asyncio.gather(*(life.ended(grace) for life in self._feeding()))

    async def publish(self, grace: float, now: bool) -> None:
        """No worker is left: the outbox publishes what waits, for so long at most, and ends."""
        last = [life for life in self._lives.values() if life.table["kind"] == "outbox"]
        deadline = asyncio.get_running_loop().time() + grace
        for life in last:
            while not now and life.is_starting and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(LOOK / 10)  # it could not be told yet to end in good order
            life.stop(now)
        await asyncio.gather(*(life.ended(grace) for life in last))

    def _feeding(self) -> list[_Life]:
        return [life for life in self._lives.values() if life.table["kind"] != "outbox"]


def _tables(config: Config) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if config.source:
        from shardmem.sources.configured import sources_in, tables_in  # 8 ms at the start of an engine that has none

        names = [each.name for each in sources_in(config.source, config.schema)]
        made = [{**table, "name": name} for table, name in zip(tables_in(config.source), names)]
    return made if config.outbox_table is None else [*made, config.outbox_table]


class _Life:
    """One source: its processes one after another, until one ends in good order or is told to."""

    def __init__(self, config: Config, table: dict[str, Any]) -> None:
        self._config, self.table, self._name = config, table, str(table["name"])
        self._task: asyncio.Task[None] | None = None
        self._pid: int | None = None  # of whoever's making
        self._stopping, self._told = False, asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._care())

    @property
    def is_starting(self) -> bool:
        said = source_status(self._config.directory, self._config.name, self._name)
        return not self.has_ended and (said is None or said["pid"] != self._pid or said["state"] == "starting")

    @property
    def has_ended(self) -> bool:
        return self._task is None or self._task.done()

    def stop(self, now: bool = False) -> None:
        self._stopping = True
        self._told.set()
        _signal(self._pid, signal.SIGKILL if now else signal.SIGTERM)

    async def ended(self, grace: float | None) -> None:
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=grace)
        if not self._task.done():
            self.stop(now=True)
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _care(self) -> None:
        name, delay = self._name, FIRST
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            code = await (self._adopted() if self._is_alive() else self._run())
            if code in (ExitCode.OK, ExitCode.CONFIG) or self._stopping:
                return
            if asyncio.get_running_loop().time() - began > WELL:
                delay = FIRST
            if code is not None and code != ExitCode.ALREADY:
                log.warning("source %s ended with code %d; it starts again in %.3g s", name, code, delay)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), delay)
            delay = min(MOST, 2 * delay)

    async def _run(self) -> int:
        """A process from its start to its end; its exit code."""
        config = self._config
        settings = {
            "log_format": config.log_format,
            "log_level": config.log_level,
            "outbox": config.outbox_table is not None,
            "state": config.state,
            "keep_state": config.state_dir is not None,
        }
        orders = SourceOrders(config.name, self.table, settings, config.directory)
        try:
            process = launch("source", orders)
        except OSError as error:
            log.warning("source %s: no process could be started: %s", self._name, error)
            return ExitCode.FAILED
        self._pid = process.pid
        if self._stopping:
            self.stop()
        loop, ended, pidfd = asyncio.get_running_loop(), asyncio.Event(), process.pidfd
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            if not ended.is_set():
                process.kill()
            code = process.wait()
            self._pid = None
            process.reports.close()
        return code

    async def _adopted(self) -> None:
        """Of an earlier supervisor: no child, so the lock says when it has ended. One with another table is told to."""
        config = self._config
        said = source_status(config.directory, config.name, self._name)
        if said is not None:
            self._pid = said["pid"]
            if given_to(config.directory, config.name, self._name) == mark_of(self.table):
                log.info("source %s: pid %d of an earlier supervisor goes on", self._name, said["pid"])
            else:
                _signal(self._pid, signal.SIGTERM)
        while self._is_alive():
            await asyncio.sleep(LOOK)
        self._pid = None

    def _is_alive(self) -> bool:
        return is_alive(self._config.directory, self._config.name, self._name)


def _signal(pid: int | None, number: int) -> None:
    if pid is None:
        return
    with contextlib.suppress(OSError, OverflowError):  # the number is what a file says
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
