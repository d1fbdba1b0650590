"""Memory that C borrows from Python objects, and the cycle collector."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardmem
from shardmem.memory.native import borrow, ffi

# The view is older than the cycle that keeps it, so the collector clears it first.
CYCLE = """
import gc
from shardmem.memory.native import borrow, ffi
class Frame: pass
view = memoryview({owner})
frame = Frame()
frame.borrowed, frame.view, frame.itself = {how}("uint8_t[]", view), view, frame
del frame, view
gc.collect()
"""


def collect(how: str, owner: str) -> int:
    program = CYCLE.format(how=how, owner=owner)
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, timeout=60).returncode


@pytest.mark.parametrize("owner", ["b'abc'", "bytearray(3)", "bytes(9)", "__import__('array').array('d', [1.0])"])
def test_a_view_that_the_collector_clears_first_does_not_crash(owner):
    assert 0 == collect("borrow", owner)


def test_all_that_is_borrowed_is_borrowed_so():
    package = Path(shardmem.__file__).parent
    users = {str(path.relative_to(package)) for path in package.rglob("*.py") if "ffi.from_buffer" in path.read_text()}
    assert users == {
        "memory/native.py",
        "memory/reader.py",  # of bytes
    }


@pytest.mark.parametrize("owner", [b"", b"abc", bytearray(b"abc"), memoryview(b""), memoryview(b"xabc")[1:]])
def test_what_is_borrowed_is_the_owners_bytes(owner):
    assert bytes(owner) == bytes(ffi.buffer(borrow("uint8_t[]", owner)))


def test_what_is_borrowed_lives_as_long_as_it_is_borrowed():
    array = np.arange(5, dtype="u8")
    borrowed = borrow("uint64_t[]", array)
    del array
    assert [0, 1, 2, 3, 4] == list(borrowed)
    block = bytearray(b"abc")
    borrowed = borrow("uint8_t[]", memoryview(block))
    with pytest.raises(BufferError):
        block += b"more"
    assert b"abc" == bytes(ffi.buffer(borrowed))
