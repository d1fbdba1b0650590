"""An engine whose processes were killed, to be damaged and taken over."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from shardmem.config import Config
from shardmem.memory.native import ffi, lib
from shardmem.supervisor.configured import strategy_of
from shardmem.supervisor.takeover import Takeover

SHARDS, SLOTS, EVENTS = 3, 64, 90
SHARD_WORDS = {"state": (0, "<I"), "generation": (8, "<Q"), "retired": (24, "<Q")}


class Left:
    """An engine whose processes were killed: each shard holds events. `take` takes it over."""

    def __init__(self, loopback: Callable[..., Any], directory: str) -> None:
        self.engine = loopback(shards=SHARDS, slots=SLOTS, state_dir=directory)
        self.config = Config.of(
            name=self.engine.name,
            handler="support.recorder:Recorder",
            slots=SLOTS,
            shards=SHARDS,
            max_producers=8,
            lane_bytes=1 << 16,
            state_dir=directory,
        )
        self.control = self.engine.control
        producer = self.engine.producer()
        producer.push_many(list(range(EVENTS)), [b""] * EVENTS)
        producer.close()
        self.held = {shard: self.unread(shard) for shard in range(SHARDS)}
        assert all(self.held.values())

    def unread(self, shard: int) -> int:
        return sum(lane.waiting for lane in self.engine.inboxes[shard].lanes())

    def word(self, shard: int, name: str, value: int) -> None:
        offset, form = SHARD_WORDS[name]
        at = self.ranges[-1][0] + self.shard_bytes * shard + offset
        self.memory()[at : at + struct.calcsize(form)] = struct.pack(form, value)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Offset and length of what is used of the control segment: header and seats, slots, holds, moves, boards,
        shards."""
        offsets, lengths = ffi.new("uint64_t[]", 8), ffi.new("uint64_t[]", 8)
        count = lib.sm_control_ranges(self.control.geometry, offsets, lengths)
        return [(offsets[i], lengths[i]) for i in range(count)]

    @property
    def shard_bytes(self) -> int:
        return self.ranges[-1][1] // self.control.geometry.max_shards

    def memory(self) -> Any:
        """The whole control segment, to be written to."""
        return ffi.buffer(ffi.cast("uint8_t *", self.control.address), self.control.segment.size)

    def take(self) -> Takeover:
        takeover = Takeover.take(self.config)
        try:
            takeover.find(self.config, strategy_of(self.config))
        except BaseException:
            takeover.abort(self.config)
            raise
        return takeover


def ends(takeover: Takeover) -> dict[int, int]:
    """Events that each shard still holds; gives everything up."""
    held = {shard: sum(lane.waiting for lane in inbox.lanes()) for shard, inbox in takeover.inboxes.items()}
    takeover.lease.release()
    takeover.observer.close()
    for inbox in takeover.inboxes.values():
        inbox.close()
    takeover.control.close()
    return held
