"""The handler of runs over two hosts: what it records is judged, and its state, and what it writes into a database in
both guarded ways. Workers import it."""

from __future__ import annotations

import os
import sqlite3
import time

import numpy as np

import shardmem
from shardmem import Batch, Context, sinks
from support.recorder import Recorder

TABLES = """
create table latest (key integer primary key, number integer);
create table summed (key integer primary key, n integer);
"""
ADD = "insert into summed values (?, ?) on conflict (key) do update set n = n + excluded.n"


def connect() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ["SINK"], timeout=30)
    connection.execute("pragma synchronous = off")  # no machine dies here
    return connection


class Judged(Recorder):
    counted = shardmem.KeyedState(int, default=0)

    def open(self, context: Context) -> None:
        super().open(context)
        self.latest = sinks.upsert(connect, "latest", key="key", columns="number")
        self.summed = sinks.transaction(connect)

    def handle(self, batch: Batch) -> None:
        start = time.monotonic_ns()
        rows = self.rows_of(batch)
        keys, numbers = rows["key"].tolist(), rows["number"].tolist()
        self.latest.write(batch, zip(keys, numbers))
        with self.summed as tx:
            fresh, counts = np.unique(rows["key"][tx.fresh_rows(batch)], return_counts=True)
            tx.connection.executemany(ADD, zip(fresh.tolist(), counts.tolist()))
        for key, number in zip(keys, numbers):
            name = b"%d" % key
            if (expected := self.counted[name]) != number:
                raise AssertionError(f"key {key}: event {number} comes when {expected} are counted")
            self.counted[name] = number + 1
        rows["start"], rows["end"] = start, time.monotonic_ns()
        os.write(self._log, rows.tobytes())

    def close(self) -> None:
        self.latest.close()
        self.summed.close()
        super().close()
