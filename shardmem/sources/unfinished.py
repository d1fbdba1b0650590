"""What of a block of events has found no room in the lanes yet: kept in a file, so that the next process of the source
pushes these and no others.

A place of two records for each row of the partition table. The older record is written over; one that a kill has cut
short does not match its checksum, and the other holds.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple

import numpy as np

from shardmem.private_files import open_private

MOST = 4096  # events of a block
_HEAD = struct.Struct("<QQQQII")  # engine, number of the record, epoch, next; events, checksum of all but itself
_RECORD = _HEAD.size + 8 * MOST


class Block(NamedTuple):
    """All before `next` is in the lanes, but for these offsets."""

    epoch: int
    next: int
    left: np.ndarray


class Unfinished:
    """Of one life of an engine: what was kept of an earlier one does not count."""

    def __init__(self, path: str, engine: int) -> None:
        """Raises OSError."""
        self._file = open_private(path, os.O_RDWR | os.O_CREAT)
        self._engine = engine
        self._numbers: dict[int, int] = {}  # of the newest record of each row

    def get(self, row: int) -> Block | None:
        found = [record for which in (0, 1) if (record := self._read(row, which)) is not None]
        if not found:
            return None
        number, block = max(found, key=lambda record: record[0])
        self._numbers[row] = number
        return block if len(block.left) else None

    def put(self, row: int, epoch: int, left: np.ndarray, next: int) -> None:
        """left: at most MOST offsets."""
        if row not in self._numbers:
            self.get(row)
        number = self._numbers.get(row, 0) + 1
        offsets = np.ascontiguousarray(left, "<u8").tobytes()
        sum = zlib.crc32(offsets, zlib.crc32(struct.pack("<QQQQI", self._engine, number, epoch, next, len(left))))
        head = _HEAD.pack(self._engine, number, epoch, next, len(left), sum)
        os.pwrite(self._file, head + offsets, (2 * row + number % 2) * _RECORD)
        self._numbers[row] = number

    def clear(self, row: int) -> None:
        if self.get(row) is not None:
            self.put(row, 0, np.empty(0, "u8"), 0)

    def close(self) -> None:
        os.close(self._file)

    def _read(self, row: int, which: int) -> tuple[int, Block] | None:
        data = os.pread(self._file, _RECORD, (2 * row + which) * _RECORD)
        if len(data) < _HEAD.size:
            return None
        engine, number, epoch, next, count, sum = _HEAD.unpack_from(data)
        offsets = data[_HEAD.size : _HEAD.size + 8 * count]
        body = struct.pack("<QQQQI", engine, number, epoch, next, count)
        if engine != self._engine or count > MOST or zlib.crc32(offsets, zlib.crc32(body)) != sum:
            return None
        return number, Block(epoch, next, np.frombuffer(offsets, "<u8"))
