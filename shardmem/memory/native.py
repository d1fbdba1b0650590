"""The C extension, and the little that every user of it needs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from shardmem import _native
from shardmem._native import ffi, lib

if TYPE_CHECKING:
    from typing import Literal

    from typing_extensions import Buffer

    Numbers = Literal["uint8_t[]", "int32_t[]", "uint32_t[]", "uint64_t[]"]

    # they are names of the stub only
    from shardmem._native import CData as CData
    from shardmem._native import Integers as Integers
    from shardmem._native import Pairs as Pairs
    from shardmem._native import sm_batch as sm_batch
    from shardmem._native import sm_columns as sm_columns
    from shardmem._native import sm_cursor as sm_cursor
    from shardmem._native import sm_engine_view as sm_engine_view
    from shardmem._native import sm_geometry as sm_geometry
    from shardmem._native import sm_partition_view as sm_partition_view
    from shardmem._native import sm_reader as sm_reader
    from shardmem._native import sm_seat_view as sm_seat_view
    from shardmem._native import sm_sender as sm_sender
    from shardmem._native import sm_shard_view as sm_shard_view
    from shardmem._native import sm_span as sm_span
    from shardmem._native import sm_trial_view as sm_trial_view

if "t" in getattr(sys, "abiflags", "") and str(_native.__file__).endswith(".abi3.so"):
    # CPython 3.14 without the GIL loads it, although its objects have another form: the first push was a SIGSEGV
    raise ImportError(
        f"{_native.__file__} is built for interpreters with the GIL, and this one has none; install shardmem with it: "
        f"{sys.executable} -m pip install --force-reinstall shardmem"
    )
if lib.sm_install_fastcalls() != lib.SM_OK:
    raise ImportError("shardmem._native could not add its per-event calls; was it built for another interpreter?")

Pusher = _native.Pusher
StateMap = _native.StateMap
Cell = _native.Cell
decode = _native.decode
pairs = _native.pairs
by_key = _native.by_key
store_keys = _native.store_keys
slots_of_keys = _native.slots_of_keys
DECODE_KEYS, DECODE_PAYLOADS = 0, 1

ENGINE_STATES = ("starting", "running", "draining", "stopped")
SHARD_STATES = ("none", "provisioning", "active", "draining", "stopped", "failed")
PHASES = ("none", "booting", "ready", "stopped", "failed", "halted")
MOVE_PHASES = ("none", "rerouting", "draining", "releasing")
LAYOUT_VERSION = lib.SM_LAYOUT_VERSION
BOARDS = ("decisions", "events")
BOARD_BYTES: int = lib.SM_BOARD_BYTES
WAITING = ("", "retry", "doubt", "quarantine")  # sm_waiting
REASONS = ("full", "timeout", "sampled", "stopped")


def borrow(kind: Numbers, owner: Buffer | np.ndarray) -> Integers:
    """A C array over the owner's memory, which it keeps alive.

    Not of a memoryview itself: when the cycle collector clears one whose buffer is still borrowed, CPython forgets the
    memory below it and crashes as it frees the view. An error that somebody keeps holds the frame of a call, and in it
    both: `ingest` died so at its end, one time in forty.
    """
    return ffi.from_buffer(kind, np.frombuffer(owner, "u1") if isinstance(owner, memoryview) else owner)  # type: ignore


def bytes_at(memory: CData, size: int) -> bytes:
    """A copy."""
    return bytes(ffi.buffer(memory, size))


def points() -> dict[str, int]:
    """The named points at which a test may kill or stop this process."""
    return {ffi.string(lib.sm_point_name(i)).decode(): i for i in range(lib.sm_point_count())}


def arm_point(name: str, passes: int, signal_number: int) -> None:
    """Send this process `signal_number` when it reaches the point `name` for the `passes`-th time."""
    global _armed
    lib.sm_point_arm(points()[name], passes, signal_number)
    _armed = name


def arm_from_environment() -> None:
    """SHARDMEM_POINT=name:passes:signal, read by the main functions of our processes: what is tested is what ships."""
    if wanted := os.environ.get("SHARDMEM_POINT"):
        name, passes, number = wanted.split(":")
        arm_point(name, int(passes), int(number))


_armed: str | None = None


def point(name: str) -> None:
    """A named point in Python code."""
    if _armed == name:
        lib.sm_point_pass(points()[name])


__all__ = [
    "BOARDS",
    "BOARD_BYTES",
    "Cell",
    "DECODE_KEYS",
    "DECODE_PAYLOADS",
    "ENGINE_STATES",
    "LAYOUT_VERSION",
    "MOVE_PHASES",
    "PHASES",
    "REASONS",
    "SHARD_STATES",
    "WAITING",
    "Pusher",
    "StateMap",
    "arm_from_environment",
    "arm_point",
    "borrow",
    "by_key",
    "bytes_at",
    "decode",
    "ffi",
    "lib",
    "pairs",
    "point",
    "points",
    "slots_of_keys",
    "store_keys",
]
