"""The page in a real browser, on a real engine: what it shows, what it does, and who can read and operate it.

SHARDMEM_PICTURES=DIR keeps what it looked like.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import shardmem
from shardmem.runtime.batch import slot_of
from shardmem.testing import FakeBroker
from support.daemon import Daemon
from support.rig import Rig

from . import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium is installed: the page was not looked at")
TOKEN = "a-token-of-this-test"
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>&amp;\u202e\'"`${window.hit=1}'
CELLS = "[...document.querySelectorAll('#shard-table tbody th button')].map(each => each.textContent.slice(2)).join()"
WELL = "document.querySelector('#verdict-word').textContent === 'Healthy'"


@pytest.fixture(scope="module")
def engine():
    with shardmem.Engine(
        f"page{uuid.uuid4().hex[:8]}",
        handler="console.page_load:handle",
        min_shards=2,
        max_shards=4,
        slots=256,
        auto_scale=False,
        http_port=0,
        http_token=TOKEN,
        retry_backoff=0.01,
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    if browser.CHROMIUM is None:
        pytest.skip("no chromium")
    with browser.Browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture
def page(window, engine):
    """The page of the engine, as somebody sees it who comes for the first time."""
    window.complaints.clear()
    window.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    window.width(1280)
    window.open(engine.status()["engine"]["http"], "sessionStorage.clear()")
    window.wait_for("document.querySelectorAll('#shard-table tbody tr').length", "shards are shown")
    yield window
    assert [] == window.complaints


def kept(page, tmp_path: Path, name: str) -> None:
    page.picture(Path(os.environ.get("SHARDMEM_PICTURES", tmp_path)) / f"{name}.png")


def give_token(page, token: str = TOKEN) -> None:
    page.evaluate("document.querySelector('#token').focus()")
    page.press(token)
    page.wait_for("!document.querySelector('#orders [aria-disabled]')", "commands are allowed")


def done(page, part: str) -> None:
    """The open dialog says that its command is done; it is closed."""
    page.wait_for(
        f"document.querySelector('#dialog-progress').textContent.includes({part!r})", f"the dialog says {part!r}"
    )
    page.press("Escape")
    page.wait_for("!document.querySelector('dialog').open", "the dialog is closed")


def do(page, selector: str, part: str) -> None:
    """A button, and yes to what its dialog asks."""
    page.evaluate(f"document.querySelector({selector!r}).click()")
    page.wait_for(
        "document.querySelector('dialog').open && !document.querySelector('#dialog-do').disabled", "the dialog asks"
    )
    page.evaluate("document.querySelector('#dialog-do').click()")
    done(page, part)


def owners(engine) -> list[int]:
    with shardmem.Client(engine.name) as client:
        return client._control.slot_table()[0].tolist()


@contextlib.contextmanager
def held(engine, tmp_path: Path, shard: int = 0):
    """A slot of a shard whose worker has a batch in hand until this ends."""
    gate = tmp_path / f"gate{shard}"
    os.mkfifo(gate)
    key = next(key for key in range(10_000) if owners(engine)[slot_of(key, 256)] == shard)
    with engine.producer() as producer:
        producer.push(key, f"hold {gate}".encode())
        try:
            yield
        finally:
            os.close(os.open(gate, os.O_WRONLY))
            producer.flush(30)


# ---- what it shows ---------------------------------------------------------------------------------------------------


def test_what_there_is_no_rate_of_yet_is_not_said_to_be_one(page, engine):
    page.open(
        engine.status()["engine"]["http"],
        """
        window.said = [];
        new MutationObserver(() => said.push(document.querySelector("#verdict-sum")?.textContent)).observe(
          document, {subtree: true, childList: true, characterData: true})""",
    )
    page.wait_for("said.some(each => / handle .* events[/]s; /.test(each))", "a rate is said")
    said = page.evaluate("said.filter(Boolean)")
    assert "2 shards handle events; " in said[0] and not [each for each in said if "handle events/s" in each], said


def test_an_engine_that_is_well_is_said_to_be_and_the_page_updates_by_itself(page, engine, tmp_path):
    page.wait_for(WELL, "a new engine is well")
    assert engine.name == page.text("h1") and "0,1" == page.evaluate(CELLS)
    assert "256 slots" in page.text("#slots-sum") and "None is moving" in page.text("#slots-sum")
    before = engine.status()["accounting"]["accepted"]
    with engine.producer() as producer:
        producer.push_many(list(range(500)), [b"ok"] * 500)
        page.wait_for(
            f"document.querySelector('#tiles').innerText.includes('{before + 500:,}')", "accepted events are counted"
        )
        page.wait_for(
            f"document.querySelector('#producer-table tbody').innerText.includes('{os.getpid()}')",
            "the producer is listed",
        )
    page.wait_for(
        "[...document.querySelectorAll('.plot path.line')].filter(each => each.getAttribute('d').includes('L')).length "
        ">= 4 "
        "&& document.querySelectorAll('.plot path.line').length === 8",
        "lines are drawn, two in each of four charts, one of them of the two shards",
    )
    page.wait_for(
        "document.querySelector('#producers-none').innerText.includes('No producer is connected')", "it has left"
    )
    axis = page.evaluate(
        "[...document.querySelector('.plot svg').querySelectorAll('text')].map(each => each.textContent)"
    )
    assert "0/s" in axis and any(re.fullmatch(r"\d\d:\d\d(:\d\d)?", each) for each in axis), (
        f"an axis without unit or time: {axis}"
    )
    kept(page, tmp_path, "light")


def test_a_shard_that_failed_is_one_of_those_that_a_scale_counts(page):
    said = page.evaluate("""import("/page/orders.js").then(({ORDERS}) => {
        const document = {engine: {max_shards: 8, slots: 64},
          shards: [{state: "active"}, {state: "failed"}, {state: "draining"}]};
        return [ORDERS.scale.fields(document, {})[0].value, ORDERS.scale.says({shards: 3}, document)];
      })""")
    assert 2 == said[0] and said[1].startswith("1 worker will be started"), said


def test_a_scale_on_the_command_line_shows_up(page, engine):
    for count, shown in ((3, "0,1,2"), (2, "0,1")):
        subprocess.run(
            [sys.executable, "-m", "shardmem", "scale", str(count), "--engine", engine.name],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        page.wait_for(f"{CELLS} === '{shown}'", f"shards {shown} are shown")
    page.wait_for(
        "document.querySelector('#timeline').innerText.includes('from 3 to 2 shards')", "it is in the timeline"
    )


def test_slots_in_motion_are_named_and_a_button_evens_them_out(page, engine, tmp_path):
    with held(engine, tmp_path):
        moved = subprocess.Popen(
            [sys.executable, "-m", "shardmem", "move", "0-255", "--to", "1", "--engine", engine.name],
            stdout=subprocess.DEVNULL,
        )
        page.wait_for(
            "document.querySelector('#moving').innerText.includes('from shard 0 to shard 1: draining')",
            "slots in motion are named, with phase",
        )
        page.evaluate("document.querySelector('#slot-map').focus()")
        assert "on its way from shard 0 to shard 1, draining" in page.text("#slot-said")
        kept(page, tmp_path, "moving")
    assert 0 == moved.wait(30)
    page.wait_for("document.querySelector('#owners').innerText.includes('shard 1: 256')", "all slots are one shard's")
    give_token(page)
    do(page, "[data-order=rebalance]", "128 slots went from shard 1 to shard 0")


def test_every_text_stays_a_text_whatever_it_says(window, engine):
    """The supervisor's answer with each text replaced: names, reasons, errors, exits, events, keys."""
    spoil = """
      sessionStorage.clear();
      const real = fetch, hostile = HOSTILE;
      const kept = ["level", "state", "condition", "phase", "kind"];
      const spoil = (node, key) => typeof node === "string" && !kept.includes(key) ? hostile
        : Array.isArray(node) ? node.map(each => spoil(each, key))
        : node && typeof node === "object" ? Object.fromEntries(
            Object.entries(node).map(([name, each]) => [name, spoil(each, name)])) : node;
      fetch = async (path, options) => {
        const name = String(path);
        if (name === "quarantine") return Response.json({count: 1, limit: 9, events: [{
          id: 1, at: 1, shard: 0, slot: 1, producer: 0,
          sequence: 1, kind: hostile, reason: hostile, attempts: 3, key: hostile, bytes: 4, replayed_at: null}]});
        if (name === "quarantine/1") return Response.json({traceback: hostile, payload: hostile});
        if (name === "access") return Response.json({access: "all"});
        const answer = await (await real(path, options)).json();
        if (name !== "status") return Response.json(answer);
        const spoilt = spoil(answer);
        Object.assign(spoilt, {elastic: true});  // the last judgement is shown
        Object.assign(spoilt.engine, {quarantine_held: 1});
        Object.assign(spoilt.shards[0], {condition: "failed", error: hostile, reason: hostile, last_exit: hostile});
        spoilt.findings = [{level: "error", kind: "failed", shard: 0, text: hostile, advice: hostile, command: hostile,
          order: {name: "scale", body: {shards: 3}}}];
        spoilt.events.push({at: 1, kind: "x", shard: 0, text: hostile, level: "error"});
        return Response.json(spoilt);
      };""".replace("HOSTILE", json.dumps(HOSTILE))
    window.complaints.clear()
    window.open(engine.status()["engine"]["http"], spoil)
    window.wait_for("document.querySelectorAll('#quarantine-table tbody tr').length", "the event is listed")
    window.evaluate("for (const each of document.querySelectorAll('tbody th button')) each.click()")
    window.wait_for(
        "document.querySelectorAll('#quarantine-table pre')[1]?.textContent.includes('onerror')",
        "the traceback is shown",
    )
    for part in ("h1", "#findings", "#shard-table", "#timeline", "#quarantine-table", "#policy"):
        assert "<img src=x" in window.text(part), f"{part} does not show the text: {window.text(part)}"
    assert 0 == window.evaluate("document.querySelectorAll('img, body script').length"), "a text has become an element"
    assert window.evaluate("window.hit") is None, "a text was run"
    refused = window.evaluate(
        "(() => { try { document.body.innerHTML = 'x'; return ''; } catch (error) { return error.name; } })()"
    )
    assert "TypeError" == refused, "the browser was not told to refuse markup"
    window.evaluate("document.querySelector('#findings button').click()")
    assert "3" == window.evaluate("document.querySelector('#dialog-fields input').value"), (
        "the button does not do what the finding says"
    )
    assert all("TrustedHTML" in each for each in window.complaints), window.complaints


