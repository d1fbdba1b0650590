"""A source that is killed repeats nothing and loses nothing; a worker that is killed while it passes over events of an
earlier epoch counts each once."""

from __future__ import annotations

import signal

import numpy as np

import shardmem
from support.checker import accounting
from support.programs.broken_source import PARTITIONS, SEAT, broken_source
from support.rig import PATIENCE, Program, Rig, drained, handled_numbers, wait_until

POINTS = [
    "send.claimed",
    "send.copying",
    "send.counted",
    "send.published",
    "send.unmarked",
    "origin.calling",
    "origin.pushed",
]


def test_a_source_that_is_killed_anywhere_in_a_push_repeats_and_loses_nothing(rig: Rig, engine_name: str) -> None:
    with rig.engine(engine_name, shards=2, lane_bytes=8192) as engine:
        with Program(broken_source, rig, engine=engine.name) as program:
            assert program.hear(2 * PATIENCE)["ready"]
            for point in POINTS:
                codes = program.ask(4 * PATIENCE, point=point, count=2, blocks=20)["codes"]
                assert codes == [-signal.SIGKILL] * 2, point
            assert program.ask(4 * PATIENCE, point=None, count=1, blocks=1)["codes"] == [0]
            assert program.end() == 0
        with shardmem.connect(engine.name, seat=SEAT) as producer:
            pushed = [row.pushed for row in producer.partition_table().rows()]
        status, logs = drained(engine), rig.logs()
        assert len(pushed) == PARTITIONS and accounting(status, drained=True) == []
        assert [handled_numbers(logs, row) for row in range(PARTITIONS)] == [list(range(at)) for at in pushed]
        for key in np.unique(logs.handled["key"]):
            numbers = logs.handled["number"][logs.handled["key"] == key]
            assert (np.diff(numbers.astype("i8")) > 0).all(), f"key {key}"


def test_a_worker_that_dies_while_it_passes_over_events_of_an_earlier_epoch_counts_each_once(
    rig: Rig, engine_name: str
) -> None:
    settings = {"lane_bytes": 1 << 16, "batch_rows": 16, "shards": 1}
    with rig.engine(engine_name, "support.handlers.counting:Lingering", **settings) as engine, rig.hold() as release:
        with shardmem.connect(engine.name, seat=SEAT) as producer:
            table = producer.partition_table()
            table.set_count(2)
            rows = [table.row("clicks", number) for number in range(2)]
            epochs = [table.begin(row, 0) for row in rows]
            for start in range(0, 400, 20):
                for row, epoch in zip(rows, epochs):
                    offsets = np.arange(start, start + 20)
                    ends = np.arange(21) * 4
                    origin = shardmem.runtime.columns.Origin(row, epoch, offsets)
                    producer.push_columns(offsets, bytes(80), ends, PATIENCE, origin=origin)
            rig.wait_held(0)
            pid = engine.status()["shards"][0]["pid"]
            rig.arm(0, "shed.lost", 3, signal.SIGKILL)
            table.end(rows[0])
            release()
            wait_until(lambda: engine.status()["shards"][0]["pid"] != pid, "it was killed, and another runs")
            producer.flush(PATIENCE)
        counts = drained(engine)["accounting"]
        assert counts["accepted"] == 800 and accounting(engine.status(), drained=True) == []
        assert counts["shed"]["lost"] + counts["handled"] == 800 and 400 <= counts["handled"] <= 400 + 32
