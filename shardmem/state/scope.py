"""What of an engine the state of one handler sees: its slots, where it is saved, what time it is."""

from __future__ import annotations

import datetime
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from shardmem.errors import StateError
from shardmem.memory.native import slots_of_keys, store_keys
from shardmem.state.keys import Key, plain_key
from shardmem.state.partitions import Layout
from shardmem.state.store import Store

_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-z]+)\s*")

Duration = float | str | datetime.timedelta


def wall_clock() -> float:
    """Seconds since 1970: timers outlive the process and the host's boot."""
    return time.time()


def seconds_of(duration: Duration) -> float:
    """Of a number, a timedelta, or text such as "30 min", "250ms", "1 h". Raises ValueError, TypeError."""
    if isinstance(duration, datetime.timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        match = _DURATION.fullmatch(duration)
        if not match or match[2] not in _UNITS:
            raise ValueError(
                f"{duration!r} is not a duration: write seconds, or text such as '30 min', '250 ms', '1 h'"
            )
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        seconds = float(duration)
    else:
        raise TypeError(f"{duration!r} is a {type(duration).__name__}, and not a duration")
    if not 0 <= seconds < 1e12:
        raise ValueError(f"{duration!r} is not a duration of 0 seconds or more")
    return seconds


def milliseconds_of(moment: float) -> int:
    """Rounded up: a timer must not fire early."""
    return math.ceil(moment * 1000)


@dataclass
class Scope:
    """slots: that a key may belong to, from `first` on: all of the engine, or those of one partition. owned: those that
    this shard handles now. clock: seconds since 1970."""

    slots: int
    store: Store
    owned: set[int] = field(default_factory=set)
    clock: Callable[[], float] = wall_clock
    shard: int = 0
    first: int = 0
    partition: int | None = None

    def of_partition(self, layout: Layout, number: int) -> Scope:
        return replace(self, slots=layout.width, first=layout.slots_of(number)[0], partition=number)

    def now_ms(self) -> int:
        return int(self.clock() * 1000)

    def here(self) -> set[int]:
        return self.owned if self.partition is None else self.owned & set(range(self.first, self.first + self.slots))

    def slot_of(self, key: Key) -> int:
        return int.from_bytes(slots_of_keys([key], self.slots, self.first), "little")

    def slots_of(self, keys: list[Key]) -> np.ndarray:
        return np.frombuffer(slots_of_keys(keys, self.slots, self.first), "u4")

    def store_keys(self, keys: list[Key], name: bytes) -> list[bytes]:
        return store_keys(keys, name, self.slots, self.first)

    def admit(self, key: object, what: str) -> Key:
        """The key as it is kept. Raises TypeError or ValueError when it cannot be one, StateError when another shard
        owns it: it would be written over there."""
        plain = plain_key(key)
        if (slot := self.slot_of(plain)) not in self.owned:
            of = "" if self.partition is None else f" of partition {self.partition}"
            raise StateError(
                f"{what} of key {plain!r}: it belongs to slot {slot}{of}, which shard {self.shard} does not own",
                hint="Use the keys of the events in hand; to reach another key, push an event with that key",
            )
        return plain
