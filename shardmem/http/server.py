"""The control API: HTTP over a unix socket that only its user can reach, and over TCP if `http_port` says so.

What can be read is in reads.py, commands are declared in operations.py, and access.py says who may ask what.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiohttp import web

from shardmem.client.quarantine import QuarantineAccess
from shardmem.errors import ShardmemError
from shardmem.http.access import Access, Handler, peer_of, problem, refusal
from shardmem.http.connections import Connection, Connections
from shardmem.http.listeners import BACKLOG, UnixListener, listen_on_tcp, url_of
from shardmem.http.operations import COMMANDS
from shardmem.http.operations import Command as Declared
from shardmem.http.peers import name_of_tcp, uid_of_unix
from shardmem.http.reads import Reads
from shardmem.places import socket_path
from shardmem.status.observer import Observer

Command = Callable[[dict[str, Any]], Awaitable[Any]]

CLOSE_GRACE = 5.0
BODY_S = 10.0  # in which the body of a command has to arrive
LINGER = 2.0  # seconds in which what is left of a request that was refused is thrown away

log = logging.getLogger("shardmem.api")
_quiet = logging.getLogger(
    "shardmem.api.requests"
)  # aiohttp's: a traceback, with the peer's bytes, for each bad request
_quiet.setLevel(logging.CRITICAL)


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
        self._access = Access(http_token, http_address, http_allowed_hosts, lambda: self.path)
        self._tcp: socket.socket | None = None
        self._unix: UnixListener | None = None
        self._servers: dict[int, asyncio.Server] = {}  # by family of their sockets
        self._connections: list[Connections] = []
        self._complaint = ""
        self._runner: web.AppRunner | None = None

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

    async def start(
        self,
        commands: dict[str, Command],
        observer: Observer,
        quarantine: QuarantineAccess,
        settings: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._reads = Reads(self._access, observer, quarantine, settings)
        application = web.Application(middlewares=[_timed, _as_json, self._access.admit])
        for path, answer in self._reads.routes().items():
            application.router.add_get(path, answer)
        for declared in COMMANDS:
            application.router.add_post(f"/{declared.name}", self._command(declared, commands[declared.name]))
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=CLOSE_GRACE,
            logger=_quiet,
            keepalive_timeout=3600,  # connections.py ends them sooner
            lingering_time=LINGER,
        )
        await self._runner.setup()
        if self._tcp is not None:
            await self._serve(self._tcp)
        if self._unix is not None:
            await self._serve(self._unix.socket)

    async def _serve(self, listener: socket.socket) -> None:
        assert self._runner is not None and self._runner.server is not None
        tcp = listener.family != socket.AF_UNIX
        name_of = name_of_tcp if tcp else lambda transport: uid_of_unix(transport.get_extra_info("socket"))
        connections = Connections(self._runner.server, name_of, paced=tcp)
        self._connections.append(connections)
        self._servers[listener.family] = await asyncio.get_running_loop().create_server(
            connections, sock=listener, backlog=BACKLOG
        )

    async def keep(self) -> None:
        """Listens anew when its socket has been removed, where that is possible: whoever has it open goes on."""
        if self._unix is None or socket.AF_UNIX not in self._servers or self._unix.is_reached():
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
        await self._serve(fresh.socket)

    def note(self) -> None:
        """Figures for the page, if anybody can open it. Called once a second."""
        if self._tcp is not None and self._runner is not None:
            self._reads.note()

    def places(self) -> dict[str, str | None]:
        """Where it listens, for whoever reads the engine's memory."""
        return {"http": self.http, "socket": self.path}

    def connections(self) -> int:
        """How many are open."""
        return sum(map(len, self._connections))

    async def stop(self) -> None:
        if self._unix is not None:
            self._unix.unlink()
        for server in self._servers.values():
            server.close()
        self._servers = {}
        if self._runner is not None:
            await self._runner.cleanup()
        self.close()

    def close(self) -> None:
        if self._unix is not None:
            self._unix.close()
        if self._tcp is not None:
            self._tcp.close()
        self._unix = self._tcp = None

    # ---- commands --------------------------------------------------------------------------------------------------

    def _command(self, declared: Declared, command: Command) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            try:
                wanted = json.loads(await asyncio.wait_for(request.read(), BODY_S) or b"{}")
            except asyncio.TimeoutError:
                return problem(408, f"the body has not arrived within {BODY_S:g} s")
            except (ValueError, RecursionError) as error:
                return problem(400, f"the body is not JSON: {error}")
            if faults := declared.faults(wanted):
                return problem(400, "; ".join(faults), "ConfigError")
            if _is_gone(request):  # whoever asked has been told that there was no answer
                return problem(499, "the client has gone away")
            try:
                return web.json_response(await command(wanted))
            except ValueError as error:  # a valid body, but a slot is moving
                return problem(409, str(error))
            except ShardmemError as error:
                return refusal(409, error)
            finally:
                self._reads.forget()  # what was done is seen by whoever asks next

        return answer


@web.middleware
async def _timed(request: web.Request, handler: Handler) -> web.StreamResponse:
    connection = request.transport.get_protocol() if isinstance(request.transport, asyncio.Transport) else None
    if not isinstance(connection, Connection):
        return await handler(request)
    async with connection.answering():
        return await handler(request)


@web.middleware
async def _as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What aiohttp refuses by itself, in the form of all other answers."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        there = sorted({resource.canonical for resource in request.app.router.resources()})
        return problem(404, f"there is no {request.path}", hint=f"There are {', '.join(there)}")
    except web.HTTPMethodNotAllowed as error:
        answer = problem(405, f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}")
        answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except web.HTTPException as error:
        return problem(error.status, error.text or error.reason)
    except Exception as error:  # the client reads JSON, whatever went wrong here
        log.exception("%s %s failed", request.method, request.path)
        return problem(500, f"{type(error).__name__}: {error}")


def _is_gone(request: web.Request) -> bool:
    """Whether the other end has been closed: the supervisor may have been stopped while it was asked."""
    peer = peer_of(request)
    if peer is None or request.transport is None or request.transport.is_closing():
        return True
    look = select.poll()
    look.register(peer.fileno(), select.POLLRDHUP)
    return bool(look.poll(0))
