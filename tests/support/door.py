"""The control API on real sockets, over an engine without processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from shardmem.client.quarantine import QuarantineAccess
from shardmem.config import Config
from shardmem.errors import NotRunning
from shardmem.http.operations import COMMANDS
from shardmem.http.server import Api
from shardmem.status.observer import Observer
from shardmem.supervisor.explained import rows

CONFIG = Config.of(name="served", handler="app:handle", http_token="not to be shown")


async def scale(wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted.get("shards") == 0:
        raise NotRunning("the engine is being stopped")
    if wanted.get("shards") == 13:
        raise KeyError("a mistake of ours")
    return {"asked": wanted}


@contextlib.asynccontextmanager
async def served(
    engine: Any, port: int | None = 0, token: str | None = None, address: str = "127.0.0.1", hosts: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Api, Any, Any]]:
    """(the API, a client on its unix socket, one on TCP)."""
    api, observer = Api(engine.name, port, token, address, hosts), Observer(engine.control)
    api.bind()
    quarantine = QuarantineAccess(engine.name, os.path.join(tempfile.gettempdir(), "e.quarantine"), lambda: 7)
    api.start({each.name: scale for each in COMMANDS}, observer, quarantine, lambda: rows(CONFIG, {}))
    try:
        async with aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(api.path)) as private:
            async with aiohttp.ClientSession(api.http or "http://localhost:1") as tcp:
                yield api, private, tcp
    finally:
        await api.stop()
        observer.close()
    assert not os.path.exists(api.path)


async def ask(client: Any, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, **options) as response:
        return response.status, await response.json()


def run(engine: Any, test: Callable[..., Awaitable[None]], **options: Any) -> None:
    async def inside() -> None:
        async with served(engine, **options) as found:
            await test(*found)

    asyncio.run(inside())
