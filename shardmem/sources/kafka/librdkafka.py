"""librdkafka, as the wheel of confluent-kafka carries it: its documented interface, as far as it is used here.

The Python interface of confluent-kafka makes an object of each message, which costs five times what all the rest does.
So the library that it has loaded is called directly. Nothing of it is built or linked; where it cannot be found,
fallback.py reads through confluent-kafka.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

OLDEST = 0x020000FF  # 2.0.0: what is older cannot close a consumer without blocking

EVENT_LOG, EVENT_ERROR, EVENT_REBALANCE, EVENT_COMMIT = 0x4, 0x8, 0x10, 0x20
ASSIGN, REVOKE = -175, -174  # the errors that say what a rebalance is


class PartitionOf(Structure):
    _fields_ = [
        ("topic", c_char_p),
        ("partition", c_int32),
        ("offset", c_int64),
        ("metadata", c_void_p),
        ("metadata_size", c_size_t),
        ("opaque", c_void_p),
        ("err", c_int),
        ("_private", c_void_p),
    ]


class PartitionList(Structure):
    _fields_ = [("cnt", c_int), ("size", c_int), ("elems", POINTER(PartitionOf))]


class MetadataPartition(Structure):
    _fields_ = [
        ("id", c_int32),
        ("err", c_int),
        ("leader", c_int32),
        ("replica_cnt", c_int),
        ("replicas", c_void_p),
        ("isr_cnt", c_int),
        ("isrs", c_void_p),
    ]


class MetadataTopic(Structure):
    _fields_ = [
        ("topic", c_char_p),
        ("partition_cnt", c_int),
        ("partitions", POINTER(MetadataPartition)),
        ("err", c_int),
    ]


class Metadata(Structure):
    _fields_ = [
        ("broker_cnt", c_int),
        ("brokers", c_void_p),
        ("topic_cnt", c_int),
        ("topics", POINTER(MetadataTopic)),
        ("orig_broker_id", c_int32),
        ("orig_broker_name", c_char_p),
    ]


_p, _list = c_void_p, POINTER(PartitionList)
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (c_int, ()),
    "version_str": (c_char_p, ()),
    "err2str": (c_char_p, (c_int,)),
    "err2name": (c_char_p, (c_int,)),
    "error_code": (c_int, (_p,)),
    "error_string": (c_char_p, (_p,)),
    "error_destroy": (None, (_p,)),
    "conf_new": (_p, ()),
    "conf_destroy": (None, (_p,)),
    "conf_set": (c_int, (_p, c_char_p, c_char_p, c_char_p, c_size_t)),
    "conf_set_events": (None, (_p, c_int)),
    "new": (_p, (c_int, _p, c_char_p, c_size_t)),
    "destroy_flags": (None, (_p, c_int)),
    "set_log_queue": (c_int, (_p, _p)),
    "poll_set_consumer": (c_int, (_p,)),
    "queue_new": (_p, (_p,)),
    "queue_destroy": (None, (_p,)),
    "queue_get_main": (_p, (_p,)),
    "queue_get_consumer": (_p, (_p,)),
    "queue_get_partition": (_p, (_p, c_char_p, c_int32)),
    "queue_forward": (None, (_p, _p)),
    "queue_io_event_enable": (None, (_p, c_int, c_char_p, c_size_t)),
    "queue_poll": (_p, (_p, c_int)),
    "event_type": (c_int, (_p,)),
    "event_error": (c_int, (_p,)),
    "event_error_string": (c_char_p, (_p,)),
    "event_error_is_fatal": (c_int, (_p,)),
    "event_log": (c_int, (_p, POINTER(c_char_p), POINTER(c_char_p), POINTER(c_int))),
    "event_opaque": (_p, (_p,)),
    "event_topic_partition_list": (_list, (_p,)),
    "event_destroy": (None, (_p,)),
    "fatal_error": (c_int, (_p, c_char_p, c_size_t)),
    "topic_partition_list_new": (_list, (c_int,)),
    "topic_partition_list_add": (POINTER(PartitionOf), (_list, c_char_p, c_int32)),
    "topic_partition_list_destroy": (None, (_list,)),
    "subscribe": (c_int, (_p, _list)),
    "assignment_lost": (c_int, (_p,)),
    "incremental_assign": (_p, (_p, _list)),
    "incremental_unassign": (_p, (_p, _list)),
    "seek_partitions": (_p, (_p, _list, c_int)),
    "position": (c_int, (_p, _list)),
    "committed": (c_int, (_p, _list, c_int)),
    "commit_queue": (c_int, (_p, _list, _p, _p, _p)),
    "get_watermark_offsets": (c_int, (_p, c_char_p, c_int32, POINTER(c_int64), POINTER(c_int64))),
    "query_watermark_offsets": (c_int, (_p, c_char_p, c_int32, POINTER(c_int64), POINTER(c_int64), c_int)),
    "metadata": (c_int, (_p, c_int, _p, POINTER(POINTER(Metadata)), c_int)),
    "metadata_destroy": (None, (POINTER(Metadata),)),
    "topic_new": (_p, (_p, c_char_p, _p)),
    "topic_destroy": (None, (_p,)),
    "consumer_close_queue": (_p, (_p, _p)),
    "consumer_closed": (c_int, (_p,)),
}
READER_CALLS = ("consume_batch_queue", "message_destroy", "message_timestamp", "message_headers", "header_get_all")


class Library:
    """Its calls by their names without rd_kafka_. Those that may wait let other threads run."""

    def __init__(self, path: str) -> None:
        """Raises OSError, AttributeError: it is not what it should be."""
        self.path = path
        self._loaded = ctypes.CDLL(path)
        for name, (result, arguments) in CALLS.items():
            call = getattr(self._loaded, f"rd_kafka_{name}")
            call.restype, call.argtypes = result, arguments
            setattr(self, name, call)
        if self.version() < OLDEST:
            raise OSError(f"{path} is version {self.version_str().decode()}, which is too old")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def addresses(self) -> list[int]:
        """Of READER_CALLS, for C."""
        calls = [getattr(self._loaded, f"rd_kafka_{name}") for name in READER_CALLS]
        return [ctypes.cast(call, c_void_p).value or 0 for call in calls]


def find() -> Library:
    """The library of confluent-kafka. Raises ImportError, OSError, AttributeError."""
    import confluent_kafka.cimpl  # noqa: F401  # loads it

    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        found = re.search(r"(/\S.*librdkafka[^/]*)$", maps.read(), re.MULTILINE)
    if found is None:
        raise OSError("confluent-kafka has been built with librdkafka inside")
    return Library(found[1])


class Partitions:
    """A list for the library, of (topic, number, offset or None): to be used in a `with` block."""

    def __init__(self, library: Library, wanted: Sequence[tuple[str, int, int | None]]) -> None:
        self._library = library
        self.list = library.topic_partition_list_new(len(wanted))
        for topic, number, offset in wanted:
            each = library.topic_partition_list_add(self.list, topic.encode(), number)
            if offset is not None:
                each.contents.offset = offset

    def __enter__(self) -> Partitions:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.topic_partition_list_destroy(self.list)

    def __iter__(self) -> Iterator[Any]:
        return elements(self.list)


def elements(partitions: Any) -> Iterator[Any]:
    """Of a list of the library."""
    for at in range(partitions.contents.cnt):
        yield partitions.contents.elems[at]


def metadata_of(element: Any) -> str:
    """What was committed with an offset."""
    if not element.metadata:
        return ""
    return ctypes.string_at(element.metadata, element.metadata_size).decode("utf-8", "replace")
