"""Handlers that count what comes from partitions, and fail when it is not the next of its key. Workers import them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import shardmem
from support.quarantine_load import arm


def expect(key: Any, found: int, payload: bytes) -> int:
    if found != (number := int(payload)):
        raise AssertionError(f"key {key}: event {number} comes when {found} are counted")
    return number + 1


class Keyed(shardmem.Handler):
    counted = shardmem.KeyedState(int, default=0)
    fired = shardmem.KeyedState(int, default=0)

    def open(self, context: shardmem.Context) -> None:
        arm(Path(os.environ["RECORD_DIR"]), context.incarnation)

    def handle(self, batch: shardmem.Batch) -> None:
        for key, payload in batch:
            self.counted[key] = expect(key, self.counted[key], payload)
            self.timers.set(key, str(int(payload)), after=0.001 * (int(payload) % 20))

    def on_timer(self, key: int, name: str) -> None:
        if self.counted[key] <= int(name):
            raise AssertionError(f"key {key}: timer {name} fires when {self.counted[key]} are counted")
        self.fired[key] += 1


class Counter(shardmem.Entity):
    counted = 0

    def receive(self, events: list[bytes]) -> None:
        for payload in events:
            self.counted = expect(self.key, self.counted, payload)


class Raw:
    """State in a form of its own, by slot."""

    def __init__(self) -> None:
        self.counted: dict[int, dict[str, int]] = {}

    def handle(self, batch: shardmem.Batch) -> None:
        for slot, (key, payload) in zip(batch.slots.tolist(), batch):
            mine = self.counted.setdefault(slot, {})
            mine[str(key)] = expect(key, mine.get(str(key), 0), payload)

    def snapshot(self, slot: int) -> bytes:
        return json.dumps(self.counted.get(slot, {})).encode()

    def restore(self, slot: int, state: bytes) -> None:
        self.counted[slot] = json.loads(state)

    def drop(self, slot: int) -> None:
        self.counted.pop(slot, None)


class Picky(Keyed):
    """Rejects every tenth event of a key, and fails at every fifteenth the first time that a worker sees it."""

    refused = shardmem.KeyedState(int, default=0)

    def handle(self, batch: shardmem.Batch) -> None:
        for row, (key, payload) in enumerate(batch):
            number = int(payload)
            if number % 10 == 9:
                batch.reject(row, "each tenth")
                self.refused[key] += 1
                self.counted[key] = expect(key, self.counted[key], payload)
                continue
            if number % 15 == 7 and (key, number) not in _failed:
                _failed.add((key, number))
                raise ValueError("not yet")
            self.counted[key] = expect(key, self.counted[key], payload)


_failed: set[tuple[Any, int]] = set()
