"""Leases: who holds a seat, a shard or the supervisor's role is the kernel's word.

A lease is an open-file-description lock on a byte of the control segment's file, far past its end. The kernel drops
it when the holder dies, whatever kills it. What keeps the description is a mapping that forked children do not get, and
no descriptor: a program may close every descriptor that it did not open, as daemons do (csrc/lease.c).
"""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
from typing import TYPE_CHECKING

from shardmem.errors import SegmentError
from shardmem.memory.native import ffi, lib
from shardmem.memory.refusals import refused
from shardmem.memory.segment import Segment, path_of

if TYPE_CHECKING:
    from shardmem.memory.native import CData

_BASE = 1 << 40
SUPERVISOR = _BASE

_held: weakref.WeakSet[Lease] = weakref.WeakSet()


def seat_byte(seat: int) -> int:
    return _BASE + (1 << 16) + seat


def shard_byte(shard: int) -> int:
    return _BASE + (2 << 16) + shard


def name_byte(number: int) -> int:
    """Of a named seat: a byte for each name, whichever seat has it."""
    return _BASE + (1 << 61) + (number >> 4)


def is_free(name: str, byte: int) -> bool:
    """Whether nobody holds the lease on the file of that name, which may not be a segment yet. Takes nothing."""
    try:
        descriptor = os.open(path_of(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise refused(f"cannot open {path_of(name)}", error) from error
    try:
        return lib.sm_lease_held(descriptor, byte) == 0
    finally:
        os.close(descriptor)


_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid


def anything_held(descriptor: int, start: int = 0) -> bool:
    """Whether another description holds any lock on the file from `start` on; even one of a layout not known here."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 0, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def take_everything(descriptor: int) -> bool:
    """Every lease of the engine, taken or not, in one step: so nobody holds one, and nobody can take one until the
    descriptor is closed."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BASE, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


class Lease:
    """A held lease. `release` gives it up; so does the death of the process, and nothing else."""

    def __init__(self, keeper: CData, byte: int) -> None:
        self._keeper: CData | None = keeper
        self.byte = byte
        _held.add(self)

    @classmethod
    def take(cls, segment: Segment, byte: int) -> Lease | None:
        """The lease, or None when somebody holds it."""
        descriptor, error = segment.reopen(), ffi.new("int *")
        try:
            status = lib.sm_lease_take(descriptor, byte)
            if status > 0:
                return None
            keeper = lib.sm_lease_keep(descriptor, error) if status == 0 else ffi.NULL
            if keeper == ffi.NULL:
                why = os.strerror(error[0] or -status)
                raise SegmentError(f"cannot lock byte {byte} of {segment.name}: {why}")
            return cls(keeper, byte)
        finally:
            os.close(descriptor)

    @property
    def held(self) -> bool:
        """False after `release`, and in a forked child."""
        return self._keeper is not None

    def release(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            lib.sm_lease_release(keeper)

    def _forget(self) -> None:
        """In a forked child, which has no such mapping: another may be in its place."""
        self._keeper = None


def lock(descriptor: int, byte: int) -> bool:
    """Take a lease by a descriptor of the caller's, which keeps it until it is closed. False: somebody holds it. Raises
    OSError."""
    if (status := lib.sm_lease_take(descriptor, byte)) < 0:
        raise OSError(-status, os.strerror(-status))
    return status == 0


def is_locked(descriptor: int, byte: int) -> bool:
    """Whether another description than the descriptor's holds the lease."""
    return lib.sm_lease_held(descriptor, byte) == 1


def is_held(segment: Segment, byte: int) -> bool:
    """Whether any process, this one included, holds the lease."""
    status = lib.sm_lease_held(segment.descriptor, byte)
    if status < 0:
        raise SegmentError(f"cannot query the lock at byte {byte} of {segment.name}: {os.strerror(-status)}")
    return bool(status)


def _forget_in_child() -> None:
    for lease in list(_held):
        lease._forget()


os.register_at_fork(after_in_child=_forget_in_child)
