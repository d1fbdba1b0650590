"""`shardmem ingest`: files and streams into an engine, and what became of them."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shardmem.console.progress import Meter
from shardmem.errors import ConfigError, ShardmemError
from shardmem.runtime.call import DEFAULT
from shardmem.runtime.child import ExitCode
from shardmem.runtime.producer import Outcome, Producer, connect
from shardmem.settings import some
from shardmem.sources.contract import Position
from shardmem.sources.files.inputs import STDIN
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.positions import Positions
from shardmem.sources.files.rejects import DeadLetters
from shardmem.sources.files.source import FileSource, expand
from shardmem.sources.runner import Limits, Runner, Tally, TooManyBad

GRACE = 2.0  # seconds that an interrupted run waits for its events to be handled, so that its positions say so


@dataclass
class Wish:
    """What one run was asked for."""

    names: tuple[str, ...]
    options: FileOptions
    limits: Limits
    allowed: tuple[int | None, float | None] = (0, None)  # events and records that may go amiss: so many, or a share
    follow: bool = False
    from_end: bool = False
    start: int | None = None
    positions: str | None = None
    jobs: int = 1
    dead_letter: str | None = None
    backpressure: str = "block"
    timeout: float | None = None
    wait: bool = True

    @property
    def drops(self) -> bool:
        return self.backpressure in ("drop_newest", "drop_oldest", "sample")


class Ingest:
    """One run. `run` returns the exit code; `summary` says what became of the events."""

    def __init__(self, engine: str, wish: Wish, meter: Meter) -> None:
        self.engine, self.wish, self._meter = engine, wish, meter
        self.tally, self.stop = Tally(), threading.Event()
        self.error: ShardmemError | None = None
        self.interrupted: str | None = None
        self.left: deque[str] = deque()  # files that were not begun
        self._producers: list[Producer] = []
        self._runners: list[Runner] = []
        self._outcome: Outcome = {"accepted": 0, "handled": 0, "quarantined": 0, "skipped": 0, "shed": 0, "refused": {}}
        self._handled_all = False

    def run(self) -> None:
        """Raises ConfigError, and what connecting raises, before anything is pushed; what comes later is `error`."""
        wish = self.wish
        names = list(wish.names) or [STDIN]
        if not wish.follow:
            names = expand(names)
        self.left = deque(names)
        letters, positions = DeadLetters(wish.dead_letter), None
        jobs = max(1, min(wish.jobs, len(names)))
        try:
            positions = Positions(wish.positions) if wish.positions is not None else None
            for _ in range(jobs):
                self._producers.append(connect(self.engine, backpressure=wish.backpressure, reconnect=False))  # type: ignore[arg-type]
            self._runners = [
                self._runner(producer, self.left if not wish.follow else deque(names[i::jobs]), positions, letters)
                for i, producer in enumerate(self._producers)
            ]
            with _Signals(self._interrupt):
                self._drive()
                self._finish()
            self._take_stock()
        finally:
            for producer in self._producers:
                producer.close()
            letters.close()
            if positions is not None:
                positions.close()

    def _runner(
        self, producer: Producer, names: deque[str], positions: Positions | None, letters: DeadLetters
    ) -> Runner:
        wish = self.wish
        source = FileSource(
            names,
            wish.options,
            producer.schema,
            producer.largest,
            follow=wish.follow,
            from_end=wish.from_end,
            start=None if wish.start is None else Position(wish.start),
            positions=positions,
            keep_all=wish.dead_letter is not None,
        )
        return Runner(
            source,
            producer,
            limits=wish.limits,
            tally=self.tally,
            stop=self.stop,
            rejected=letters.put,
            progress=self._show,
            timeout=DEFAULT if wish.timeout is None else wish.timeout,
        )

    def _drive(self) -> None:
        if len(self._runners) == 1:
            self._drive_one(self._runners[0])
            return
        threads = [threading.Thread(target=self._drive_one, args=(runner,), daemon=True) for runner in self._runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # so that signals are handled

    def _drive_one(self, runner: Runner) -> None:
        try:
            runner.run()
        except ShardmemError as error:
            if self.error is None and self.interrupted is None:
                self.error = error
            self.stop.set()

    def _finish(self) -> None:
        wait = self.wish.wait and self.error is None
        grace = GRACE if self.interrupted is not None or self.error is not None else None
        try:
            done = [
                runner.finish(wait or bool(self.wish.positions), self._show_wait, grace) for runner in self._runners
            ]
            self._handled_all = all(done) and wait
        except ShardmemError as error:
            self.error = self.error or error

    def _interrupt(self, name: str) -> None:
        if self.interrupted is not None:
            os._exit(1)  # a second time: at once
        self.interrupted = name
        self.stop.set()
        for producer in self._producers:
            producer.interrupt()

    def _show(self, partition: str) -> None:
        self._meter.show(self.tally.events, self.tally.bytes, partition)

    def _show_wait(self) -> None:
        self._take_stock()
        outcome = self._outcome
        done = outcome["handled"] + outcome["quarantined"] + outcome["skipped"] + outcome["shed"]
        self._meter.wait(outcome["accepted"] - done)

    def _take_stock(self) -> None:
        outcomes = [producer.outcome() for producer in self._producers]
        refused: dict[str, int] = {}
        for outcome in outcomes:
            for reason, number in outcome["refused"].items():
                refused[reason] = refused.get(reason, 0) + number
        self._outcome = {
            "accepted": sum(each["accepted"] for each in outcomes),
            "handled": sum(each["handled"] for each in outcomes),
            "quarantined": sum(each["quarantined"] for each in outcomes),
            "skipped": sum(each["skipped"] for each in outcomes),
            "shed": sum(each["shed"] for each in outcomes),
            "refused": refused,
        }

    # ---- what became of it
    # -----------------------------------------------------------------------------------------------

    @property
    def amiss(self) -> int:
        """Records and events that did not get to where they belong."""
        outcome = self._outcome
        lost = 0 if self.wish.drops else outcome["shed"] + sum(outcome["refused"].values())
        return (
            self.tally.skipped + outcome["quarantined"] + (lost if self.error is None and not self.interrupted else 0)
        )

    @property
    def code(self) -> int:
        most, share = self.wish.allowed
        allowed = most if share is None else int(share * (self.tally.events + self.tally.skipped))
        if isinstance(self.error, ConfigError):
            return ExitCode.CONFIG
        failed = self.error is not None or (self.interrupted is not None and not self.wish.follow)
        return int(failed or (allowed is not None and self.amiss > allowed))

    def next(self) -> list[dict[str, Any]]:
        """Where to go on: files that were begun and did not come to their end, and those that were not begun."""
        found = []
        for runner in self._runners:
            source = runner.source
            assert isinstance(source, FileSource)
            for name in source.unfinished(self.tally.places):
                place = self.tally.places.get(name, Position(0, "line 1"))
                line = int(place.metadata.partition(" ")[2] or 0) or None
                name = STDIN if name == "standard input" else name
                found.append({"file": name, "byte": place.offset, "line": line})
        return found + [{"file": name, "byte": 0, "line": 1} for name in self.left if not self.wish.follow]

    def summary(self) -> dict[str, Any]:
        tally, outcome, seconds = self.tally, self._outcome, self._meter.seconds
        made: dict[str, Any] = {
            "engine": self.engine,
            "events": tally.events,
            **outcome,
            "skipped": tally.skipped,
            "reasons": dict(tally.reasons.most_common()),
            "bytes": tally.bytes,
            "seconds": round(seconds, 3),
            "rate": round(tally.events / max(seconds, 1e-9)),
            "complete": self._handled_all,
        }
        if self.error is not None:
            made |= self.error.describe()
        if self.interrupted is not None:
            made["interrupted"] = self.interrupted
        if self.error is not None or self.interrupted is not None:
            made["next"] = self.next()
            note = next((runner.next for runner in self._runners if runner.next), None)
            if note is not None:
                made["note"] = note
        return made

    def line(self) -> str:
        """The result for people."""
        from shardmem.console.render import count

        tally, outcome, seconds = self.tally, self._outcome, self._meter.seconds
        rate = f"{count(tally.events / max(seconds, 1e-9))}/s, {tally.bytes / max(seconds, 1e-9) / 1e6:.1f} MB/s"
        text = f"{some(tally.events, 'event')} in {seconds:.2f} s ({rate})"
        parts = [f"{outcome['quarantined']:,} quarantined"] if outcome["quarantined"] else []
        parts += [f"{outcome['shed']:,} shed"] if outcome["shed"] else []
        parts += [f"{number:,} refused ({reason})" for reason, number in outcome["refused"].items()]
        if tally.skipped:
            why = ", ".join(f"{number:,} {reason}" for reason, number in tally.reasons.most_common(5))
            parts.append(f"{some(tally.skipped, 'record')} skipped ({why})")
        if self._handled_all:
            parts.insert(
                0, "all handled" if outcome["handled"] == outcome["accepted"] else f"{outcome['handled']:,} handled"
            )
        return ", ".join([text, *parts])

    def trouble(self) -> tuple[str, list[str]]:
        """What cut the run off, and hints: where to go on."""
        if self.error is None and self.wish.follow:  # how it is meant to end
            return "", [] if self.wish.positions else ["with --resume the next run goes on from here"]
        text = f"interrupted by {self.interrupted}" if self.error is None else str(self.error)
        hints = [self.error.hint] if self.error is not None and self.error.hint else []
        if isinstance(self.error, ConfigError) and not self.tally.events:
            return text, hints
        text += f"; {some(self.tally.events, 'event')} accepted before that"
        text += "".join(f"; {runner.next}" for runner in self._runners if runner.next)
        if isinstance(self.error, TooManyBad):
            hints.append("--skip-bad leaves such records out, --dead-letter FILE keeps them, --max-bad N allows some")
        if self.wish.positions is not None:
            hints.append("the same command goes on from there; its positions are kept")
        for each in self.next()[:5] if self.wish.positions is None else ():
            where = f" --from {each['byte']}" if each["byte"] else ""
            line = f" (line {each['line']})" if each["line"] and each["byte"] else ""
            hints.append(f"to go on: shardmem ingest ...{where} {each['file']}{line}")
        return text, hints


class _Signals:
    """INT and TERM as a call, while the block runs; in the main thread only, where signals arrive."""

    def __init__(self, call: Callable[[str], None]) -> None:
        self._call, self._before = call, {}  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda got, _: self._call(signal.Signals(got).name))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def total_of(names: Sequence[str], follow: bool) -> int | None:
    """Bytes of all files; None if that cannot be told: of streams, of what is compressed or followed. Raises
    ConfigError."""
    if follow or not names or STDIN in names:
        return None
    total = 0
    for name in expand(names):
        if not os.path.isfile(name):
            return None
        try:
            with open(name, "rb") as file:
                head = file.read(4)
        except OSError:
            return None  # reading it says more
        if head[:2] == b"\x1f\x8b" or head == b"\x28\xb5\x2f\xfd":
            return None
        total += os.path.getsize(name)
    return total
