"""Handlers with a state of each slot, and handlers at whose points a test can strike."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from shardmem import Batch, Context, KeyedState
from shardmem.memory.native import arm_point
from support.recorder import Recorder, parse


class CountingSlots(Recorder):
    """Keeps how many events of each slot it has handled."""

    def open(self, context: Context) -> None:
        super().open(context)
        self.counts: dict[int, int] = {}

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        for slot in batch.slots.tolist():
            self.counts[slot] = self.counts.get(slot, 0) + 1

    def snapshot(self, slot: int) -> bytes:
        return b"%d" % self.counts.get(slot, 0)

    def restore(self, slot: int, state: bytes) -> None:
        self.counts[slot] = int(state)

    def drop(self, slot: int) -> None:
        self.counts.pop(slot, None)


POISON = 666


def arm_when_told(path: Path) -> None:
    """Once for each time that the file is written: it is removed when it is read. See rig.Rig.arm."""
    try:
        name, passes, number = path.read_text().split()
        path.unlink()
    except FileNotFoundError:
        return
    arm_point(name, int(passes), int(number))


def expect_sink(directory: Path) -> None:
    if (directory / "away").exists():
        raise ConnectionError("the sink is away")


class Lingering(Recorder):
    """Takes its time before and after it writes down what it handled, so that a kill finds a batch in hand. Raises at
    the key POISON, and ConnectionError while the file `away` is there, when it is opened too."""

    def open(self, context: Context) -> None:
        expect_sink(Path(os.environ["RECORD_DIR"]))
        super().open(context)

    def handle(self, batch: Batch) -> None:
        expect_sink(self.directory)
        arm_when_told(self.directory / f"arm-{self.context.shard}")
        if POISON in batch.keys:
            raise ValueError("poison")
        time.sleep(0.001)
        super().handle(batch)
        time.sleep(0.002)


class Counting(Lingering):
    """Stateful: counts the events of each producer and key. Event n must find the count n: each is counted exactly
    once."""

    def open(self, context: Context) -> None:
        super().open(context)
        self.counts: dict[int, dict[str, int]] = {}  # of each slot

    def handle(self, batch: Batch) -> None:
        for slot, (_, data) in zip(batch.slots.tolist(), batch):
            producer, key, number, _ = parse(data)
            counts, name = self.counts.setdefault(slot, {}), f"{producer}/{key}"
            if (counted := counts.get(name, 0)) != number:
                raise AssertionError(f"producer {producer}, key {key}: event {number} comes when {counted} are counted")
            counts[name] = number + 1
        super().handle(batch)

    def snapshot(self, slot: int) -> bytes:
        return json.dumps(self.counts.get(slot, {})).encode()

    def restore(self, slot: int, state: bytes) -> None:
        self.counts[slot] = json.loads(state)

    def drop(self, slot: int) -> None:
        self.counts.pop(slot, None)


class CountingByKey(Counting):
    """The same count by key, by a timer for each event, and by values that expire: what has happened and what is still
    to happen make the whole."""

    counted = KeyedState(int, default=0)
    fired = KeyedState(int, default=0)
    recent = KeyedState(int, default=0, ttl="300 ms")
    expired = KeyedState(int, default=0)

    def handle(self, batch: Batch) -> None:
        for key, data in batch:
            producer, _, number, _ = parse(data)
            self.counted[key] += 1
            self.recent[key] += 1
            self.timers.set(key, f"{producer}/{number}", after=0.01 * (number % 20))
        super().handle(batch)

    def on_timer(self, key: int, name: str) -> None:
        self.fired[key] += 1
        if self.fired[key] > self.counted[key]:
            raise AssertionError(f"key {key}: timer {name} is the {self.fired[key]}th of {self.counted[key]}")

    def on_expire(self, key: int, value: int) -> None:
        self.expired[key] += value
