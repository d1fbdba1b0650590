"""Partitions of JetStream streams as a source.

A thread of its own (loop.py) has the connection: it writes the record of the group (group.py) several times in a
session, and reads ahead of each partition (reader.py). The source's thread takes what is there, and hears of partitions
gained and lost in `poll`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from shardmem.errors import Superseded
from shardmem.sources.contract import (
    BrokerUnavailable,
    Columns,
    Position,
    SourceContext,
    SourceError,
    partition_of,
    topic_and_number,
)
from shardmem.sources.kinds import Subscription
from shardmem.sources.nats.columns import columns_of
from shardmem.sources.nats.group import Displaced, Membership, NotOwner, Place, Record
from shardmem.sources.nats.loop import LoopThread
from shardmem.sources.nats.members import GroupRecord
from shardmem.sources.nats.reader import Reader
from shardmem.sources.nats.settings import NatsTable
from shardmem.sources.nats.topics import Topic, topic_of

BEATS, OFTEN = 5, 0.5  # of a session, and the longest time between two
REVOKE = 600.0  # seconds to give a partition up; the runner has a shorter limit
ANSWER = 5.0  # seconds for the server to answer

_AWAY = (
    nats.errors.TimeoutError,
    nats.errors.NoServersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.NoRespondersError,
    nats.js.errors.ServiceUnavailableError,
    nats.js.errors.NoStreamResponseError,
    asyncio.TimeoutError,
    TimeoutError,
    OSError,
)


class NatsSource:
    def __init__(self, subscription: Subscription, settings: NatsTable, group: str, member: str) -> None:
        self.topics: Sequence[str] = subscription.topics
        self.session, self.ended = settings.session, False
        self._subscription, self._settings, self._group = subscription, settings, group
        self._membership = Membership(member, secrets.token_hex(8), settings.session)
        self._loop = LoopThread("shardmem-nats")
        self._client = Client()
        self._found: dict[str, Topic] = {}
        self._record: GroupRecord | None = None
        self._written = Record()  # as a change of ours left it
        self._owned: dict[str, int] | None = None  # by the record; partition and epoch
        self._surplus: list[str] = []
        self._ours: dict[str, int] | None = None  # as the runner was told
        self._readers: dict[str, tuple[Reader, Future[None]]] = {}
        self._paused: set[str] = set()
        self._advice: dict[str, Place] = {}
        self._confirmed, self._turn = 0, 0
        self._fault: SourceError | None = None
        self._refusal: str | None = None  # the last one, of the server or the network
        self._news = threading.Condition()

    # ---- the contract ------------------------------------------------------------------------------------------------

    def open(self, context: SourceContext) -> None:
        self._context = context
        self._loop.start(self._live())

    def partition_counts(self, timeout: float) -> Mapping[str, int]:
        deadline = time.monotonic() + timeout
        with self._news:
            if not self._news.wait_for(lambda: self._fault or self._record, timeout):
                raise BrokerUnavailable(f"NATS at {self._servers}: {self._refusal or 'no answer'}")
        self._raise_fault()
        with self._answers("streams cannot be looked at"):
            self._loop.call(self._look(), max(0.0, deadline - time.monotonic()))
        return {name: self._found[name].count for name in self.topics}

    def committed(self, partitions: Sequence[str], timeout: float) -> Mapping[str, Position | None]:
        """As our last write to the record left it: since then nobody else could change what is said of our
        partitions."""
        record = self._written
        entries = {name: record.partitions.get(name) for name in partitions}
        return {
            name: None if entry is None or entry.offset is None else Position(entry.offset, entry.metadata)
            for name, entry in entries.items()
        }

    def start(self, partition: str, offset: int | None) -> None:
        if partition in (self._ours or {}):
            self._begin(partition, offset if offset is not None else self._subscription.start)

    def poll(self, max_events: int, timeout: float) -> Columns | None:
        self._raise_fault()
        if self._tell():
            return None
        deadline = time.monotonic() + timeout
        with self._news:
            while (partition := self._next()) is None:
                left = deadline - time.monotonic()
                if left <= 0 or self._fault or self._has_news():
                    return None
                self._news.wait(left)
        reader = self._readers[partition][0]
        topic = self._found[topic_and_number(partition)[0]]
        return columns_of(
            partition, reader.take(max_events), topic, self._settings.key_header, self._subscription.headers
        )

    def pause(self, partitions: Sequence[str]) -> None:
        self._paused |= set(partitions) & (self._ours or {}).keys()

    def resume(self, partitions: Sequence[str]) -> None:
        self._paused.difference_update(partitions)

    def seek(self, partition: str, to: str | int) -> Position:
        if partition not in self._readers:
            raise SourceError(f"{partition} is not one of the partitions that are read here")
        at = {"start": "earliest", "end": "latest"}.get(to) if isinstance(to, str) else to
        if at is None:
            raise SourceError(f"{to!r} is neither start nor end nor an offset")
        return Position(self._begin(partition, at))

    def lag(self) -> Mapping[str, int | None]:
        return {name: reader.lag for name, (reader, _) in list(self._readers.items())}

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        ours = self._ours or {}
        places = {name: Place(ours.get(name, 0), place.offset, place.metadata) for name, place in positions.items()}
        if not sync:
            with self._news:
                self._advice.update(places)
            return
        with self._answers("what was handled cannot be committed"):
            self._loop.call(self._change(lambda record: self._membership.commit(record, places)), ANSWER)

    def confirmed_ns(self) -> int:
        return self._confirmed

    def close(self, drained: bool) -> None:
        """The partitions are free at once. If the server cannot be told, they are so after a session."""
        if self._loop.is_running:
            self._stop(list(self._readers))
            with contextlib.suppress(Exception):
                self._loop.call(self._leave(), ANSWER)
            self._loop.close()

    # ---- what the runner is told -------------------------------------------------------------------------------------

    def _has_news(self) -> bool:
        return self._owned is not None and (self._owned != self._ours or bool(self._surplus))

    def _tell(self) -> bool:
        """Whether partitions were assigned."""
        owned = self._owned
        if owned is None:
            return False
        before, self._ours = self._ours, owned
        gone = sorted(name for name, epoch in (before or {}).items() if owned.get(name) != epoch)
        new = sorted(name for name, epoch in owned.items() if before is None or before.get(name) != epoch)
        if gone:
            self._stop(gone)
            self._context.lost(gone)
        if new or before is None:
            self._context.assigned(new)
        going = [name for name in self._surplus if name in self._ours]
        if going:
            self._context.revoking(going, time.monotonic() + REVOKE)
            self._stop(going)
            self._ours = {name: epoch for name, epoch in self._ours.items() if name not in going}
            with contextlib.suppress(SourceError, Superseded), self._answers("partitions cannot be given up"):
                self._loop.call(self._change(lambda record: self._membership.release(record, going)), ANSWER)
        return bool(new)

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _next(self) -> str | None:
        """The next partition in turn that has anything."""
        names = sorted(self._readers)
        for number in range(len(names)):
            name = names[(self._turn + number) % len(names)]
            if name not in self._paused and self._readers[name][0].messages:
                self._turn += number + 1
                return name
        return None

    def _begin(self, partition: str, at: int | str) -> int:
        topic, number = topic_and_number(partition)
        with self._answers(f"{partition} cannot be read"):
            reader = self._loop.call(self._reader(self._found[topic], number, at), ANSWER)
        if partition in self._readers:
            self._readers[partition][1].cancel()
        self._readers[partition] = reader, self._loop.start(reader.run())
        return reader.at

    async def _reader(self, topic: Topic, number: int, at: int | str) -> Reader:
        js = self._client.jetstream(timeout=ANSWER)
        state = (await js.stream_info(topic.stream)).state
        end = state.last_seq + 1
        place = {"earliest": 0, "latest": end}[at] if isinstance(at, str) else at
        if not 0 <= place <= end:
            raise SourceError(f"stream {topic.stream} ends at offset {end:,}; there is no place {place:,} in it")
        if 0 < place < state.first_seq:
            self._context.log.warning(
                "%s/%d begins at offset %d, and the stream has removed all before %d; what was not handled is lost",
                *(topic.name, number, place, state.first_seq),
            )
        return Reader(js, topic, number, place, end, self._arrived, self._context.log)

    def _stop(self, partitions: Iterable[str]) -> None:
        for name in partitions:
            self._paused.discard(name)
            if name in self._readers:
                self._readers.pop(name)[1].cancel()

    def _arrived(self) -> None:
        with self._news:
            self._news.notify_all()

    # ---- the thread that has the connection --------------------------------------------------------------------------

    async def _live(self) -> None:
        """Connect, look at the streams, and beat, until it is cancelled."""
        while self._fault is None:
            began = time.monotonic()
            try:
                if not self._client.is_connected and not self._client.is_reconnecting:
                    await self._connect()
                if self._record is None:
                    self._record = await self._look()
                await self._beat()
                self._refusal = None
            except (Displaced, SourceError) as error:
                self._fail(error if isinstance(error, SourceError) else self._displaced())
            except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as error:
                self._refuse(error)
            await asyncio.sleep(
                max(0.05, began + min(OFTEN, self.session / BEATS) - time.monotonic()) if self._record else 0.2
            )

    async def _connect(self) -> None:
        settings = self._settings
        credentials: dict[str, Any] = {
            "user": settings.user,
            "password": settings.password,
            "token": settings.token,
            "user_credentials": settings.credentials,
            "nkeys_seed": settings.nkeys_seed,
        }
        self._client = Client()
        await self._client.connect(
            servers=list(settings.servers),
            name=f"shardmem {self._group}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=2,
            error_cb=self._hear,
            tls=_tls_of(settings),
            **{name: value for name, value in credentials.items() if value is not None},
        )

    async def _hear(self, error: Exception) -> None:
        self._refuse(error)

    async def _look(self) -> GroupRecord:
        """At the streams of the topics. Raises SourceError when they cannot be read."""
        js, replicas = self._client.jetstream(timeout=ANSWER), 1
        for name in self.topics:
            info = await self._stream_of(js, name)
            replicas = max(replicas, info.config.num_replicas or 1)
            self._found[name] = topic_of(name, info.config, self._settings.partitions)
        self._arrived()
        return GroupRecord(js, self._settings.bucket, self._group, replicas)

    async def _stream_of(self, js: JetStreamContext, topic: str) -> StreamInfo:
        stream = self._settings.stream
        for subject in (topic, f"{topic}.>"):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                return await js.stream_info(stream or await js.find_stream_name_by_subject(subject))
        raise nats.js.errors.NotFoundError(description=stream or f"no stream has subjects {topic}.>")

    async def _beat(self) -> None:
        partitions = [partition_of(name, number) for name in self.topics for number in range(self._found[name].count)]
        with self._news:
            advice, self._advice = self._advice, {}

        def step(record: Record) -> None:
            self._membership.step(record, time.monotonic(), partitions)
            owned = self._membership.owned(record)
            ours = {name: place for name, place in advice.items() if owned.get(name) == place.epoch}
            self._membership.commit(record, ours)

        await self._change(step)
        self._membership.has_written()

    async def _change(self, change: Callable[[Record], None]) -> None:
        if self._record is None:
            raise asyncio.TimeoutError
        record, began = await self._record.change(change)
        owned, surplus = self._membership.owned(record), self._membership.surplus(record)
        with self._news:
            self._written, self._owned, self._surplus, self._confirmed = record, owned, surplus, began
            self._news.notify_all()

    async def _leave(self) -> None:
        try:
            if self._record is not None:
                await asyncio.wait_for(self._record.change(self._membership.leave), ANSWER / 2)
        finally:
            await self._client.close()

    # ---- what goes wrong ---------------------------------------------------------------------------------------------

    @property
    def _servers(self) -> str:
        return ", ".join(server.rpartition("@")[2].rpartition("/")[2] for server in self._settings.servers)

    @contextlib.contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        """Raises Superseded when another has our place, BrokerUnavailable when the server does not answer."""
        try:
            yield
        except NotOwner as error:
            raise Superseded(f"{what}: another member of group {self._group} has {error}") from None
        except Displaced:
            raise Superseded(f"{what}: {self._displaced()}") from None
        except _AWAY as error:
            raise BrokerUnavailable(f"{what}: NATS at {self._servers} does not answer: {_words_of(error)}") from None
        except (nats.errors.Error, nats.js.errors.Error) as error:
            raise SourceError(f"{what}: {_words_of(error)}") from None

    def _displaced(self) -> SourceError:
        return SourceError(
            f"another process is member {self._membership.name} of group {self._group}",
            hint="Give each host a `member` of its own in [source.nats]",
        )

    def _fail(self, fault: SourceError) -> None:
        with self._news:
            self._fault = fault
            self._news.notify_all()

    def _refuse(self, error: BaseException) -> None:
        words = _words_of(error)
        if words != self._refusal:
            self._context.log.warning("NATS at %s: %s", self._servers, words)
        self._refusal = words


def _words_of(error: BaseException) -> str:
    return str(getattr(error, "description", None) or error) or type(error).__name__


def _tls_of(settings: NatsTable) -> Any:
    if not (settings.tls_ca or settings.tls_certificate):
        return None
    import ssl

    made = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_certificate:
        made.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return made
