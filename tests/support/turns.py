"""What a worker does in one turn, for tests that drive its parts themselves: as `Worker._run` in runtime/worker.py."""

from __future__ import annotations

from typing import Any

from shardmem.memory.reader import Reader
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.commit import Commit
from shardmem.runtime.failures import Failures


def one_turn(engine: Any, reader: Reader, batch: Any, scratch: Scratch, commit: Commit, failures: Failures) -> bool:
    """Of shard 0, without waiting for events. Whether there was something to do."""
    commit.step(False)
    if failures.busy and not failures.step():
        return True
    reader.next(0, 0, batch)
    if not batch.rows:
        if failures.busy:
            failures.idle()
        return False
    if batch.tries and failures.is_blamed():
        failures.died()
    elif not commit.take(batch):
        failures.passed()
    else:
        control = engine.control
        failures.attempt(Batch(control.schema, control.slots, 0, batch, scratch, control.partitions))
    return True


def counts(engine: Any) -> tuple[int, int, int]:
    """Of shard 0: handled, quarantined, in flight."""
    lanes = engine.inboxes[0].lanes()
    handled, quarantined, in_flight = (
        sum(getattr(lane, name) for lane in lanes) for name in ("handled", "quarantined", "in_flight")
    )
    return handled, quarantined, in_flight
