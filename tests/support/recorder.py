"""The handler that records, and the events that it checks. Imported by workers, so it imports little.

A worker writes what it handled to files in $RECORD_DIR, which the checker reads. Before each batch it passes a gate: a
lock on a file that a test may hold, so that a test decides when a batch goes on, and nobody polls.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from shardmem import Batch, Context, Handler
from support.checker import HANDLED

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


class Chatty(Recorder):
    """Says something of every batch."""

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        self.context.log.info("%d events", len(batch))


def nothing(batch: Batch) -> None: ...
