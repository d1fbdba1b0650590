"""The count of state_counting.py in the state of others: python state_rivals.py NAME EVENTS prints CPU ns for an event.

Both get their events from memory, so what is measured is the step that counts, its state in a file, and a checkpoint
every 0.5 s. Quix's stateful function is called as its dataframe calls it, without Kafka.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

LIVE, INTERVAL, BATCH = 10_000, 0.5, 4096


def keys(events: int) -> list[str]:
    chance = random.Random(1)
    drawn = [str(chance.randrange(LIVE)) for _ in range(min(events, 1_000_000))]
    return [drawn[number % len(drawn)] for number in range(events)]


def quix(events: int, directory: str) -> float:
    from quixstreams.state.manager import StateStoreManager
    from quixstreams.state.serialization import serialize
    from quixstreams.utils.json import dumps

    def counted(value: Any, state: Any) -> int:
        total: int = state.get("total", 0) + 1
        state.set("total", total)
        return total

    manager = StateStoreManager(group_id="bench", state_dir=directory)
    manager.init()
    manager.register_store("topic", "default")
    manager.on_partition_assign(stream_id="topic", partition=0, committed_offsets={})
    store, drawn = manager.get_store("topic"), keys(events)
    began, saved = time.process_time(), time.monotonic()
    transaction = store.start_partition_transaction(0)
    for number, key in enumerate(drawn):
        counted(None, transaction.as_state(prefix=serialize(key, dumps=dumps)))
        if not number % BATCH and time.monotonic() - saved > INTERVAL:
            transaction.prepare()
            transaction.flush()
            transaction, saved = store.start_partition_transaction(0), time.monotonic()
    transaction.prepare()
    transaction.flush()
    return time.process_time() - began


def bytewax(events: int, directory: str) -> float:
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import TestingSource, run_main

    class Nowhere(StatelessSinkPartition):  # type: ignore[misc]
        def write_batch(self, items: list[Any]) -> None: ...

    class Sink(DynamicSink):  # type: ignore[misc]
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Any:
            return Nowhere()

    def counted(state: int | None, value: Any) -> tuple[int, int]:
        total = (state or 0) + 1
        return total, total

    def events_of(drawn: list[str]) -> Iterator[tuple[str, None]]:
        for key in drawn:
            yield key, None

    init_db_dir(Path(directory), 1)
    flow, drawn = Dataflow("bench"), keys(events)
    stream = op.input("in", flow, TestingSource(events_of(drawn), batch_size=BATCH))
    op.output("out", op.stateful_map("count", stream, counted), Sink())
    began = time.process_time()
    run_main(flow, epoch_interval=timedelta(seconds=INTERVAL), recovery_config=RecoveryConfig(Path(directory)))
    return time.process_time() - began


def main() -> None:
    events = int(sys.argv[2])
    with tempfile.TemporaryDirectory() as directory:
        took = {"quix": quix, "bytewax": bytewax}[sys.argv[1]](events, directory)
    print(json.dumps(took / events * 1e9))


if __name__ == "__main__":
    main()
