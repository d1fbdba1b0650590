"""The document of `status`, read while what it is about changes."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from shardmem.memory.native import lib
from shardmem.runtime import snapshot
from shardmem.runtime.snapshot import Observer


@pytest.mark.parametrize("when", ["before its lanes are read", "after its lanes are read"])
def test_a_shard_that_is_retired_while_status_is_read_is_counted_once(loopback, when):
    engine = loopback(shards=2)
    producer = engine.producer()
    producer.push_many(list(range(100)), [b""] * 100)
    for shard in range(2):
        while engine.take(shard) is not None:
            engine.commit(shard)
    observer = Observer(engine.control)
    observer.status()  # the inboxes are mapped, as they are in a supervisor
    read = observer._shard

    def retire(shard: int) -> None:
        if shard == 1:
            lanes = engine.inboxes[1].lanes()
            lib.sm_retire(engine.control.address, 1, 1, sum(lane.accepted for lane in lanes),
                          sum(lane.handled for lane in lanes), 0, 0)

    def read_and_retire(shard, *rest):
        if when.startswith("before"):
            retire(shard)
        found = read(shard, *rest)
        if when.startswith("after"):
            retire(shard)
        return found

    observer._shard = read_and_retire
    during, after = observer.status()["accounting"], observer.status()["accounting"]
    observer.close()

    assert 100 == during["accepted"] == during["handled"]
    assert during == after


def test_a_rate_is_not_taken_over_the_moment_between_two_readers(loopback, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(snapshot, "time", clock)
    engine = loopback()
    producer, observer = engine.producer(), Observer(engine.control)

    def rates(at: float) -> tuple[float, float]:
        clock.now = at
        document = observer.status()
        return document["shards"][0]["rate"], document["producers"][0]["rate"]

    assert (0, 0) == rates(100.0), "there is nothing to compare with"
    producer.push_many(list(range(100)), [b""] * 100)
    while engine.take() is not None:
        engine.commit()
    assert (50, 50) == rates(102.0)
    assert (50, 50) == pytest.approx(rates(102.001), rel=0.01), "somebody else has read it a moment ago"
    assert (0, 0) == rates(102.3)
    observer.close()
