"""Who may ask what.

| from | without the token | with it |
|---|---|---|
| the unix socket, its own user | all | |
| TCP, this machine | what holds no text of users; no commands | all |
| TCP, elsewhere, or passed on by a proxy | health and metrics | all |

The kernel names the user at the other end of the unix socket, which has mode 0600. Every user of this machine can
reach a TCP port, and so can a page in a browser: the header Host has to name this machine, or a page whose name was
rebound to 127.0.0.1 could read the answers; and there are no CORS headers, so a page of another origin cannot. Names do
not matter for health and metrics where `http_address` offers them to everybody anyway.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiohttp import web

from shardmem.errors import ShardmemError
from shardmem.http.operations import READS
from shardmem.http.peers import is_owner, uid_of_unix

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
PRIVATE = frozenset(read.path for read in READS if read.private)
OPEN = ("/metrics", "/livez", "/readyz")
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip")


class Access:
    """token: http_token. address: http_address. hosts: http_allowed_hosts. path: of the unix socket, for hints."""

    def __init__(
        self, token: str | None, address: str = "127.0.0.1", hosts: Collection[str] = (), path: Callable[[], str] = str
    ) -> None:
        self._token, self._path = token, path
        self._hosts = [each.lower() for each in hosts]
        self._beyond = not ipaddress.ip_address(address).is_loopback

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if (peer := peer_of(request)) is None:
            return problem(400, "the connection is closed")
        if peer.family == socket.AF_UNIX:
            if not is_owner(uid := uid_of_unix(peer)):
                return problem(403, f"this engine belongs to uid {os.getuid()}; this connection is of uid {uid}")
            return await handler(request)
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else request.path
        if not (path in OPEN and self._beyond) and (refusal := self._wrong_site(request)) is not None:
            return refusal
        refused = self._refusal(request, path)
        # not `refused or`: an answer of aiohttp 3.9 is an empty mapping, which is false
        return await handler(request) if refused is None else refused

    def _wrong_site(self, request: web.Request) -> web.Response | None:
        host = request.headers.get("Host", "")
        if not self._is_here(host):
            return problem(
                403,
                f"the header Host is {host!r}, which does not name this engine",
                hint=f"Use {', '.join(LOOPBACK)}, or add the name to http_allowed_hosts",
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_here(origin.partition("://")[2]):
            return problem(403, f"the header Origin is {origin!r}: a page of another site may not ask")
        return None

    def _refusal(self, request: web.Request, path: str) -> web.Response | None:
        """None: it may be answered."""
        private, far = path in PRIVATE, self._is_far(request)
        if request.method in ("GET", "HEAD") and not private and (not far or path in OPEN):
            return None
        if self.shows_token(request):
            return None
        what = (
            "commands"
            if request.method not in ("GET", "HEAD")
            else "events in quarantine, state, logs and settings"
            if private
            else "all but health and metrics, from another machine,"
        )
        if self._token is None:
            return problem(
                403,
                f"this port has no http_token: no {what.rstrip(',')}",
                hint=f"Set `http_token`, or use the unix socket {self._path()}",
            )
        answer = problem(
            401, f"{what} need the http_token of this engine", hint="Send the header `Authorization: Bearer TOKEN`"
        )
        # A browser asks for a password where it may; on this machine the page asks for the token itself.
        answer.headers["WWW-Authenticate"] = 'Basic realm="shardmem", charset="UTF-8"' if far else "Bearer"
        return answer

    def shows_token(self, request: web.Request) -> bool:
        """As a bearer's, or as the password of any user."""
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        shown = given.strip().encode(errors="replace")
        if kind.lower() == "basic":
            try:
                shown = base64.b64decode(shown, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return self._token is not None and hmac.compare_digest(shown, self._token.encode())

    def is_trusted(self, request: web.Request) -> bool:
        """Whether it may see what users' programs said."""
        return not is_tcp(request) or self.shows_token(request)

    def of(self, request: web.Request) -> str:
        """What this connection may do: all; read; or, with the token, all."""
        return "all" if self.is_trusted(request) else "read" if self._token is None else "token"

    def _is_here(self, host: str) -> bool:
        name = (host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host).lower()
        if name in LOOPBACK or (self._beyond and _is_address(name)):
            return True  # no name, so none that was rebound
        return any(name == each or each == "*" or (each[:1] == "." and name.endswith(each)) for each in self._hosts)

    def _is_far(self, request: web.Request) -> bool:
        if any(name in request.headers for name in FORWARDED):
            return True
        peer: Any = request.transport.get_extra_info("peername") if request.transport is not None else None
        try:
            address = ipaddress.ip_address(peer[0].partition("%")[0])
        except (TypeError, IndexError, ValueError):
            return True
        mapped = getattr(address, "ipv4_mapped", None)
        return not (mapped or address).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def peer_of(request: web.Request) -> socket.socket | None:
    """The socket, None when it is closed."""
    peer: socket.socket | None = request.transport.get_extra_info("socket") if request.transport else None
    return peer


def is_tcp(request: web.Request) -> bool:
    """Also when it is closed: then nothing is allowed that TCP does not allow."""
    peer = peer_of(request)
    return peer is None or peer.family != socket.AF_UNIX


def problem(status: int, text: str, kind: str = "ShardmemError", hint: str | None = None) -> web.Response:
    return web.json_response({"error": text, "hint": hint, "kind": kind}, status=status)


def refusal(status: int, error: ShardmemError) -> web.Response:
    return web.json_response(error.describe(), status=status)
