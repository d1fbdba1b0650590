"""`shardmem top`: an engine as it runs, and a few keys. It reads shared memory; only commands need a supervisor."""

from __future__ import annotations

import dataclasses
import os
import queue
import select
import signal
import sys
import termios
import threading
import time
import tty
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live

from shardmem.client.client import Client
from shardmem.console.top_view import SORTS, Rates, Screen, frame
from shardmem.errors import ShardmemError, with_hint
from shardmem.status.document import Status
from shardmem.status.findings import shard_count
from shardmem.text import plural


@dataclass(frozen=True)
class Order:
    """What a key asks of the supervisor. says: the same for people."""

    command: str
    wanted: dict[str, Any]
    says: str


class Keys:
    """What each key does, without doing it: keys in; view, orders and the end out."""

    def __init__(self, view: Screen) -> None:
        self.view = view
        self.quit = False
        self._asking: str | None = None  # the digits typed so far
        self._sure: Order | None = None  # what waits for a yes

    def press(self, text: str, document: Status) -> Order | None:
        """All that was typed at once. Arrows and the like are ignored: their letters must not be taken for keys."""
        if text.startswith("\x1b"):
            self._ask(None, "")
            if text == "\x1b":
                self.view = dataclasses.replace(self.view, help=False)
            return None
        orders = [order for key in text if (order := self._press(key, document)) is not None]
        return orders[-1] if orders else None

    def _press(self, key: str, document: Status) -> Order | None:
        if self._sure is not None:
            order, self._sure = self._sure, None
            self._ask(None, "" if key == "y" else "not done")
            return order if key == "y" else None
        if self._asking is not None:
            self._number(key, document)
            return None
        view = self.view
        self.view = view = dataclasses.replace(view, prompt="")
        active = shard_count(document)
        if view.help and key in "+-ad":  # the user reads what they do
            return None
        if key in "q\x04":
            self.quit = True
        elif key == "s":
            self.view = dataclasses.replace(view, sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)])
        elif key == "p":
            self.view = dataclasses.replace(view, paused=not view.paused)
        elif key == "?":
            self.view = dataclasses.replace(view, help=not view.help)
        elif key == "a":
            return Order("scale", {"shards": "auto"}, "scale auto")
        elif key in "+-":
            wanted = active + (1 if key == "+" else -1)
            if wanted >= 1:
                return Order("scale", {"shards": wanted}, f"scale to {wanted}")
            self.say("one shard is the minimum; `shardmem stop` stops the engine")
        elif key == "d":
            self._ask("", "drain which shard? (number, Enter; Esc: none) ")
        return None

    def say(self, text: str) -> None:
        """In place of the line of keys, until the next key. A question that is open stays."""
        if self._asking is None and self._sure is None:
            self.view = dataclasses.replace(self.view, prompt=text)

    def _ask(self, asking: str | None, prompt: str) -> None:
        self._asking, self._sure = asking, None
        self.view = dataclasses.replace(self.view, prompt=prompt)

    def _number(self, key: str, document: Status) -> None:
        typed = self._asking or ""
        if key in "\r\n":
            if not typed:
                self._ask(None, "")
            elif int(typed) not in {shard["id"] for shard in document["shards"]}:
                self._ask(None, f"there is no shard {typed}")
            else:
                self._ask(None, f"drain shard {typed}: its slots go to the others and it is removed. Sure? (y/n) ")
                self._sure = Order("drain", {"shard": int(typed)}, f"drain shard {typed}")
            return
        typed = typed[:-1] if key in "\x7f\b" else typed + key if key.isdecimal() and len(typed) < 4 else typed
        self._ask(typed, f"drain which shard? (number, Enter; Esc: none) {typed}")


