"""Handles of the library, and what can be asked without joining a group."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardmem.errors import ConfigError
from shardmem.sources.contract import BrokerUnavailable
from shardmem.sources.kafka import librdkafka as rd
from shardmem.sources.kafka.groups import OUTSIDE, Broker, has_new_protocol
from shardmem.sources.kafka.librdkafka import Library
from shardmem.sources.kafka.words import Sort, refusal, sort_of

CONSUMER = 1  # of rd_kafka_type_t
SLICE = 0.5  # seconds between two looks at what it says
NO_CLOSE = 0x8  # the group is not told


def new_handle(library: Library, given: Mapping[str, str], events: int = 0) -> int:
    """Raises ConfigError: what the library says of each setting."""
    text = ctypes.create_string_buffer(512)
    settings, faults = library.conf_new(), []
    for name, value in given.items():
        if library.conf_set(settings, name.encode(), value.encode(), text, len(text)):
            faults.append(f"kafka.{name}: {text.value.decode('utf-8', 'replace')}")
    library.conf_set_events(settings, events)
    if not faults:
        if handle := library.new(CONSUMER, settings, text, len(text)):
            return int(handle)
        faults.append(f"kafka: {text.value.decode('utf-8', 'replace')}")
    library.conf_destroy(settings)
    raise ConfigError(faults)


def destroy(library: Library, handle: int) -> None:
    library.destroy_flags(handle, NO_CLOSE)


def unavailable(library: Library, error: int) -> BrokerUnavailable:
    return BrokerUnavailable(f"Kafka: {library.err2str(error).decode()}")


def milliseconds(timeout: float) -> int:
    return max(1, int(timeout * 1000))


def bounds_of(library: Library, handle: int, partition: tuple[str, int], timeout: float) -> tuple[int, int]:
    """The first offset that there is, and the next that there will be. Raises BrokerUnavailable."""
    low, high = ctypes.c_int64(), ctypes.c_int64()
    error = library.query_watermark_offsets(
        handle, partition[0].encode(), partition[1], ctypes.byref(low), ctypes.byref(high), milliseconds(timeout)
    )
    if error:
        raise unavailable(library, error)
    return low.value, high.value


def look(library: Library, given: Mapping[str, str], topics: Sequence[str], timeout: float) -> Broker:
    """Raises ConfigError, BrokerUnavailable: where it is refused, with what was said of that."""
    handle = new_handle(library, {**given, **OUTSIDE}, rd.EVENT_LOG | rd.EVENT_ERROR)
    deadline = time.monotonic() + timeout
    library.set_log_queue(handle, None)
    queue = library.queue_get_main(handle)
    try:
        said: list[str] = []
        counts = {topic: _asked(library, handle, queue, topic, deadline, said) for topic in topics}
        said += _said(library, queue)[0]
        return Broker(counts, has_new_protocol(said))
    finally:
        library.queue_destroy(queue)
        destroy(library, handle)


def _asked(library: Library, handle: int, queue: int, topic: str, deadline: float, said: list[str]) -> int:
    """The library tries for as long as it is let, also where it is refused."""
    while True:
        left = deadline - time.monotonic()
        found = _count_of(library, handle, topic, min(left, SLICE))
        if isinstance(found, int):
            return found
        lines, refused = _said(library, queue)
        said += lines
        if refused:
            raise BrokerUnavailable(refusal(refused[-1]))
        if left <= SLICE:
            raise found


def _said(library: Library, queue: int) -> tuple[list[str], list[str]]:
    """Lines of the log, and what was said of what was refused."""
    lines, refused = [], []
    while event := library.queue_poll(queue, 0):
        if library.event_type(event) == rd.EVENT_LOG:
            lines.append(line_of(library, event)[1])
        elif sort_of(library.event_error(event)) is Sort.REFUSED:
            refused.append((library.event_error_string(event) or b"").decode("utf-8", "replace"))
        library.event_destroy(event)
    return lines, refused


def line_of(library: Library, event: int) -> tuple[int, str]:
    """Level and text of a line of the log."""
    facility, text, level = ctypes.c_char_p(), ctypes.c_char_p(), ctypes.c_int()
    library.event_log(event, ctypes.byref(facility), ctypes.byref(text), ctypes.byref(level))
    return level.value, (text.value or b"").decode("utf-8", "replace")


def _count_of(library: Library, handle: int, name: str, timeout: float) -> int | BrokerUnavailable:
    """Or why there was no answer within that time."""
    topic = library.topic_new(handle, name.encode(), None)
    found = ctypes.POINTER(rd.Metadata)()
    try:
        error = library.metadata(handle, 0, topic, ctypes.byref(found), milliseconds(timeout))
        if error:
            return unavailable(library, error)
        told: Any = found.contents.topics[0]
        if told.err:
            raise BrokerUnavailable(f"Kafka: topic {name}: {library.err2str(told.err).decode()}")
        return int(told.partition_cnt)
    finally:
        if found:
            library.metadata_destroy(found)
        library.topic_destroy(topic)
