"""Handlers that are told which slots they gain and lose."""

from __future__ import annotations

import json
import os

from shardmem import Batch, Context
from support.recorder import Recorder


class Owner(Recorder):
    """Writes down which slots it gains and loses, in one file of all shards, and refuses events of other slots."""

    def open(self, context: Context) -> None:
        super().open(context)
        self.mine: set[int] = set()
        self._told = os.open(self.directory / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def handle(self, batch: Batch) -> None:
        strange = set(batch.slots.tolist()) - self.mine
        assert not strange, f"shard {self.context.shard} was given events of slots {strange}, which it has not gained"
        self.tell("handles", sorted(set(batch.slots.tolist())))
        super().handle(batch)

    def gained(self, slots: list[int]) -> None:
        if (self.directory / "refuse-gained").exists():
            raise OSError("no room for more")
        self.mine.update(slots)
        self.tell("gained", slots)

    def lost(self, slots: list[int]) -> None:
        if (self.directory / "refuse-lost").exists():
            raise OSError("cannot let go")
        self.mine.difference_update(slots)
        self.tell("lost", slots)

    def tell(self, what: str, slots: list[int]) -> None:
        line = [what, self.context.shard, self.context.incarnation, slots]
        os.write(self._told, json.dumps(line).encode() + b"\n")


class StatefulOwner(Owner):
    """Without `drop`: it is made again when a slot goes."""

    def open(self, context: Context) -> None:
        super().open(context)
        self.counts: dict[int, int] = {}

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        for slot in batch.slots.tolist():
            self.counts[slot] = self.counts.get(slot, 0) + 1

    def snapshot(self, slot: int) -> bytes:
        return b"%d" % self.counts.get(slot, 0)

    def restore(self, slot: int, state: bytes) -> None:
        assert slot not in self.mine, f"slot {slot} was gained before its state was there"
        self.counts[slot] = int(state)
