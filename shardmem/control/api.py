"""The control API: HTTP over a unix socket that only its user can reach."""
from __future__ import annotations

import json
import os
import socket
import stat
import struct
from typing import Any, Awaitable, Callable

from aiohttp import web

from shardmem.control.client import socket_path
from shardmem.errors import ShardmemError

Command = Callable[[dict[str, Any]], Awaitable[Any]]


class Api:
    """GET /status; POST /scale /drain /move /rebalance /reload /stop with a JSON object; answers are JSON objects."""

    def __init__(self, engine: str, commands: dict[str, Command]) -> None:
        self.path = socket_path(engine)
        self._commands = commands

    async def start(self) -> None:
        directory = os.path.dirname(self.path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        owned = os.stat(directory)
        if owned.st_uid != os.getuid() or stat.S_IMODE(owned.st_mode) & 0o077:
            raise ShardmemError(f"{directory} belongs to uid {owned.st_uid} with mode {stat.S_IMODE(owned.st_mode):o}; it must "
                                f"be private to uid {os.getuid()} (mode 700): remove it")
        # The lease says that no other supervisor of this engine lives, so a socket that is there is a dead one's.
        if os.path.exists(self.path):
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(self.path)
        finally:
            os.umask(before)
        application = web.Application()
        application.router.add_get("/status", self._status)
        application.router.add_post("/{command}", self._command)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        if os.path.exists(self.path):
            os.unlink(self.path)

    async def _status(self, request: web.Request) -> web.Response:
        return await self._answer(request, "status", {})

    async def _command(self, request: web.Request) -> web.Response:
        try:
            wanted = json.loads(await request.text() or "{}")
        except ValueError as error:
            return _problem(400, f"the body is not JSON: {error}")
        if not isinstance(wanted, dict):
            return _problem(400, "the body is no JSON object")
        return await self._answer(request, request.match_info["command"], wanted)

    async def _answer(self, request: web.Request, command: str, wanted: dict[str, Any]) -> web.Response:
        peer = request.transport.get_extra_info("socket") if request.transport else None
        if peer is not None:
            _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            if uid not in (os.getuid(), 0):
                return _problem(403, f"this engine belongs to uid {os.getuid()}, you are uid {uid}")
        if command not in self._commands:
            return _problem(404, f"there is no command {command!r}; there are {', '.join(sorted(self._commands))}")
        try:
            return web.json_response(await self._commands[command](wanted))
        except (ValueError, KeyError, TypeError) as error:
            return _problem(400, f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))
        except ShardmemError as error:
            return _problem(409, str(error), type(error).__name__)


def _problem(status: int, text: str, kind: str = "ShardmemError") -> web.Response:
    return web.json_response({"error": text, "kind": kind}, status=status)
