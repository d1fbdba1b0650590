"""A program that damages shared memory."""

from __future__ import annotations

import os
import random
import time

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import PAGE
from shardmem.memory.native import ffi
from support.programs import order, program, reply
from support.rig import PATIENCE


@program
def vandal() -> None:
    """Flips bits of one producer's lanes, in frames and in the words that the producer writes, until each is found
    broken."""
    orders = order()
    control = ControlSegment.attach(orders["engine"])
    draw, geometry, flips = random.Random(orders["seed"]), control.geometry, 0
    inboxes = [control.open_inbox(shard) for shard in control.known_shards()]
    lanes = [
        ffi.buffer(
            ffi.cast("uint8_t *", inbox.address) + geometry.lanes_offset + geometry.lane_stride * orders["seat"],
            geometry.lane_stride,
        )
        for inbox in inboxes
    ]
    until = time.monotonic() + PATIENCE
    started = time.monotonic()
    while time.monotonic() - started < orders["seconds"] or not all(
        lane.broken for inbox in inboxes for lane in inbox.lanes() if lane.seat == orders["seat"]
    ):
        for memory in lanes:
            at = draw.randrange(PAGE, geometry.lane_stride) if draw.randrange(4) else draw.randrange(32)
            memory[at] = bytes([memory[at][0] ^ 1 << draw.randrange(8)])
            flips += 1
        os.sched_yield()
        if time.monotonic() > until:
            break
    reply(flips=flips)
