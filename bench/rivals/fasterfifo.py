"""faster-fifo: a shared buffer under a mutex, with put_many and get_many.

Its default pickles every event; here `dumps` hands the bytes over and `loads` copies them out (it must:
what it is given is a view of a buffer that the next call overwrites).
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty
from typing import Any

from bench.harness import DEADLINE, Contender, Trial
from bench.rivals import BARE, BUFFER, unimportable


def same(event: bytes) -> bytes:
    return event


class FasterFifo(Contender):
    name = "faster-fifo"
    pip = "faster-fifo"
    forms = {"lists": "list", "columns": "list", "push": "single", "latency": "single"}
    note = f"faster-fifo: {BARE}; order only where one process reads"

    def missing(self) -> str | None:
        return unimportable("faster_fifo")

    def setup(self, trial: Trial) -> None:
        import faster_fifo

        self.queue = faster_fifo.Queue(BUFFER, loads=bytes, dumps=same)

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        put = self.queue.put_many if trial.form == "list" else self.queue.put
        # Its default is to give up after 10 s, which would look like a loss.
        return lambda message: put(message, True, DEADLINE)

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        many, one = self.queue.get_many, self.queue.get

        def get_many(most: int) -> Any:
            while True:
                try:
                    return many(True, DEADLINE, most)
                except Empty:  # it enlarges its buffer and asks again without waiting: the other may be first
                    continue

        def get() -> Any:
            while True:
                try:
                    return one(True, DEADLINE)
                except Empty:
                    continue

        return get_many if trial.form == "list" else get


CONTENDERS = [FasterFifo()]
