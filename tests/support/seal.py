"""Headers whose sums fit what a test has written there: what is checked after the sum is tested, too."""

from __future__ import annotations

import struct

from shardmem.memory.native import ffi, lib

GEOMETRY = 16  # where it is in a control segment


def seal_control(header: bytearray) -> None:
    """header: of a control segment, and what is behind it, or not."""
    end = GEOMETRY + ffi.sizeof("sm_geometry")
    struct.pack_into("<Q", header, end, lib.sm_hash_bytes(bytes(header[GEOMETRY:end]), end - GEOMETRY))


def seal_inbox(header: bytearray) -> None:
    words = struct.pack("<5Q", *struct.unpack_from("<IQQQI", header, 12))
    struct.pack_into("<Q", header, 48, lib.sm_hash_bytes(words, len(words)))
