"""A program that is blocked in a call."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

import shardmem
from support.programs import order, program, reply
from support.recorder import payload, records


@program
def interrupted() -> None:
    """Is blocked in a call until a signal comes; says how long after the signal the call ended."""
    orders = order()
    with shardmem.connect(orders["engine"]) as producer:
        arrived: list[float] = []

        def on_signal(number: int, frame: Any) -> None:
            arrived.append(time.monotonic())
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, on_signal)
        rows = records(1, list(range(2000)), list(range(2000))) if producer.schema.is_records else None
        many = [payload(1, 0, number, 50) for number in range(2000)]
        try:
            reply(pid=os.getpid())
            if orders["method"] == "send":
                producer.send(rows)
            elif orders["method"] == "push_many":
                producer.push_many([0] * 2000, many)
            elif orders["method"] == "push_columns":
                producer.push_columns(np.zeros(2000, "i8"), b"".join(many), np.cumsum([0, *map(len, many)]))
            else:
                for each in many:
                    producer.push(0, each)
                if orders["method"] == "flush":
                    producer.flush()
            reply(ended="by itself")
        except KeyboardInterrupt:
            reply(ended="KeyboardInterrupt", after=time.monotonic() - arrived[0])
