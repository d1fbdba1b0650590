"""pyzmq: PUSH to PULL over a unix socket (ipc), one I/O thread in every process. Joined events are
received without a copy into Python bytes, which is its faster way here; single ones are not.

In the 2x2 cases every producer has one PUSH per PULL and alternates: shares are then exact, and a
consumer knows when it has had its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

from bench.harness import BATCH, Contender, Trial
from bench.rivals import BARE, BUFFER, unimportable


class PushPull(Contender):
    name = "pyzmq"
    pip = "pyzmq"
    forms = {"records": "joined", "columns": "joined", "push": "single", "latency": "single"}
    note = f"pyzmq: {BARE}; what is in the buffers of a process dies with it"

    def missing(self) -> str | None:
        return unimportable("zmq")

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        import zmq

        ends = [self._socket(trial, zmq.PUSH, i) for i in range(trial.consumers)]
        if len(ends) == 1:
            return ends[0].send
        turns = cycle([end.send for end in ends]).__next__
        return lambda message: turns()(message)

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        import zmq

        receive = self._socket(trial, zmq.PULL, index).recv
        return (lambda: receive(copy=False).buffer) if trial.form == "joined" else receive

    def _socket(self, trial: Trial, kind: int, consumer: int) -> Any:
        import zmq

        self.context = getattr(self, "context", None) or zmq.Context()
        socket = self.context.socket(kind)
        # Its limit counts messages. Ours is the memory that the others have too.
        limit = BUFFER // (trial.size * (BATCH if trial.form == "joined" else 1))
        socket.set_hwm(min(20_000, limit))
        address = f"ipc://{trial.scratch}/{consumer}"
        if kind == zmq.PULL:
            socket.bind(address)
        else:
            socket.connect(address)
        return socket

    def close(self) -> None:
        self.context.destroy(linger=1000)


CONTENDERS = [PushPull()]
