"""The loop of the outbox's process: messages are handed to the client in order, and removed when the broker has
them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from shardmem.errors import ShardmemError
from shardmem.memory.native import point
from shardmem.sources.contract import SourceError
from shardmem.sources.outbox.files import OutboxFiles, Waiting
from shardmem.sources.runner import Runner

log = logging.getLogger("shardmem.sources")

LOOK = 0.05  # seconds between two looks when nothing waits
AHEAD = 10_000  # messages that the client has and the broker has not confirmed


class Client(Protocol):
    """One that keeps the order of a key and repeats what the broker did not confirm, without making it two."""

    def produce(self, message: Waiting, done: Callable[[str | None], None]) -> bool:
        """False: it has no room. done: called within `poll`, with what went wrong, None if nothing."""
        ...

    def poll(self, timeout: float) -> None: ...


class _File:
    """Of one file: the numbers that the client has, in order, and those of them that are confirmed."""

    def __init__(self) -> None:
        self.given: deque[int] = deque()
        self.confirmed: set[int] = set()
        self.behind = self.removed = 0

    def upto(self) -> int:
        """All up to this one are confirmed."""
        while self.given and self.given[0] in self.confirmed:
            self.removed = self.given.popleft()
            self.confirmed.discard(self.removed)
        return self.removed


class Publisher(Runner):
    """Runs as a source does, and has none."""

    def __init__(self, client: Client, files: OutboxFiles, **options: Any) -> None:
        super().__init__(None, None, **options)  # type: ignore[arg-type]
        self._client, self._outbox = client, files
        self._files: dict[str, _File] = {}
        self._refused: str | None = None
        self._count = 0

    def run(self) -> None:
        """Raises ShardmemError when the broker refuses a message, and when a file cannot be used."""
        while not self.stop.is_set():
            self._pass(LOOK)

    def finish(self, wait: bool, tick: Callable[[], None] = lambda: None, grace: float | None = None) -> bool:
        """All that waits, at most for so long; whether all of it was published."""
        deadline = time.monotonic() + (grace or 0.0)
        while self._outbox.count():
            if time.monotonic() > deadline:
                self._log.warning("%d messages of handlers are not published; they stay in the outbox", self._count)
                return False
            self._pass(LOOK)
            tick()
        return True

    def give_way(self) -> None:
        """What is confirmed by now is removed."""
        self._remove()

    def interrupt(self) -> None: ...

    def _pass(self, timeout: float) -> None:
        if not self.paused.every and sum(len(each.given) for each in self._files.values()) < AHEAD:
            for message in self._outbox.waiting({name: each.behind for name, each in self._files.items()}):
                if not self._give(message):
                    break
        self.paused = self.wanted
        while self._seeks:
            self.sought = self._seeks.popleft()[0], "an outbox has no place to go to: it publishes what waits", 0
        self._client.poll(timeout)
        self._remove()
        if self._refused is not None:
            raise SourceError(
                f"the broker refuses a message of a handler: {self._refused}",
                hint="It is tried again; what is behind it waits. Create the topic, or raise its limit of bytes",
            )

    def _give(self, message: Waiting) -> bool:
        file = self._files.setdefault(message.file, _File())

        def done(error: str | None) -> None:
            if error is not None:
                self._refused = f"topic {message.topic}: {error}"
                return
            file.confirmed.add(message.number)
            with self.tally.lock:
                self.tally.events += 1
                self.tally.bytes += len(message.value or b"")

        if not self._client.produce(message, done):
            return False
        file.given.append(message.number)
        file.behind = message.number
        return True

    def _remove(self) -> None:
        for name, file in self._files.items():
            before = file.removed
            if file.upto() > before:
                point("outbox.confirmed")
                self._outbox.remove(name, file.removed)
                self.last_commit = time.time()
        self._count = self._outbox.count()

    def describe(self) -> dict[str, Any]:
        return {
            "paused": self.paused.every,
            "events": self.tally.events,
            "bytes": self.tally.bytes,
            "lag_events": self._count,
            "last_commit": self.last_commit,
            "sought": self.sought,
        }


class KafkaClient:
    """confluent-kafka's producer, idempotent: a message that is sent again is one message, and none passes another of
    its partition. What the broker does not confirm is sent again for as long as it takes."""

    def __init__(self, settings: dict[str, str]) -> None:
        """Raises ShardmemError, when confluent-kafka is not installed or refuses a setting."""
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError:
            raise ShardmemError("the outbox needs confluent-kafka", hint="pip install 'shardmem[kafka]'") from None
        ours = {"enable.idempotence": True, "message.timeout.ms": 0, "linger.ms": 5}
        try:
            self._producer = Producer({**settings, **ours}, logger=log)
        except KafkaException as error:
            raise ShardmemError(f"the outbox cannot be published: {error}") from None

    def produce(self, message: Waiting, done: Callable[[str | None], None]) -> bool:
        from confluent_kafka import KafkaException

        try:
            self._producer.produce(
                message.topic,
                message.value,
                message.key,
                headers=list[tuple[str, "str | bytes | None"]](message.headers),
                on_delivery=lambda error, _: done(None if error is None else str(error)),
            )
        except BufferError:
            return False
        except KafkaException as error:
            done(str(error))
            return False
        return True

    def poll(self, timeout: float) -> None:
        self._producer.poll(timeout)
