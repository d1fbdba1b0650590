"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from shardmem.console.render import count

INTERVAL = 2.0
LOOK_S = 0.3  # between two looks at what a command waits for


class Meter:
    """Counts events and bytes. total_bytes None: unknown (standard input)."""

    def __init__(self, total_bytes: int | None, *, quiet: bool = False, what: str = "ingesting") -> None:
        self.events = self.bytes = 0
        self.seconds = 0.0
        self._total, self._quiet, self._what = total_bytes, quiet, what
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        if not self._quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, rate="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, events: int, size: int) -> None:
        self.events += events
        self.bytes += size
        now = time.monotonic()
        self.seconds = now - self._started
        rate = f"{self.events:,} events, {count(self.events / max(self.seconds, 1e-9))}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.bytes, rate=rate)
        elif not self._quiet and now - self._said >= INTERVAL:
            self._said = now
            share = f" {self.bytes / self._total:.0%}" if self._total else ""
            print(f"{self._what}:{share} {rate}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.update(self._task, completed=self._total or self.bytes)


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
            line = f"{time.monotonic() - started:.0f} s: waiting for {self._look() or 'the supervisor'}"
            sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
            shown = True
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
