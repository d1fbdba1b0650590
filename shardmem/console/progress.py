"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shardmem.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress  # loaded when there is a terminal: it costs as much as a file of 20 MB

INTERVAL = 2.0
FRAME = 0.1
LOOK_S = 0.3  # between two looks at what a command waits for


class Meter:
    """Counts events and bytes. total_bytes None: unknown (standard input)."""

    def __init__(self, total_bytes: int | None, *, quiet: bool = False, what: str = "ingesting") -> None:
        self.events = self.bytes = 0
        self._total, self._quiet, self._what = total_bytes, quiet, what
        self._started = self._said = self._drawn = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, rate="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, events: int, size: int) -> None:
        self.show(self.events + events, self.bytes + size)

    def show(self, events: int, size: int, name: str | None = None) -> None:
        """So many in all. name: of the file at hand."""
        self.events, self.bytes = events, size
        seconds = max(self.seconds, 1e-9)
        if not self._due():
            return
        from shardmem.console.render import count

        rate = f"{events:,} events, {count(events / seconds)}/s, {size / seconds / 1e6:.1f} MB/s"
        share = f" {size / self._total:.0%}" if self._total else ""
        self._say(name, rate, share, size)

    def wait(self, in_flight: int) -> None:
        """All is pushed; so many events are not handled yet."""
        if self._due():
            self._say(None, f"waiting for {in_flight:,} events to be handled", "", self._total or self.bytes)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._total or self.bytes)

    def _due(self) -> bool:
        now = time.monotonic()
        last, every = (self._drawn, FRAME) if self._bar is not None else (self._said, INTERVAL)
        if self._quiet or now - last < every:
            return False
        self._drawn = self._said = now
        return True

    def _say(self, name: str | None, rate: str, share: str, size: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=size, rate=rate, description=printable(name or self._what))
        else:
            print(f"{self._what}{f' {printable(name)}' if name else ''}:{share} {rate}", file=sys.stderr, flush=True)


class Waiting:
    """While a command waits, a line on a terminal says what for. look: that line, by now."""

    def __init__(self, look: Callable[[], str], *, quiet: bool = False) -> None:
        self._look, self._over = look, threading.Event()
        self._thread = threading.Thread(target=self._run) if not quiet and sys.stderr.isatty() else None

    def __enter__(self) -> Waiting:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()

    def _run(self) -> None:
        started, shown = time.monotonic(), False
        while not self._over.wait(LOOK_S):
            line = printable(f"{time.monotonic() - started:.0f} s: waiting for {self._look() or 'the supervisor'}")
            sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
            shown = True
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
