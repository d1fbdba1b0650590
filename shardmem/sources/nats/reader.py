"""The messages of one partition, in order and without a gap, from a place on.

Each reader makes a consumer for itself that asks for no acknowledgement and that the server forgets when it is not
used: the place is the group's to keep. The server counts what it sends to a consumer; where a number is missing, a
message was lost on the way, and the reader makes another consumer that begins there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from shardmem.sources.nats.topics import Topic

FETCH = 500  # messages of one request
AHEAD = 4 * FETCH  # that are read before they are asked for
WAIT = 1.0  # seconds of a request
UNUSED = 60.0  # seconds after which the server forgets a consumer
REST = 0.2  # seconds before another attempt


@dataclass(frozen=True)
class Message:
    offset: int
    milliseconds: int  # since 1970
    content: Msg


class Reader:
    """`run` is a task of the loop; all else is for the source's thread. at: the place behind what was read. end: of the
    stream."""

    def __init__(
        self,
        js: JetStreamContext,
        topic: Topic,
        number: int,
        at: int,
        end: int,
        arrived: Callable[[], None],
        log: logging.Logger,
    ) -> None:
        self._js, self._topic, self._number, self._log = js, topic, number, log
        self.at = at
        self.messages: deque[Message] = deque()
        self._pending = 0 if at >= end else None  # how many there are that were not read
        self._counting = threading.Lock()
        self._arrived, self._loop = arrived, asyncio.get_running_loop()
        self._has_room = asyncio.Event()

    @property
    def lag(self) -> int | None:
        with self._counting:
            return None if self._pending is None else self._pending + len(self.messages)

    def take(self, most: int) -> list[Message]:
        with self._counting:
            taken = [self.messages.popleft() for _ in range(min(most, len(self.messages)))]
        self._loop.call_soon_threadsafe(self._has_room.set)
        return taken

    async def run(self) -> None:
        told = ""
        while True:
            try:
                await self._read()
            except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as error:
                if told != (told := f"{type(error).__name__}: {error}"):
                    self._log.warning(
                        "%s/%d cannot be read: %s; it is tried again", self._topic.name, self._number, told
                    )
                await asyncio.sleep(REST)

    async def _read(self) -> None:
        """Until something is wrong with the consumer."""
        stream = self._topic.stream
        config = ConsumerConfig(
            filter_subjects=self._topic.filters(self._number),
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=max(1, self.at),
            ack_policy=AckPolicy.NONE,
            inactive_threshold=UNUSED,
            mem_storage=True,
            num_replicas=1,
        )
        made = await self._js.add_consumer(stream, config)
        self._pending = made.num_pending or 0
        subscription = await self._js.pull_subscribe_bind(consumer=made.name, stream=stream)
        try:
            delivered = 0
            while True:
                if len(self.messages) >= AHEAD:
                    self._has_room.clear()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._has_room.wait(), WAIT)
                    continue
                try:
                    messages = await subscription.fetch(FETCH, WAIT)
                except nats.errors.TimeoutError:
                    state = await subscription.consumer_info()
                    self._pending = state.num_pending or 0
                    if state.delivered is not None and state.delivered.consumer_seq != delivered:
                        return  # what it has sent has not come, and nothing is on the way
                    continue
                if not self._keep(messages, delivered):
                    return
                delivered += len(messages)
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
                await self._js.delete_consumer(stream, made.name)

    def _keep(self, messages: Sequence[Msg], delivered: int) -> bool:
        """Whether they are the next ones; those before a gap are."""
        kept, left = [], self._pending
        for expected, message in enumerate(messages, delivered + 1):
            offset, number, nanoseconds, pending = _place_of(message)
            if number != expected:
                break
            kept.append(Message(offset, nanoseconds // 1_000_000, message))
            self.at, left = offset + 1, pending
        with self._counting:
            self.messages.extend(kept)
            self._pending = left
        self._arrived()
        return len(kept) == len(messages)


def _place_of(message: Msg) -> tuple[int, int, int, int]:
    """Number in the stream and in what the consumer was sent, ns since 1970, and how many there are behind it: the
    subject for a reply says them. Servers write it in two forms, of which one has two words more in the middle."""
    words = message.reply.split(".")
    first = 5 if len(words) == 9 else 7
    offset, number, nanoseconds, pending = words[first : first + 4]
    return int(offset), int(number), int(nanoseconds), int(pending)
