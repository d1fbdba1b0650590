"""What users wrote reaches a terminal and a log as text, never as an order."""

from __future__ import annotations

import io
import logging
import re

import pytest
from click.testing import CliRunner

from shardmem.console.cli import main
from shardmem.console.cli.common import complain, say
from shardmem.errors import ShardmemError
from shardmem.runtime import logs
from shardmem.runtime.quarantine import Entry, Quarantine
from shardmem.text import cleaned, printable, printable_lines

ORDERS = "k\x1b]0;PWN\x07\x1b[2J\x9b5m\u202eafter\udc9b\r\x00\u2028\x7f"
FORGED = "boom\n2026-11-28 12:00:00,000 shardmem[x] supervisor/1 INFO all is well"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")


def test_what_is_printable_stays_and_all_else_is_written_as_python_would() -> None:
    assert printable("Grüße, 日本 – 5 µs") == "Grüße, 日本 – 5 µs"
    assert printable(ORDERS) == ("k\\x1b]0;PWN\\x07\\x1b[2J\\x9b5m\\u202eafter\\udc9b\\r\\x00\\u2028\\x7f")
    assert printable("a\nb") == "a\\nb" and printable_lines("a\nb\x1b", "  ") == "a\n  b\\x1b"


def test_every_text_of_a_document_is_cleaned_and_nothing_else_is() -> None:
    assert cleaned({"a": [{"b\x1b": "x\n y"}], "n": 1, "f": None}) == {"a": [{"b\\x1b": "x y"}], "n": 1, "f": None}


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_log_has_no_line_that_an_event_wrote(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)  # the root logger is pytest's
    monkeypatch.setattr(logs, "_who", None)
    stream, log = io.StringIO(), logging.Logger("shardmem.some")
    log.addHandler(logs.set_up(form, "info", "ticks", 0, stream))
    try:
        raise ValueError(FORGED + ORDERS)
    except ValueError as error:
        log.exception("it failed: %s", error)
    written = stream.getvalue()
    assert not RAW.search(written), written
    assert not [line for line in written.splitlines() if line.startswith("2026-11-28 12:00:00")]
    assert "all is well" in written


def test_errors_and_answers_of_the_command_line_give_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    complain(FORGED + ORDERS, hint=ORDERS)
    say(f"engine {ORDERS}")
    said = "".join(capsys.readouterr())
    assert not RAW.search(said) and "\n2026-11-28" not in said


@pytest.mark.parametrize("command", [["list"], ["show", "1"]])
def test_the_quarantine_is_shown_without_what_its_events_would_do(tmp_path, command: list[str]) -> None:
    with Quarantine(str(tmp_path / "printed.quarantine")) as store:
        store.add(
            Entry(
                "a",
                shard=0,
                slot=0,
                seat=0,
                sequence=0,
                kind="exception",
                reason=ORDERS.replace("\udc9b", "") + FORGED,
                traceback=FORGED + ORDERS.replace("\udc9b", ""),
                attempts=1,
                key=ORDERS,
                payload=ORDERS.encode(errors="replace"),
                schema={"kind": "events"},
            )
        )
    done = CliRunner().invoke(
        main, ["quarantine", *command, "--engine", "printed", "--state-dir", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0 and "PWN" in done.output
    assert not RAW.search(done.output), done.output
    assert not [line for line in done.output.splitlines() if line.startswith("2026-11-28 12")]


def test_an_error_of_shardmem_with_a_text_that_cannot_be_encoded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ShardmemError(f"cannot open {ORDERS}")

    monkeypatch.setattr("shardmem.client.client.only_engine", fail)
    done = CliRunner().invoke(main, ["status"], catch_exceptions=False)
    assert done.exit_code == 1 and not RAW.search(done.output) and "cannot open k\\x1b]0;" in done.output
