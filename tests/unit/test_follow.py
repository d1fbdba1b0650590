"""What the history says of moves that the strategy asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from shardmem.policy import DecisionKind, Move, ScalingDecision
from shardmem.supervisor.commands import Commands
from shardmem.supervisor.history import History
from shardmem.supervisor.life import Life


@pytest.mark.parametrize(
    "cause, reason, text",
    [
        ("no_samples", "no samples of the last 1 s from 2 shards active", "1 slot moved by the strategy"),
        ("uneven", "shard 0 busier than 80%", "1 slot moved by the strategy; shard 0 busier than 80%"),
    ],
)
def test_that_nothing_was_measured_is_no_reason_for_a_move(cause, reason, text):
    said, moves = [], [Move(1, 0, 1)]

    async def run(wanted):
        return SimpleNamespace(moves=wanted)

    async def follow():
        fleet = SimpleNamespace(
            change_lock=asyncio.Lock(), handoffs=SimpleNamespace(run=run), history=History(lambda text: None, 4096)
        )
        await Commands(fleet, Life(), None).follow(ScalingDecision(DecisionKind.NONE, 0, cause, reason, 0.0), moves)
        said.extend(entry.what["text"] for entry in fleet.history._entries)

    asyncio.run(follow())

    assert [text] == said
