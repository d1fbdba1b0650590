"""`shardmem top`: what is shown, what the keys do, and that the terminal is left as it was."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

import shardmem
from shardmem.console.top import Keys
from shardmem.console.top_view import SORTS, Rates, Screen, duration, frame
from shardmem.status.findings.finding import finding


def shard(number, **changes):
    return {
        "id": number,
        "state": "active",
        "condition": "busy",
        "reason": "",
        "error": "",
        "slots": 512,
        "rate": 1000.0 * number,
        "fill_ratio": 0.5,
        "busy": 0.9,
        "recent_p50_us": 800.0,
        "recent_p99_us": 12_345.0,
        "in_flight": 77,
        "crashes": 0,
        **changes,
    }


def document(shards=(shard(0), shard(1)), **changes):
    return {
        "engine": {"name": "ticks", "state": "running", "max_shards": 8},
        "auto_scale": True,
        "elastic": True,
        "supervisor": {"alive": True, "uptime_s": 3725.0},
        "shards": list(shards),
        "producers": [
            {"seat": 0, "client": None, "pid": 4711, "alive": True, "rate": 12_300.0, "refused": {}},
            {"seat": 1, "client": None, "pid": 4712, "alive": True, "rate": 45_600.0, "refused": {"full": 9}},
            {"seat": 2, "client": None, "pid": 4713, "alive": False, "rate": 0.0, "refused": {}},
        ],
        "findings": [],
        "handoffs": [
            {"slot": slot, "from": 0, "to": 1, "phase": "draining", "age_s": 0.2, "late": slot == 3}
            for slot in range(12)
        ],
        "decisions": [
            {"kind": "up", "count": 1, "reason": "shard 0 is overloaded", "age_s": 4.0, "times": 3, "advice": None}
        ],
        "accounting": {
            "offered": 1009,
            "accepted": 1000,
            "refused": {"full": 9},
            "handled": 923,
            "quarantined": 0,
            "skipped": 0,
            "shed": {},
            "in_flight": 77,
        },
        "history": [
            {
                "at": 0.0 + number,
                "kind": "worker_died",
                "shard": number,
                "text": f"worker pid {number} ended",
                "level": "warning",
            }
            for number in range(9)
        ],
        **changes,
    }


def shown(document, rates=Rates(), view=Screen(), width=80):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(frame(document, rates, view))
    return out.getvalue().splitlines()


def test_everything_is_shown_within_80_columns():
    lines = shown(document(), Rates(58_000.0, 57_100.0))
    text = "\n".join(lines)

    assert max(map(len, lines)) <= 80
    for part in (
        "ticks  running  up 1h02m  2 of 8 shards, auto  in 58k/s  out 57.1k/s",
        "offered 1,009",
        "refused (full) 9",
        "in flight 77",
        "    0 busy           512       0 ████░░░░ 50%  90%  800us 12.3ms        77    0",
        "producers: 2 · pid 4712 45.6k/s (9 refused) · pid 4711 12.3k/s",
        "moving slots: 12",
        "  12 from shard 0 to 1, draining for 0.2s, LATE",
        "policy, 4.0s ago: up 1: shard 0 is overloaded (x3)",
        ":08  shard 8: worker pid 8 ended",
        "q quit",
    ):
        assert part in text, f"{part!r} is not in\n{text}"
    assert "4713" not in text, "a producer that is gone is not connected"


def test_no_figure_however_large_breaks_the_table_or_80_columns():
    huge = [
        shard(
            1023,
            condition="provisioning",
            slots=65536,
            rate=9.99e11,
            fill_ratio=7.0,
            busy=1.0,
            recent_p50_us=9.9e9,
            recent_p99_us=None,
            in_flight=10**15,
            crashes=9999,
            reason="x" * 500,
        )
    ]
    counts = {
        "offered": 10**18,
        "accepted": 10**18,
        "refused": {"draining": 10**18},
        "handled": 10**18,
        "quarantined": 10**18,
        "skipped": 0,
        "shed": {"oldest": 10**18},
        "in_flight": 10**18,
    }
    lines = shown(
        document(huge, accounting=counts, engine={"name": "n" * 64, "state": "running", "max_shards": 1024}),
        Rates(9.9e12, 9.9e12),
        width=200,
    )

    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" 1023 provisioning 65536 ") for line in lines), "\n".join(lines)


def test_a_terminal_that_is_not_utf8_gets_ascii_only():
    bad = shard(1, condition="failed", reason="höll … ✗")
    text = "\n".join(shown(document([shard(0), bad]), view=Screen(ascii=True)))

    assert text.isascii()
    assert "####.... 50%" in text and "h?ll ? ?" in text


def test_what_an_error_says_does_not_reach_the_terminal_as_an_order():
    text = "\n".join(shown(document([shard(1, condition="failed", reason="boom\x1b[2J\r\n\u200bend\x9b5m")])))

    assert "shard 1 failed: boom\\x1b[2J \\u200bend\\x9b5m" in text and not re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text
    ), repr(text)


def test_with_the_supervisor_dead_nothing_is_said_to_be_up():
    text = "\n".join(shown(document(supervisor={"alive": False, "uptime_s": 9.0})))

    assert "running  2 of 8 shards" in text and " up " not in text.splitlines()[0]


@pytest.mark.parametrize("advice, told", [("up", True), ("down", False), (None, False)])
def test_of_a_fixed_engine_the_policy_is_told_only_where_it_would_add(advice, told):
    decision = {
        "kind": "none",
        "count": 0,
        "reason": "auto_scale is off; otherwise ...",
        "age_s": 4.0,
        "times": 3,
        "advice": advice,
    }
    fixed = "\n".join(shown(document(auto_scale=False, elastic=False, decisions=[decision])))
    by_hand = "\n".join(shown(document(auto_scale=False, decisions=[decision])))

    assert "shards, fixed  in" in fixed and told == ("policy, " in fixed)
    assert "shards, manual  in" in by_hand and "policy, " in by_hand


def test_what_is_wrong_is_said_with_what_helps_and_the_rest_is_counted():
    assert "healthy" in shown(document())
    bad = [
        finding("error", "failed", "Shard 7 has failed: \x1b[2J" + "x " * 100, "Mend it:", "shardmem reload", shard=7),
        finding("warning", "refused", "9 events were refused", "Look who pushes them."),
        *[finding("warning", "w", "more")] * 4,
    ]
    lines = shown(
        document([shard(number, condition="failed" if number == 7 else "busy") for number in range(30)], findings=bad)
    )
    text = "\n".join(lines)

    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert (
        "x Shard 7 has failed: \\x1b[2J" in text
        and "  -> shardmem reload" in text
        and "! 9 events were refused" in text
    )
    assert "more: see `shardmem status`" in text and "healthy" not in lines
    first = next(line for line in lines if re.match(r" +\d+ (busy|failed) ", line))
    assert first.startswith("    7 failed"), "what is not served is below what is"


@pytest.mark.parametrize(
    "sort, order", [("id", [0, 1, 2]), ("rate", [1, 0, 2]), ("fill", [2, 1, 0]), ("busy", [0, 2, 1])]
)
def test_shards_are_sorted(sort, order):
    shards = [
        shard(0, rate=20, fill_ratio=0.1, busy=0.9),
        shard(1, rate=30, fill_ratio=0.2, busy=0.1),
        shard(2, rate=10, fill_ratio=0.3, busy=0.5),
    ]
    lines = shown(document(shards), view=Screen(sort=sort))

    assert order == [int(line.split()[0]) for line in lines if re.match(r" +\d+ busy ", line)]


@pytest.mark.parametrize("rows", [6, 10, 24, 50])
def test_many_shards_fit_the_window_and_the_rest_is_counted(rows):
    lines = shown(document([shard(number) for number in range(300)]), view=Screen(rows=rows))
    there = sum(bool(re.match(r" +\d+ busy ", line)) for line in lines)

    assert len(lines) <= rows and "q quit" in lines[-1]
    assert there >= 1
    if rows >= 10:
        assert any(f"and {300 - there} more shards" in line for line in lines), "\n".join(lines)


def test_rates_are_differences_of_two_documents():
    later = document(accounting={**document()["accounting"], "accepted": 3000, "handled": 1923})

    assert Rates(1000.0, 500.0) == Rates.between(document(), later, 2.0)
    assert Rates() == Rates.between(None, later, 2.0)


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0s"), (59.4, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "25h00m"), (200_000, "2d07h")],
)
def test_durations_are_short(seconds, text):
    assert text == duration(seconds)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_plus_and_minus_count_active_shards_and_never_ask_for_none():
    keys = Keys(Screen())
    two = document([shard(0), shard(1), shard(2, state="draining")])

    assert {"shards": 3} == keys.press("+", two).wanted
    assert {"shards": 1} == keys.press("-", two).wanted
    assert {"shards": "auto"} == keys.press("a", two).wanted
    assert {"shards": 3} == keys.press("+", document([shard(0), shard(1, state="failed")])).wanted, (
        "a failed one counts in `scale`"
    )
    assert keys.press("-", document([shard(0)])) is None and "minimum" in keys.view.prompt


def test_a_drain_wants_a_number_that_there_is_and_a_yes():
    keys = Keys(Screen())
    for typed, prompt in (
        ("d", "drain which shard?"),
        ("1", "none) 1"),
        ("7", "none) 17"),
        ("\x7f", "none) 1"),
        ("q", "none) 1"),
    ):
        assert keys.press(typed, document()) is None and prompt in keys.view.prompt
    assert keys.press("\r", document()) is None and "drain shard 1" in keys.view.prompt and "Sure?" in keys.view.prompt
    keys.say("scale to 3: done")
    assert "Sure?" in keys.view.prompt, "a question was overwritten: a y would answer what nobody sees"
    order = keys.press("y", document())
    assert ("drain", {"shard": 1}) == (order.command, order.wanted)
    assert not keys.quit

    for typed in ("d1\rn", "d1\r\r", "d\r", "d9\ry", "d1\x1b", "y"):
        assert Keys(Screen()).press(typed, document()) is None, typed
    escaped = Keys(Screen())
    escaped.press("d1\r", document())
    assert escaped.press("\x1b", document()) is None and escaped.press("y", document()) is None


def test_while_the_help_is_open_no_key_acts_and_escape_leaves_it():
    keys = Keys(Screen(help=True))
    for key in "+-ad":
        assert keys.press(key, document()) is None and "" == keys.view.prompt and keys.view.help, key
    keys.press("\x1b[A", document())
    assert keys.view.help, "an arrow is no Escape"
    keys.press("\x1b", document())
    assert not keys.view.help and keys.press("+", document()) is not None


def test_other_keys_change_the_view_alone_and_arrows_nothing():
    keys = Keys(Screen())
    seen = []
    for _ in SORTS:
        assert keys.press("s", document()) is None
        seen.append(keys.view.sort)
    assert ["rate", "fill", "busy", "id"] == seen
    keys.press("p?", document())
    assert keys.view.paused and keys.view.help
    assert "scale auto" in "\n".join(shown(document(), view=keys.view))
    before = keys.view
    for arrow in ("\x1b[A", "\x1b[D", "\x1bOd", "x"):
        assert keys.press(arrow, document()) is None
    assert before == keys.view and not keys.quit
    keys.press("q", document())
    assert keys.quit


# ---- a real terminal -------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo terminal of 80 by 24 with `shardmem top` on it."""

    def __init__(self, *arguments, **environment):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shardmem", "top", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", **environment},
        )
        self.seen = ""

    def until(self, pattern, timeout=30.0):
        """What came since the last match, up to this one."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            ready = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"{pattern!r} was never shown; last:\n{self.seen[-3000:]!r}"
            self.seen += os.read(self.master, 1 << 16).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found

    def type(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """Its exit code; what it printed last is in `seen`."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            assert time.monotonic() < deadline, f"it does not end; last:\n{self.seen[-3000:]!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 1 << 16).decode(errors="replace")
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def engine(engine_name):
    with shardmem.Engine(engine_name, handler="json:loads", min_shards=1, max_shards=3, max_producers=2) as engine:
        yield engine


