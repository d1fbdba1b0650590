"""A seat with a name: whoever takes it next knows what is left in its lanes; and a push with an origin, as a source
uses it."""

from __future__ import annotations

import numpy as np
import pytest

import shardmem
from shardmem.runtime.columns import Origin
from support.rig import Rig


def test_the_next_holder_of_a_named_seat_waits_for_what_the_last_one_pushed(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2) as engine:
        with rig.hold():
            with shardmem.connect(engine_name, seat="source:a") as first:
                first.push_many(list(range(100)), [b""] * 100)
                place = first.position()
            with shardmem.connect(engine_name, seat="source:a") as second:
                assert second.seat == first.seat and second.position() == place
                assert not second.handled(second.position())
                with pytest.raises(TimeoutError):
                    second.flush(0.05)
        with shardmem.connect(engine_name, seat="source:a") as third:
            third.flush(30)
            assert third.handled(place)
        assert engine.status()["accounting"]["handled"] == 100


def test_events_with_an_origin_that_find_no_room_are_not_refused(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=1, lane_bytes=4096) as engine, rig.hold():
        with shardmem.connect(engine_name, seat="source:a") as producer:
            table = producer.partition_table()
            table.set_count(1)
            row = table.row("t", 0)
            epoch, count = table.begin(row, 0), 200
            with pytest.raises(shardmem.Backpressure) as caught:
                producer.push_columns(
                    np.arange(count),
                    bytes(64 * count),
                    np.arange(count + 1) * 64,
                    timeout=0,
                    origin=Origin(row, epoch, np.arange(count)),
                )
            left = caught.value.left
            assert 0 < len(left) < count and left.tolist() == list(range(int(left[0]), count))
            assert caught.value.rest is None and table.pushed(row) == left[0]
            assert engine.status()["accounting"]["refused"] == {}
