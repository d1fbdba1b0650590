"""Decisions: values in, values out. No clock, no I/O, no processes, no randomness.

Times are given, in seconds of any clock that never goes back. So the same code runs in production, in tests that try
everything, and in a simulation with thousands of shards.

    signals    samples of shards, averaged over time          long_batches what is slow, and not load
    scaling    the policy, its decisions and refusals         mapper       shards and their lives
    decide     how many shards a load needs                   slots        slots and their owners
    placement  what a strategy is                             handoff      how a slot moves
    least_slots, least_load, pinned: strategies               wishes       what somebody wants
    restarts   when a dead worker is started again            rebalance    which slots move now
    recycling  which worker has lived long enough             condition    stuck, slow, busy or idle
    trials     events that fail: tried again, or quarantined

Names are imported at first use: a worker needs `trials` alone, and waits for all that it imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "condition": ("Facts", "Limits", "condition_of", "stuck"),
    "handoff": (
        "Action",
        "Deadlines",
        "Drain",
        "Finished",
        "HandoffCoordinator",
        "HandoffError",
        "HandoffState",
        "Late",
        "Release",
        "Reroute",
        "Respawn",
    ),
    "least_load": ("HotSlot", "LeastLoad"),
    "least_slots": ("LeastSlots",),
    "long_batches": ("LongBatches",),
    "mapper": ("ShardMapper", "ShardState"),
    "pinned": ("Pinned",),
    "placement": (
        "NOBODY",
        "DirectlyAsked",
        "Move",
        "Plan",
        "Strategy",
        "Undecided",
        "View",
        "fault_of",
        "first_table",
    ),
    "rebalance": ("Allocate", "BeginHandoff", "RebalanceRunner"),
    "recycling": ("Recycling",),
    "restarts": ("Restart", "Restarts", "WorkerDeath"),
    "scaling": (
        "DecisionHistory",
        "DecisionKind",
        "InvalidPolicy",
        "ScalingDecision",
        "ScalingError",
        "ScalingErrorKind",
        "ScalingPolicy",
    ),
    "signals": ("ShardSample",),
    "slots": ("ShardCoordinator",),
    "trials": ("LONGEST_PAUSE", "Place", "Trial", "Trials", "Verdict", "retry_wait"),
    "wishes": ("Wishes",),
}

if TYPE_CHECKING:
    from shardmem.policy.condition import Facts, Limits, condition_of, stuck
    from shardmem.policy.handoff import (
        Action,
        Deadlines,
        Drain,
        Finished,
        HandoffCoordinator,
        HandoffError,
        HandoffState,
        Late,
        Release,
        Reroute,
        Respawn,
    )
    from shardmem.policy.least_load import HotSlot, LeastLoad
    from shardmem.policy.least_slots import LeastSlots
    from shardmem.policy.long_batches import LongBatches
    from shardmem.policy.mapper import ShardMapper, ShardState
    from shardmem.policy.pinned import Pinned
    from shardmem.policy.placement import (
        NOBODY,
        DirectlyAsked,
        Move,
        Plan,
        Strategy,
        Undecided,
        View,
        fault_of,
        first_table,
    )
    from shardmem.policy.rebalance import Allocate, BeginHandoff, RebalanceRunner
    from shardmem.policy.recycling import Recycling
    from shardmem.policy.restarts import Restart, Restarts, WorkerDeath
    from shardmem.policy.scaling import (
        DecisionHistory,
        DecisionKind,
        InvalidPolicy,
        ScalingDecision,
        ScalingError,
        ScalingErrorKind,
        ScalingPolicy,
    )
    from shardmem.policy.signals import ShardSample
    from shardmem.policy.slots import ShardCoordinator
    from shardmem.policy.trials import LONGEST_PAUSE, Place, Trial, Trials, Verdict, retry_wait
    from shardmem.policy.wishes import Wishes
else:  # a checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        return value


__all__ = [
    "Action",
    "Allocate",
    "BeginHandoff",
    "Deadlines",
    "DecisionHistory",
    "DecisionKind",
    "DirectlyAsked",
    "Drain",
    "Facts",
    "Finished",
    "HandoffCoordinator",
    "HandoffError",
    "HandoffState",
    "HotSlot",
    "InvalidPolicy",
    "LONGEST_PAUSE",
    "Late",
    "LeastLoad",
    "LeastSlots",
    "LongBatches",
    "Limits",
    "Move",
    "NOBODY",
    "Pinned",
    "Place",
    "Plan",
    "RebalanceRunner",
    "Recycling",
    "Release",
    "Reroute",
    "Respawn",
    "Restarts",
    "ScalingDecision",
    "ScalingError",
    "ScalingErrorKind",
    "ScalingPolicy",
    "ShardCoordinator",
    "ShardMapper",
    "ShardSample",
    "ShardState",
    "Strategy",
    "Trial",
    "Trials",
    "Verdict",
    "Undecided",
    "WorkerDeath",
    "Restart",
    "View",
    "Wishes",
    "condition_of",
    "fault_of",
    "first_table",
    "retry_wait",
    "stuck",
]
