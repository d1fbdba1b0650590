"""The C extension, and the little that every user of it needs."""
from __future__ import annotations

from shardmem import _native
from shardmem._native import ffi, lib

if lib.sm_install_fastcalls() != lib.SM_OK:
    raise ImportError("shardmem._native could not add its per-event calls; was it built for another interpreter?")

Pusher = _native.Pusher
decode = _native.decode
DECODE_PAIRS, DECODE_KEYS, DECODE_PAYLOADS = 0, 1, 2

ENGINE_STATES = ("starting", "running", "draining", "stopped")
SHARD_STATES = ("none", "provisioning", "active", "draining", "stopped", "failed")
PHASES = ("none", "booting", "ready", "stopped", "failed")
MOVE_PHASES = ("none", "rerouting", "draining", "releasing")
REASONS = ("full", "timeout", "sampled", "stopped")


def points() -> dict[str, int]:
    """The named points at which a test may kill or stop this process."""
    return {ffi.string(lib.sm_point_name(i)).decode(): i for i in range(lib.sm_point_count())}


def arm_point(name: str, passes: int, signal_number: int) -> None:
    """Send this process `signal_number` when it reaches the point `name` for the `passes`-th time."""
    lib.sm_point_arm(points()[name], passes, signal_number)


__all__ = ["DECODE_KEYS", "DECODE_PAIRS", "DECODE_PAYLOADS", "ENGINE_STATES", "MOVE_PHASES", "PHASES", "REASONS", "SHARD_STATES",
           "Pusher", "arm_point", "decode", "ffi", "lib", "points"]
