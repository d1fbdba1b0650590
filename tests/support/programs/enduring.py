"""A producer that goes on whatever becomes of its engine, as long as its errors are ours."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from pathlib import Path

import shardmem
from support.programs import order, program, reply
from support.programs.source import Source
from support.rig import Log


@program
def push_through() -> None:
    """Pushes until told to stop; connects again after an error of shardmem. Then flushes, and says how often it had to
    connect. What a call that raised had accepted is not in the log of what was accepted."""
    orders = order()
    methods, call, connects = ["push", "push_many", "push_columns"], 0, 0
    with Log(Path(orders["directory"])) as log:
        source = Source(orders["producer"], log, keys=50)
        reply(ready=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            with contextlib.suppress(shardmem.ShardmemError, TimeoutError):
                with shardmem.connect(orders["engine"]) as producer:
                    connects += 1
                    while not select.select([sys.stdin], [], [], 0)[0]:
                        call += 1
                        source.push(producer, methods[call % 3], 10, 20, timeout=2.0)
                        time.sleep(0.001)
            time.sleep(0.05)
    reply(connects=connects, calls=call)
