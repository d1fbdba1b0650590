"""An engine without processes: real segments, real lanes, the worker's end in the hands of the test."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import pytest

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import ffi, lib
from shardmem.policy.placement import first_table
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.producer import Producer
from shardmem.schema import Schema


class Loopback:
    """`producer()` pushes; `take(shard)` is what the worker of that shard would get next; `commit(shard)` ends it."""

    def __init__(
        self,
        dtype=None,
        key=None,
        *,
        shards=1,
        slots=64,
        lane_bytes=1 << 16,
        max_producers=8,
        batch_rows=4096,
        state_dir="",
        name=None,
        is_named=True,
    ):
        self.control = ControlSegment.create(
            name or f"{os.environ['PYTEST_SHARDMEM_SESSION']}-{uuid.uuid4().hex[:8]}",  # what is left is found
            Schema.of(dtype, key),
            slots=slots,
            max_shards=max(shards, 2),
            max_producers=max_producers,
            lane_bytes=lane_bytes,
            state_dir=state_dir,
            is_named=is_named,
        )
        self.name = self.control.engine
        self.inboxes, self.readers, self.batches, self.held = [], [], [], {}
        self.scratch, self._opened = Scratch(), []
        for shard in range(shards):
            self.inboxes.append(InboxSegment.create(self.control, shard, 1))
            lib.sm_set_shard_generation(self.control.address, shard, 1)
            lib.sm_set_shard_weight(self.control.address, shard, 1000)
            self.control.set_shard_state(shard, "active")
            self.readers.append(self._reader(shard, batch_rows))
            self.batches.append(ffi.new("sm_batch *"))
        for slot, shard in enumerate(first_table(slots, range(shards))):
            lib.sm_set_slot(self.control.address, slot, shard)
        self.control.set_state("running")

    def producer(self, **options) -> Producer:
        self._opened.append(Producer(self.name, **options))
        return self._opened[-1]

    def take(self, shard=0) -> Batch | None:
        batch = self.batches[shard]
        self.last_status = lib.sm_next(self.readers[shard], 0, 0, batch)
        if not batch.rows:
            return None
        control = self.control
        self.held[shard] = Batch(control.schema, control.slots, shard, batch, self.scratch, control.partitions)
        return self.held[shard]

    def commit(self, shard=0) -> None:
        self.held.pop(shard)._end()
        assert lib.sm_commit(self.readers[shard]) == lib.SM_OK

    def restart(self, shard=0, batch_rows=4096) -> None:
        """A new incarnation of the worker: it knows what is in shared memory and nothing else."""
        self.held.pop(shard, None)
        lib.sm_reader_free(self.readers[shard])
        self.readers[shard] = self._reader(shard, batch_rows)

    def _reader(self, shard: int, batch_rows: int):
        inbox = self.inboxes[shard]
        return lib.sm_reader_new(
            self.control.address, self.control.geometry, inbox.address, inbox.segment.descriptor, shard, batch_rows
        )

    def end(self) -> None:
        """As a supervisor that has drained: the names go, whoever has the memory mapped keeps it."""
        self.control.set_state("stopped")
        for inbox in self.inboxes:
            inbox.segment.unlink()
        self.control.segment.unlink()

    def close(self) -> None:
        for producer in self._opened:
            producer.close()
        for reader in self.readers:
            lib.sm_reader_free(reader)
        for inbox in self.inboxes:
            inbox.segment.unlink()
            inbox.close()
        self.control.segment.unlink()
        self.control.close()


@pytest.fixture
def loopback():
    made = []

    def make(*args, **options) -> Loopback:
        made.append(Loopback(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.held.clear()
        each.close()


@pytest.fixture
def sockets(monkeypatch):
    """Where sockets are, for this test alone."""
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is too long for the address of a socket
        monkeypatch.setattr(tempfile, "tempdir", directory)
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)