def test_keys_scale_the_engine_and_the_terminal_is_left_as_it_was(engine):
    with Terminal(engine.name, "--interval", "0.1") as terminal:
        terminal.until("1 of 3 shards")
        assert termios.tcgetattr(terminal.slave) != terminal.before, "keys come line by line"
        terminal.type("+")
        terminal.until("scale to 2: done")
        terminal.until("2 of 3 shards, manual")
        assert [0, 1] == sorted(shard["id"] for shard in engine.status()["shards"])
        terminal.type("d1\r")
        terminal.until("drain shard 1: its slots")
        terminal.type("y")
        terminal.until("drain shard 1: done, 512 slots moved")
        terminal.until("1 of 3 shards")
        terminal.type("d0\ry")
        terminal.until("shard 0 is the only one")
        terminal.type("q")
        assert 0 == terminal.end()
        assert terminal.before == termios.tcgetattr(terminal.slave)
        assert "\x1b[?1049l" in terminal.seen, "the screen was not given back"
        assert "\x1b[?25h" in terminal.seen, "the cursor is hidden"
    assert [0] == [shard["id"] for shard in engine.status()["shards"]]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 0)])
def test_a_signal_leaves_the_terminal_as_it_was(engine, number, code):
    with Terminal(engine.name) as terminal:
        terminal.until("q quit")
        terminal.process.send_signal(number)
        assert code == terminal.end()
        assert terminal.before == termios.tcgetattr(terminal.slave)
        assert "\x1b[?1049l" in terminal.seen and "\x1b[?25h" in terminal.seen


def test_without_a_terminal_one_frame_is_printed_in_what_the_locale_can_show(engine):
    done = subprocess.run(
        [sys.executable, "-m", "shardmem", "top", engine.name, "--interval", "0.1"],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
        timeout=60,
    )

    assert 0 == done.returncode, done.stderr.decode()
    text = done.stdout.decode("ascii")
    assert "\x1b" not in text and f"{engine.name[:28]}  running" in text and "offered 0 | accepted 0" in text
