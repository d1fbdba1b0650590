"""What a handler sends to topics of a broker: kept with the state and the events that it is of, published later.

`send` adds to what the next checkpoint saves, in the same transaction: a worker that is killed has sent nothing that
its successor does not know of, and sends nothing twice into the file. Another process publishes from the files
(sources/outbox/), so a broker that is away stops no worker before the outbox is full.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from shardmem.errors import ShardmemError
from shardmem.memory.partition_table import NO_PARTITION
from shardmem.runtime.batch import Batch
from shardmem.runtime.encode import bytes_of
from shardmem.runtime.origins import pack_headers
from shardmem.runtime.outcomes import Retry

SCHEMA = """
create table if not exists outbox (       -- number: its order in this file
    number integer primary key autoincrement, topic text not null, key blob, value blob, headers blob not null,
    origin text);                         -- of which event of a broker it is, and the how many-th
create table if not exists outbox_after ( -- what has a higher number waits until `file` has none up to `upto`
    number integer not null, file text not null, upto integer not null);
"""
MOST = 100_000  # messages of one file that wait to be published
PRESSING = 4 << 20  # bytes that wait for a checkpoint


class Message(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    headers: bytes
    origin: str | None


class Outbox:
    """Of one worker. backlog: how many messages its file has."""

    def __init__(self, backlog: Callable[[], int]) -> None:
        self._backlog = backlog
        self.unsaved: list[Message] = []
        self._bytes = 0
        self._batch: Batch | None = None
        self._sent: Counter[str] = Counter()  # of each event of the batch in hand
        self._has_room = False

    def send(
        self,
        topic: str,
        key: str | bytes | None,
        value: Any,
        headers: Mapping[str, str | bytes | None] | Iterable[tuple[str, str | bytes | None]] | None = None,
    ) -> None:
        """It is published when the state that it goes with is saved, at least once, and for each key in the order in
        which it was sent. value: bytes-like; None: a tombstone. Raises shardmem.Retry when the outbox is full, because
        the broker has been away for long: the batch comes again."""
        if not isinstance(topic, str) or not topic:
            raise TypeError(f"topic={topic!r} is not the name of a topic")
        if not (key is None or isinstance(key, (str, bytes))):
            raise TypeError(f"key={key!r} is neither text nor bytes nor None")
        if not self._has_room:
            if (waiting := self._backlog()) >= MOST:
                raise Retry(f"the outbox is full: {waiting:,} messages of this shard wait to be published")
            self._has_room = True
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        message = Message(
            topic,
            key.encode() if isinstance(key, str) else key,
            None if value is None else bytes(bytes_of(value)),
            pack_headers((name, text.encode() if isinstance(text, str) else text) for name, text in pairs),
            self._origin(),
        )
        self.unsaved.append(message)
        self._bytes += len(message.key or b"") + len(message.value or b"") + len(message.headers)

    def _origin(self) -> str | None:
        """topic/partition/offset/n. It is the same when the event is handled again, on whichever host; None: which
        event it is cannot be told."""
        row = self._batch._position() if self._batch is not None else None
        origins = None if row is None or self._batch is None else self._batch.origins
        if origins is None or self._batch is None or origins["partition"][row] == NO_PARTITION:
            return None
        topic, partition, offset = origins[row].tolist()
        event = f"{self._batch.topics[topic]}/{partition}/{offset}"
        self._sent[event] += 1
        return f"{event}/{self._sent[event] - 1}"

    # ---- for the checkpoint ------------------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        self._batch, self._has_room = batch, False
        self._sent.clear()

    def end(self) -> None:
        self._batch = None

    @property
    def is_pressed(self) -> bool:
        return self._bytes > PRESSING

    def clear(self) -> None:
        """What was sent is saved, or undone."""
        self.unsaved, self._bytes = [], 0


def put(connection: sqlite3.Connection, messages: Iterable[Message]) -> None:
    connection.executemany("insert into outbox (topic, key, value, headers, origin) values (?, ?, ?, ?, ?)", messages)


def put_after(connection: sqlite3.Connection, name: str) -> None:
    """What is sent from here on comes after all that `other`, the file of that name, holds by now."""
    has_outbox = connection.execute("select 1 from other.sqlite_master where name = 'outbox'").fetchone()
    last = connection.execute("select max(number) from other.outbox").fetchone()[0] if has_outbox else None
    if last is not None:
        connection.execute(
            "insert into outbox_after select coalesce(max(seq), 0), ?, ? from sqlite_sequence where name = 'outbox'",
            (name, last),
        )


def no_outbox(why: str, hint: str) -> ShardmemError:
    return ShardmemError(f"there is no outbox: {why}", hint=hint)
