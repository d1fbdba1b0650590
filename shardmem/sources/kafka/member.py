"""A member of a consumer group, through the library itself.

Each partition has a queue of its own: so a partition that is paused keeps what was fetched of it while the others flow,
and one that was not told where to begin delivers nothing. Rebalances and errors come through the queue of the consumer,
and are served between two reads: no message in hand is of an assignment that is over.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Mapping, Sequence

from shardmem.sources.contract import Position
from shardmem.sources.kafka import librdkafka as rd
from shardmem.sources.kafka.client import Listener, Partition
from shardmem.sources.kafka.groups import Broker
from shardmem.sources.kafka.handle import bounds_of, destroy, line_of, look, milliseconds, new_handle, unavailable
from shardmem.sources.kafka.librdkafka import Library, Partitions, elements, metadata_of
from shardmem.sources.kafka.messages import Messages, QueueReader
from shardmem.sources.kafka.words import UNANSWERED, Trouble, sort_of

EVENTS = rd.EVENT_REBALANCE | rd.EVENT_ERROR | rd.EVENT_LOG
CLOSING = 5.0  # seconds for the group to be told that a member leaves
WAITED_FOR = 1 << 32  # numbers of commits that are waited for begin here


class LibraryMember:
    def __init__(
        self, library: Library, given: Mapping[str, str], topics: Sequence[str], listener: Listener, headers: bool
    ) -> None:
        """Joins the group. Raises ConfigError: what the library says of its settings."""
        self._library, self._listener = library, listener
        self._handle = new_handle(library, given, EVENTS)
        library.poll_set_consumer(self._handle)
        library.set_log_queue(self._handle, None)
        self._events = library.queue_get_consumer(self._handle)
        self._commits = library.queue_new(self._handle)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._woken = select.poll()
        self._woken.register(self._wake, select.POLLIN)
        self._reader = QueueReader(library.addresses(), headers)
        self._queues: dict[Partition, int] = {}  # of what is assigned
        self._reading: dict[Partition, bool] = {}  # what has begun, and whether it is paused
        self._waited_for = WAITED_FOR
        self._answer: int | None = None
        self._announce(self._events)
        self._announce(self._commits)
        with Partitions(library, [(topic, -1, None) for topic in topics]) as wanted:
            self._check(library.subscribe(self._handle, wanted.list))

    def _announce(self, queue: int) -> None:
        """Wake us when something comes into it."""
        self._library.queue_io_event_enable(queue, self._wake, (1).to_bytes(8, "little"), 8)

    def _check(self, error: int) -> None:
        if error:
            raise unavailable(self._library, error)

    def _done(self, error: int | None) -> int:
        """The number of an error object, which is given back."""
        if not error:
            return 0
        number: int = self._library.error_code(error)
        self._library.error_destroy(error)
        return number

    # ---- what is read -----------------------------------------------------------------------------------------------

    def read(self, most: int) -> Messages | None:
        messages, error = self._reader.read(most)
        if error is not None:
            self._listener.trouble(Trouble(sort_of(error[0]), error[0], error[1] or self.words(error[0])))
        return messages

    def wait(self, timeout: float) -> None:
        if self._woken.poll(max(0.0, timeout) * 1000):
            os.eventfd_read(self._wake)

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._set_paused(partitions, True)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._set_paused(partitions, False)

    def _set_paused(self, partitions: Sequence[Partition], paused: bool) -> None:
        for each in partitions:
            if each in self._reading:
                self._reading[each] = paused
        self._watch()

    def _watch(self) -> None:
        self._reader.watch([(*each, self._queues[each]) for each, paused in self._reading.items() if not paused])

    def begin(self, partition: Partition, offset: int) -> bool:
        """The library is told of a partition only now. To seek in one that it has already does not do: its answer to an
        earlier question for the end of the partition then overrides the place, and events are passed over."""
        library = self._library
        if partition in self._queues or library.assignment_lost(self._handle):
            return False
        queue = library.queue_get_partition(self._handle, partition[0].encode(), partition[1])
        library.queue_forward(queue, None)
        self._announce(queue)
        with Partitions(library, [(*partition, offset)]) as wanted:
            if self._done(library.incremental_assign(self._handle, wanted.list)):
                library.queue_destroy(queue)
                return False
        self._queues[partition], self._reading[partition] = queue, False
        self._watch()
        return True

    def seek(self, partition: Partition, offset: int) -> bool:
        library = self._library
        with Partitions(library, [(*partition, offset)]) as wanted:
            error = self._done(library.seek_partitions(self._handle, wanted.list, 1000))
            return not error and not any(each.err for each in wanted)

    # ---- what it is told --------------------------------------------------------------------------------------------

    def serve(self) -> None:
        for queue in (self._events, self._commits):
            while event := self._library.queue_poll(queue, 0):
                try:
                    self._heed(event)
                finally:
                    self._library.event_destroy(event)

    def _heed(self, event: int) -> None:
        library = self._library
        kind, number = library.event_type(event), library.event_error(event)
        if kind == rd.EVENT_REBALANCE:
            found = elements(library.event_topic_partition_list(event))
            self._rebalance(number, [(each.topic.decode(), each.partition) for each in found])
        elif kind == rd.EVENT_COMMIT:
            listed = library.event_topic_partition_list(event)
            errors = [number, *(each.err for each in elements(listed))] if listed else [number]
            self._answered(library.event_opaque(event) or 0, next((each for each in errors if each), 0))
        elif kind == rd.EVENT_ERROR:
            text = (library.event_error_string(event) or b"").decode("utf-8", "replace")
            fatal = bool(library.event_error_is_fatal(event))
            self._listener.trouble(Trouble(sort_of(number, fatal), number, text or self.words(number)))
        elif kind == rd.EVENT_LOG:
            self._listener.logged(*line_of(library, event))

    def _answered(self, serial: int, error: int) -> None:
        if serial == self._waited_for:
            self._answer = error
        elif serial < WAITED_FOR:
            self._listener.commit_answered(serial, error)

    def _rebalance(self, what: int, partitions: list[Partition]) -> None:
        library = self._library
        if what == rd.ASSIGN:
            self._listener.assigned(partitions)
            with Partitions(library, []) as none:  # each when it begins
                self._done(library.incremental_assign(self._handle, none.list))
        else:
            lost = what != rd.REVOKE or bool(library.assignment_lost(self._handle))
            try:
                if partitions:
                    self._listener.revoked(partitions, lost)
            finally:
                self._unassign(partitions)

    def _unassign(self, partitions: Sequence[Partition]) -> None:
        library = self._library
        begun = [each for each in partitions if each in self._queues]
        for each in begun:
            self._reading.pop(each, None)
        self._watch()
        with Partitions(library, [(*each, None) for each in begun]) as wanted:
            self._done(library.incremental_unassign(self._handle, wanted.list))
        for each in begun:
            library.queue_destroy(self._queues.pop(each))

    # ---- offsets ----------------------------------------------------------------------------------------------------

    def send_commit(self, positions: Mapping[Partition, Position], serial: int) -> int:
        library = self._library
        texts = [position.metadata.encode() for position in positions.values()]
        with Partitions(library, [(*each, position.offset) for each, position in positions.items()]) as wanted:
            for element, text in zip(wanted, texts):
                element.metadata, element.metadata_size = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p), len(text)
            try:
                error: int = library.commit_queue(self._handle, wanted.list, self._commits, None, serial)
            finally:
                for element in wanted:  # their memory is ours
                    element.metadata, element.metadata_size = None, 0
        return error

    def serve_commits(self) -> None:
        while self._serve_commit(0.0):
            pass

    def _serve_commit(self, timeout: float) -> bool:
        event = self._library.queue_poll(self._commits, milliseconds(timeout) if timeout else 0)
        if event:
            try:
                self._heed(event)
            finally:
                self._library.event_destroy(event)
        return bool(event)

    def commit(self, positions: Mapping[Partition, Position], timeout: float) -> int:
        deadline = time.monotonic() + timeout
        self._answer = None
        self._waited_for += 1  # an answer that was not in time is not that to the next one
        if error := self.send_commit(positions, self._waited_for):
            return error
        while self._answer is None and (left := deadline - time.monotonic()) > 0:
            self._serve_commit(left)
        return UNANSWERED if self._answer is None else self._answer

    def committed(self, partitions: Sequence[Partition], timeout: float) -> dict[Partition, Position | None]:
        library = self._library
        with Partitions(library, [(*each, None) for each in partitions]) as wanted:
            self._check(library.committed(self._handle, wanted.list, milliseconds(timeout)))
            found: dict[Partition, Position | None] = {}
            for each in wanted:
                self._check(each.err)
                known = each.offset >= 0
                found[each.topic.decode(), each.partition] = Position(each.offset, metadata_of(each)) if known else None
        return found

    def positions(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        with Partitions(self._library, [(*each, None) for each in partitions]) as wanted:
            self._library.position(self._handle, wanted.list)
            return {(each.topic.decode(), each.partition): each.offset for each in wanted if each.offset >= 0}

    def bounds_known(self, partition: Partition) -> tuple[int | None, int | None]:
        low, high = ctypes.c_int64(), ctypes.c_int64()
        self._library.get_watermark_offsets(
            self._handle, partition[0].encode(), partition[1], ctypes.byref(low), ctypes.byref(high)
        )
        return low.value if low.value >= 0 else None, high.value if high.value >= 0 else None

    def bounds(self, partition: Partition, timeout: float) -> tuple[int, int]:
        return bounds_of(self._library, self._handle, partition, timeout)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self, leave: bool) -> None:
        library = self._library
        self._reader.watch([])
        if leave:
            self._done(library.consumer_close_queue(self._handle, self._events))
            deadline = time.monotonic() + CLOSING
            while not library.consumer_closed(self._handle) and time.monotonic() < deadline:
                if event := library.queue_poll(self._events, 100):
                    if library.event_type(event) == rd.EVENT_REBALANCE:
                        found = elements(library.event_topic_partition_list(event))
                        self._unassign([(each.topic.decode(), each.partition) for each in found])
                    library.event_destroy(event)
        self._reader.close()
        for queue in (*self._queues.values(), self._events, self._commits):
            library.queue_destroy(queue)
        destroy(library, self._handle)
        os.close(self._wake)

    def words(self, number: int) -> str:
        words: bytes = self._library.err2str(number)
        return words.decode()


class LibraryClient:
    def __init__(self, library: Library) -> None:
        self._library = library

    def check(self, settings: Mapping[str, str]) -> None:
        destroy(self._library, new_handle(self._library, settings))

    def look(self, settings: Mapping[str, str], topics: Sequence[str], timeout: float) -> Broker:
        return look(self._library, settings, topics, timeout)

    def join(
        self, settings: Mapping[str, str], topics: Sequence[str], listener: Listener, headers: bool
    ) -> LibraryMember:
        return LibraryMember(self._library, settings, topics, listener, headers)
