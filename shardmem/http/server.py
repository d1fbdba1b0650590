"""The control API: HTTP over a unix socket that only its user can reach, and on loopback TCP if `http_port` says so.

    GET  / (a page for a browser) /page/FILE (its parts) /access /slots /lanes/SHARD /status /metrics /livez /readyz
         /quarantine /quarantine/ID /state/NAME/KEY /openapi.json
    POST /scale /drain /move /rebalance /reload /stop /quarantine/replay /quarantine/purge     a JSON object in and out

The unix socket is as private as its user: mode 0600, and the kernel names the user at the other end. Every user of this
machine can reach a TCP port, and so can a page in a browser: commands, and the users' events, need `http_token`, and
the header Host has to name this machine, or a page whose name was rebound to 127.0.0.1 could read the answers. There
are no CORS headers, so a page of another origin cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Hashable
from importlib.resources import files
from typing import Any, TypeVar, cast

from aiohttp import web

from shardmem.client.quarantine import QuarantineAccess
from shardmem.client.state import StateAccess, describe, find_text
from shardmem.errors import ShardmemError
from shardmem.http.connections import Connection, Connections
from shardmem.http.listeners import BACKLOG, UnixListener, listen_on_tcp
from shardmem.http.openapi import openapi
from shardmem.http.operations import COMMANDS, PAGE_FILES, READS
from shardmem.http.operations import Command as Declared
from shardmem.http.peers import is_owner, uid_of_loopback, uid_of_unix
from shardmem.http.public import public
from shardmem.places import socket_path
from shardmem.runtime.quarantine import NoSuchEvent
from shardmem.status.document import Status
from shardmem.status.health import against_life, against_readiness
from shardmem.status.observer import Observer

Command = Callable[[dict[str, Any]], Awaitable[Any]]
Made = TypeVar("Made")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Keys, payloads and errors are the users' data. Nothing is loaded from elsewhere, and text cannot become markup: the
# page has no inline script or style, and the browser refuses innerHTML and the like.
PAGE_MAY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PRIVATE = [read.path for read in READS if read.private]
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
CLOSE_GRACE = 5.0
BODY_S = 10.0  # in which the body of a command has to arrive
LINGER = 2.0  # seconds in which what is left of a request that was refused is thrown away
ANSWERS_SHARE = 0.1  # of the supervisor's time that goes into making answers, in the long run
CREDIT_S = 1.0  # of it that may be taken at once


log = logging.getLogger("shardmem.api")
_quiet = logging.getLogger(
    "shardmem.api.requests"
)  # aiohttp's: a traceback, with the peer's bytes, for each bad request
_quiet.setLevel(logging.CRITICAL)


class Api:
    """`bind` before there is anything to answer with, so that a fault is found before workers run; then `start`,
    `stop`."""

    http: str | None = None  # where it listens on TCP

    def __init__(self, engine: str, http_port: int | None = None, http_token: str | None = None) -> None:
        self.path = socket_path(engine)
        self._engine, self._port, self._token = engine, http_port, http_token
        self._tcp: socket.socket | None = None
        self._unix: UnixListener | None = None
        self._servers: dict[int, asyncio.Server] = {}  # by family of their sockets
        self._connections: list[Connections] = []
        self._complaint = ""
        self._runner: web.AppRunner | None = None
        self._answers: dict[Hashable, object] = {}
        self._credit, self._credited_at = CREDIT_S, 0.0

    # ---- life ------------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Raises ConfigError, AlreadyRunning, ShardmemError; nothing is bound then."""
        try:
            if self._port is not None:
                self._tcp = listen_on_tcp(self._port)
                self.http = f"http://127.0.0.1:{self._tcp.getsockname()[1]}"
            self._unix = UnixListener(self._engine)
            self.path = self._unix.path
        except BaseException:
            self.close()
            raise

    async def start(self, commands: dict[str, Command], observer: Observer, quarantine: QuarantineAccess) -> None:
        self._observer, self._quarantine_access = observer, quarantine
        application = web.Application(middlewares=[_timed, _as_json, self._admit])
        application.router.add_get("/", self._page)
        application.router.add_get("/page/{file}", self._page)
        application.router.add_get("/access", self._access)
        application.router.add_get("/slots", self._slots)
        application.router.add_get("/lanes/{shard:[0-9]{1,5}}", self._lanes)
        application.router.add_get("/status", self._status)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/livez", self._health("live", against_life))
        application.router.add_get("/readyz", self._health("ready", against_readiness))
        application.router.add_get("/quarantine", self._quarantine)
        application.router.add_get("/quarantine/{id:[0-9]{1,18}}", self._quarantined)
        application.router.add_get("/state/{name}/{key:.+}", self._state)
        application.router.add_get("/openapi.json", self._openapi)
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
        peer_of = uid_of_loopback if tcp else lambda transport: uid_of_unix(transport.get_extra_info("socket"))
        connections = Connections(self._runner.server, peer_of, paced=tcp)
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

    # ---- who may ask -----------------------------------------------------------------------------------------------

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if (peer := _peer(request)) is None:
            return _problem(400, "the connection is closed")
        if peer.family == socket.AF_UNIX:
            if not is_owner(uid := uid_of_unix(peer)):
                return _problem(403, f"this engine belongs to uid {os.getuid()}; this connection is of uid {uid}")
            return await handler(request)
        host = request.headers.get("Host", "")
        if not _is_here(host):
            return _problem(403, f"the header Host is {host!r}, not one of {', '.join(LOOPBACK)}")
        if (origin := request.headers.get("Origin")) is not None and not _is_here(origin.partition("://")[2]):
            return _problem(403, f"the header Origin is {origin!r}: a page of another site may not ask")
        resource = request.match_info.route.resource
        private = resource is not None and resource.canonical in PRIVATE
        if private or request.method not in ("GET", "HEAD"):
            what = "events in quarantine and state" if private else "commands"
            if self._token is None:
                return _problem(
                    403,
                    f"this port is read-only: no {what}",
                    hint=f"Set `http_token`, or use the unix socket {self.path}",
                )
            if not self._shows_token(request):
                answer = _problem(
                    401,
                    f"{what} need the http_token of this engine",
                    hint="Send the header `Authorization: Bearer TOKEN`",
                )
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        return await handler(request)

    def _shows_token(self, request: web.Request) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        shown = given.strip().encode(errors="replace")
        return self._token is not None and kind.lower() == "bearer" and hmac.compare_digest(shown, self._token.encode())

    # ---- what is answered ------------------------------------------------------------------------------------------

    def _made(self, what: Hashable, make: Callable[[], Made]) -> Made:
        """Fresh, as long as making answers takes a small part of the supervisor's time; then, however many ask, they
        get what was made before, and workers are looked after in the rest."""
        now = time.monotonic()
        self._credit = min(CREDIT_S, self._credit + (now - self._credited_at) * ANSWERS_SHARE)
        self._credited_at = now
        if self._credit > 0 or what not in self._answers:
            self._answers[what] = make()
            self._credit -= time.monotonic() - now
        return cast(Made, self._answers[what])

    def _document(self, request: web.Request) -> Status:
        """As this connection may see it."""
        document: Status = self._made("document", self._observer.status)
        return document if self._is_trusted(request) else self._made("public", lambda: public(document))

    def _is_trusted(self, request: web.Request) -> bool:
        return not _is_tcp(request) or self._shows_token(request)

    async def _status(self, request: web.Request) -> web.Response:
        document = self._document(request)
        return _json(self._made(("status", self._is_trusted(request)), lambda: json.dumps(document)))

    async def _slots(self, request: web.Request) -> web.Response:
        return _json(
            self._made("slots", lambda: json.dumps({"owners": self._observer.control.slot_table()[0].tolist()}))
        )

    async def _lanes(self, request: web.Request) -> web.Response:
        wanted = int(request.match_info["shard"])
        found = self._made(("lanes", wanted), lambda: self._observer.lanes(wanted))
        return _problem(404, f"there is no shard {wanted}") if found is None else web.json_response({"lanes": found})

    async def _access(self, request: web.Request) -> web.Response:
        """A page says beforehand what it may do, and whether its token is the right one."""
        may = (
            "all" if not _is_tcp(request) or self._shows_token(request) else "read" if self._token is None else "token"
        )
        return web.json_response({"access": may})

    async def _page(self, request: web.Request) -> web.Response:
        """The page is a few files, and no others are served."""
        name = request.match_info.get("file", "page.html")
        if name not in PAGE_FILES:
            raise web.HTTPNotFound
        text = files("shardmem.http").joinpath("page", name).read_text("utf-8")
        return web.Response(
            text=text,
            content_type=PAGE_FILES[name],
            headers={
                "Content-Security-Policy": PAGE_MAY,
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-cache",
            },
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        from shardmem.http.metrics import encoder, exposition  # prometheus-client, for engines that are asked

        document, encode, content_type = self._document(request), *encoder(request.headers.get("Accept", ""))
        body = self._made(("metrics", content_type), lambda: exposition(document, self._observer.histograms(), encode))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _health(self, word: str, against: Callable[[Status], list[str]]) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            reasons = against(self._document(request))
            return web.json_response({word: not reasons, "reasons": reasons}, status=503 if reasons else 200)

        return answer

    async def _quarantine(self, request: web.Request) -> web.Response:
        return await self._of_file(self._quarantine_access.look)

    async def _quarantined(self, request: web.Request) -> web.Response:
        return await self._of_file(self._quarantine_access.show, int(request.match_info["id"]))

    async def _of_file(self, look: Callable[..., dict[str, Any]], *arguments: Any) -> web.Response:
        """In a thread: workers write to the file, and the control loop does not wait for them."""
        try:
            return web.json_response(await asyncio.to_thread(look, *arguments))
        except NoSuchEvent as error:
            return _refusal(404, error)
        except ShardmemError as error:
            return _refusal(409, error)

    async def _state(self, request: web.Request) -> web.Response:
        name, key = request.match_info["name"], request.match_info["key"]

        def look() -> dict[str, Any] | None:
            control = self._observer.control
            with contextlib.closing(StateAccess(control.state_dir, control.engine)) as access:
                found = find_text(access, name, key, None)
                return None if found is None else describe(name, *found)

        try:
            found = await asyncio.to_thread(look)
        except ShardmemError as error:
            return _refusal(409, error)
        return (
            _problem(404, f"state {name!r} has no value for key {key!r}") if found is None else web.json_response(found)
        )

    async def _openapi(self, request: web.Request) -> web.Response:
        tcp = _is_tcp(request)
        return _json(self._made(("openapi", tcp), lambda: json.dumps(openapi(tcp))))

    def _command(self, declared: Declared, command: Command) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            try:
                wanted = json.loads(await asyncio.wait_for(request.read(), BODY_S) or b"{}")
            except asyncio.TimeoutError:
                return _problem(408, f"the body has not arrived within {BODY_S:g} s")
            except (ValueError, RecursionError) as error:
                return _problem(400, f"the body is not JSON: {error}")
            if faults := declared.faults(wanted):
                return _problem(400, "; ".join(faults), "ConfigError")
            if _is_gone(request):  # whoever asked has been told that there was no answer
                return _problem(499, "the client has gone away")
            try:
                return web.json_response(await command(wanted))
            except ValueError as error:  # a valid body, but a slot is moving
                return _problem(409, str(error))
            except ShardmemError as error:
                return _refusal(409, error)
            finally:
                self._answers.clear()  # what was done is seen by whoever asks next

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
        return _problem(404, f"there is no {request.path}", hint=f"There are {', '.join(there)}")
    except web.HTTPMethodNotAllowed as error:
        answer = _problem(405, f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}")
        answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except web.HTTPException as error:
        return _problem(error.status, error.text or error.reason)
    except Exception as error:  # the client reads JSON, whatever went wrong here
        log.exception("%s %s failed", request.method, request.path)
        return _problem(500, f"{type(error).__name__}: {error}")


def _peer(request: web.Request) -> socket.socket | None:
    """The socket, None when it is closed."""
    peer: socket.socket | None = request.transport.get_extra_info("socket") if request.transport else None
    return peer


def _is_tcp(request: web.Request) -> bool:
    """Also when it is closed: then nothing is allowed that TCP does not allow."""
    peer = _peer(request)
    return peer is None or peer.family != socket.AF_UNIX


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.lower() in LOOPBACK


def _is_gone(request: web.Request) -> bool:
    """Whether the other end has been closed: the supervisor may have been stopped while it was asked."""
    peer = _peer(request)
    if peer is None or request.transport is None or request.transport.is_closing():
        return True
    look = select.poll()
    look.register(peer.fileno(), select.POLLRDHUP)
    return bool(look.poll(0))


def _json(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


def _problem(status: int, text: str, kind: str = "ShardmemError", hint: str | None = None) -> web.Response:
    return web.json_response({"error": text, "hint": hint, "kind": kind}, status=status)


def _refusal(status: int, error: ShardmemError) -> web.Response:
    return web.json_response(error.describe(), status=status)
