"""The page in a real browser: it loads, updates by itself, a command shows up, and a supervisor that is gone is shown as such.

SHARDMEM_PICTURES=DIR keeps what it looked like.
"""
from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import browser
import pytest

import shardmem

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium is installed: the page was not looked at")
TOKEN = "a-token-of-this-test"


@pytest.fixture
def engine(tmp_path):
    with shardmem.Engine(handler="recorder:nothing", shards=2, max_shards=4, slots=256, http_port=0, http_token=TOKEN) as engine:
        yield engine


def kept(tmp_path: Path, name: str) -> Path:
    return Path(os.environ.get("SHARDMEM_PICTURES", tmp_path)) / f"{name}.png"


CELLS = "[...document.querySelectorAll('#shards tr')].map(row => row.cells[0].textContent).join()"


def test_the_page_loads_updates_by_itself_and_shows_commands_and_the_end(engine, tmp_path):
    async def look() -> None:
        url = engine.status()["engine"]["http"]
        async with browser.Browser(tmp_path) as page:
            await page.open(url)
            await page.wait_for("document.querySelector('#state').textContent === 'running'", "the state is shown")
            assert "0,1" == await page.evaluate(CELLS)
            assert engine.name == await page.evaluate("document.querySelector('h1').textContent")

            with engine.producer() as producer:
                producer.push_many(list(range(500)), [b"1"] * 500)
                await page.wait_for("document.querySelector('#tiles').innerText.includes('500')", "accepted events are counted")
            await asyncio.to_thread(engine.scale_to, 3)
            await page.wait_for(f"{CELLS} === '0,1,2'", "a scale command shows up")
            await page.wait_for("document.querySelector('#events').innerText.includes('shard 2 has come')", "it is an event")
            assert "256, all at rest" == await page.evaluate("document.querySelector('#slots-now').textContent")

            assert "0%" == await page.evaluate("document.querySelector('#shards .bar i').style.width"), "an empty lane looks full"

            await page.evaluate("document.querySelector('#token').value = 'wrong'")
            await page.evaluate("document.querySelector('[data-step=\"-1\"]').click()")
            await page.wait_for("document.querySelector('#said').textContent.includes('commands need')", "a wrong token is refused")
            await page.evaluate(f"document.querySelector('#token').value = '{TOKEN}'")
            await page.evaluate("document.querySelector('[data-step=\"-1\"]').click()")
            await page.wait_for("document.querySelector('#said').textContent.includes('scale: done')", "the button works")
            await page.wait_for(f"{CELLS} === '0,1'", "one shard fewer")

            await page.picture(kept(tmp_path, "light"))
            await page.dark(True)
            await page.picture(kept(tmp_path, "dark"))
            await page.width(390)
            assert await page.evaluate("document.documentElement.scrollWidth <= 390"), "a phone has to scroll sideways"
            await page.picture(kept(tmp_path, "phone"))

            os.kill(engine.status()["supervisor"]["pid"], signal.SIGSTOP)
            await page.wait_for("document.querySelector('#state').textContent.includes('no answer')", "it is said that nobody answers")
            await page.picture(kept(tmp_path, "gone"))
            os.kill(engine.status()["supervisor"]["pid"], signal.SIGCONT)
            await page.wait_for("document.querySelector('#state').textContent === 'running'", "it goes on by itself")
            assert [] == page.complaints

    asyncio.run(look())
