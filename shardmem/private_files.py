"""Files and directories of one user: whose they are, and whether a path still means the one that was opened.

Nothing here follows a symbolic link in the last part of a path: whoever can write to a directory could point it at
anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator

from shardmem.errors import ShardmemError

Identity = tuple[int, int]  # device, inode


def identity(path: str) -> Identity | None:
    """Of what has this name now; None: nothing has."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def check_directory(path: str, uid: int) -> None:
    """Raises ShardmemError unless it is a directory that only this user can reach."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise ShardmemError(f"{path} is {kind}; it must be a directory of uid {uid} with mode 700", hint="Remove it")
    if found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise ShardmemError(
            f"{path} belongs to uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}; "
            f"it must belong to uid {uid} with mode 700",
            hint="Remove it",
        )


def make_directory(path: str) -> None:
    """A directory that only this user can reach, if it can be made. Raises ShardmemError when it is another's: in a
    directory that all users share, somebody may have been there before."""
    with contextlib.suppress(OSError):
        os.makedirs(path, mode=0o700, exist_ok=True)
    if os.path.lexists(path):
        check_directory(path, os.geteuid())


def check_file(path: str, what: str, uid: int) -> Identity | None:
    """Its identity; None: there is none. Raises ShardmemError unless it is a plain file that this user owns and others
    cannot write to."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise ShardmemError(f"{what} {path} is {kind}, which is not followed", hint="Remove it, and find who made it")
    if found.st_uid != uid:
        raise ShardmemError(
            f"{what} {path} belongs to uid {found.st_uid}; it must belong to uid {uid}",
            hint="Remove it, or give it to that user with `chown`",
        )
    if mode := stat.S_IMODE(found.st_mode) & 0o022:
        raise ShardmemError(
            f"{what} {path} can be written to by others (mode {stat.S_IMODE(found.st_mode):o}, {mode:03o} too much)",
            hint=f"If you trust what is in it: `chmod 600 {path}`",
        )
    return found.st_dev, found.st_ino


def open_private(path: str, flags: int) -> int:
    """A descriptor of a plain file of this user's, made if the flags say so; an `opener` for `open`. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)  # a pipe is not waited for
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != _acting():
        os.close(descriptor)
        raise PermissionError(errno.EACCES, f"it is not a plain file of uid {_acting()}", path)
    os.set_blocking(descriptor, True)
    return descriptor


def make_file(path: str) -> None:
    """A file that only its user can read, from its first moment on. One that is there is left as it is."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def hide_file(path: str) -> None:
    """Only its user can read it from here on. Raises OSError."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # closing it drops no lock of SQLite's
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.chmod(f"/proc/self/fd/{descriptor}", 0o600)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Root acts on another user's files with that user's rights alone: whatever the user has put in the way, root does
    nothing that the user could not do. Of this thread only; for everybody else this changes nothing."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    import ctypes  # os has seteuid, which is of the whole process

    libc = ctypes.CDLL(None)
    group = libc.setfsgid(_NOBODY)
    libc.setfsuid(uid)
    _of_thread.uid = uid
    try:
        yield
    finally:
        _of_thread.uid = None
        libc.setfsuid(0)
        libc.setfsgid(group)


def owner_of(path: str) -> int:
    """The uid whose file it has to be: this process's; root looks at whoever's it is, with that user's rights."""
    return os.lstat(path).st_uid if os.geteuid() == 0 and os.path.lexists(path) else os.geteuid()


def _acting() -> int:
    """The user whose rights this thread has over files."""
    uid: int | None = getattr(_of_thread, "uid", None)
    return os.geteuid() if uid is None else uid


_of_thread = threading.local()
_NOBODY = 65534  # of groups: what the user owns is the user's, whatever group it is of
