"""Handlers for the tests of quarantine and of state: they live in a module of their own, because workers import
them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from shardmem import Context, Handler
from shardmem.memory.native import arm_point
from shardmem.runtime.state_reader import StateReader


def no_odd_ones(batch) -> None:
    if (batch.records["number"] % 2).any():
        raise ValueError("an odd one")


def no_odd_ones_of_events(batch) -> None:
    if not (Path(os.environ["RECORD_DIR"]) / "mended").exists() and any(int(data) % 2 for _, data in batch):
        raise ValueError("an odd one")


def arm(directory: Path, incarnation: int) -> None:
    """Each line of the file `arm` is for one life: the point at which it ends, on which pass, and by which signal."""
    plan = directory / "arm"
    lives = plan.read_text().splitlines() if plan.exists() else []
    if incarnation <= len(lives) and lives[incarnation - 1]:
        name, passes, number = lives[incarnation - 1].split()
        arm_point(name, int(passes), int(number))


class Tally(Handler):
    """How many events of each key it has seen. Event n of a key must find the count n: each is counted exactly once."""

    def open(self, context: Context) -> None:
        self.context, self.counts = context, {}
        arm(Path(os.environ["RECORD_DIR"]), context.incarnation)

    def handle(self, batch) -> None:
        for key, data in batch:
            number = int(data.split()[0])
            if self.counts.get(key, 0) != number:
                raise AssertionError(f"key {key}: event {number} comes when {self.counts.get(key, 0)} are counted")
            self.counts[key] = number + 1
            if data.endswith(b"bad"):
                raise ValueError("after it was counted")

    def _of(self, slot: int) -> dict:
        return {key: count for key, count in self.counts.items() if self.context.slot(key) == slot}

    def snapshot(self, slot: int) -> bytes:
        return json.dumps(self._of(slot)).encode()

    def restore(self, slot: int, state: bytes) -> None:
        self.counts.update((int(key), count) for key, count in json.loads(state).items())

    def drop(self, slot: int) -> None:
        for key in self._of(slot):
            del self.counts[key]


class TallyWithoutDrop(Tally):
    drop = None


class TallyOfKeyed(Tally):
    def handle(self, batch) -> None:
        super().handle((key, data) for key, data in batch if key is not None)


class Mendable(Tally):
    """Cannot do anything until the file `mended` is there; then it counts, in whatever order."""

    def handle(self, batch) -> None:
        mendable(batch)
        for key in batch.keys:
            self.counts[key] = self.counts.get(key, 0) + 1


class MendableInOrder(Tally):
    """The same, and each event must find what Tally asks for."""

    def handle(self, batch) -> None:
        mendable(batch)
        super().handle(batch)


class Rejecting(Tally):
    """Rejects what is bad, and counts the rest."""

    def handle(self, batch) -> None:
        batch.reject([at for at, (_, data) in enumerate(batch) if data.endswith(b"bad")], "it is bad")
        super().handle([(key, data) for key, data in batch if not data.endswith(b"bad")])


def mendable(batch) -> None:
    if not (Path(os.environ["RECORD_DIR"]) / "mended").exists():
        raise ValueError("to be mended")


def dies_of_bad(batch) -> None:
    for _, data in batch:
        if data.endswith(b"bad"):
            os.kill(os.getpid(), signal.SIGSEGV)


def totals(directory: str) -> dict[int, int]:
    """What the state files of Tally say."""
    with contextlib.closing(StateReader(directory)) as reader:
        found: dict[int, int] = {}
        for value in reader.snapshots().values():
            found.update((int(key), count) for key, count in json.loads(value).items())
    return found


class CannotSnapshot(Tally):
    def snapshot(self, slot: int) -> bytes:
        raise KeyError("no")


class Identified(Handler):
    """Writes down what identifies each event that it handles."""

    def open(self, context: Context) -> None:
        self.context = context

    def handle(self, batch) -> None:
        with open(Path(os.environ["RECORD_DIR"]) / "identities", "a") as file:
            for producer, sequence in zip(batch.producers.tolist(), batch.sequences.tolist()):
                print(self.context.engine_id, producer, sequence, file=file)
