"""Handlers with keyed state, for tests whose workers import them."""

from __future__ import annotations

import os
from pathlib import Path

import shardmem
from support.quarantine_load import Tally, arm


class KeyedTally(Tally):
    """The same count in three ways: by slot, by key, and by a timer for each event, of which each must fire once."""

    counted = shardmem.KeyedState(int, default=0)
    seen = shardmem.KeyedState(dict[str, int], default=dict)
    fired = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, data in batch:
            if self.counted[key] != (number := int(data.split()[0])):
                raise AssertionError(f"key {key}: event {number} comes when {self.counted[key]} are counted by key")
            self.counted[key] += 1
            self.seen[key]["events"] = number + 1
            self.timers.set(key, str(number), after=0.001 * (number % 50))
        super().handle(batch)

    def on_timer(self, key: int, name: str) -> None:
        if self.counted[key] <= int(name) or self.seen[key]["events"] != self.counted[key]:
            raise AssertionError(f"key {key}: timer {name} fires when {self.counted[key]} are counted")
        self.fired[key] += 1


class Expiring(shardmem.Handler):
    """How many values have expired, and the sum of them."""

    short = shardmem.KeyedState(int, default=0, ttl="200 ms")
    expired = shardmem.KeyedState(int, default=0)

    def open(self, context: shardmem.Context) -> None:
        arm(Path(os.environ["RECORD_DIR"]), context.incarnation)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, _ in batch:
            self.short[key] += 1

    def on_expire(self, key: int, value: int) -> None:
        self.expired[key] += value


class Typed(shardmem.Handler):
    """Says how often each key was seen; refuses keys of others."""

    visits = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, _ in batch:
            self.visits[key] += 1


class Misusing(shardmem.Handler):
    """The payload is the name of what is done wrong with one event."""

    visits = shardmem.KeyedState(int, default=0)
    notes = shardmem.KeyedState(dict[str, int], default=dict)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, what in batch:
            self.visits[key] += 1
            if what == b"wrong type":
                self.notes[key] = {"a": "b"}  # type: ignore[dict-item]
            elif what == b"changed in place":
                self.notes[key]["a"] = object()  # type: ignore[assignment]
            elif what == b"too large":
                self.visits[key] = 1 << 70
            elif what == b"other key":
                self.visits[key + 1] += 1


class Stubborn(shardmem.Handler):
    """The timer of key 7 raises until the file `mended` is there."""

    visits = shardmem.KeyedState(int, default=0)
    fired = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, _ in batch:
            self.visits[key] += 1
            self.timers.set(key, "once", after=0.01)

    def on_timer(self, key: int, name: str) -> None:
        self.fired[key] += 1
        if key == 7 and not (Path(os.environ["RECORD_DIR"]) / "mended").exists():
            raise ValueError("not yet")


class Counter(shardmem.Entity):
    """How many events it has had, and how often it came to life."""

    remember = True
    events: int = 0
    lives: int = 0

    def started(self) -> None:
        self.lives += 1

    def receive(self, events: list[bytes]) -> None:
        self.events += len(events)


class Rejecting(shardmem.Handler):
    """Counts by key what is good, and rejects the rest."""

    good = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        bad = []
        for row, (key, payload) in enumerate(batch):
            if payload == b"good":
                self.good[key] += 1
            else:
                bad.append(row)
        batch.reject(bad, "it is bad")


class Raising(shardmem.Handler):
    """Counts by key what is good, and raises at the rest."""

    good = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            if payload != b"good":
                raise ValueError("it is bad")
            self.good[key] += 1
