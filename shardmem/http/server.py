"""The control API: HTTP over a unix socket that only its user can reach, and over TCP if `http_port` says so.

Here are the sockets. The application behind them (application.py) is loaded when somebody asks, or some seconds after
the start: until then requests wait in the backlog. What can be read is in reads.py, commands are declared in
operations.py, and access.py says who may ask what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Collection
from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardmem.errors import ShardmemError
from shardmem.http.connections import Connections
from shardmem.http.listeners import BACKLOG, UnixListener, listen_on_tcp, url_of
from shardmem.http.peers import name_of_tcp, uid_of_unix
from shardmem.places import socket_path
from shardmem.text import of_error

if TYPE_CHECKING:
    from shardmem.client.quarantine import QuarantineAccess
    from shardmem.http.application import Application, Command
    from shardmem.status.observer import Observer

SETTLED = 2.0  # seconds after the start: what starts now has all cores, and an engine of a moment needs no application

log = logging.getLogger("shardmem.api")


class Api:
    """`bind` before there is anything to answer with, so that a fault is found before workers run; then `start`,
    `stop`."""

    http: str | None = None  # where it listens on TCP

    def __init__(
        self,
        engine: str,
        http_port: int | None = None,
        http_token: str | None = None,
        http_address: str = "127.0.0.1",
        http_allowed_hosts: Collection[str] = (),
    ) -> None:
        self.path = socket_path(engine)
        self._engine, self._port, self._address = engine, http_port, http_address
        self._token, self._hosts = http_token, http_allowed_hosts
        self._tcp: socket.socket | None = None
        self._unix: UnixListener | None = None
        self._servers: dict[int, asyncio.Server] = {}  # by family of their sockets
        self._connections: list[Connections] = []
        self._complaint = ""
        self._application: Application | None = None
        self._loading: asyncio.Task[None] | None = None
        self._server: Callable[[], asyncio.Protocol] | None = None  # of the application: makes each connection's
        self._asked = asyncio.Event()

    # ---- life ------------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Raises ConfigError, AlreadyRunning, ShardmemError; nothing is bound then."""
        try:
            if self._port is not None:
                self._tcp = listen_on_tcp(self._address, self._port)
                self.http = url_of(self._address, self._tcp.getsockname()[1])
            self._unix = UnixListener(self._engine)
            self.path = self._unix.path
        except BaseException:
            self.close()
            raise

    def start(
        self,
        commands: dict[str, Command],
        observer: Observer,
        quarantine: QuarantineAccess,
        settings: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """From here on it answers whoever asks."""

        def load() -> Application:
            from shardmem.http.access import Access
            from shardmem.http.application import Application

            access = Access(self._token, self._address, self._hosts, lambda: self.path)
            return Application(access, commands, observer, quarantine, settings)

        self._loading = asyncio.get_running_loop().create_task(self._load(load))

    async def _load(self, load: Callable[[], Application]) -> None:
        loop, listeners = asyncio.get_running_loop(), self._listeners()
        for listener in listeners:
            loop.add_reader(listener, self._asked.set)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), SETTLED)
        finally:
            for listener in listeners:
                loop.remove_reader(listener)
        try:
            await asyncio.to_thread(import_module, "shardmem.http.application")  # others go on meanwhile
            self._application = load()
            self._server = await self._application.set_up()
        except Exception as error:
            log.exception("the control API does not answer: %s", of_error(error))
            return
        for listener in listeners:
            await self._serve(listener, self._server)

    def _listeners(self) -> list[socket.socket]:
        unix = None if self._unix is None else self._unix.socket
        return [each for each in (self._tcp, unix) if each is not None]

    async def _serve(self, listener: socket.socket, server: Callable[[], asyncio.Protocol]) -> None:
        tcp = listener.family != socket.AF_UNIX
        name_of = name_of_tcp if tcp else lambda transport: uid_of_unix(transport.get_extra_info("socket"))
        connections = Connections(server, name_of, paced=tcp)
        self._connections.append(connections)
        self._servers[listener.family] = await asyncio.get_running_loop().create_server(
            connections, sock=listener, backlog=BACKLOG
        )

    async def keep(self) -> None:
        """Listens anew when its socket has been removed, where that is possible: whoever has it open goes on."""
        if self._unix is None or self._server is None or socket.AF_UNIX not in self._servers or self._unix.is_reached():
            return
        try:
            fresh = UnixListener(self._engine, patience=0.0)
        except (OSError, ShardmemError) as error:
            if self._complaint != str(error):
                log.error("the control socket %s has been removed, and cannot be made again: %s", self.path, error)
            self._complaint = str(error)
            return
        self._servers[socket.AF_UNIX].close()
        self._unix.close()
        log.warning("the control socket %s has been removed; commands are taken at %s", self.path, fresh.path)
        self._unix, self.path, self._complaint = fresh, fresh.path, ""
        await self._serve(fresh.socket, self._server)

    def note(self) -> None:
        """Figures for the page, if anybody can open it. Called once a second."""
        if self._tcp is not None and self._application is not None:
            self._application.reads.note()

    def places(self) -> dict[str, str | None]:
        """Where it listens, for whoever reads the engine's memory."""
        return {"http": self.http, "socket": self.path}

    def connections(self) -> int:
        """How many are open."""
        return sum(map(len, self._connections))

    async def stop(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._unix is not None:
            self._unix.unlink()
        for server in self._servers.values():
            server.close()
        self._servers = {}
        if self._application is not None:
            await self._application.close()
        self.close()

    def close(self) -> None:
        if self._unix is not None:
            self._unix.close()
        if self._tcp is not None:
            self._tcp.close()
        self._unix = self._tcp = None
