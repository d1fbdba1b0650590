"""Programs that are the parent of an engine."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import shardmem
from support.programs import NOT_REACHED, order, program, reply
from support.programs.children import forked, reap
from support.programs.source import Source
from support.rig import PATIENCE, Log, wait_until


@program
def parent() -> None:
    """Starts an engine, pushes, says so, and waits for whatever comes."""
    orders = order()
    engine = shardmem.Engine(orders["engine"], handler="support.recorder:Recorder", shards=2)
    with engine:
        producer = engine.producer()
        with Log(Path(orders["directory"])) as log:
            source = Source(1, log)
            for _ in range(orders["calls"]):
                source.push(producer, "push_many", 50, 20)
        document = engine.status()
        reply(engine=engine.name, pids=[document["supervisor"]["pid"], *(shard["pid"] for shard in document["shards"])])
        while order():
            pass
    reply(ended=True)


@program
def forks_that_outlive_the_block() -> None:
    """A child forked inside the block of an engine is still alive when the block ends."""
    order()
    with shardmem.Engine(handler="support.recorder:nothing", shards=1) as engine:
        with engine.producer() as producer:
            producer.push(1, b"before")
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
            os.close(read_end)
        began = time.monotonic()
    took = time.monotonic() - began
    os.close(write_end)
    os.waitpid(child, 0)
    reply(took=took)


@program
def child_that_leaves_the_block() -> None:
    """A child forked inside the block of an engine runs off its end, as one that calls sys.exit() does."""
    orders = order()
    codes = []
    with shardmem.Engine(handler="support.recorder:nothing", shards=1) as engine, engine.producer() as producer:
        producer.push(1, b"before")
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            if orders["how"] == "error":
                sys.stderr.close()
                raise KeyError("of the child")
            if orders["how"] == "push":
                producer.push(1, b"of the child")
            sys.exit(0)
        codes.append(reap(child))
        producer.push(1, b"after")
        producer.flush(PATIENCE)
    reply(codes=codes, handled=engine.status()["accounting"]["handled"])


@program
def fork_without_supervisor() -> None:
    """The supervisor is killed; a child forked inside the block asks for something, and leaves the block."""
    order()
    with shardmem.Engine(handler="support.recorder:nothing", shards=1, max_shards=2) as engine:
        engine._end_revival()  # which would be the parent's doing
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        wait_until(lambda: not engine.status()["supervisor"]["alive"], "the supervisor is dead")

        def work() -> None:
            try:
                engine.scale_to(2)
            except shardmem.NotRunning:
                return
            os._exit(NOT_REACHED)

        child = reap(forked(work))
        incarnation = engine.status()["supervisor"]["incarnation"]
    reply(child=child, incarnation=incarnation)
