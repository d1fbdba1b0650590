"""The broker in a file: what a reader gets while others write."""

from __future__ import annotations

import threading

from shardmem.testing import FakeBroker


def test_a_reader_at_the_end_skips_nothing_that_is_written_meanwhile(tmp_path):
    broker, seen = FakeBroker(str(tmp_path / "b")), []
    broker.create_topic("t", 1)

    def write():
        own = FakeBroker(broker.path)
        for first in range(0, 3000, 3):
            own.produce("t", [(None, b"%d" % number) for number in range(first, first + 3)], partition=0)
        own.close()

    writer = threading.Thread(target=write)
    writer.start()
    at = 0
    while len(seen) < 3000 and (writer.is_alive() or at < broker.end("t/0")):
        columns = broker.fetch("t/0", at, 2)
        if columns is not None:
            assert at == columns.offsets[0], "an event was passed over"
            at = columns.next.offset
            seen += columns.offsets.tolist()
    writer.join()
    assert list(range(3000)) == seen
    broker.close()


def test_offsets_that_nothing_has_are_passed_over(tmp_path):
    broker = FakeBroker(str(tmp_path / "b"))
    broker.create_topic("t", 1)
    broker.produce("t", [(b"a", b"1")], partition=0)
    broker.produce("t", [(b"a", b"2")], partition=0, skip=5)
    assert ([0], 1) == (broker.fetch("t/0", 0, 9).offsets.tolist(), broker.fetch("t/0", 0, 9).next.offset)
    assert ([6], 7) == (broker.fetch("t/0", 1, 9).offsets.tolist(), broker.fetch("t/0", 1, 9).next.offset)
    assert broker.fetch("t/0", 7, 9) is None
    broker.close()
