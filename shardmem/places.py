"""Where an engine listens on this host: a directory that is private to its user.

XDG_RUNTIME_DIR is that by definition, and /run is root's; both live as long as the engine may, and no cleaner of
temporary files goes there. Where there is neither, it is a directory in the temporary directory. Whoever wants to reach
an engine looks into its control segment, where its supervisor says what it chose: the environment may be another one.
"""

from __future__ import annotations

import os
import stat
import tempfile

from shardmem.errors import ConfigError

RUN = "/run"
SOCKET_ADDRESS = 107  # bytes of sun_path, without its end


def runtime_directories(uid: int | None = None) -> list[str]:
    """The best first. uid: whose, if not the caller's: nothing is known of their environment then."""
    user, found = os.geteuid() if uid is None else uid, []
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid in (None, os.geteuid()) and os.path.isabs(given) and _is_private(given):
        found.append(os.path.join(given, "shardmem"))
    if user == 0 and os.access(RUN, os.W_OK | os.X_OK):
        found.append(os.path.join(RUN, "shardmem"))
    return [*found, temporary_directory(user)]


def temporary_directory(user: int) -> str:
    """What a user of this host has in the temporary directory. Raises ConfigError when there is none to be had."""
    try:
        return os.path.join(tempfile.gettempdir(), f"shardmem-{user}")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.strerror}: they are full, or cannot be written to by uid {os.geteuid()}, or this process has no "
            "descriptor left (RLIMIT_NOFILE)"
        ) from error


def _is_private(directory: str) -> bool:
    """`sudo` may hand on the directory of the user who gave the command."""
    try:
        status = os.stat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def socket_path(engine: str, uid: int | None = None) -> str:
    """Where the supervisor of an engine listens, unless its control segment says otherwise. In the best directory in
    which the address has room."""
    paths = [os.path.join(directory, f"{engine}.sock") for directory in runtime_directories(uid)]
    return next((path for path in paths if fits(path)), paths[-1])


def fits(path: str) -> bool:
    return len(os.fsencode(path)) <= SOCKET_ADDRESS


def check_socket_path(path: str) -> None:
    """Raises ConfigError when the system has no room for it in the address of a socket."""
    if not fits(path):
        raise ConfigError(
            f"the control socket cannot be {path}: that is {len(os.fsencode(path))} bytes, and the address of a unix "
            f"socket has room for {SOCKET_ADDRESS}. Set TMPDIR to a shorter directory, or give the engine a shorter "
            "name"
        )
