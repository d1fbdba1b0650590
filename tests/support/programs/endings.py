"""Programs that end in a way of their own after they used an engine."""

from __future__ import annotations

import os

import shardmem
from support.programs import order, program, reply
from support.recorder import payload


@program
def attach_and_end() -> None:
    """Pushes one event and ends as it was told to: without a close, by the hard way, or in a spawned child."""
    orders = order()
    if orders["how"] == "spawn":
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        children = [context.Process(target=push_one, args=(orders["engine"], number)) for number in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        reply(codes=[child.exitcode for child in children])
        return
    producer = push_one(orders["engine"], 0, orders["how"] != "no close")
    reply(codes=[0])
    if orders["how"] == "os._exit":
        os._exit(0)
    del producer


def push_one(engine: str, number: int, close: bool = True) -> shardmem.Producer:
    producer = shardmem.connect(engine)
    producer.push(number, payload(number, number, 0))
    if close:
        producer.close()
    return producer


@program
def own_shared_memory() -> None:
    """Uses shared memory of its own beside a producer, and forgets to remove it."""
    from multiprocessing import resource_tracker, shared_memory

    orders = order()
    with shardmem.connect(orders["engine"]):
        own = shared_memory.SharedMemory(create=True, size=4096)
    reply(name=own.name, tracked=resource_tracker._resource_tracker._pid is not None)
    own.close()
