"""cloudtoid-interprocess: byte queues in shared memory, bound to Rust, one per pair. `receive` sleeps until there is
something; a full queue answers at once, so the sender yields and asks again."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from bench.harness import DEADLINE, Contender, Trial
from bench.rivals import BARE, BUFFER, unimportable


class Cloudtoid(Contender):
    name = "cloudtoid"
    pip = "cloudtoid-interprocess"
    forms = {"records": "joined", "columns": "joined", "lists": "list", "push": "single", "latency": "single"}
    note = f"cloudtoid-interprocess: {BARE}; messages are lost when all ends are closed; no receive of many"

    def missing(self) -> str | None:
        return unimportable("cloudtoid_interprocess")

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        from cloudtoid_interprocess import Publisher

        self.end = Publisher(f"{index}", BUFFER, trial.scratch)
        send, send_batch, pause = self.end.try_send, self.end.try_send_batch, os.sched_yield

        def put(message: bytes) -> None:
            while not send(message):
                pause()

        def put_many(events: list[bytes]) -> None:
            done = send_batch(events)
            while done < len(events):
                pause()
                done += send_batch(events[done:])

        return put_many if trial.form == "list" else put

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        from cloudtoid_interprocess import Subscriber

        self.end = Subscriber(f"{index}", BUFFER, trial.scratch)
        receive = self.end.receive
        return (lambda most: [receive(DEADLINE)]) if trial.form == "list" else lambda: receive(DEADLINE)

    def close(self) -> None:
        self.end.close()


CONTENDERS = [Cloudtoid()]
