"""What threads share: without the GIL too, where a list may change while C looks at it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import pytest

import shardmem

TURNS = 300


@pytest.fixture(autouse=True)
def often():
    """With the GIL, threads take turns often enough to meet."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*works: Callable[[], None], beside: Callable[[], None] = lambda: time.sleep(0.001)) -> None:
    """beside: again and again, until all works are done. What one raises is raised."""
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        beside()
    for thread in threads:
        thread.join()
    assert not raised, raised


def test_lists_that_another_thread_changes_while_they_are_pushed_do_no_harm(loopback):
    engine = loopback(lane_bytes=1 << 18)
    producer, taken = engine.producer(), 0
    keys: list[int | str] = [*range(50), *map(str, range(50))]
    payloads = [b"x" * (number % 90) for number in range(100)]

    def push() -> None:
        for _ in range(TURNS):
            try:
                producer.push_many(keys, payloads, timeout=0)
            except (shardmem.Backpressure, ValueError):  # full, or of two lengths at this moment
                pass

    def change() -> None:
        for number in range(TURNS * 20):
            keys.append(str(number))
            payloads.append(b"%d" % number)
            del keys[number % 90], payloads[number % 90]

    def take() -> None:
        nonlocal taken
        if (batch := engine.take()) is not None:
            taken += len(list(batch))
            engine.commit()

    at_once(push, push, change, beside=take)
    while (batch := engine.take()) is not None:
        taken += len(batch)
        engine.commit()

    (lane,) = engine.inboxes[0].lanes()
    assert taken == lane.accepted == lane.handled and taken > 0


def test_a_producer_that_is_closed_while_others_push_refuses_and_nothing_else(loopback):
    engine = loopback(lane_bytes=1 << 18)
    producer = engine.producer()

    def push() -> None:
        try:
            for number in range(TURNS * 10):
                producer.push(number, b"payload", timeout=0)
        except (shardmem.NotRunning, shardmem.Backpressure):
            pass

    at_once(push, push, producer.close)
    with pytest.raises(shardmem.NotRunning):
        producer.push(1, b"")
