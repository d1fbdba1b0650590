"""slick-queue-py: a ring in shared memory whose fields Python reads and writes, one per pair. Both ends poll and yield.

A producer overwrites what was not read yet, so in a benchmark that may lose nothing it is held back: by a count of
what was received, in shared memory of ours, which a program would have to add as well."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bench.harness import BATCH, Contender, Trial
from bench.rivals import BARE, counts, unimportable

SLOTS, TELL = 1024, 64  # messages; between two words of the consumer


class Slick(Contender):
    name = "slick-queue-py"
    pip = "slick-queue-py"
    forms = {"records": "joined", "columns": "joined", "push": "single"}
    note = f"slick-queue-py: {BARE}; what is not read in time is lost, so a word of ours holds producers back here"

    def missing(self) -> str | None:
        return unimportable("slick_queue_py")

    def setup(self, trial: Trial) -> None:
        from slick_queue_py import SlickQueue

        self.bytes = trial.size * (BATCH if trial.form == "joined" else 1)
        self.queues = [
            SlickQueue(name=f"{trial.tag}-{index}", size=SLOTS, element_size=self.bytes)
            for index in range(trial.producers)
        ]
        self.received = counts()

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        queue, received, pause, sent = self.queues[index], self.received, os.sched_yield, 0
        reserve, publish = queue.reserve, queue.publish

        def put(message: bytes) -> None:
            nonlocal sent
            while sent - received[index] > SLOTS - TELL - 2:
                pause()
            at = reserve()
            queue[at][:] = message
            publish(at)
            sent += 1

        return put

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        read, received, pause, at, got = self.queues[index].read, self.received, os.sched_yield, 0, 0

        def get() -> Any:
            nonlocal at, got
            while True:
                data, _, at = read(at)
                if data is not None:
                    break
                received[index] = got
                pause()
            got += 1
            if not got % TELL:
                received[index] = got
            return data

        return get

    def teardown(self) -> None:
        for queue in getattr(self, "queues", ()):
            with suppress(OSError, BufferError):
                queue.unlink()


CONTENDERS = [Slick()]
