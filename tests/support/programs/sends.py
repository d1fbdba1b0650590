"""Programs that push, and how their calls end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import sys
from pathlib import Path

import numpy as np

import shardmem
from shardmem.memory.native import arm_point
from support.programs import order, program, reply
from support.programs.source import Source
from support.recorder import payload
from support.rig import PATIENCE, Log


@program
def pusher() -> None:
    """Pushes ten events and waits to be killed."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        for _ in range(10):
            source.push(producer, "push", 1, 10)
        reply(seat=producer.seat)
        order()


@program
def push_keys() -> None:
    """Pushes the same key in each way."""
    orders = order()
    text = bytes.fromhex(orders["key"]).decode("utf-8", "surrogateescape")
    kinds = {"str": str, "str_": np.str_, "Text": type("Text", (str,), {})}
    key = kinds[orders["kind"]](text)
    with shardmem.connect(orders["engine"]) as producer:
        accepted = producer.push(key, b"") + producer.push_many([key, key], [b"", bytearray(b"x")])
        producer.flush(PATIENCE)
    reply(accepted=accepted)


@program
def push_until_over() -> None:
    """Pushes without a pause until the engine accepts nothing any more."""
    orders = order()
    methods = ["push", "push_many", "push_columns"]
    with shardmem.connect(orders["engine"], reconnect=False) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        reply(ready=True)
        try:
            for call in range(1_000_000):
                source.push(producer, methods[call % 3], 10, 50)
        except shardmem.NotRunning:
            reply(ended="NotRunning")


@program
def push_at_a_pace() -> None:
    """Bursts of small calls with pauses between them, until a line comes; then waits until all is handled."""
    orders = order()
    chance, methods = random.Random(orders["producer"]), ["push", "push_many", "push_columns"]
    with shardmem.connect(orders["engine"], wait=PATIENCE) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        reply(ready=True)
        while not select.select([sys.stdin], [], [], chance.expovariate(1 / orders["pause"]))[0]:
            for _ in range(chance.randint(1, 8)):
                source.push(producer, chance.choice(methods), chance.randint(1, 30), 100)
        producer.flush(orders["patience"])
    reply(pushed=sum(source._numbers))


@program
def push_until_told() -> None:
    """Pushes without a pause until the next line comes, then flushes; or until an error, which is its reply."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        source.push(producer, "push_many", 20, 20)
        reply(seat=producer.seat, pid=os.getpid())
        try:
            while not select.select([sys.stdin], [], [], 0)[0]:
                source.push(producer, "push_many", 20, 20)
            producer.flush(PATIENCE)
        except shardmem.ShardmemError as error:
            reply(error=type(error).__name__, text=str(error))
        else:
            reply(error=None)
        order()


@program
def await_until_told() -> None:
    """The same, in an event loop."""
    orders = order()

    async def main() -> None:
        async with shardmem.AsyncProducer(orders["engine"]) as producer:
            with Log(Path(orders["directory"])) as log:
                source = Source(orders["producer"], log)
                reply(ready=True)
                while not select.select([sys.stdin], [], [], 0)[0]:
                    keys, numbers = source.take(20)
                    log.rows("offered", source.id, keys, numbers)
                    await producer.push_many(keys, [payload(source.id, *each) for each in zip(keys, numbers)])
                    log.rows("accepted", source.id, keys, numbers)
                await producer.flush(PATIENCE)
        reply(error=None)

    asyncio.run(main())


@program
def close_descriptors() -> None:
    """Pushes, closes every descriptor that it may know nothing of, as daemons do, and goes on pushing when told."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        source.push(producer, "push_many", 20, 20)
        keep = set(log.descriptors)
        for descriptor in range(3, 256):
            if descriptor not in keep:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        theirs = [os.open(os.devnull, os.O_RDWR) for _ in range(32)]  # the numbers are somebody else's by now
        reply(seat=producer.seat)
        for _ in range(int(order()["blocks"])):
            source.push(producer, "push_many", 20, 20)
        producer.flush(PATIENCE)
        producer.close()
        for descriptor in theirs:
            os.fstat(descriptor)
        reply(seat=producer.seat)


@program
def push_some() -> None:
    """Pushes so many blocks and waits until they are handled."""
    orders = order()
    methods = ["push_many", "push_columns"]
    with shardmem.connect(orders["engine"]) as producer, Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log)
        for call in range(orders["blocks"]):
            source.push(producer, methods[call % 2], orders["rows"], 50)
        producer.flush(40)
        reply(pushed=orders["blocks"] * orders["rows"])


@program
def wait_for_engine() -> None:
    orders = order()
    reply(waiting=True)
    with shardmem.connect(orders["engine"], wait=PATIENCE) as producer:
        reply(accepted=producer.push(1, payload(1, 1, 0), timeout=PATIENCE))


@program
def stopped_inside_send() -> None:
    """Stops itself inside a send; when continued, says how the send ended."""
    orders = order()
    with shardmem.connect(orders["engine"], reconnect=False) as producer, Log(Path(orders["directory"])) as log:
        source = Source(1, log)
        source.push(producer, "push", 1, 10)
        arm_point(orders["point"], 1, signal.SIGSTOP)
        reply(pid=os.getpid())
        try:
            source.push(producer, "push", 1, 10)
            reply(ended="accepted")
        except shardmem.NotRunning:
            reply(ended="NotRunning")
