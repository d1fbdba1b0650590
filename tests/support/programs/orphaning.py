"""A program that hides from itself how its children end, with an engine in it whose supervisor is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

import shardmem
from support.programs import order, program, reply
from support.recorder import payload
from support.rig import wait_until


@program
def hide_children() -> None:
    """SIGCHLD is ignored, or every child is reaped by whoever comes first."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if order()["how"] == "ignore" else _reap)
    with shardmem.Engine(handler="support.recorder:Recorder", shards=1) as engine, engine.producer() as producer:
        os.kill(engine.status()["shards"][0]["pid"], signal.SIGABRT)
        producer.push(1, payload(1, 1, 0))
        producer.flush(60)
        # events are handled again before the supervisor writes down, with its next tick, what had happened
        exit = wait_until(lambda: engine.status()["shards"][0]["last_exit"], "the death is written down", 60)
        os.kill(engine.status()["supervisor"]["pid"], signal.SIGKILL)
        producer.push(1, payload(1, 1, 1))
    reply(exit=exit, accounting=engine.status()["accounting"])


def _reap(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
