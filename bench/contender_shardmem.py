"""shardmem itself: an engine with its default settings, routed by key, one worker process per consumer.

records: `send` in blocks of 4096 rows, the handler sums the key column of the zero-copy array. lists: `push_many` of
256 keys and payloads, the handler looks at every payload as the rivals' consumers do. columns: `push_columns` of 256,
the handler gets columns. push: one `push` per event; the handler again looks at every payload as an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.harness import BATCH, POOL, Contender, Pool, Tally, Trial, first_word, paced
from bench.rivals import unimportable


class Touch:
    """The handler of all cases."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind, self.size = kind, size

    def open(self, context: Any) -> None:
        self.tally = Tally.attach(context.shard)
        self.handle = getattr(self, self.kind)

    def handle(self, batch: Any) -> None:  # replaced by one of the others when the worker opens
        raise NotImplementedError

    def records(self, batch: Any) -> None:
        words = batch.records["key"]
        self.tally.add(len(words), int(words.sum()))

    def columns(self, batch: Any) -> None:
        columns = batch.columns()
        first, last = int(columns.starts[0]), int(columns.ends[-1])
        words = columns.data[first:last].view("<u8")[:: self.size // 8]  # int keys: payloads lie side by side
        self.tally.add(len(words), int(words.sum()))

    def lists(self, batch: Any) -> None:
        total = 0
        for payload in batch.payloads:
            total += first_word(payload)[0]
        self.tally.add(len(batch), total)

    push = lists

    def latency(self, batch: Any) -> None:
        for payload in batch.payloads:
            self.tally.latency(first_word(payload)[0])


class Shardmem(Contender):
    name, pip, own_workers = "shardmem", ".", True
    forms = {
        "records": "blocks of 4096",
        "lists": f"lists of {BATCH}",
        "columns": f"columns of {BATCH}",
        "push": "single",
        "latency": "parked",
    }
    spin_us = {"latency": 0}  # elsewhere the default

    def missing(self) -> str | None:
        return unimportable("shardmem.client.engine")

    def setup(self, trial: Trial) -> None:
        import shardmem

        settings: dict[str, Any] = {}
        if trial.kind == "records":
            settings.update(dtype=self._dtype(trial), key="key")
        if trial.kind in self.spin_us:
            settings.update(spin_us=self.spin_us[trial.kind])
        self.engine = shardmem.Engine(
            trial.tag, handler=Touch(trial.kind, trial.size), shards=trial.consumers, **settings
        )
        self.engine.start()

    @staticmethod
    def _dtype(trial: Trial) -> np.dtype:
        return np.dtype([("key", "<u8"), ("rest", f"V{trial.size - 8}")])

    def producer(self, trial: Trial, index: int, pool: Pool) -> Callable[[int], int | None]:
        self._producer = self.engine.producer()
        if trial.kind == "latency":
            push = self._producer.push
            return paced(lambda event: push(None, event), trial)
        return getattr(self, f"_{trial.kind}")(trial, pool)

    def _records(self, trial: Trial, pool: Pool) -> Callable[[int], None]:
        rows, push = pool.rows.reshape(-1).view(self._dtype(trial)), self._producer.send

        def send(n: int) -> None:
            for _ in range(n // POOL):
                push(rows)

        return send

    def _columns(self, trial: Trial, pool: Pool) -> Callable[[int], None]:
        push, offsets = self._producer.push_columns, np.arange(BATCH + 1, dtype="u8") * np.uint64(trial.size)
        blocks = list(zip(pool.values.reshape(-1, BATCH).copy(), pool.joined))

        def send(n: int) -> None:
            for _ in range(n // POOL):
                for keys, data in blocks:
                    push(keys, data, offsets)

        return send

    def _lists(self, trial: Trial, pool: Pool) -> Callable[[int], None]:
        push, keys = self._producer.push_many, pool.values.tolist()
        blocks = [(keys[i : i + BATCH], pool.events[i : i + BATCH]) for i in range(0, POOL, BATCH)]

        def send(n: int) -> None:
            for _ in range(n // POOL):
                for some, payloads in blocks:
                    push(some, payloads)

        return send

    def _push(self, trial: Trial, pool: Pool) -> Callable[[int], None]:
        push, events = self._producer.push, list(zip(pool.values.tolist(), pool.events))

        def send(n: int) -> None:
            for _ in range(n // POOL):
                for key, payload in events:
                    push(key, payload)

        return send

    def close(self) -> None:
        self._producer.close()

    def teardown(self) -> None:
        engine = getattr(self, "engine", None)
        if engine is not None:
            engine.stop()


class Spinning(Shardmem):
    """What a spin budget longer than the gap between events buys, and a core costs."""

    name, forms, spin_us = "shardmem spinning", {"latency": "spin 2 ms"}, {"latency": 2000}


CONTENDERS = [Shardmem(), Spinning()]