def test_a_supervisor_that_is_gone_is_said_and_what_is_old_is_marked_until_it_is_back(page, engine, tmp_path):
    page.wait_for("document.querySelectorAll('.plot path.line').length", "there is a history")
    supervisor = engine.status()["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        page.wait_for(
            "document.querySelector('#verdict-word').textContent === 'No answer from the supervisor'", "it is said"
        )
        assert "has not responded for 3 s" in page.text("#findings") and f"shardmem status {engine.name}" in page.text(
            "#findings"
        )
        for title in ("#shards-title", "#slots-title", "#charts-title"):
            assert "as of" in page.text(title) and "ago" in page.text(title), "what is old is not marked"
        assert "does not answer" in page.text("#access")
        assert page.evaluate("document.querySelector('[data-order=scale]').getAttribute('aria-disabled')") == "true"
        assert page.evaluate(CONTRAST) == [], "what is old cannot be read"
        kept(page, tmp_path, "gone")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    page.wait_for(WELL, "it goes on by itself")
    assert page.evaluate("!document.querySelector('.age') && !document.querySelector('.stale')"), (
        "it is still called old"
    )
    page.wait_for("document.querySelector('.plot .gap')", "the gap is a gap in the charts")


def test_the_history_is_kept_across_a_reload_of_the_page(page):
    length = "document.querySelector('.plot path.line').getAttribute('d').match(/[LM]/g).length"
    page.wait_for(f"{length} >= 3", "there is a history")
    page.call("Page.reload")
    page.wait_for(f"document.querySelector('.plot path.line') && {length} >= 4", "the history goes on")
    assert page.evaluate("performance.now()") < 3000, "it was gathered anew"


