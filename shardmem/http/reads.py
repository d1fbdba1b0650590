"""What can be read over the control API: the page, the status document and what goes with it.

Workers come first: an answer is made anew only as long as making answers takes a small part of the supervisor's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Hashable
from importlib.resources import files
from typing import Any, TypeVar, cast

from aiohttp import web

from shardmem.client.engines import EngineLine, engines
from shardmem.client.log import Log, wanted
from shardmem.client.quarantine import QuarantineAccess
from shardmem.client.stacks import stacks
from shardmem.client.state import StateAccess, describe, find_text
from shardmem.config import log_file
from shardmem.errors import ConfigError, ShardmemError
from shardmem.http.access import Access, Handler, is_tcp, problem, refusal
from shardmem.http.openapi import openapi
from shardmem.http.operations import PAGE_FILES
from shardmem.http.public import HIDDEN, public
from shardmem.http.series import EVERY_S, Series
from shardmem.runtime.log_file import before
from shardmem.runtime.quarantine import NoSuchEvent
from shardmem.status.document import Status
from shardmem.status.health import against_life, against_readiness
from shardmem.status.observer import Observer

Made = TypeVar("Made")

# Keys, payloads and errors are the users' data. Nothing is loaded from elsewhere, and text cannot become markup: the
# page has no inline script or style, and the browser refuses innerHTML and the like.
PAGE_MAY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
ANSWERS_SHARE = 0.1  # of the supervisor's time that goes into making answers, in the long run
CREDIT_S = 1.0  # of it that may be taken at once
ENGINES_S = 1.0  # for which a look at the engines of the machine stands
RECORDS = 200  # of the log that are shown at once


class Reads:
    def __init__(
        self,
        access: Access,
        observer: Observer,
        quarantine: QuarantineAccess,
        settings: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._access_rules, self._observer = access, observer
        self._quarantine_access, self._settings_now = quarantine, settings
        self._kept = Series()
        self._looking, self._engines_seen = asyncio.Lock(), dict[bool, tuple[float, list[EngineLine]]]()
        self._answers: dict[Hashable, object] = {}
        self._credit, self._credited_at = CREDIT_S, 0.0

    def routes(self) -> dict[str, Handler]:
        return {
            "/": self._page,
            "/host": self._page,
            "/page/{file}": self._page,
            "/access": self._access,
            "/slots": self._slots,
            "/lanes/{shard:[0-9]{1,5}}": self._lanes,
            "/status": self._status,
            "/metrics": self._metrics,
            "/livez": self._health("live", against_life),
            "/readyz": self._health("ready", against_readiness),
            "/sources": self._sources,
            "/quarantine": self._quarantine,
            "/quarantine/{id:[0-9]{1,18}}": self._quarantined,
            "/state/{name}/{key:.+}": self._state,
            "/settings": self._settings,
            "/series": self._series,
            "/engines": self._engines,
            "/log": self._log,
            "/log/{shard:[0-9]{1,5}}": self._log,
            "/stacks/{shard:[0-9]{1,5}}": self._stacks,
            "/openapi.json": self._openapi,
        }

    def note(self) -> None:
        """Called once a second."""
        if self._kept.is_due(now := time.time()):
            self._kept.note(self._observer.status(), now)

    def forget(self) -> None:
        """Something was done: whoever asks next sees it."""
        self._answers.clear()

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
        return self._access_rules.is_trusted(request)

    async def _status(self, request: web.Request) -> web.Response:
        document = self._document(request)
        return _json(self._made(("status", self._is_trusted(request)), lambda: json.dumps(document)))

    async def _sources(self, request: web.Request) -> web.Response:
        return web.json_response({"sources": self._document(request)["sources"]})

    async def _slots(self, request: web.Request) -> web.Response:
        return _json(
            self._made("slots", lambda: json.dumps({"owners": self._observer.control.slot_table()[0].tolist()}))
        )

    async def _lanes(self, request: web.Request) -> web.Response:
        wanted = int(request.match_info["shard"])
        found = self._made(("lanes", wanted), lambda: self._observer.lanes(wanted))
        return problem(404, f"there is no shard {wanted}") if found is None else web.json_response({"lanes": found})

    async def _access(self, request: web.Request) -> web.Response:
        """A page says beforehand what it may do, and whether its token is the right one."""
        return web.json_response({"access": self._access_rules.of(request)})

    async def _page(self, request: web.Request) -> web.Response:
        """The page is a few files, and no others are served."""
        name = request.match_info.get("file", "host.html" if request.path == "/host" else "page.html")
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

    async def _settings(self, request: web.Request) -> web.Response:
        return web.json_response({"settings": self._settings_now()})

    async def _series(self, request: web.Request) -> web.Response:
        return _json(self._made("series", lambda: json.dumps({"every_s": EVERY_S, "points": self._kept.points()})))

    async def _engines(self, request: web.Request) -> web.Response:
        """Of this user, on this machine. What handlers said is left out without the token, as everywhere. One look at a
        time, however many ask: it opens the memory of each."""
        trusted = self._is_trusted(request)
        async with self._looking:
            at, found = self._engines_seen.get(trusted, (-ENGINES_S, []))
            if time.monotonic() - at >= ENGINES_S:
                found = await asyncio.to_thread(engines, (lambda document: document) if trusted else public)
                self._engines_seen[trusted] = time.monotonic(), found
        if not trusted:
            found = [{**each, "error": each["error"] and HIDDEN} for each in found]
        return web.json_response({"engines": found})

    async def _log(self, request: web.Request) -> web.Response:
        control = self._observer.control
        shard = int(request.match_info["shard"]) if "shard" in request.match_info else None

        def look() -> dict[str, Any]:
            path = log_file(control.state_dir, control.engine)
            if not any(map(os.path.lexists, (path, before(path)))):
                return {"file": path, "records": []}  # nothing was worth it so far
            with contextlib.closing(Log(path, control.segment.owner)) as log:
                return {"file": path, "records": log.last(RECORDS, wanted(shard))}

        return await self._of_file(look)

    async def _stacks(self, request: web.Request) -> web.Response:
        try:
            return await self._of_file(stacks, self._observer.control, int(request.match_info["shard"]))
        except ConfigError as error:
            return refusal(404, error)

    async def _quarantine(self, request: web.Request) -> web.Response:
        return await self._of_file(self._quarantine_access.look)

    async def _quarantined(self, request: web.Request) -> web.Response:
        return await self._of_file(self._quarantine_access.show, int(request.match_info["id"]))

    async def _of_file(self, look: Callable[..., Any], *arguments: Any) -> web.Response:
        """In a thread: workers write to the file, and the control loop does not wait for them."""
        try:
            return web.json_response(await asyncio.to_thread(look, *arguments))
        except ConfigError:
            raise
        except NoSuchEvent as error:
            return refusal(404, error)
        except ShardmemError as error:
            return refusal(409, error)

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
            return refusal(409, error)
        return (
            problem(404, f"state {name!r} has no value for key {key!r}") if found is None else web.json_response(found)
        )

    async def _openapi(self, request: web.Request) -> web.Response:
        tcp = is_tcp(request)
        return _json(self._made(("openapi", tcp), lambda: json.dumps(openapi(tcp))))


def _json(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")