class Errands:
    """One order at a time, in a thread of its own: a handoff may take long, and the display goes on."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._under_way: Order | None = None
        self._outcomes: queue.SimpleQueue[str] = queue.SimpleQueue()

    def send(self, order: Order) -> str:
        """What to say of it now."""
        if self._under_way is not None:
            return f"not done: {self._under_way.says} is still running"
        self._under_way = order
        threading.Thread(target=self._carry_out, args=(order,), daemon=True).start()
        return f"{order.says} ..."

    def outcome(self) -> str | None:
        try:
            said = self._outcomes.get_nowait()
        except queue.Empty:
            return None
        self._under_way = None
        return said

    def _carry_out(self, order: Order) -> None:
        try:
            with Client(self._engine) as client:
                done = client.command(order.command, **order.wanted)
            self._outcomes.put(f"{order.says}: done, {plural(len(done['moved']), 'slot')} moved")
        except Exception as error:  # any: the display goes on, and shows it
            self._outcomes.put(f"{order.says}: {with_hint(error)}")


class Source:
    """Documents of one engine, by its name: when it ends and runs again, that is shown."""

    def __init__(self, engine: str) -> None:
        self._engine, self._client = engine, Client(engine)
        self._last: tuple[float, Status] | None = None

    def look(self) -> tuple[Status, Rates, bool]:
        """A document, the rates since the last one, and whether the engine's memory is gone."""
        document, gone = self._client.status(), False
        if not document["supervisor"]["alive"] and not self._client.is_current():
            try:
                again = Client(self._engine)  # ours was removed, and another made since
                self._client.close()
                self._client, document = again, again.status()
            except ShardmemError:
                gone = True
        now, before = time.monotonic(), self._last
        self._last = now, document
        same = before is not None and before[1]["accounting"]["accepted"] <= document["accounting"]["accepted"]
        rates = Rates.between(before[1], document, now - before[0]) if before is not None and same else Rates()
        return document, rates, gone

    def close(self) -> None:
        self._client.close()


def is_plain(console: Console) -> bool:
    """Whether the terminal shows ASCII only."""
    return not (console.encoding or "").lower().startswith("utf")


def once(engine: str, interval: float) -> None:
    """One frame. It takes the interval, because a rate needs two looks."""
    console = Console(highlight=False)
    source = Source(engine)
    try:
        source.look()
        time.sleep(interval)
        document, rates, gone = source.look()
    finally:
        source.close()
    console.print(
        frame(document, rates, Screen(ascii=is_plain(console), gone=gone, keys=False, rows=1 << 16)), soft_wrap=True
    )


def watch(engine: str, interval: float) -> None:
    """Until `q`. The terminal is left as it was found, however this ends."""
    console = Console(highlight=False)
    source, errands, keys = Source(engine), Errands(engine), Keys(Screen(ascii=is_plain(console)))
    keyboard = sys.stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with _Typing(keyboard, modes), Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
            _show(live, console, source, errands, keys, interval, keyboard)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        source.close()


def _show(
    live: Live, console: Console, source: Source, errands: Errands, keys: Keys, interval: float, keyboard: int
) -> None:
    document, rates, gone = source.look()
    due = time.monotonic() + interval
    while not keys.quit:
        keys.view = dataclasses.replace(keys.view, rows=console.size.height, gone=gone)
        live.update(frame(document, rates, keys.view), refresh=True)
        # The outcome of an order is looked for more often than the engine.
        if select.select([keyboard], [], [], max(0.0, min(0.1, due - time.monotonic())))[0]:
            typed = os.read(keyboard, 64)
            if not typed:
                return
            if (order := keys.press(typed.decode(errors="replace"), document)) is not None:
                keys.say(errands.send(order))
        if (said := errands.outcome()) is not None:
            keys.say(said)
        if time.monotonic() >= due:
            due = time.monotonic() + interval
            if not keys.view.paused:
                document, rates, gone = source.look()


class _Typing:
    """Keys come one by one and are not shown."""

    def __init__(self, keyboard: int, modes: list[Any]) -> None:
        self._keyboard, self._modes = keyboard, modes

    def __enter__(self) -> None:
        tty.setcbreak(self._keyboard, termios.TCSANOW)

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._modes)


def _end(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def run(engine: str, interval: float, one_frame: bool) -> None:
    """A display with keys where there is a terminal for both, one frame elsewhere."""
    console = Console()
    if one_frame or not sys.stdout.isatty() or console.is_dumb_terminal or not sys.stdin.isatty():
        once(engine, interval)
    else:
        watch(engine, interval)
