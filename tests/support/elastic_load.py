"""Load for the elastic tests: handlers that record, a producer that never stops, and the checker of what they recorded.

python elastic_load.py ENGINE PRODUCER PAUSE    pushes until a line comes on standard input, then prints how many blocks
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import shardmem

ROW = np.dtype([("key", "u8"), ("producer", "u4"), ("number", "u4")])
LOG = np.dtype([("began", "i8"), ("ended", "i8"), ("slot", "u4"), ("key", "u4"), ("producer", "u4"), ("number", "u4")])
KEYS, SLOTS = 200, 64


class Recorder(shardmem.Handler):
    """Writes one LOG row per event to a file of its own; `ended` is when its batch had been gone through."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, context: shardmem.Context) -> None:
        self.file = open(os.path.join(self.directory, f"{context.shard}-{os.getpid()}.log"), "wb", buffering=0)

    def handle(self, batch: shardmem.Batch) -> None:
        rows = np.empty(len(batch), LOG)
        rows["began"] = time.monotonic_ns()
        for field in ("key", "producer", "number"):
            rows[field] = batch.records[field]
        rows["slot"] = batch.slots
        rows["ended"] = time.monotonic_ns()
        self.file.write(rows.tobytes())


class Counter(Recorder):
    """Keeps a count per key, which must follow the key: what it was told last must be the number before this one."""

    def open(self, context: shardmem.Context) -> None:
        super().open(context)
        self.context, self.counts = context, {}

    def handle(self, batch: shardmem.Batch) -> None:
        for key, producer, number in batch.records.tolist():
            expected = self.counts.get((key, producer), -1) + 1
            if number != expected:
                raise AssertionError(f"key {key} of producer {producer}: number {number}, the state says {expected}")
            self.counts[key, producer] = number
        super().handle(batch)

    def _of(self, slot: int) -> dict:
        return {pair: number for pair, number in self.counts.items() if self.context.slot(pair[0]) == slot}

    def snapshot(self, slot: int) -> bytes:
        return json.dumps([[*pair, number] for pair, number in self._of(slot).items()]).encode()

    def restore(self, slot: int, state: bytes) -> None:
        self.counts.update({(key, producer): number for key, producer, number in json.loads(state)})

    def drop(self, slot: int) -> None:
        for pair in self._of(slot):
            del self.counts[pair]


class Sick(Recorder):
    """The shard whose number is in the file `fails` raises, the one in `stuck` waits, as long as the file is there."""

    def open(self, context: shardmem.Context) -> None:
        super().open(context)
        self.shard = context.shard

    def handle(self, batch: shardmem.Batch) -> None:
        if self._is_told("fails"):
            raise OSError("as told")
        while self._is_told("stuck"):
            time.sleep(0.01)
        super().handle(batch)

    def _is_told(self, what: str) -> bool:
        try:
            return Path(self.directory, what).read_text() == str(self.shard)
        except FileNotFoundError:
            return False


class Traffic:
    """Producers in processes of their own that push until told to stop; pause: seconds between two blocks."""

    def __init__(self, engine: str, count: int, pause: float = 0.0) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, engine, str(number), str(pause)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        for process in self.processes:
            assert "ready\n" == process.stdout.readline()

    def stop(self) -> dict[int, int]:
        for process in self.processes:
            process.stdin.write("stop\n")
            process.stdin.flush()
        sent = {}
        for number, process in enumerate(self.processes):
            out, _ = process.communicate(timeout=60)
            assert 0 == process.returncode
            sent[number] = int(out)
        return sent


def produce(engine: str, number: int, pause: float) -> None:
    """Blocks of one event per key, numbered."""
    with shardmem.connect(engine) as producer:
        block, sent = np.zeros(KEYS, ROW), 0
        block["key"], block["producer"] = np.arange(KEYS), number
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], pause)[0]:
            block["number"] = sent
            send_all(producer, block)
            sent += 1
        producer.flush()
        print(sent, flush=True)


def send_all(producer: shardmem.Producer, block: np.ndarray) -> None:
    """Whatever fails meanwhile: what was not accepted is sent again, in order."""
    while len(block):
        try:
            producer.send(block)
            return
        except shardmem.HandlerError as error:
            block = block[error.left]
            time.sleep(0.01)


def violations(rows: np.ndarray, sent: dict[int, int]) -> list[str]:
    """The checker: loss, invention, duplicates, order per producer and key, one owner of a slot at a time."""
    found = []
    rows = rows[np.argsort(rows["began"], kind="stable")]
    for producer, blocks in sent.items():
        mine = rows[rows["producer"] == producer]
        counts = np.zeros((KEYS, blocks), int)
        if len(mine) and (mine["number"].max() >= blocks or mine["key"].max() >= KEYS):
            found.append(f"producer {producer}: events that were never sent")
            mine = mine[(mine["number"] < blocks) & (mine["key"] < KEYS)]
        np.add.at(counts, (mine["key"], mine["number"]), 1)
        if (counts == 0).any():
            found.append(f"producer {producer}: {(counts == 0).sum()} events lost")
        if (counts > 1).any():
            found.append(f"producer {producer}: {(counts > 1).sum()} events handled twice")
        for key in range(KEYS):
            numbers = mine["number"][mine["key"] == key]
            if (np.diff(numbers.astype(int)) < 0).any():
                found.append(f"producer {producer}, key {key}: out of order")
    for slot in range(SLOTS):
        spans = rows[rows["slot"] == slot][["began", "ended", "shard"]] if "shard" in (rows.dtype.names or ()) else None
        if spans is None or not len(spans):
            continue
        changes = np.flatnonzero(spans["shard"][1:] != spans["shard"][:-1])
        latest = np.maximum.accumulate(spans["ended"])
        overlapping = changes[latest[changes] > spans["began"][changes + 1]]
        if len(overlapping):
            found.append(f"slot {slot}: two shards at a time, {len(overlapping)} times")
    return found


def read_logs(directory: Path) -> np.ndarray:
    parts = []
    for path in directory.glob("[0-9]*-*.log"):  # the log of the engine may be there too
        rows = np.fromfile(path, LOG)
        whole = np.empty(len(rows), LOG.descr + [("shard", "u4")])
        for field in LOG.names:
            whole[field] = rows[field]
        whole["shard"] = int(path.name.split("-")[0])
        parts.append(whole)
    return np.concatenate(parts)


if __name__ == "__main__":
    produce(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
