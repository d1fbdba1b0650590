"""The control API's answers: the application behind the sockets of server.py. aiohttp is imported here, and takes as
long as a worker takes to start, so this file is imported when somebody asks."""

from __future__ import annotations

import asyncio
import json
import logging
import select
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from shardmem.client.quarantine import QuarantineAccess
from shardmem.errors import ShardmemError
from shardmem.http.access import Access, Handler, peer_of, problem, refusal
from shardmem.http.connections import Connection
from shardmem.http.operations import COMMANDS
from shardmem.http.operations import Command as Declared
from shardmem.http.reads import Reads
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


class Application:
    def __init__(
        self,
        access: Access,
        commands: dict[str, Command],
        observer: Observer,
        quarantine: QuarantineAccess,
        settings: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self.reads = Reads(access, observer, quarantine, settings)
        application = web.Application(middlewares=[_timed, _as_json, access.admit])
        for path, answer in self.reads.routes().items():
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

    async def set_up(self) -> Callable[[], asyncio.Protocol]:
        """What makes the protocol of each connection."""
        await self._runner.setup()
        assert self._runner.server is not None
        return self._runner.server

    async def close(self) -> None:
        await self._runner.cleanup()

    def _command(self, declared: Declared, command: Command) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            try:
                wanted = json.loads(await asyncio.wait_for(request.read(), BODY_S) or b"{}")
            except asyncio.TimeoutError:
                return problem(408, f"the body has not arrived within {BODY_S:g} s")
            except (ValueError, RecursionError) as error:
                return problem(400, f"the body is not JSON: {error}")
            except ConnectionError:
                return problem(499, "the client has gone away in the middle of its request")
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
                self.reads.forget()  # what was done is seen by whoever asks next

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
