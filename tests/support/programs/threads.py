"""Programs of many threads with one producer."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import shardmem
from support.programs import order, program, reply
from support.programs.source import Source
from support.rig import PATIENCE, Log, sleeps_in_futex, wait_until


@program
def threads() -> None:
    """A pool of threads pushes through one producer while one more pushes blocks."""
    orders = order()
    directory = Path(orders["directory"])
    failures: list[str] = []
    with shardmem.connect(orders["engine"]) as producer:
        start = threading.Barrier(orders["threads"] + 1)

        def work(number: int, method: str, calls: int, count: int) -> None:
            try:
                source = Source(number, log)
                start.wait()
                for _ in range(calls):
                    source.push(producer, method, count, 40)
            except BaseException as error:
                failures.append(repr(error))

        with Log(directory) as log:
            pool = [
                threading.Thread(target=work, args=(number, orders["small"], orders["calls"], 1))
                for number in range(orders["threads"])
            ]
            pool.append(
                threading.Thread(target=work, args=(orders["threads"], orders["block"], orders["blocks"], 2000))
            )
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
            producer.flush(PATIENCE)
    reply(failures=failures)


@program
def first_calls_together() -> None:
    """Threads make the first calls of a new producer at the same moment, so that they open its lanes together."""
    orders = order()
    sys.setswitchinterval(1e-5)
    with Log(Path(orders["directory"])) as log:
        for turn in range(orders["turns"]):
            with shardmem.connect(orders["engine"]) as producer:
                start = threading.Barrier(orders["threads"])

                def work(number: int) -> None:
                    source = Source(number, log)
                    start.wait()
                    source.push(producer, orders["method"], orders["count"], 20)
                    source.push(producer, orders["method"], 1, 20)

                pool = [
                    threading.Thread(target=work, args=(turn * orders["threads"] + number,))
                    for number in range(orders["threads"])
                ]
                for thread in pool:
                    thread.start()
                for thread in pool:
                    thread.join()
                producer.flush(PATIENCE)
    reply(done=True)


@program
def close_while_blocked() -> None:
    """One thread closes the producer while another is blocked in a push on a full lane."""
    orders = order()
    ended: list[str] = []
    producer = shardmem.connect(orders["engine"], spin_us=0)
    while True:
        try:
            producer.push(0, bytes(500), timeout=0)
        except shardmem.Backpressure:
            break

    def work() -> None:
        try:
            producer.push(0, bytes(500))
            ended.append("accepted")
        except shardmem.ShardmemError as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: sleeps_in_futex(os.getpid(), thread.native_id), "the thread waits for room")
    producer.close()
    thread.join(PATIENCE)
    reply(ended=ended)
