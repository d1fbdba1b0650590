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
import errno
import fcntl
import hmac
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from aiohttp import web

from shardmem.client.client import check_socket_path, socket_path
from shardmem.client.quarantine import QuarantineAccess
from shardmem.client.state import StateAccess, describe, find_text
from shardmem.errors import AlreadyRunning, ConfigError, ShardmemError
from shardmem.http.openapi import openapi
from shardmem.http.operations import COMMANDS, PAGE_FILES, READS
from shardmem.http.operations import Command as Declared
from shardmem.runtime.quarantine import NoSuchEvent
from shardmem.status.document import Status
from shardmem.status.health import against_life, against_readiness
from shardmem.status.observer import Observer

Command = Callable[[dict[str, Any]], Awaitable[Any]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Keys, payloads and errors are the users' data. Nothing is loaded from elsewhere, and text cannot become markup: the
# page has no inline script or style, and the browser refuses innerHTML and the like.
PAGE_MAY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PRIVATE = [read.path for read in READS if read.private]
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
DYING = 2.0  # seconds for which the sockets of a supervisor that is being killed may outlive its lease
CLOSE_GRACE = 5.0

log = logging.getLogger("shardmem.api")


class Api:
    """`bind` before there is anything to answer with, so that a fault is found before workers run; then `start`,
    `stop`."""

    http: str | None = None  # where it listens on TCP

    def __init__(self, engine: str, http_port: int | None = None, http_token: str | None = None) -> None:
        self.path = socket_path(engine)
        self._engine, self._port, self._token = engine, http_port, http_token
        self._listeners: list[socket.socket] = []
        self._bound: tuple[int, int] | None = None
        self._runner: web.AppRunner | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Raises ConfigError, AlreadyRunning, ShardmemError; nothing is bound then."""
        try:
            if self._port is not None:
                self._bind_tcp(self._port)
            self._bind_unix()
        except BaseException:
            self.close()
            raise

    def _bind_tcp(self, port: int) -> None:
        deadline = time.monotonic() + DYING
        while True:
            try:
                listener = socket.create_server(("127.0.0.1", port))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    why = os.strerror(error.errno or 0)
                    raise ConfigError(
                        f"cannot listen on http_port={port}: {why}", hint="Choose another port, or 0 for any free one"
                    ) from None
                time.sleep(0.02)
        self._listeners.append(listener)
        self.http = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _bind_unix(self) -> None:
        check_socket_path(self.path)
        directory = os.path.dirname(self.path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        owned = os.stat(directory)
        if owned.st_uid != os.getuid() or stat.S_IMODE(owned.st_mode) & 0o077:
            raise ShardmemError(
                f"{directory} belongs to uid {owned.st_uid} with mode {stat.S_IMODE(owned.st_mode):o}; "
                f"it must belong to uid {os.getuid()} with mode 700",
                hint="Remove it",
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listeners.append(listener)
        locked = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The lease says that no other supervisor of this name lives on this /dev/shm. One in another container may
            # share only the directory: it would lose its socket if whatever is there were taken for a dead one's. The
            # lock makes looking and taking one step.
            fcntl.flock(locked, fcntl.LOCK_EX)
            deadline = time.monotonic() + DYING
            while _answers(self.path):
                if time.monotonic() > deadline:
                    raise AlreadyRunning(
                        f"another supervisor listens on {self.path}",
                        detail=f"It runs an engine {self._engine!r} whose shared memory is not on this /dev/shm.",
                        hint="Choose another name, or give each its own TMPDIR",
                    )
                time.sleep(0.02)
            if os.path.lexists(self.path):
                os.unlink(self.path)
            before = os.umask(0o177)
            try:
                listener.bind(self.path)
            finally:
                os.umask(before)
            listener.listen(128)  # from here on it is seen to be alive
            self._bound = _identity(self.path)
        finally:
            os.close(locked)

    async def start(self, commands: dict[str, Command], observer: Observer, quarantine: QuarantineAccess) -> None:
        self._observer, self._quarantine_access = observer, quarantine
        application = web.Application(middlewares=[_as_json, self._admit])
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
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_GRACE)
        await self._runner.setup()
        for listener in self._listeners:
            await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        self._unlink()
        if self._runner is not None:
            await self._runner.cleanup()
        self.close()

    def close(self) -> None:
        self._unlink()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _unlink(self) -> None:
        """Before the listener is closed: until then its inode is in use, and no other socket can have the same
        number."""
        if self._bound is not None and _identity(self.path) == self._bound:
            os.unlink(self.path)
        self._bound = None

    # ---- who may ask -----------------------------------------------------------------------------------------------

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if (peer := _peer(request)) is None:
            return _problem(400, "the connection is closed")
        if peer.family == socket.AF_UNIX:
            _, uid, _ = struct.unpack(
                "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            )
            if uid not in (os.getuid(), 0):
                return _problem(403, f"this engine belongs to uid {os.getuid()}; this connection is of uid {uid}")
            return await handler(request)
        host = request.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in LOOPBACK:
            return _problem(403, f"the header Host is {host!r}, not one of {', '.join(LOOPBACK)}")
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

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._observer.status())

    async def _slots(self, request: web.Request) -> web.Response:
        owners, _ = self._observer.control.slot_table()
        return web.json_response({"owners": owners.tolist()})

    async def _lanes(self, request: web.Request) -> web.Response:
        wanted = int(request.match_info["shard"])
        found = self._observer.lanes(wanted)
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
        from shardmem.http.metrics import exposition  # prometheus-client, for engines that are asked

        accept = request.headers.get("Accept", "")
        body, content_type = exposition(self._observer.status(), self._observer.histograms(), accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _health(self, word: str, against: Callable[[Status], list[str]]) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            reasons = against(self._observer.status())
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
        return web.json_response(openapi(tcp=_is_tcp(request)))

    def _command(self, declared: Declared, command: Command) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            try:
                wanted = json.loads(await request.read() or b"{}")
            except (ValueError, RecursionError) as error:
                return _problem(400, f"the body is not JSON: {error}")
            if faults := declared.faults(wanted):
                return _problem(400, "; ".join(faults), "ConfigError")
            try:
                return web.json_response(await command(wanted))
            except ValueError as error:  # a valid body, but a slot is moving
                return _problem(409, str(error))
            except ShardmemError as error:
                return _refusal(409, error)

        return answer


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


def _problem(status: int, text: str, kind: str = "ShardmemError", hint: str | None = None) -> web.Response:
    return web.json_response({"error": text, "hint": hint, "kind": kind}, status=status)


def _refusal(status: int, error: ShardmemError) -> web.Response:
    return web.json_response(error.describe(), status=status)


def _answers(path: str) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except BlockingIOError:
            return True  # more wait for it than it takes
        except OSError:
            return False
        return True


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