def test_the_history_survives_the_tab_because_the_supervisor_keeps_it(page, engine):
    url = engine.status()["engine"]["http"]
    whole = (
        "Object.keys(points.at(-1)?.shards ?? {})"
        ".every(one => points.filter(point => Number.isFinite(point.shards[one]?.rate)).length >= 2)"
    )
    page.wait_for(
        f"fetch('series').then(answer => answer.json()).then(({{points}}) => points.length >= 3 && {whole})",
        "some of each shard is kept",
    )
    page.open(url, "sessionStorage.clear()")
    length = "document.querySelector('.plot path.line').getAttribute('d').match(/[LM]/g).length"
    page.wait_for(f"document.querySelector('.plot path.line') && {length} >= 2", "there is a history")
    first = (
        "[...document.querySelectorAll('.plot path.shard')].map(each => each.getAttribute('d').match(/[LM]/g).length)"
    )
    lines, took = page.evaluate(first), page.evaluate("performance.now()")
    kept = [each for each in lines if each >= 2]  # of a shard that was there for a moment there is one point
    assert len(kept) >= len(engine.status()["shards"]) and took < 4000, f"it was gathered anew: {lines}, {took} ms"


def test_the_head_says_which_engine_of_which_host_this_is_and_what_else_runs_there(page, engine):
    about = page.text("#about")
    assert "console.page_load:handle" in about and f"shardmem {shardmem.__version__}" in about, about
    assert f"on {os.uname().nodename}" in about and "times in UTC" in about, about
    with shardmem.Engine(f"{engine.name}-other", handler="console.page_load:handle", shards=1, http_port=0) as other:
        there = f"engines.some(each => each.name === '{other.name}')"
        page.wait_for(f"fetch('engines').then(a => a.json()).then(({{engines}}) => {there})", "a look has found it")
        page.open(engine.status()["engine"]["http"])
        page.wait_for("!document.querySelector('#others').hidden", "there is another engine")
        page.evaluate("document.querySelector('#others').click()")
        link = f"[...document.querySelectorAll('#engine-table a')].find(each => each.textContent === '{other.name}')"
        page.wait_for(f"{link} !== undefined", "the other engine is listed")
        assert f"{page.evaluate(f'{link}.href')}".rstrip("/") == other.status()["engine"]["http"]
        row = page.evaluate(f"{link}.closest('tr').innerText")
        notes = "[...document.querySelectorAll('#engine-table .notes td')]"
        wide = "each => each.colSpan === each.closest('table').tHead.rows[0].cells.length"
        assert page.evaluate(f"{notes}.every({wide})"), "what is wrong with one is as wide as the table"
        assert "healthy" in row and "console.page_load:handle" in row and "Engines on" in page.text("h1"), row
        assert [] == page.complaints


