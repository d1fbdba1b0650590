"""Messages of Kafka as columns, out of a library that this test plays."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p

import numpy as np
import pytest

from shardmem.schema import KEY_BYTES
from shardmem.sources.kafka.messages import QueueReader


class Message(ctypes.Structure):
    _fields_ = [
        ("error", c_int32),
        ("topic", c_void_p),
        ("partition", c_int32),
        ("payload", c_void_p),
        ("length", c_size_t),
        ("key", c_void_p),
        ("key_length", c_size_t),
        ("offset", c_int64),
        ("own", c_void_p),
    ]


class Library:
    """queues: address -> messages. taken, returned: how many."""

    def __init__(self):
        self.queues, self.of, self.taken, self.returned = {}, {}, 0, []
        made = [
            CFUNCTYPE(c_ssize_t, c_void_p, c_int, POINTER(c_void_p), c_size_t)(self._consume),
            CFUNCTYPE(None, c_void_p)(self.returned.append),
            CFUNCTYPE(c_int64, c_void_p, POINTER(c_int))(lambda message, kind: self.of[message]["timestamp"]),
            CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p))(self._headers),
            CFUNCTYPE(c_int, c_void_p, c_size_t, POINTER(c_char_p), POINTER(c_void_p), POINTER(c_size_t))(self._header),
        ]
        self._calls = made
        self.addresses = [ctypes.cast(each, c_void_p).value for each in made]

    def put(self, queue, offset, key=b"k", payload=b"v", *, error=0, timestamp=-1, headers=()):
        message = Message(error=error, offset=offset)
        kept = [ctypes.create_string_buffer(text or b"", max(1, len(text or b""))) for text in (key, payload)]
        if key is not None:
            message.key, message.key_length = ctypes.addressof(kept[0]), len(key)
        if payload is not None:
            message.payload, message.length = ctypes.addressof(kept[1]), len(payload)
        address = ctypes.addressof(message)
        self.of[address] = {"message": message, "kept": kept, "timestamp": timestamp, "headers": list(headers)}
        self.queues.setdefault(queue, []).append(address)

    def _consume(self, queue, timeout, out, most):
        assert timeout == 0
        waiting = self.queues.get(queue, [])
        given, self.queues[queue] = waiting[:most], waiting[most:]
        for at, address in enumerate(given):
            out[at] = address
        self.taken += len(given)
        return len(given)

    def _headers(self, message, out):
        out[0] = message
        return 0 if self.of[message]["headers"] else -156

    def _header(self, message, index, name, value, length):
        headers = self.of[message]["headers"]
        if index >= len(headers):
            return -156
        label, content = headers[index]
        kept = ctypes.create_string_buffer(content or b"", max(1, len(content or b"")))
        self.of[message]["kept"].append(kept)
        name[0] = label.encode()
        value[0] = None if content is None else ctypes.addressof(kept)
        length[0] = len(content or b"")
        return 0


@pytest.fixture
def library():
    made = Library()
    yield made
    assert sorted(made.returned) == sorted(set(made.returned)), "a message was given back twice"


@pytest.fixture
def reader(library, request):
    made = QueueReader(library.addresses, getattr(request, "param", False))
    yield made
    made.close()
    assert library.taken == len(library.returned)


def pieces(column):
    data, ends = bytes(column[0]), column[1].tolist()
    return [data[first:last] for first, last in zip(ends, ends[1:])]


def test_messages_become_columns_with_their_offsets_and_times(library, reader):
    for at in range(5):
        library.put(100, 7 + 2 * at, b"key%d" % at, b"payload" * at, timestamp=1000 + at)
    reader.watch([("t", 3, 100)])
    found, error = reader.read(4)
    assert ("t", 3, None) == (found.topic, found.number, error)
    assert [7, 9, 11, 13] == found.offsets.tolist() and [1000, 1001, 1002, 1003] == found.timestamps.tolist()
    assert KEY_BYTES == found.keys.kinds and [b"key0", b"key1", b"key2", b"key3"] == pieces(
        (found.keys.data, found.keys.offsets)
    )
    assert [b"", b"payload", b"payload" * 2, b"payload" * 3] == pieces(found.payloads)
    assert found.missing is None and found.headers is None
    assert [15] == reader.read(4)[0].offsets.tolist()
    assert (None, None) == reader.read(4)


def test_no_key_is_not_an_empty_key_and_a_tombstone_not_an_empty_payload(library, reader):
    for at, (key, payload) in enumerate([(None, b"a"), (b"", None), (b"k", b"")]):
        library.put(100, at, key, payload)
    reader.watch([("t", 0, 100)])
    found, _ = reader.read(10)
    assert [0, KEY_BYTES, KEY_BYTES] == found.keys.kinds.tolist()
    assert [b"", b"", b"k"] == pieces((found.keys.data, found.keys.offsets))
    assert [False, True, False] == found.missing.tolist() and [b"a", b"", b""] == pieces(found.payloads)
    library.put(100, 3, None, b"b")
    assert reader.read(10)[0].keys is None


@pytest.mark.parametrize("reader", [True], indirect=True)
def test_headers_are_packed_with_their_lengths_and_none_is_not_empty(library, reader):
    library.put(100, 0, headers=[("trace", b"\x01"), ("none", None), ("", b"")])
    library.put(100, 1)
    reader.watch([("t", 0, 100)])
    found, _ = reader.read(10)
    first = b"\x03\0\0\0\x05\0\0\0trace\x01\0\0\0\x01\x04\0\0\0none\xff\xff\xff\xff\0\0\0\0\0\0\0\0"
    assert [first, b"\0\0\0\0"] == pieces(found.headers)


def test_partitions_take_turns_and_one_that_is_not_watched_waits(library, reader):
    for queue in (100, 200, 300):
        for at in range(4):
            library.put(queue, at)
    reader.watch([("t", 0, 100), ("t", 1, 200)])
    assert [0, 1, 0, 1] == [reader.read(2)[0].number for _ in range(4)]
    assert (None, None) == reader.read(2)
    reader.watch([("t", 2, 300)])
    assert 2 == reader.read(2)[0].number


def test_an_error_between_messages_is_told_and_is_no_row(library, reader):
    library.put(100, 0)
    library.put(100, 1, payload=b"no such offset" * 50, error=-140)
    library.put(100, 2)
    library.put(200, 0, payload=b"gone", error=3)
    reader.watch([("t", 0, 100), ("t", 1, 200)])
    found, (number, text) = reader.read(10)
    assert [0, 2] == found.offsets.tolist() and -140 == number and (b"no such offset" * 50)[:255].decode() == text
    assert (None, (3, "gone")) == reader.read(10)


def test_what_is_large_finds_room(library, reader):
    sizes = [1, 200_000, 0, 70_000]
    for at, size in enumerate(sizes * 3):
        library.put(100, at, b"k" * size, b"p" * size)
    reader.watch([("t", 0, 100)])
    found, _ = reader.read(4)
    assert sizes == np.diff(found.payloads[1].astype("i8")).tolist()
    assert [b"p" * size for size in sizes] == pieces(found.payloads)
    found, _ = reader.read(100)
    assert [b"k" * size for size in sizes * 2] == pieces((found.keys.data, found.keys.offsets))
