"""A real browser, headless, driven over its own protocol; one page at a time."""
from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 30.0


class Browser:
    """`async with Browser(directory) as page`: open a page, ask it things, look at it."""

    def __init__(self, directory: Path, width: int = 1280, height: int = 900) -> None:
        self._log = directory / "chromium.log"
        flags = ["--headless=new", "--no-first-run", "--disable-gpu", "--disable-extensions", "--remote-debugging-port=0",
                 f"--user-data-dir={directory / 'profile'}", f"--window-size={width},{height}", "--disable-dev-shm-usage"]
        if os.getuid() == 0:
            flags.append("--no-sandbox")
        assert CHROMIUM is not None
        with open(self._log, "w") as log:
            self._process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=log, stderr=log, start_new_session=True)
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    async def __aenter__(self) -> Browser:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"ws://(\S+?)/", self._log.read_text())):
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://{found[1]}/json") as answer:
            target = next(each for each in await answer.json() if each["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self._call(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        os.killpg(self._process.pid, 9)
        self._process.wait()

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), PATIENCE)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"])[:500])
            elif message.get("method") == "Page.javascriptDialogOpening":
                await self._socket.send_str(json.dumps({"id": next(self._numbers), "method": "Page.handleJavaScriptDialog",
                                                        "params": {"accept": True}}))

    async def open(self, url: str) -> None:
        """Returns when it is there."""
        await self._call("Page.navigate", url=url)
        await self.wait_for(f"location.href.startsWith({url!r}) && document.readyState === 'complete'", f"{url} is loaded")

    async def evaluate(self, script: str) -> Any:
        done = await self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def wait_for(self, script: str, what: str) -> Any:
        """Until the expression is true in the page."""
        deadline = time.monotonic() + PATIENCE
        while not (value := await self.evaluate(script)):
            assert time.monotonic() < deadline, f"still not: {what}; the page says {await self.evaluate('document.body && document.body.innerText')}"
            await asyncio.sleep(0.05)
        return value

    async def dark(self, on: bool) -> None:
        await self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if on else "light"}])

    async def width(self, pixels: int) -> None:
        await self._call("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=pixels < 600)

    async def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self._call("Page.captureScreenshot"))["data"]))