def test_the_first_screen_has_the_verdict_and_whole_charts(page, engine):
    page.call("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
    page.wait_for(WELL, "the engine is well")
    bottom = "Math.max(...[...document.querySelectorAll('.plot')].map(each => each.getBoundingClientRect().bottom))"
    assert page.evaluate(bottom) <= 800, page.evaluate(bottom)


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_commands_need_the_token_and_say_so(page):
    page.evaluate("document.querySelector('#token').focus()")
    page.press("wrong")
    page.wait_for(
        "document.querySelector('#access').innerText.includes('not the http_token')", "a wrong token is told at once"
    )
    page.evaluate("document.querySelector('[data-order=scale]').click()")
    assert "not the http_token" in page.text("#dialog-why") and page.evaluate(
        "document.querySelector('#dialog-do').disabled"
    )
    page.evaluate("document.querySelector('#dialog-token-input').select()")
    page.press(TOKEN)
    page.wait_for("!document.querySelector('#dialog-do').disabled", "the right one is")


def test_a_dialog_that_is_opened_as_another_closes_works(page):
    give_token(page)
    page.evaluate(
        "document.querySelector('[data-order=drain]').click(); document.querySelector('dialog').close();"
        "document.querySelector('[data-order=scale]').click()"
    )  # that it was closed is told after this
    page.press("ArrowUp")
    assert "1 worker will be started" in page.text("#dialog-says") and page.text("#dialog-shell").endswith(" 3")


def test_a_worker_shows_its_log_and_its_stacks(page, engine):
    give_token(page)
    page.evaluate("document.querySelector('#shard-table tbody th button').click()")
    page.wait_for("document.querySelector('#shard-table .detail')", "the row opens")
    press = "[...document.querySelectorAll('.detail button')].find(each => each.textContent === '{}').click()"
    page.evaluate(press.format("Its stacks"))
    page.wait_for("document.querySelector('.detail pre').innerText.includes('most recent call first')", "its stacks")
    page.evaluate(press.format("Its log"))
    page.wait_for("document.querySelector('.detail pre').innerText.includes('nothing was logged')", "its log")
    assert page.evaluate(
        "getComputedStyle(document.querySelector('#orders [data-order=stop]')).color"
    ) != page.evaluate("getComputedStyle(document.querySelector('#orders [data-order=scale]')).color"), (
        "a stop looks like what it is"
    )


def test_an_engine_without_a_token_can_be_read_and_names_the_commands(window, tmp_path):
    window.complaints.clear()
    with shardmem.Engine(
        f"page{uuid.uuid4().hex[:8]}", handler="console.page_load:handle", shards=1, slots=16, http_port=0
    ) as engine:
        window.open(engine.status()["engine"]["http"], "sessionStorage.clear()")
        window.wait_for(
            "document.querySelector('#access').innerText.includes('started without http_token')", "it says why not"
        )
        window.wait_for("document.querySelector('#shard-table tbody tr')", "the engine is shown")
        assert window.evaluate("document.querySelector('#token-form').hidden"), "it asks for a token that there is not"
        window.evaluate("document.querySelector('[data-order=drain]').click()")
        assert f"shardmem drain {engine.name} 0" == window.text("#dialog-shell")
        assert window.evaluate("document.querySelector('#dialog-do').disabled") and "read-only" in window.text(
            "#dialog-why"
        )
    assert [] == window.complaints


def test_sources_are_shown_and_one_partition_is_paused_and_resumed(window, engine_name, tmp_path):
    with contextlib.closing(FakeBroker(str(tmp_path / "broker"))) as broker:
        broker.create_topic("clicks", 2)
        source = f"fake:{broker.path}?topics=clicks"
        flags = ("--shards", "1", "--source", source, "--http-port", "0", "--http-token", TOKEN)
        with Daemon(Rig(tmp_path), engine_name, *flags, handler="console.page_load:handle") as daemon:
            window.complaints.clear()
            window.open(daemon.ready()["engine"]["http"], "sessionStorage.clear()")
            window.wait_for("document.querySelectorAll('#shard-table tbody tr').length", "shards are shown")
            give_token(window)
            window.wait_for("document.querySelector('#source-table .word')?.textContent === 'running'", "it is shown")
            window.evaluate("document.querySelector('#source-table tbody th button').click()")
            state = "[...document.querySelectorAll('.detail tbody tr')].map(each => each.cells[1].textContent).join()"
            window.wait_for(f"{state} === 'owned,owned'", "its partitions are shown")
            do(window, ".detail tbody tr:nth-child(2) [data-order='source/pause']", "clicks/1 is paused")
            window.wait_for(f"{state} === 'owned,paused'", "one is paused")
            do(window, ".detail tbody tr:nth-child(2) [data-order='source/resume']", "clicks/1 goes on")
            window.wait_for(f"{state} === 'owned,owned'", "it has gone on")
            daemon.process.terminate()
            assert (0, []) == (daemon.end()[0], window.complaints)


def test_a_shard_is_added_and_drained_by_the_keyboard_alone(page, engine):
    focused = "document.activeElement.id || document.activeElement.dataset.order || document.activeElement.textContent"
    page.press("Tab")
    assert "Skip to the verdict" == page.evaluate(focused)
    page.press("Enter")
    for _ in range(30):
        page.press("Tab")
        if page.evaluate(focused) == "token":
            break
    page.press(TOKEN)
    page.wait_for("!document.querySelector('#orders [aria-disabled]')", "commands are allowed")
    page.press("Tab")
    assert "scale" == page.evaluate(focused), "the first command does not follow the token"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus cannot be seen"

    page.press("Enter")
    assert "shards" == page.evaluate("document.activeElement.name"), "the dialog's field has not the focus"
    page.press("Escape")
    page.wait_for("!document.querySelector('dialog').open", "Escape cancels")
    assert "scale" == page.evaluate(focused) and 2 == len(engine.status()["shards"]), (
        "the focus is lost, or it was done"
    )

    page.press("Enter", "ArrowUp")
    assert "1 worker will be started" in page.text("#dialog-says")
    assert f"shardmem scale {engine.name} 3" == page.text("#dialog-shell")
    page.press("Enter")
    done(page, "Run 3 shards: done. 3 shards run: 0, 1, 2; ")
    assert "scale" == page.evaluate(focused) and "Run 3 shards" in page.text("#said")
    page.wait_for(f"{CELLS} === '0,1,2'", "the new shard is shown")
    page.wait_for("document.querySelector('#owners').innerText.includes('shard 2: 85')", "it has its part of the slots")

    page.evaluate("document.querySelectorAll('#shard-table tbody th button')[2].focus()")
    page.press(" ")
    page.wait_for("document.querySelector('#shard-table .detail [data-order=drain]')", "the row opens")
    page.press("Tab")
    assert "Drain shard 2" == page.evaluate("document.activeElement.textContent")
    page.press(" ")
    assert "2" == page.evaluate("document.querySelector('#dialog select').value") and "Its 85 slots go" in page.text(
        "#dialog-says"
    )
    page.press("Tab", "Enter")
    done(page, "shard 2 is drained and removed")
    page.wait_for(f"{CELLS} === '0,1'", "it is gone")


def test_values_of_charts_and_owners_of_slots_are_reached_by_keys(page, engine):
    page.wait_for("document.querySelector('.plot path.line')?.getAttribute('d').includes('L')", "there is a history")
    page.wait_for("/accepted [0-9]/.test(document.querySelector('.legend').innerText)", "and a rate of now")
    page.evaluate("document.querySelector('.plot').focus()")
    page.press("Home")
    said = "document.activeElement.getAttribute('aria-valuetext')"
    first = page.evaluate(said)
    page.press("End")
    last = page.evaluate(said)
    assert first != last and re.fullmatch(
        r"\d\d:\d\d:\d\d: accepted [\d.,]+( [kMG])?/s, handled [\d.,]+( [kMG])?/s", last
    ), last
    assert 4 == page.evaluate("document.querySelectorAll('.plot .cross').length"), (
        "not every chart shows the same moment"
    )
    page.press("Escape")
    assert "now" == page.text("#moment")

    page.evaluate("document.querySelector('#slot-map').focus()")
    page.press("Home", "ArrowRight", "ArrowDown")
    slot = int(page.evaluate("document.activeElement.getAttribute('aria-valuenow')"))
    assert slot > 1 and f"Slot {slot}: shard {owners(engine)[slot]}" == page.evaluate(said) == page.text("#slot-said")


def test_events_in_quarantine_are_read_replayed_and_thrown_away(page, engine, tmp_path):
    mended = tmp_path / "mended"
    with engine.producer() as producer:
        for key in (HOSTILE, "two", "three"):
            producer.push(key, f"bad {mended}".encode())
        producer.flush(30)
    page.wait_for("document.querySelector('#findings').innerText.includes('holds 3 events')", "the verdict says so")
    assert "enter the http_token" in page.text("#quarantine-sum") and "window.hit" not in page.text("#quarantine")
    give_token(page)
    page.wait_for("document.querySelectorAll('#quarantine-table tbody tr').length === 3", "they are listed")
    assert HOSTILE.split(">")[0].replace('"', '\\"') in page.text("#quarantine-table"), "the key is not shown"
    page.evaluate("[...document.querySelectorAll('#quarantine-table tbody th button')].pop().click()")
    page.wait_for(
        "document.querySelector('#quarantine-table .detail')?.innerText.includes('raise ValueError')",
        "the traceback is shown",
    )
    assert page.evaluate("window.hit") is None
    kept(page, tmp_path, "quarantine")

    page.evaluate("document.querySelector('#quarantine-table tbody input').click()")
    assert "Purge 1 event …" == page.text("#purge")
    do(page, "#purge", "1 event purged")
    page.wait_for("document.querySelectorAll('#quarantine-table tbody tr:not(.detail)').length === 2", "it is gone")
    mended.touch()
    do(page, "#replay", "2 events replayed")
    page.wait_for("document.querySelector('#quarantine-sum').innerText.includes('Empty')", "none is left")
    page.wait_for(WELL, "the engine is well again")


# ---- who can read it -------------------------------------------------------------------------------------------------

# The contrast of every text that is shown, with what is really behind it; WCAG 2.2, 1.4.3.
CONTRAST = """(() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z; };
  const behind = node => {
    const layers = [];
    for (let each = node; each; each = each.parentElement) {
      const layer = parse(getComputedStyle(each).backgroundColor);
      layers.push(layer);
      if (layer[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const found = new Set();
  const walk = document.createTreeWalker(document.querySelector("dialog[open]") || document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim()) continue;
    if (!node.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (node.closest("script, noscript, option, .unseen")) continue;
    const style = getComputedStyle(node), back = behind(node);
    const ink = over(parse(node.closest("svg") ? style.fill : style.color), back);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const large = parseFloat(style.fontSize) >= 24;
    const name = `${node.tagName}.${node.className?.baseVal ?? node.className}`;
    if (ratio < (large ? 3 : 4.5)) found.add(`${ratio.toFixed(2)} ${name} ${walk.currentNode.data.slice(0, 40)}`);
  }
  return [...found];
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_enough(page, engine, scheme, tmp_path):
    page.media(prefers_color_scheme=scheme)
    page.evaluate("document.querySelector('#shard-table tbody th button').click()")
    give_token(page)
    for level in ("good", "warning", "error"):
        page.evaluate(f"document.querySelector('#verdict').dataset.level = {level!r}")
        assert [] == page.evaluate(CONTRAST)
    kept(page, tmp_path, scheme)
    page.evaluate("document.querySelector('[data-order=stop]').click()")
    assert [] == page.evaluate(CONTRAST), "of the dialog"


def test_a_phone_does_not_scroll_sideways(page, engine, tmp_path):
    page.width(360)
    give_token(page)
    page.evaluate("document.querySelector('#shard-table tbody th button').click()")
    page.wait_for("document.querySelector('#shard-table .detail')", "the row opens")
    assert page.evaluate("document.documentElement.scrollWidth <= 360"), page.evaluate(
        "[...document.querySelectorAll('body *')].filter(each => each.getBoundingClientRect().right > 361 && "
        "!each.closest('.scroll'))"
        ".map(each => each.outerHTML.slice(0, 100))"
    )
    kept(page, tmp_path, "phone")
    page.evaluate("document.querySelector('[data-order=move]').click()")
    assert page.evaluate("document.querySelector('dialog').getBoundingClientRect().right <= 360"), (
        "the dialog does not fit"
    )
    small = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter(each => each.checkVisibility() && "
        "each.getBoundingClientRect().height < 18).map(each => each.outerHTML)"
    )
    assert [] == small, "too small for a finger"


def test_a_screen_reader_finds_landmarks_headings_and_a_name_for_everything(page):
    page.evaluate("document.querySelector('#shard-table tbody th button').click()")
    page.wait_for("document.querySelector('#shard-table .detail')", "the row opens")
    nodes = page.nodes()
    roles = [role for role, _, _ in nodes]
    for landmark in ("main", "banner", "navigation"):
        assert 1 == roles.count(landmark), landmark
    levels = [properties["level"] for role, _, properties in nodes if role == "heading"]
    assert (
        1 == levels[0]
        and 1 == levels.count(1)
        and all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    ), levels
    nameless = [
        (role, properties)
        for role, name, properties in nodes
        if not name.strip()
        and role
        in (
            "button",
            "link",
            "textbox",
            "slider",
            "checkbox",
            "combobox",
            "spinbutton",
            "region",
            "dialog",
            "heading",
            "columnheader",
        )
    ]
    assert [] == nameless
    assert {"Failing", "Healthy", "Needs attention"} & {name for role, name, _ in nodes if role == "heading"}
    assert 4 <= roles.count("slider") and "status" in roles, "charts and the map are silent"
    assert page.evaluate("document.documentElement.lang") == "en"
    assert [] == page.evaluate(
        "[...document.querySelectorAll('[id]')].map(each => each.id).filter((id, i, all) => all.indexOf(id) !== i)"
    )


def test_nothing_is_read_aloud_every_second(page):
    page.wait_for(WELL, "there is a verdict")
    page.evaluate("""window.spoken = []; window.turns = 0;
      for (const each of document.querySelectorAll('[role=status], [aria-live], output'))
        new MutationObserver(() => window.spoken.push(each.id)).observe(each, {
            childList: true, subtree: true, characterData: true});
      new MutationObserver(() => window.turns++).observe(document.querySelector('.plot svg'), {childList: true});""")
    page.wait_for("window.turns >= 3", "the page has asked three times")
    assert [] == page.evaluate("window.spoken")


def test_who_wants_no_motion_gets_none(page):
    moves = "getComputedStyle(document.querySelector('.bar i')).transitionDuration"
    assert "0s" != page.evaluate(moves)
    page.media(prefers_reduced_motion="reduce")
    assert "0s" == page.evaluate(moves)
