"""Programs that fork, with a producer in their hands."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import shardmem
from support.programs import UNHAPPY, order, program, reply
from support.programs.children import forked, reap
from support.programs.source import Source
from support.rig import PATIENCE, Log


@program
def prefork() -> None:
    """A producer made before the forks is used in every child and in the parent at once."""
    orders = order()
    directory, methods = Path(orders["directory"]), orders["methods"]
    with shardmem.connect(orders["engine"]) as producer, Log(directory) as log:
        source = Source(0, log)
        source.push(producer, methods[0], 1, 10)
        ready_read, ready_write = os.pipe()

        def work(number: int) -> None:
            os.close(ready_write)
            with Log(directory) as mine:
                source = Source(number, mine)
                os.read(ready_read, 1)  # all at once: returns when the parent has closed its end
                for call in range(orders["calls"]):
                    source.push(producer, methods[call % len(methods)], 20, 50)
                producer.flush(PATIENCE)

        pids = [forked(lambda: work(number)) for number in range(1, orders["children"] + 1)]
        os.close(ready_write)
        os.close(ready_read)
        for call in range(orders["calls"]):
            source.push(producer, methods[call % len(methods)], 20, 50)
        producer.flush(PATIENCE)
        reply(codes=[reap(pid) for pid in pids])


@program
def fork_inside_send() -> None:
    """Forks again and again while another thread holds the sender; every child pushes."""
    orders = order()
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads; that is what is tested
    directory, codes, done = Path(orders["directory"]), [], threading.Event()
    with shardmem.connect(orders["engine"]) as producer, Log(directory) as log:
        records_engine = producer.schema.is_records
        source = Source(0, log)

        def work() -> None:
            while not done.is_set():
                source.push(producer, "send" if records_engine else "push_columns", 20000, 0)

        thread = threading.Thread(target=work)
        thread.start()
        for number in range(1, orders["children"] + 1):
            time.sleep(random.Random(number).random() * 0.01)  # somewhere inside one of the thread's calls

            def child() -> None:
                mine = Source(number, Log(directory))
                for _ in range(3):
                    mine.push(producer, orders["method"], 3, 10)
                producer.close()

            codes.append(reap(forked(child), 5.0))
            if codes[-1]:
                break
        done.set()
        thread.join()
        producer.flush(PATIENCE)
    reply(codes=codes)


@program
def threads_in_a_forked_child() -> None:
    """The first calls in a forked child come from several threads at once."""
    orders = order()
    directory, codes = Path(orders["directory"]), []
    with shardmem.connect(orders["engine"]) as producer:
        with Log(directory) as log:
            Source(0, log).push(producer, "push", 1, 10)
        for child in range(orders["children"]):

            def work() -> None:
                sys.setswitchinterval(1e-5)
                failures: list[BaseException] = []
                start = threading.Barrier(orders["threads"])
                with Log(directory) as log:

                    def push(number: int) -> None:
                        try:
                            source = Source(number, log)
                            start.wait()
                            for _ in range(20):
                                source.push(producer, "push", 1, 10)
                        except BaseException as error:
                            failures.append(error)

                    pool = [
                        threading.Thread(target=push, args=(1 + child * orders["threads"] + number,))
                        for number in range(orders["threads"])
                    ]
                    for thread in pool:
                        thread.start()
                    for thread in pool:
                        thread.join()
                    held = sum(
                        each["pid"] == os.getpid() and each["alive"] for each in status(orders["engine"])["producers"]
                    )
                    if failures or held != 1:
                        print(f"{held} seats are held by one process; {failures}", file=sys.stderr)
                        os._exit(UNHAPPY)

            codes.append(reap(forked(work)))
    reply(codes=codes)


def status(engine: str) -> dict[str, Any]:
    with shardmem.Client(engine) as client:
        return client.status()
