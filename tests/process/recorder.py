"""Handlers for process tests, and the events that they check. Imported by workers, so it imports little.

A worker writes what it handled to files in $RECORD_DIR, which the checker reads. Before each batch it passes a gate: a
lock on a file that a test may hold, so that a test decides when a batch goes on, and nobody polls.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from checker import HANDLED

from shardmem import Batch, Context, Handler
from shardmem.memory.native import arm_point

RECORD = np.dtype([("key", "u8"), ("number", "u8"), ("producer", "u4"), ("check", "u4"), ("filler", "u8", (2,))])
_HEAD = struct.Struct("<IIQQ")  # check, producer, key, number; then bytes that follow from the number


def payload(producer: int, key: int, number: int, filler: int = 0) -> bytes:
    body = _HEAD.pack(0, producer, key, number)[4:] + (number & 0xFF).to_bytes(1, "little") * filler
    return zlib.crc32(body).to_bytes(4, "little") + body


def parse(data: bytes) -> tuple[int, int, int, bool]:
    """(producer, key, number, is it whole)."""
    if len(data) < _HEAD.size:
        return 0, 0, 0, False
    check, producer, key, number = _HEAD.unpack_from(data)
    return producer, key, number, zlib.crc32(data[4:]) == check


def records(producer: int, keys: Any, numbers: Any, dtype: np.dtype = RECORD) -> np.ndarray:
    rows = np.empty(len(keys), dtype)
    rows["key"], rows["number"], rows["producer"] = keys, numbers, producer
    rows["filler"] = rows["number"][:, None] * np.arange(1, dtype["filler"].shape[0] + 1, dtype="u8")
    rows["check"] = _check_of(rows)
    return rows


def _check_of(rows: np.ndarray) -> np.ndarray:
    mixed = rows["key"] * np.uint64(0x9E3779B97F4A7C15) + rows["number"] * np.uint64(31) + rows["producer"]
    return ((mixed ^ rows["filler"].sum(axis=1)) >> np.uint64(7)).astype("u4")


def whole(rows: np.ndarray) -> np.ndarray:
    return rows["check"] == _check_of(rows)


class Recorder(Handler):
    """Writes down every event of the batch before it returns."""

    def open(self, context: Context) -> None:
        self.context = context
        self.directory = Path(os.environ["RECORD_DIR"])
        self._log = os.open(
            self.directory / f"handled-{context.shard}-{context.incarnation}-{os.getpid()}",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o600,
        )
        self._gates = [
            os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("gate", f"gate-{context.shard}")
        ]

    def handle(self, batch: Batch) -> None:
        start = time.monotonic_ns()
        self.pass_gate(batch)
        rows = self.rows_of(batch)
        rows["start"], rows["end"] = start, time.monotonic_ns()
        os.write(self._log, rows.tobytes())

    def pass_gate(self, batch: Batch) -> None:
        for gate in self._gates:
            try:
                fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                (self.directory / f"waits-{self.context.shard}").touch()
                fcntl.flock(gate, fcntl.LOCK_SH)
                (self.directory / f"waits-{self.context.shard}").unlink()
            fcntl.flock(gate, fcntl.LOCK_UN)

    def rows_of(self, batch: Batch) -> np.ndarray:
        rows = np.zeros(len(batch), HANDLED)
        rows["shard"], rows["incarnation"], rows["slot"] = self.context.shard, self.context.incarnation, batch.slots
        try:
            events = batch.records
        except TypeError:
            parsed = []
            for key, data in batch:
                producer, inner, number, good = parse(data)
                parsed.append((producer, inner, number, good and key in (inner, None, str(inner), b"%d" % inner)))
            rows["producer"], rows["key"], rows["number"], rows["good"] = np.array(parsed, "u8").T
        else:
            for name in ("producer", "key", "number"):
                rows[name] = events[name]
            rows["good"] = whole(events)
        return rows

    def close(self) -> None:
        for descriptor in (self._log, *self._gates):
            os.close(descriptor)


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


class Owner(Recorder):
    """Writes down which slots it gains and loses, in one file of all shards, and refuses events of other slots."""

    def open(self, context: Context) -> None:
        super().open(context)
        self.mine: set[int] = set()
        self._told = os.open(self.directory / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def handle(self, batch: Batch) -> None:
        strange = set(batch.slots.tolist()) - self.mine
        assert not strange, f"shard {self.context.shard} was given events of slots {strange}, which it has not gained"
        self.tell("handles", sorted(set(batch.slots.tolist())))
        super().handle(batch)

    def gained(self, slots: list[int]) -> None:
        if (self.directory / "refuse-gained").exists():
            raise OSError("no room for more")
        self.mine.update(slots)
        self.tell("gained", slots)

    def lost(self, slots: list[int]) -> None:
        if (self.directory / "refuse-lost").exists():
            raise OSError("cannot let go")
        self.mine.difference_update(slots)
        self.tell("lost", slots)

    def tell(self, what: str, slots: list[int]) -> None:
        line = [what, self.context.shard, self.context.incarnation, slots]
        os.write(self._told, json.dumps(line).encode() + b"\n")


class StatefulOwner(Owner):
    """Without `drop`: it is made again when a slot goes."""

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
        assert slot not in self.mine, f"slot {slot} was gained before its state was there"
        self.counts[slot] = int(state)


class Failing(Recorder):
    """Raises ValueError at the event whose number is in the file `poison`, until that file is removed."""

    def handle(self, batch: Batch) -> None:
        poison = self.directory / "poison"
        if poison.exists():
            wanted = int(poison.read_text())
            for _, data in batch:
                if parse(data)[2] == wanted:
                    raise ValueError(f"cannot stand number {wanted}")
        super().handle(batch)


class FailingAtOnce(Handler):
    def handle(self, batch: Batch) -> None:
        raise KeyError("at once")


class FailingAfterList(Handler):
    def handle(self, batch: Batch) -> None:
        key, data = list(batch)[0]
        raise ValueError(f"key {key} is too much")


class FailingOnSecondLook(Handler):
    def handle(self, batch: Batch) -> None:
        total = sum(len(data) for _, data in batch)
        raise ValueError(f"{total} bytes are too much")


class FailingAtLength(Handler):
    def handle(self, batch: Batch) -> None:
        raise ValueError("é" * 3000)


class FailingToOpen(Handler):
    def open(self, context: Context) -> None:
        raise OSError("the warehouse is closed")

    def handle(self, batch: Batch) -> None: ...


class FailingToBuild(Handler):
    def __init__(self) -> None:
        raise RuntimeError("no blueprint")


class FailingToClose(Recorder):
    def close(self) -> None:
        super().close()
        raise OSError("the last page cannot be written")


class Leaving(Handler):
    def handle(self, batch: Batch) -> None:
        raise SystemExit(0)


class Fragile(Recorder):
    """Does in open() and in handle() what the files `open` and `handle` say: raise, or exit with that code."""

    def open(self, context: Context) -> None:
        self.break_as_told(Path(os.environ["RECORD_DIR"]) / "open")
        super().open(context)

    def handle(self, batch: Batch) -> None:
        self.break_as_told(self.directory / "handle")
        super().handle(batch)

    @staticmethod
    def break_as_told(how: Path) -> None:
        if how.exists():
            if (told := how.read_text()) == "raise":
                raise OSError("as told")
            os._exit(int(told))


class Hangs(Recorder):
    """Does not come back from handle() as long as there is a file `hang` when it is called."""

    def handle(self, batch: Batch) -> None:
        if (self.directory / "hang").exists():
            self.hang()
        super().handle(batch)

    def hang(self) -> None:
        while True:
            time.sleep(3600)


class Chatty(Recorder):
    """Says something of every batch."""

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        self.context.log.info("%d events", len(batch))


class Hanging(Handler):
    """Does not come back from open()."""

    def open(self, context: Context) -> None:
        while True:
            time.sleep(3600)

    def handle(self, batch: Batch) -> None: ...


class Hesitating(Recorder):
    """Waits in open() as long as somebody holds the lock `open-SHARD-INCARNATION`."""

    def open(self, context: Context) -> None:
        gate = os.open(
            Path(os.environ["RECORD_DIR"]) / f"open-{context.shard}-{context.incarnation}",
            os.O_RDWR | os.O_CREAT,
            0o600,
        )
        fcntl.flock(gate, fcntl.LOCK_SH)
        os.close(gate)
        super().open(context)


NOT_A_HANDLER = 42


def nothing(batch: Batch) -> None: ...


class Keeper(Recorder):
    """Keeps a view of its first batch, made as the file `keep` says."""

    kept: Any = None

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        how = self.directory / "keep"
        if how.exists() and int(self.rows_of(batch)["number"][0]) >= self.first():
            self.kept = KEEP[how.read_text()](batch)

    def first(self) -> int:
        path = self.directory / "keep-from"
        return int(path.read_text()) if path.exists() else 0


class KeepsCopies(Recorder):
    """Keeps a copy of every batch, and at each later one looks whether the copies still say the same."""

    def handle(self, batch: Batch) -> None:
        if not hasattr(self, "copies"):
            self.copies: list[tuple[Batch, list]] = []
        for copy, said in self.copies:
            if self.told_by(copy) != said:
                raise AssertionError("a copy has changed")
        self.copies.append((batch.copy(), self.told_by(batch)))
        super().handle(batch)

    @staticmethod
    def told_by(batch: Batch) -> list:
        events = [repr(event) for event in batch]  # of a record, tolist() would hold views of its inner arrays
        return [
            len(batch),
            events,
            list(batch.keys),
            batch.slots.tolist(),
            batch.sequences.tolist(),
            batch.producers.tolist(),
        ]


class LateUser(Recorder):
    """Keeps its first batch, and when the second comes does to it what the names of the files `late-*` say."""

    first: Any = None

    def handle(self, batch: Batch) -> None:
        if self.first is None:
            self.first = batch
        else:
            for path in self.directory.glob("late-*"):
                try:
                    KEEP[path.name.removeprefix("late-")](self.first)
                except Exception as error:
                    path.write_text(f"{type(error).__name__}: {error}")
        super().handle(batch)


class Careless(Recorder):
    """The same, and does not expect an error."""

    first: Any = None

    def handle(self, batch: Batch) -> None:
        self.first = self.first or batch
        super().handle(self.first)


KEEP = {
    # records
    "array": lambda batch: batch.records,
    "slice": lambda batch: batch.records[1:3],
    "field": lambda batch: batch.records["key"],
    "keys": lambda batch: batch.keys,
    "row": lambda batch: batch.records[0],
    "memoryview": lambda batch: memoryview(batch.records),
    "asarray": lambda batch: np.asarray(batch.records),
    "reshape": lambda batch: batch.records.reshape(2, -1)[::-1],
    "view": lambda batch: batch.records.view("u1"),
    "iterator": lambda batch: iter(batch),
    "array copy": lambda batch: batch.records.copy(),
    "fancy": lambda batch: batch.records[[0]],
    "sum": lambda batch: batch.records["key"].sum(),
    # events
    "columns": lambda batch: batch.columns(),
    "data": lambda batch: batch.columns().data[3:],
    "int keys": lambda batch: batch.columns().keys,
    "starts": lambda batch: batch.columns().starts,
    "pairs": lambda batch: list(batch),
    "payloads": lambda batch: batch.payloads,
    # both
    "batch": lambda batch: batch,
    "copy": lambda batch: batch.copy(),
    "slots": lambda batch: batch.slots,
    "sequences": lambda batch: batch.sequences,
    "producers": lambda batch: batch.producers,
    "len": len,
}


class Slow(Recorder):
    """Slow, so that lanes fill and a flush that does not wait is caught."""

    def handle(self, batch: Batch) -> None:
        time.sleep(0.005)
        super().handle(batch)


POISON = 666


def arm_when_told(path: Path) -> None:
    """Once for each time that the file is written: it is removed when it is read. See rig.Rig.arm."""
    try:
        name, passes, number = path.read_text().split()
        path.unlink()
    except FileNotFoundError:
        return
    arm_point(name, int(passes), int(number))


class Lingering(Recorder):
    """Takes its time before and after it writes down what it handled, so that a kill finds a batch in hand. Raises at
    the key POISON."""

    def handle(self, batch: Batch) -> None:
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


class Wordless(Recorder):
    """From its second life on the worker is killed when it has become ready and has not reported it."""

    def open(self, context: Context) -> None:
        super().open(context)
        if context.incarnation > 1:
            from shardmem.runtime import child

            child.Reports.say = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)


class Gated(Recorder):
    """Looks at nothing; only the gate."""

    def handle(self, batch: Batch) -> None:
        self.pass_gate(batch)


class Deaf(Recorder):
    """Does not end for SIGTERM while it has a batch in hand; nothing but SIGKILL helps."""

    def pass_gate(self, batch: Batch) -> None:
        (self.directory / f"waits-{self.context.shard}").touch()
        while True:
            time.sleep(3600)
