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
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 30.0
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


class Browser:
    """`with Browser(directory) as page`: open a page, ask it things, press keys, look at it. complaints: what its
    console said was wrong, that nobody answered left out."""

    def __init__(self, directory: Path, width: int = 1280, height: int = 900) -> None:
        self._log = directory / "chromium.log"
        flags = [
            "--headless=new",
            "--no-first-run",
            "--disable-gpu",
            "--disable-extensions",
            "--remote-debugging-port=0",
            f"--user-data-dir={directory / 'profile'}",
            f"--window-size={width},{height}",
            "--disable-dev-shm-usage",
        ]
        if os.getuid() == 0:
            flags.append("--no-sandbox")
        assert CHROMIUM is not None
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [CHROMIUM, *flags, "about:blank"], stdout=log, stderr=log, start_new_session=True
            )
        self._numbers = itertools.count(1)
        self._media: dict[str, str] = {}
        self.complaints: list[str] = []

    def __enter__(self) -> Browser:
        self._loop = asyncio.new_event_loop()
        try:
            self._run(self._connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._session.close())
        self._end()

    def _end(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    async def _connect(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"ws://(\S+?)/", self._log.read_text())):
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://{found[1]}/json") as answer:
            target = next(each for each in await answer.json() if each["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self._ask(f"{domain}.enable", {})
        await self._ask(
            "Emulation.setFocusEmulationEnabled", {"enabled": True}
        )  # or nothing has the focus: there is no window

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), PATIENCE)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message.get("method"), json.dumps(message.get("params"))[:500])

    def _hear(self, method: str, said: str) -> None:
        if (
            method == "Runtime.exceptionThrown"
            or method == "Log.entryAdded"
            and "net::ERR_" not in said
            or (method == "Runtime.consoleAPICalled" and re.search(r'"type": "(error|warning|assert)"', said))
        ):
            self.complaints.append(said)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._run(self._ask(method, parameters))

    # ---- what is done with a page ------------------------------------------------------------------------------------

    def open(self, url: str, first: str = "") -> None:
        """Returns when it is there. first: a script that runs before any of the page's own."""
        script = self.call("Page.addScriptToEvaluateOnNewDocument", source=first)["identifier"]
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({url!r}) && document.readyState === 'complete'", f"{url} is loaded")
        self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)

    def evaluate(self, script: str) -> Any:
        """Its value; of a promise, what becomes of it."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, script: str, what: str) -> None:
        """Until the expression is true in the page, or what it promises is."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(f"Promise.resolve({script}).then(Boolean)"):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"still not: {what}; the page says {self.evaluate('document.body && document.body.innerText')}"
                )
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({selector!r})?.innerText ?? ''")

    def press(self, *keys: str) -> None:
        """Keys of a keyboard, by name, one after the other; other texts are typed."""
        for key in keys:
            if key not in KEYS:
                self.call("Input.insertText", text=key)
                continue
            pressed = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"Enter": "\r", " ": " "}.get(key)
            self.call(
                "Input.dispatchKeyEvent",
                type="keyDown" if text else "rawKeyDown",
                **pressed,
                **({"text": text} if text else {}),
            )
            self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def nodes(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(role, name, properties) of the accessibility tree: what a screen reader is told, in its order."""
        found = []
        for node in self.call("Accessibility.getFullAXTree")["nodes"]:
            if not node["ignored"]:
                properties = {each["name"]: each["value"].get("value") for each in node.get("properties", ())}
                found.append((node["role"]["value"], node.get("name", {}).get("value", ""), properties))
        return found

    # ---- how it is looked at -----------------------------------------------------------------------------------------

    def media(self, **features: str) -> None:
        """prefers_color_scheme="dark" and the like."""
        self._media |= {name.replace("_", "-"): value for name, value in features.items()}
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in self._media.items()],
        )

    def width(self, pixels: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=pixels < 600
        )

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
