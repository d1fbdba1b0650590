"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from shardmem.console.render import count

INTERVAL = 2.0


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
