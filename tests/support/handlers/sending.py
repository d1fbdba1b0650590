"""Handlers that send to topics of a broker."""

from __future__ import annotations

import os

import shardmem
from shardmem import Batch, Context, Handler

TOPIC = os.environ.get("TOTALS", "totals")


class Totals(Handler):
    """How many events of its key there were, after each of them."""

    total = shardmem.KeyedState(int, default=0)

    def open(self, context: Context) -> None:
        self.outbox = context.outbox

    def handle(self, batch: Batch) -> None:
        for key, payload in batch:
            self.total[key] += 1
            self.outbox.send(TOPIC, key, b"%d" % self.total[key], {"of": payload})


class Forwards(Handler):
    """Keeps nothing; has checkpoints since it takes the outbox."""

    def open(self, context: Context) -> None:
        self.outbox = context.outbox

    def handle(self, batch: Batch) -> None:
        for key, payload in batch:
            self.outbox.send(TOPIC, key, payload)
