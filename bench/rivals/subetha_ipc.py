"""subetha-ipc: rings in memory-mapped files, bound to Rust. One ring of one producer and one consumer per pair.

A full and an empty ring answer at once, so both ends yield and ask again. What is given to `push_buffer` is cut into
items of one size in one call, which is its fastest way; `pop_buffer` gives as many back as one bytes object. An item of
a ring has 64 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bench.harness import BATCH, Contender, Trial
from bench.rivals import BARE, BUFFER, unimportable


class Subetha(Contender):
    name = "subetha-ipc"
    pip = "subetha-ipc"
    most = 64
    forms = {"records": "joined", "columns": "joined", "lists": "list", "push": "single"}
    note = f"subetha-ipc: {BARE}; one producer and one consumer for each ring; both ends poll; 64 bytes an event"

    def missing(self) -> str | None:
        return unimportable("subetha")

    def setup(self, trial: Trial) -> None:
        import subetha

        self.paths = [f"/dev/shm/{trial.tag}-{index}" for index in range(trial.producers)]
        capacity = BUFFER // 128
        self.rings = [subetha.SpscRing(path, capacity) for path in self.paths]

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        ring, size, pause = self.rings[index], trial.size, os.sched_yield
        push, push_many, push_buffer = ring.push, ring.push_many, ring.push_buffer

        def put(event: bytes) -> None:
            while not push(event):
                pause()

        def put_many(events: list[bytes]) -> None:
            done = push_many(events)
            while done < len(events):
                pause()
                done += push_many(events[done:])

        def put_joined(data: bytes) -> None:
            done = push_buffer(data, size)
            while done < BATCH:
                pause()
                done += push_buffer(data[done * size :], size)

        return {"single": put, "list": put_many, "joined": put_joined}[trial.form]

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        ring, pause = self.rings[index], os.sched_yield
        pop, pop_many, pop_buffer = ring.pop, ring.pop_many, ring.pop_buffer

        def get() -> bytes:
            while (event := pop()) is None:
                pause()
            return event

        def get_many(most: int) -> list[bytes]:
            while not (events := pop_many(most)):
                pause()
            return events

        def get_joined() -> bytes:
            while not (data := pop_buffer(4096)[0]):
                pause()
            return data

        return {"single": get, "list": get_many, "joined": get_joined}[trial.form]

    def teardown(self) -> None:
        for path in self.paths:
            with suppress(FileNotFoundError):
                os.unlink(path)


CONTENDERS = [Subetha()]
