"""A program as users write it, for type checkers; what is wrong in it says so, and nothing else may be found."""

from __future__ import annotations

import numpy as np

import shardmem

ROW = np.dtype([("key", "u8"), ("value", "f8")])


def handle(batch: shardmem.Batch) -> None:
    for key, payload in batch:
        print(key, payload)


class Counter(shardmem.Handler):
    def open(self, context: shardmem.Context) -> None:
        self.log = context.log

    def handle(self, batch: shardmem.Batch) -> None:
        columns: shardmem.Columns = batch.columns()
        self.log.info("%d", len(columns.starts))


class Plain:
    def handle(self, batch: shardmem.Batch) -> int:
        return len(batch)


def right() -> None:
    with shardmem.Engine(handler=handle, shards=2, lane_bytes="4MiB", boot_timeout="5s") as engine:
        with engine.producer(backpressure="fail") as producer:
            accepted: bool = producer.push("key", b"payload")
            count: int = producer.push_many([1, "two", None], [b"a", b"b", b"c"], timeout=0.5)
            producer.push_columns(np.arange(2), b"abcd", np.array([0, 2, 4]))
            print(accepted, count)
        status: shardmem.Status = engine.status()
        print(status)
    shardmem.Engine("name", handler=Counter, dtype=ROW, key="key", min_shards=1, max_shards=4)
    shardmem.Engine(handler=Plain(), log_level="debug", on_error="stop")
    shardmem.Engine(handler="module:name", policy={"preset": "conservative"})
    shardmem.Engine(handler=handle, on_shard_created=print, on_shard_removed=lambda shard: None)
    try:
        with shardmem.connect("name", wait=2.0) as other:
            other.send(np.zeros(3, ROW))
    except shardmem.Backpressure as error:
        print(error.rest, error.accepted)


async def asynchronous() -> None:
    async with shardmem.AsyncProducer("name", backpressure="block") as producer:
        accepted: bool = await producer.push(1, b"payload")
        count: int = await producer.push_many([1], [b"payload"])
        print(accepted, count)


def wrong() -> None:
    shardmem.Engine(handler=handle, shard=2)  # WRONG
    shardmem.Engine(handler=handle, on_shard_created="print")  # WRONG
    shardmem.Engine(handler=handle, slots="many")  # WRONG
    shardmem.Engine(handler=handle, on_error="ignore")  # WRONG
    shardmem.Engine(handler=42)  # WRONG
    shardmem.connect("name", backpresure="fail")  # WRONG
    producer = shardmem.connect("name", backpressure="wait")  # WRONG
    producer.push(1.5, b"payload")  # WRONG
    producer.push(1, "text")  # WRONG
    print(shardmem.Engin)  # WRONG
