"""A member of a consumer group, through confluent-kafka in Python: where the library cannot be called directly, and
where the setting `reader` says so. It makes an object of each message, which costs about five times as much.

confluent-kafka calls back in the middle of a read, so what a read returns may be of an assignment that is over: it is
dropped unless its partition has begun.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import confluent_kafka
import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from shardmem.errors import ConfigError
from shardmem.runtime.columns import Keys
from shardmem.runtime.origins import columns_of_headers
from shardmem.schema import KEY_BYTES, KEY_NONE
from shardmem.sources.contract import BrokerUnavailable, Position
from shardmem.sources.kafka.client import Listener, Partition
from shardmem.sources.kafka.groups import OUTSIDE, Broker, has_new_protocol
from shardmem.sources.kafka.messages import MOST, Messages
from shardmem.sources.kafka.words import UNANSWERED, Sort, Trouble, refusal, sort_of

AT_MOST = 5.0  # seconds for the answer to a commit
SLICE = 0.05  # the longest read: a rebalance within it does not end it


class PythonMember:
    def __init__(self, given: Mapping[str, str], topics: Sequence[str], listener: Listener, headers: bool) -> None:
        """Joins the group. Raises ConfigError."""
        self._listener, self._headers = listener, headers
        self._consumer = _consumer({**given, "error_cb": self._heed})
        self._reading: dict[Partition, bool] = {}  # what has begun, and whether it is paused
        self._held: dict[Partition, list[Message]] = {}  # of what is read, and not handed over
        self._called = False  # from within confluent-kafka
        self._closing = False
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    # ---- what is read -----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        held = sum(map(len, self._held.values()))
        self._consume(max(1, MOST - held), 0)

    def wait(self, timeout: float) -> None:
        if self._next_held() is None:
            self._consume(1, min(timeout, SLICE))

    def read(self, most: int) -> Messages | None:
        if (partition := self._next_held()) is None:
            return None
        messages = self._held.pop(partition)
        if rest := messages[most:]:
            self._held[partition] = rest  # behind the others
        return self._columns(partition, messages[:most])

    def _next_held(self) -> Partition | None:
        return next((each for each in self._held if not self._reading[each]), None)

    def _consume(self, most: int, timeout: float) -> None:
        messages = self._consumer.consume(most, max(0.0, timeout))
        for each in messages:
            partition = str(each.topic()), int(each.partition() or 0)
            if (error := each.error()) is not None:
                self._heed(error)
            elif partition in self._reading:
                self._held.setdefault(partition, []).append(each)

    def _columns(self, partition: Partition, messages: Sequence[Message]) -> Messages:
        keys, payloads = [each.key() for each in messages], [each.value() for each in messages]
        kinds = np.array([KEY_NONE if key is None else KEY_BYTES for key in keys], "u1")
        missing = np.array([payload is None for payload in payloads])
        return Messages(
            *partition,
            np.array([each.offset() for each in messages], "u8"),
            Keys(kinds if len(set(kinds)) > 1 else KEY_BYTES, None, *_joined(keys)) if kinds.any() else None,
            _joined(payloads),
            np.array([each.timestamp()[1] for each in messages], "i8"),
            columns_of_headers([_headers_of(each) for each in messages]) if self._headers else None,
            missing if missing.any() else None,
        )

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._set_paused(partitions, True, self._consumer.pause)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._set_paused(partitions, False, self._consumer.resume)

    def _set_paused(
        self, partitions: Sequence[Partition], paused: bool, call: Callable[[list[TopicPartition]], None]
    ) -> None:
        changed = [each for each in partitions if self._reading.get(each, paused) != paused]
        self._reading |= dict.fromkeys(changed, paused)
        if changed:
            call([TopicPartition(*each) for each in changed])

    def begin(self, partition: Partition, offset: int) -> bool:
        try:
            self._consumer.incremental_assign([TopicPartition(*partition, offset)])
        except KafkaException:
            return False
        self._reading[partition] = False
        return True

    def seek(self, partition: Partition, offset: int) -> bool:
        try:
            self._consumer.seek(TopicPartition(*partition, offset))
        except KafkaException:
            return False
        self._held.pop(partition, None)
        return True

    # ---- what it is told --------------------------------------------------------------------------------------------

    def _heed(self, error: KafkaError) -> None:
        self._listener.trouble(Trouble(sort_of(error.code(), error.fatal()), error.code(), error.str()))

    def _on_assign(self, _: object, assigned: list[TopicPartition]) -> None:
        partitions = _named(assigned)
        self._within(lambda: self._listener.assigned(partitions))
        self._consumer.incremental_assign([])  # each when it begins

    def _on_revoke(self, _: object, revoked: list[TopicPartition]) -> None:
        self._give_up(revoked, lost=False)

    def _on_lost(self, _: object, lost: list[TopicPartition]) -> None:
        self._give_up(lost, lost=True)

    def _give_up(self, given: list[TopicPartition], lost: bool) -> None:
        partitions = _named(given)
        try:
            if partitions and not self._closing:
                self._within(lambda: self._listener.revoked(partitions, lost))
        finally:
            begun = [each for each in partitions if self._reading.pop(each, None) is not None]
            for each in begun:
                self._held.pop(each, None)
            self._consumer.incremental_unassign([TopicPartition(*each) for each in begun])

    def _within(self, call: Callable[[], Any]) -> Any:
        self._called = True
        try:
            return call()
        finally:
            self._called = False

    def words(self, number: int) -> str:
        return str(KafkaError(number).str())

    # ---- offsets ----------------------------------------------------------------------------------------------------

    def send_commit(self, positions: Mapping[Partition, Position], serial: int) -> int:
        """Its answer would come with the next read, and nothing is read while partitions are drained."""
        self._listener.commit_answered(serial, self.commit(positions, AT_MOST))
        return 0

    def serve_commits(self) -> None: ...

    def commit(self, positions: Mapping[Partition, Position], timeout: float) -> int:
        """confluent-kafka cannot be told how long to wait, so a thread does it; but while it calls back it lets no
        other thread in."""
        wanted = [TopicPartition(*each, at.offset, at.metadata) for each, at in positions.items()]
        answers: list[int] = []

        def ask() -> None:
            try:
                told = self._consumer.commit(offsets=wanted, asynchronous=False)
                answers.append(next((int(each.error.code()) for each in told if each.error is not None), 0))
            except KafkaException as error:
                answers.append(int(error.args[0].code()))

        if self._called:
            ask()
        else:
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(timeout)
        return answers[0] if answers else UNANSWERED

    def committed(self, partitions: Sequence[Partition], timeout: float) -> dict[Partition, Position | None]:
        with _asking():
            found = self._consumer.committed([TopicPartition(*each) for each in partitions], timeout)
        for each in found:
            if each.error is not None:
                raise BrokerUnavailable(f"Kafka: {each.error.str()}")
        return {
            (each.topic, each.partition): Position(each.offset, each.metadata or "") if each.offset >= 0 else None
            for each in found
        }

    def positions(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        found = self._consumer.position([TopicPartition(*each) for each in partitions])
        return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}

    def bounds_known(self, partition: Partition) -> tuple[int | None, int | None]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True) or (-1, -1)
        return low if low >= 0 else None, high if high >= 0 else None

    def bounds(self, partition: Partition, timeout: float) -> tuple[int, int]:
        with _asking():
            found = self._consumer.get_watermark_offsets(TopicPartition(*partition), timeout)
        if found is None:
            raise BrokerUnavailable("Kafka: timed out")
        return found

    def close(self, leave: bool) -> None:
        """confluent-kafka always tells the group; whoever must not do that leaves it open until the process ends."""
        if leave:
            self._closing = True
            self._consumer.close()


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class PythonClient:
    def check(self, settings: Mapping[str, str]) -> None:
        _consumer(settings).close()

    def look(self, settings: Mapping[str, str], topics: Sequence[str], timeout: float) -> Broker:
        said = _Lines()
        logger = logging.Logger("librdkafka", logging.DEBUG)
        logger.addHandler(said)
        refused: list[str] = []

        def heed(error: KafkaError) -> None:
            refused.extend([error.str()] * (sort_of(error.code()) is Sort.REFUSED))

        given = {**settings, **OUTSIDE, "group.id": "-", "logger": logger, "error_cb": heed}
        consumer, counts = _consumer(given), {}
        try:
            for name in topics:
                try:
                    with _asking():
                        told = consumer.list_topics(name, timeout).topics[name]
                except BrokerUnavailable:
                    consumer.poll(0)  # calls heed
                    if not refused:
                        raise
                    raise BrokerUnavailable(refusal(refused[-1])) from None
                if told.error is not None:
                    raise BrokerUnavailable(f"Kafka: topic {name}: {told.error.str()}")
                counts[name] = len(told.partitions)
            consumer.poll(0)
            return Broker(counts, has_new_protocol(said.lines))
        finally:
            consumer.close()

    def join(
        self, settings: Mapping[str, str], topics: Sequence[str], listener: Listener, headers: bool
    ) -> PythonMember:
        return PythonMember(settings, topics, listener, headers)


def _consumer(settings: Mapping[str, Any]) -> confluent_kafka.Consumer:
    """Raises ConfigError."""
    try:
        return confluent_kafka.Consumer(dict(settings))
    except KafkaException as error:
        raise ConfigError(f"kafka: {error.args[0].str()}") from None


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Raises BrokerUnavailable."""
    try:
        yield
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka: {error.args[0].str()}") from None


def _named(partitions: Iterable[TopicPartition]) -> list[Partition]:
    return [(each.topic, each.partition) for each in partitions]


def _joined(pieces: Sequence[bytes | None]) -> tuple[bytes, np.ndarray]:
    return b"".join(each or b"" for each in pieces), np.cumsum([0, *(len(each or b"") for each in pieces)])


def _headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    given = message.headers() or []
    pairs = given.items() if isinstance(given, dict) else given
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]
