"""A named block of shared memory: created, reserved, attached, removed.

It is `multiprocessing.shared_memory.SharedMemory` with three habits taken away:

- its resource tracker unlinks segments that others still use (cpython#82300), so the tracker never hears of ours;
- `ftruncate` promises memory that a full /dev/shm does not have, and the promise ends in a SIGBUS at first touch, so
  every range is reserved with `posix_fallocate` before it is touched;
- closing while a view exists raises from a destructor, so only `close` unmaps, and only its owner calls it.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from multiprocessing import shared_memory

from shardmem.errors import NotRunning, OutOfMemory, SegmentError
from shardmem.memory.native import ffi, lib

SHM_DIRECTORY = "/dev/shm"
PREFIX = "shardmem."
LISTED = 8  # names of engines in one message

_untracked_lock = threading.Lock()


def _fresh_lock() -> None:
    global _untracked_lock
    _untracked_lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_fresh_lock)


class _NoTracker:
    """Stands in for multiprocessing's resource_tracker module while one of our segments is opened."""

    @staticmethod
    def register(name: str, kind: str) -> None: ...

    @staticmethod
    def unregister(name: str, kind: str) -> None: ...


class _SharedMemory(shared_memory.SharedMemory):
    def __init__(self, name: str, create: bool = False, size: int = 0) -> None:
        if sys.version_info >= (3, 13):
            super().__init__(name, create, size, track=False)
            return
        # Before 3.13 there is no track=False. Registering and unregistering afterwards would start a tracker process
        # in every producer, and two processes that share a tracker would unregister twice, which it reports with a
        # traceback. So the module is swapped for the length of one constructor, under a lock.
        with _untracked_lock:
            kept, shared_memory.resource_tracker = shared_memory.resource_tracker, _NoTracker  # type: ignore
            try:
                super().__init__(name, create, size)
            finally:
                shared_memory.resource_tracker = kept  # type: ignore

    @property
    def descriptor(self) -> int:
        return int(self._fd)  # type: ignore[attr-defined]  # typeshed has public names only

    def __del__(self) -> None:
        pass  # nothing is unmapped behind the back of a view; Segment.close does it when there is none


class Segment:
    """One mapped segment. Use `create` or `attach`.

    name: the file's name below /dev/shm. size: bytes mapped (not all of them reserved). address: cffi `void *`.
    """

    def __init__(self, memory: _SharedMemory) -> None:
        self._memory: _SharedMemory | None = memory
        self.name = memory.name
        self.size = memory.size
        # The address alone: a buffer export that is kept would be cleared by the cycle collector in any order, and the
        # interpreter crashed on a memoryview that went before it.
        assert memory.buf is not None
        pin = ffi.from_buffer(memory.buf)
        self.address = ffi.cast("void *", int(ffi.cast("uintptr_t", pin)))
        ffi.release(pin)

    @classmethod
    def create(cls, name: str, size: int, reserve: int, what: str) -> Segment:
        """A fresh, zero-filled segment of `size` bytes of which the first `reserve` are backed by memory.

        Raises FileExistsError when the name is taken, OutOfMemory (nothing is left behind), SegmentError.
        """
        try:
            segment = cls(_SharedMemory(name, create=True, size=size))
        except FileExistsError:
            raise
        except OSError as error:
            raise SegmentError(
                f"cannot create {path_of(name)}: {error.strerror} (errno {error.errno}); shardmem needs "
                f"a writable {SHM_DIRECTORY}"
            ) from error
        try:
            segment.reserve(0, reserve, what)
        except BaseException:
            segment.unlink()
            segment.close()
            raise
        return segment

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Map an existing segment. Raises NotRunning when there is none, SegmentError when it cannot be opened."""
        try:
            return cls(_SharedMemory(name))
        except FileNotFoundError:
            raise NotRunning(f"there is no {path_of(name)}") from None
        except PermissionError:
            owner = os.stat(path_of(name)).st_uid
            raise SegmentError(
                f"engine {name.removeprefix(PREFIX).partition('.')[0]!r} belongs to uid {owner}, and this process "
                f"runs as uid {os.getuid()}: run this as that user; its segments are private (mode 0600)"
            ) from None
        except ValueError:  # an empty file: its creator is between shm_open and ftruncate, or died there
            raise NotRunning(
                f"{path_of(name)} is empty: it is being created right now, or its creator was killed "
                f"in the act; then remove it"
            ) from None

    def reserve(self, offset: int, length: int, what: str) -> None:
        """Back the range with memory now. Raises OutOfMemory and leaves everything as it was if there is none."""
        try:
            os.posix_fallocate(self.descriptor, offset, length)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise SegmentError(
                    f"cannot reserve {length:,} bytes in {path_of(self.name)}: {error.strerror}"
                ) from error
            space = os.statvfs(SHM_DIRECTORY)
            raise OutOfMemory.of_segment(what, length, space.f_bavail * space.f_frsize, SHM_DIRECTORY) from None

    @property
    def descriptor(self) -> int:
        assert self._memory is not None
        return self._memory.descriptor

    @property
    def owner(self) -> int:
        """The uid whose engine it is."""
        return os.fstat(self.descriptor).st_uid

    def reopen(self) -> int:
        """A new open file description of the same file, whoever owns the name by now. The caller closes it."""
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDWR | os.O_CLOEXEC)

    def is_current(self) -> bool:
        """Whether the name still means this segment."""
        try:
            ours, theirs = os.fstat(self.descriptor), os.stat(path_of(self.name))
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)

    def make_read_only(self) -> None:
        """For this process and for good; others go on writing."""
        lib.sm_read_only(self.address, self.size)

    def unlink(self) -> None:
        """Remove the name; mappings live on. Not an error when it is gone, or when somebody else took it since."""
        if self.is_current():
            os.unlink(path_of(self.name))

    def close(self) -> None:
        """Unmap. The caller knows that nobody in this process uses an address or a view of it any more."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        self.address = ffi.NULL
        memory.close()


def path_of(name: str) -> str:
    return os.path.join(SHM_DIRECTORY, name)


def control_name(engine: str) -> str:
    return f"{PREFIX}{engine}.control"


def inbox_name(engine: str, shard: int, generation: int) -> str:
    return f"{PREFIX}{engine}.inbox.{shard}.{generation}"


def inbox_files(engine: str) -> list[str]:
    """Inboxes of an engine that are here, whether or not its control segment knows of them."""
    prefix = f"{PREFIX}{engine}.inbox."
    return sorted(entry for entry in os.listdir(SHM_DIRECTORY) if entry.startswith(prefix))


def engine_names() -> list[str]:
    """Engines that have a control segment here, running or not."""
    suffix = ".control"
    return sorted(
        entry[len(PREFIX) : -len(suffix)]
        for entry in os.listdir(SHM_DIRECTORY)
        if entry.startswith(PREFIX) and entry.endswith(suffix)
    )


def listed(names: list[str], like: str = "") -> str:
    """A few names for people, those first that may have been meant."""
    if like:
        import difflib

        names = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, like, name).ratio())
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
