from __future__ import annotations

import logging
import threading
import time
from collections import deque

import pytest

from shardmem.console.dry_run import key_of
from shardmem.schema import Schema
from shardmem.sources.contract import SourceContext
from shardmem.sources.files.options import FileOptions
from shardmem.sources.files.source import FileSource
from support.benches import RealKafkaBench


def events_in(columns):
    """(key, payload) pairs, or rows."""
    if columns.records is not None:
        return columns.records.tolist()
    if columns.payloads is None:
        return []
    data, spans = bytes(columns.payloads[0]), columns.payloads[1].tolist()
    return [(key_of(columns.keys, i), data[first:last]) for i, (first, last) in enumerate(spans)]


@pytest.fixture
def read(tmp_path):
    """read(bytes, options) -> (events, rejected), as an engine of that dtype would get them."""

    def read(data, dtype=None, *, most=1 << 19, block=1 << 20, name="a.in", **options):
        path = tmp_path / name
        path.write_bytes(data)
        schema = Schema.of(dtype, None)
        source = FileSource(deque([str(path)]), FileOptions.of(**options), schema, most, block=block)
        source.open(SourceContext(logging.getLogger(), time.time, threading.Event()))
        events, rejected, total = [], [], 0
        while not source.ended:
            columns = source.poll(1 << 20, 0.1)
            if columns is not None:
                events += events_in(columns)
                rejected += columns.rejected
                total += columns.bytes
        source.close(True)
        read.bytes = total
        return events, rejected

    return read


@pytest.fixture(scope="session", autouse=True)
def end_of_kafka():
    yield
    if RealKafkaBench.cluster is not None:
        RealKafkaBench.cluster.close()
        RealKafkaBench.cluster = None
