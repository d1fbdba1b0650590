"""A named block of shared memory: created, reserved, attached, removed.

It is a file of /dev/shm, as those of `multiprocessing.shared_memory` are, opened and mapped here: there, an attach that
fails removes the segment of whoever runs (`SharedMemory.__init__` unlinks when mmap says no), the resource tracker
removes what others still use (cpython#82300), a destructor unmaps under views, and each mapping costs two descriptors.
So:

- nothing but `unlink` and a `create` that failed removes a name;
- every range is reserved with `posix_fallocate` before it is touched: `ftruncate` promises memory that a full /dev/shm
  does not have, and the promise ends in a SIGBUS;
- what is attached to is a regular file, of the user who attaches (root may look at those of others), private, and read
  through its descriptor before it is mapped;
- only `close` unmaps, and only the owner of the object calls it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from shardmem.errors import NotRunning, SegmentCorrupt, SegmentError
from shardmem.memory.native import ffi, lib
from shardmem.memory.refusals import SHM_DIRECTORY as SHM_DIRECTORY
from shardmem.memory.refusals import refused

PREFIX = "shardmem."
_CONTROL = ".control"
GENERATIONS = 10**14  # no inbox is the one of so many: a word that says so is damaged
LISTED = 8  # names of engines in one message
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO of that name must not keep anybody waiting
_NOT_A_FILE = {errno.ELOOP: "a symbolic link", errno.EISDIR: "a directory", errno.ENXIO: "a socket or a device"}


class Segment:
    """Use `create` or `attach`; what was attached is mapped by `map`.

    name: the file's name below /dev/shm. size: bytes mapped (not all of them reserved). address: cffi `void *`.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self.descriptor, self.size, self.address = name, descriptor, 0, ffi.NULL
        found = os.fstat(descriptor)
        self._inode = (found.st_dev, found.st_ino)

    @classmethod
    def create(cls, name: str, size: int, reserve: int, what: str) -> Segment:
        """A fresh, zero-filled segment of `size` bytes of which the first `reserve` are backed by memory.

        Raises FileExistsError when the name is taken, OutOfMemory, SegmentError; then nothing is left behind.
        """
        doing = f"cannot create {path_of(name)}"
        try:
            descriptor = os.open(path_of(name), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise
        except OSError as error:
            raise refused(doing, error, what=what) from error
        try:
            segment = cls(name, descriptor)
            os.fchmod(descriptor, 0o600)  # whatever the umask took away
            os.ftruncate(descriptor, size)
            segment.reserve(0, reserve, what)
            segment.map(size)
        except BaseException as error:
            os.unlink(path_of(name))
            os.close(descriptor)
            if isinstance(error, OSError):
                raise refused(doing, error, what=what, need=size) from error
            raise
        return segment

    @classmethod
    def attach(cls, name: str) -> Segment:
        """An existing segment, opened and not mapped. Raises NotRunning when there is none, SegmentError when it cannot
        be opened or is not to be trusted."""
        path = path_of(name)
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            raise NotRunning(f"there is no {path}") from None
        except PermissionError:
            raise _of_another_user(name) from None
        except OSError as error:
            if error.errno in _NOT_A_FILE:
                raise _not_a_segment(path, _NOT_A_FILE[error.errno]) from None
            raise refused(f"cannot open {path}", error) from error
        try:
            segment = cls(name, descriptor)
            segment._check_trusted()
        except BaseException:
            os.close(descriptor)
            raise
        return segment

    def _check_trusted(self) -> None:
        """Names in /dev/shm are first come, first served: another user may have been first."""
        found, path = os.fstat(self.descriptor), path_of(self.name)
        if not stat.S_ISREG(found.st_mode):
            raise _not_a_segment(path, "not a regular file")
        if os.geteuid() not in (0, found.st_uid):
            raise _of_another_user(self.name, found.st_uid)
        if not found.st_size:  # its creator is between open and ftruncate, or died there
            raise NotRunning(
                f"{path} is empty: it is being created right now, or its creator was killed in the act; then remove it"
            )

    def read(self, offset: int, length: int) -> bytes:
        """A copy, by its descriptor: neither a hole nor a file that is cut short is a SIGBUS there."""
        return os.pread(self.descriptor, length, offset)

    def map(self, size: int) -> None:
        """Raises SegmentCorrupt when it is shorter than that, SegmentError when others can open it, or the system
        refuses."""
        found, path = os.fstat(self.descriptor), path_of(self.name)
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise SegmentError(
                f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}, owner uid {found.st_uid}); "
                f"segments are private (mode 0600)",
                hint=f"Somebody has changed its mode, and others may have read and written it. If you trust it: "
                f"`chmod 600 {path}`",
            )
        if found.st_size < size:
            raise SegmentCorrupt(_too_short(path, found.st_size, size))
        error = ffi.new("int *")
        address = lib.sm_map(self.descriptor, size, error)
        if address == ffi.NULL:
            raise refused(f"cannot map {path}", OSError(error[0], os.strerror(error[0])), need=size) from None
        self.size, self.address = size, address

    def reserve(self, offset: int, length: int, what: str) -> None:
        """Back the range with memory now. Raises OutOfMemory and leaves everything as it was if there is none."""
        try:
            os.posix_fallocate(self.descriptor, offset, length)
        except OSError as error:
            doing = f"cannot reserve {length:,} bytes in {path_of(self.name)}"
            raise refused(doing, error, what=what, need=length) from error

    def is_hole(self, offset: int) -> bool:
        """Whether the page there has no memory behind it, or was reserved and never touched."""
        return bool(lib.sm_is_hole(self.descriptor, offset))

    @property
    def owner(self) -> int:
        """The uid whose engine it is."""
        return os.fstat(self.descriptor).st_uid

    def reopen(self) -> int:
        """A new open file description of the same file, whoever owns the name by now. The caller closes it."""
        try:
            return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise refused(f"cannot open {path_of(self.name)} again", error) from error

    def is_current(self) -> bool:
        """Whether the name still means this segment."""
        try:
            found = os.lstat(path_of(self.name))
        except FileNotFoundError:
            return False
        return self._inode == (found.st_dev, found.st_ino)

    def trouble(self) -> str:
        """What somebody has done to the file since it was mapped; empty: nothing. What was cut off is a SIGBUS at the
        next touch, or empty pages in a process that outlives that (`outlive_lost_memory`)."""
        there, path = self._bytes_there(), path_of(self.name)
        if there < self.size or lib.sm_is_lost(self.address):
            return f"{path} was cut short while it was in use: it has {there:,} bytes of {self.size:,}"
        return "" if self.is_current() else f"{path} was removed while it was in use"

    @property
    def is_whole(self) -> bool:
        """False: it was cut short, and what is read of it is not what was written."""
        return not lib.sm_is_lost(self.address) and self._bytes_there() >= self.size

    def _bytes_there(self) -> int:
        """Of the file now. After `let_go`, all or none: whether its first page is there."""
        if self.descriptor >= 0:
            return os.fstat(self.descriptor).st_size
        return self.size if lib.sm_is_readable(self.address) else 0

    def has(self, offset: int) -> bool:
        """Whether the page there, which was reserved, still is; also after `let_go`."""
        return self.is_whole and bool(
            lib.sm_is_readable(ffi.cast("void *", int(ffi.cast("uintptr_t", self.address)) + offset))
        )

    def check_whole(self) -> None:
        """Raises SegmentCorrupt."""
        if not self.is_whole:
            raise SegmentCorrupt(
                f"{self.trouble()}; what it held is lost", hint="Look for a program that truncates files in /dev/shm"
            )

    def make_read_only(self) -> None:
        """For this process and for good; others go on writing."""
        lib.sm_read_only(self.address, self.size)

    def unlink(self) -> None:
        """Remove the name; mappings live on. Not an error when it is gone, or when somebody else took it since."""
        if self.is_current():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path_of(self.name))

    def close(self) -> None:
        """Unmap. The caller knows that nobody in this process uses an address or a view of it any more."""
        self.let_go()
        address, self.address = self.address, ffi.NULL
        if address != ffi.NULL:
            lib.sm_unmap(address, self.size)

    def let_go(self) -> None:
        """Close the descriptor; what is mapped stays so."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def outlive_lost_memory() -> None:
    """From here on, segments that are cut short by somebody else do not end this process: `check_whole` says so."""
    lib.sm_guard()


def _of_another_user(name: str, owner: int | None = None) -> SegmentError:
    if owner is None:
        with contextlib.suppress(OSError):
            owner = os.lstat(path_of(name)).st_uid
    return SegmentError(
        f"engine {name.removeprefix(PREFIX).partition('.')[0]!r} belongs to uid {owner}, and this process "
        f"runs as uid {os.geteuid()}: run this as that user; its segments are private (mode 0600)"
    )


def _not_a_segment(path: str, kind: str) -> SegmentCorrupt:
    return SegmentCorrupt(f"{path} is {kind}, not a segment of shardmem", hint="Remove it, or choose another name")


def _too_short(path: str, there: int, size: int) -> str:
    return f"{path} is cut short: it has {there:,} bytes of {size:,}"


def is_cut_short(name: str, size: int) -> str:
    """What to say of a segment that had `size` bytes when others were told of it; empty: it has them, or is gone."""
    path = path_of(name)
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    return _too_short(path, found.st_size, size) if stat.S_ISREG(found.st_mode) and found.st_size < size else ""


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


def inboxes_of(engine: str, shard: int) -> list[int]:
    """Generations of the files that are here, in ascending order; numbers that nobody comes to are nobody's."""
    prefix = f"{PREFIX}{engine}.inbox.{shard}."
    ends = (entry[len(prefix) :] for entry in os.listdir(SHM_DIRECTORY) if entry.startswith(prefix))
    return sorted(int(end) for end in ends if end.isdecimal() and end.isascii() and len(end) < 15)


def engine_of(control: str) -> str:
    """The engine whose control segment has this name."""
    return control.removeprefix(PREFIX).removesuffix(_CONTROL)


def engine_names() -> list[str]:
    """Engines that have a control segment here, running or not."""
    return sorted(
        engine_of(entry) for entry in os.listdir(SHM_DIRECTORY) if entry.startswith(PREFIX) and entry.endswith(_CONTROL)
    )


def listed(names: list[str], like: str = "") -> str:
    """A few names for people, those first that may have been meant."""
    if like:
        import difflib

        names = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, like, name).ratio())
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
