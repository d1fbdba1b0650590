"""shardmem: elastic, key-ordered ingestion on one host.

Any process pushes events into shared memory; one worker process per shard runs a handler on batches of them.

    with shardmem.Engine(handler=handle, shards=2) as engine, engine.producer() as producer:
        producer.push("key", b"payload")
        producer.flush()

Names are imported at first use, so that a producer pays for what it uses and no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AlreadyRunning": "errors",
    "Backpressure": "errors",
    "BatchEscaped": "errors",
    "ConfigError": "errors",
    "HandlerError": "errors",
    "LayoutMismatch": "errors",
    "NotRunning": "errors",
    "OutOfMemory": "errors",
    "SegmentCorrupt": "errors",
    "SegmentError": "errors",
    "ShardmemError": "errors",
    "Superseded": "errors",
    "TooManyProducers": "errors",
    "Unavailable": "errors",
    "AsyncProducer": "runtime.aio",
    "Batch": "runtime.batch",
    "Columns": "runtime.batch",
    "Client": "client.client",
    "Context": "runtime.handler",
    "Handler": "runtime.handler",
    "Engine": "client.engine",
    "Entity": "runtime.entity",
    "KeyedState": "state.keyed",
    "stateful": "runtime.functions",
    "StateError": "errors",
    "Producer": "runtime.producer",
    "Reject": "runtime.outcomes",
    "Retry": "runtime.outcomes",
    "Status": "status.document",
    "connect": "runtime.producer",
}

__all__ = [
    "AlreadyRunning",
    "AsyncProducer",
    "Backpressure",
    "Batch",
    "BatchEscaped",
    "Client",
    "Columns",
    "ConfigError",
    "Context",
    "Engine",
    "Entity",
    "Handler",
    "HandlerError",
    "KeyedState",
    "LayoutMismatch",
    "NotRunning",
    "OutOfMemory",
    "Producer",
    "Reject",
    "Retry",
    "SegmentCorrupt",
    "SegmentError",
    "ShardmemError",
    "StateError",
    "Status",
    "Superseded",
    "TooManyProducers",
    "Unavailable",
    "__version__",
    "connect",
    "stateful",
]


_ROOMS = ("sinks", "testing")  # packages that are public as they are


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])


if TYPE_CHECKING:
    from shardmem import sinks as sinks
    from shardmem import testing as testing
    from shardmem.client.client import Client
    from shardmem.client.engine import Engine
    from shardmem.errors import (
        AlreadyRunning,
        Backpressure,
        BatchEscaped,
        ConfigError,
        HandlerError,
        LayoutMismatch,
        NotRunning,
        OutOfMemory,
        SegmentCorrupt,
        SegmentError,
        ShardmemError,
        StateError,
        Superseded,
        TooManyProducers,
        Unavailable,
    )
    from shardmem.runtime.aio import AsyncProducer
    from shardmem.runtime.batch import Batch, Columns
    from shardmem.runtime.entity import Entity
    from shardmem.runtime.functions import stateful
    from shardmem.runtime.handler import Context, Handler
    from shardmem.runtime.outcomes import Reject, Retry
    from shardmem.runtime.producer import Producer, connect
    from shardmem.state.keyed import KeyedState
    from shardmem.status.document import Status
else:  # a checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return importlib.import_module(f"shardmem.{name}")
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module 'shardmem' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"shardmem.{home}"), name)
        return value
