"""The document of `status`, read while what it is about changes."""
from __future__ import annotations

import pytest

from shardmem.memory.native import lib
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
