"""A producer for asyncio programs: the same calls, awaitable, never blocking the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shardmem.errors import Backpressure
from shardmem.runtime.call import DEFAULT, PROBE
from shardmem.runtime.encode import Key
from shardmem.runtime.producer import Producer, ProducerOptions

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack


Accepted = TypeVar("Accepted", int, bool)  # of `push` whether, of the others how many


class AsyncProducer:
    """`async with shardmem.AsyncProducer("ticks") as producer: await producer.push(key, payload)`.

    A call that finds room never leaves the loop. One that does not waits in a thread of the default executor, so a task
    that wants its own events in order awaits each call before the next, as it would anyway. Arguments, results and
    errors are those of Producer; cancelling a waiting call leaves each of its events either accepted or not.
    """

    def __init__(self, engine: str, **options: Unpack[ProducerOptions]) -> None:
        self._producer = Producer(engine, **options)

    async def push(self, key: Key, payload: Buffer, timeout: float | None = DEFAULT) -> bool:
        """As Producer.push."""
        return await self._try(self._producer.push, (key, payload), timeout, lambda rest: rest, lambda done, more: more)

    async def push_many(
        self, keys: Sequence[Key] | np.ndarray, payloads: Sequence[Buffer], timeout: float | None = DEFAULT
    ) -> int:
        """As Producer.push_many."""
        return await self._try(self._producer.push_many, (keys, payloads), timeout, lambda rest: rest, int.__add__)

    async def push_columns(
        self, keys: np.ndarray | None, data: Buffer, offsets: np.ndarray, timeout: float | None = DEFAULT
    ) -> int:
        """As Producer.push_columns."""
        return await self._try(
            self._producer.push_columns, (keys, data, offsets), timeout, lambda rest: rest, int.__add__
        )

    async def send(self, records: np.ndarray, timeout: float | None = DEFAULT) -> int:
        """As Producer.send."""
        return await self._try(self._producer.send, (records,), timeout, lambda rest: (rest,), int.__add__)

    async def flush(self, timeout: float | None = None) -> None:
        """As Producer.flush."""
        await asyncio.to_thread(self._producer.flush, timeout)

    async def close(self) -> None:
        self._producer.close()

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _try(
        self,
        call: Callable[..., Accepted],
        arguments: tuple[Any, ...],
        timeout: float | None,
        again: Callable[[Any], tuple[Any, ...]],
        total: Callable[[int, Accepted], Accepted],
    ) -> Accepted:
        producer = self._producer
        if timeout is DEFAULT and producer.backpressure != "block":
            if producer.backpressure == "drop_oldest":  # may wait for the worker's next batch
                return await asyncio.to_thread(call, *arguments)
            return call(*arguments)
        if timeout == 0:
            return call(*arguments, timeout=0)
        try:
            return call(*arguments, timeout=PROBE)
        except Backpressure as full:  # a probe: what it could not push has not been refused, it is still being offered
            more = await asyncio.to_thread(call, *again(full.rest), timeout=None if timeout is DEFAULT else timeout)
            return total(full.accepted, more)
