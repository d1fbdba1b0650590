"""Slots are placed by the time that their events take, not by how many they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import shardmem
from shardmem.runtime.batch import slot_of
from support.autoscale_load import costly_keys

SLOTS, SHARDS, HOME = 64, 4, 1
LIMIT = 30.0  # seconds until what should be so has to be; it is so within five


def costly() -> list[str]:
    """Four keys, of four slots of one shard."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < 4:
        key = f"costly{number}"
        number += 1
        if (slot := slot_of(key, SLOTS)) % SHARDS == HOME:
            found.setdefault(slot, key)
    return list(found.values())


@contextmanager
def pushed(engine: shardmem.Engine, keys: list[str]) -> Iterator[None]:
    """More events of the costly keys than one worker can take, and some 1,000 cheap ones a second, until the end."""
    stop = threading.Event()

    def dear() -> None:
        with engine.producer() as producer:
            while not stop.is_set():
                try:
                    producer.push_many(keys * 8, [b""] * (8 * len(keys)), timeout=0.2)
                except shardmem.Backpressure:
                    pass

    def cheap() -> None:
        number = 0
        with engine.producer() as producer:
            while not stop.wait(0.01):
                try:
                    producer.push_many([f"k{each}" for each in range(number, number + 10)], [b""] * 10, timeout=0.2)
                except shardmem.Backpressure:
                    pass
                number = (number + 10) % 5000

    threads = [threading.Thread(target=dear), threading.Thread(target=cheap)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Look:
    """What the shards did since the last look."""

    def __init__(self, engine: shardmem.Engine) -> None:
        self._engine = engine
        self.take(0)

    def take(self, seconds: float) -> tuple[float, list[float]]:
        """(events handled per second, busy shares)"""
        time.sleep(seconds)
        shards, now = self._engine.status()["shards"], time.monotonic()
        handled = sum(shard["handled"] for shard in shards)
        rate = (handled - self._handled) / (now - self._at) if seconds else 0.0
        self._handled, self._at = handled, now
        return rate, [shard["busy"] for shard in shards]

    _handled, _at = 0, 0.0


def test_rebalance_parts_costly_keys_from_each_other_though_all_are_as_frequent():
    with shardmem.Engine(
        handler=costly_keys, shards=SHARDS, slots=SLOTS, batch_rows=100, lane_bytes=1 << 16, log_level="error"
    ) as engine:
        keys = costly()
        with pushed(engine, keys):
            look = Look(engine)
            deadline = time.monotonic() + LIMIT
            while look.take(1.0)[1][HOME] < 0.9:
                assert time.monotonic() < deadline, "the shard of the costly keys is not busy"
            before, busy = look.take(3.0)
            assert max(busy) - min(busy) > 0.3, f"busy shares are {busy} before anything moved"

            told: list[str] = []
            for _ in range(2):
                moved = len(engine.rebalance()["moved"])
                deadline = time.monotonic() + LIMIT / 2
                while time.monotonic() < deadline:
                    rate, after = look.take(1.0)
                    told.append(f"moved {moved}: {rate:.0f}/s, busy {[round(share, 2) for share in after]}")
                    if max(after) - min(after) <= 0.1 and rate >= 1.4 * before:
                        print(f"before: {before:.0f}/s, busy {[round(share, 2) for share in busy]}", *told, sep="\n")
                        return
            raise AssertionError("\n".join([f"before: {before:.0f}/s, busy {busy}", *told]))
