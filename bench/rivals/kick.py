"""kickmsg: publish and subscribe over shared memory, one channel per pair. `receive` sleeps on a futex.

A subscriber whose ring is full loses what it has not read, so in a benchmark that may lose nothing its publisher is
held back: by a count of what was received, in shared memory of ours, which a program would have to add as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from bench.harness import BATCH, Contender, Trial
from bench.rivals import BARE, counts, unimportable

RING, WAIT, TELL = 1024, timedelta(seconds=0.1), 64  # slots; of a receive; messages between two words of the consumer


class Kickmsg(Contender):
    name = "kickmsg"
    pip = "kickmsg"
    forms = {"records": "joined", "columns": "joined", "push": "single", "latency": "single"}
    note = f"kickmsg: {BARE}; a slow subscriber loses events, so a word of ours holds its publisher back here"

    def missing(self) -> str | None:
        return unimportable("kickmsg")

    def setup(self, trial: Trial) -> None:
        import kickmsg

        self.names = [f"/{trial.tag}-{index}" for index in range(trial.producers)]
        config = kickmsg.Config()
        config.max_subscribers, config.sub_ring_capacity, config.pool_size = 1, RING, 2 * RING
        config.max_payload_size = trial.size * (BATCH if trial.form == "joined" else 1)
        for name in self.names:
            kickmsg.SharedRegion.create(name, kickmsg.ChannelType.PubSub, config, "bench")
        self.words = counts()

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        import kickmsg

        self.region = kickmsg.SharedRegion.open(self.names[index])
        self.publisher = kickmsg.Publisher(self.region)
        send, words, pause, sent = self.publisher.send, self.words, os.sched_yield, 0

        def put(message: bytes) -> None:
            nonlocal sent
            while sent - words[index] > RING - TELL - 2:
                pause()
            while send(message) <= 0:
                pause()
            sent += 1

        return put

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        import kickmsg

        self.region = kickmsg.SharedRegion.open(self.names[index])
        self.subscriber = kickmsg.Subscriber(self.region)
        receive, words, got = self.subscriber.receive, self.words, 0

        def get() -> Any:
            nonlocal got
            while (message := receive(WAIT)) is None:
                words[index] = got
            got += 1
            if not got % TELL:
                words[index] = got
            return message

        return get

    def teardown(self) -> None:
        import kickmsg

        for name in getattr(self, "names", ()):
            kickmsg.unlink_shm(name)


CONTENDERS = [Kickmsg()]
