"""A producer for asyncio programs: the same calls, awaitable, never blocking the loop."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shardmem.runtime.call import DEFAULT
from shardmem.runtime.columns import Keys, Origin, extras_of
from shardmem.runtime.encode import Key
from shardmem.runtime.producer import Producer, ProducerOptions
from shardmem.runtime.waits import LaneWait, Pause, Steps, T, Wait

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

IDLE = 10.0  # seconds that a thread stays for the next wait


class AsyncProducer:
    """`async with shardmem.AsyncProducer("ticks") as producer: await producer.push(key, payload)`.

    A call that finds room never leaves the loop. One that does not waits, and others of the loop go on; so a task that
    wants its own events in order awaits each call before the next, as it would anyway. Arguments, results and errors
    are those of Producer; cancelling a waiting call leaves each of its events either accepted or not, and none is
    accepted later.
    """

    def __init__(self, engine: str, **options: Unpack[ProducerOptions]) -> None:
        self._producer = Producer(engine, **options)

    def __repr__(self) -> str:
        return repr(self._producer).replace("<Producer", f"<{type(self).__name__}", 1)

    async def push(self, key: Key, payload: Buffer | None, timeout: float | None = DEFAULT) -> bool:
        """As Producer.push."""
        if self._producer._fast.offer(key, payload):
            return True
        return await _finish(self._producer._push_steps(key, payload, timeout))

    async def push_many(
        self, keys: Sequence[Key] | np.ndarray, payloads: Sequence[Buffer | None], timeout: float | None = DEFAULT
    ) -> int:
        """As Producer.push_many."""
        return await _finish(self._producer._push_many_steps(keys, payloads, timeout))

    async def push_columns(
        self,
        keys: np.ndarray | tuple[Buffer, np.ndarray] | tuple[Buffer, np.ndarray, type[str]] | Keys | None,
        data: Buffer,
        offsets: np.ndarray,
        timeout: float | None = DEFAULT,
        *,
        origin: Origin | None = None,
        timestamps: np.ndarray | None = None,
        headers: tuple[Buffer, np.ndarray] | None = None,
        missing: np.ndarray | None = None,
    ) -> int:
        """As Producer.push_columns."""
        extras = extras_of(origin, timestamps, headers, missing)
        return await _finish(self._producer._columns_steps(keys, data, offsets, timeout, extras))

    async def send(self, records: np.ndarray, timeout: float | None = DEFAULT) -> int:
        """As Producer.send."""
        return await _finish(self._producer._send_steps(records, timeout))

    async def flush(self, timeout: float | None = None, slots: Iterable[int] | None = None) -> None:
        """As Producer.flush."""
        await _finish(self._producer._flush_steps(timeout, slots))

    async def close(self) -> None:
        self._producer.close()

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _finish(steps: Steps[T]) -> T:
    """The result of a call that waits in this event loop. Cancelled, it goes no further: what it has pushed by then is
    accepted, the rest is not."""
    try:
        while True:
            try:
                wait = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            await _waits.over(wait)
            del wait  # what it waits in may be an engine that is gone
    finally:
        steps.close()


class _Waits:
    """Waits of the tasks of all loops. Those for the same are one; those for a lane, which is a futex and no file, are
    in threads of their own: the loop's executor belongs to the program, which may need it to get on."""

    def __init__(self) -> None:
        self._begun: dict[tuple[asyncio.AbstractEventLoop, Hashable], asyncio.Future[None]] = {}
        self._threads = _Threads()

    async def over(self, wait: Wait) -> None:
        loop = asyncio.get_running_loop()
        at = loop, wait.key
        if (done := self._begun.get(at)) is None:
            for ended in [each for each in self._begun if each[0].is_closed()]:
                del self._begun[ended]
            done = self._begun[at] = loop.create_future()
            done.add_done_callback(lambda _: self._begun.pop(at, None))
            if isinstance(wait, Pause):
                loop.call_later(wait.seconds, _set, done)
            else:
                self._threads.run(loop, wait, done)
        # Not wait_for, which swallows a cancellation that comes with the result, before Python 3.12. The wait that is
        # shared may be longer than this one.
        await asyncio.wait((done,), timeout=wait.seconds)


class _Threads:
    """Daemons, which do not keep the process from ending; each waits for one lane at a time."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, LaneWait, asyncio.Future[None]]]
        self._orders = queue.SimpleQueue()
        self._idle, self._lock = 0, threading.Lock()

    def run(self, loop: asyncio.AbstractEventLoop, wait: LaneWait, done: asyncio.Future[None]) -> None:
        with self._lock:
            fresh, self._idle = self._idle == 0, max(0, self._idle - 1)
        self._orders.put((loop, wait, done))
        if fresh:
            threading.Thread(target=self._work, name="shardmem-waits", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                loop, wait, done = self._orders.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    if self._idle == 0:  # an order is on its way to this thread
                        continue
                    self._idle -= 1
                return
            wait.block()
            with self._lock:
                self._idle += 1
            try:
                loop.call_soon_threadsafe(_set, done)
            except RuntimeError:
                pass  # the loop is closed, and so nobody waits
            del loop, wait, done  # an idle thread keeps no engine's memory


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


_waits = _Waits()


def _new_waits() -> None:
    global _waits
    _waits = _Waits()  # its threads are the parent's


os.register_at_fork(after_in_child=_new_waits)
