"""The sockets that the control API listens on: a unix socket that only its user reaches, and TCP if wanted."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import time

from shardmem.errors import AlreadyRunning, ConfigError
from shardmem.places import check_socket_path, socket_path
from shardmem.private_files import Identity, identity, make_directory

DYING = 2.0  # seconds for which the sockets of a supervisor that is being killed may outlive its lease
BACKLOG = 64


def listen_on_tcp(address: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    deadline = time.monotonic() + DYING
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        try:
            return socket.create_server((address, port), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                why = os.strerror(error.errno or 0)
                if error.errno == errno.EADDRNOTAVAIL:
                    raise ConfigError(
                        f"cannot listen on http_address={address}: {why}",
                        hint="Choose an address of this machine, or 0.0.0.0 for all of them",
                    ) from None
                raise ConfigError(
                    f"cannot listen on http_port={port}: {why}", hint="Choose another port, or 0 for any free one"
                ) from None
        time.sleep(0.02)


def url_of(address: str, port: int) -> str:
    """Where a program of this machine reaches it."""
    found = ipaddress.ip_address(address)
    if found.is_unspecified:
        found = ipaddress.ip_address("::1" if found.version == 6 else "127.0.0.1")
    return f"http://[{found}]:{port}" if found.version == 6 else f"http://{found}:{port}"


class UnixListener:
    """The socket of an engine, where `socket_path` says at this moment. patience: seconds for which another may still
    be there. Raises ConfigError, AlreadyRunning, ShardmemError, OSError; nothing is bound then."""

    def __init__(self, engine: str, patience: float | None = None) -> None:
        self.path = socket_path(engine)
        check_socket_path(self.path)
        directory = os.path.dirname(self.path)
        make_directory(directory)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._bound: Identity | None = None
        try:
            self._take(engine, directory, DYING if patience is None else patience)
        except BaseException:
            self.socket.close()
            raise

    def _take(self, engine: str, directory: str, patience: float) -> None:
        # The lease says that no other supervisor of this name lives on this /dev/shm. One in another container may
        # share only the directory: it would lose its socket if whatever is there were taken for a dead one's. The
        # lock makes looking and taking one step.
        locked = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(locked, fcntl.LOCK_EX)
            deadline = time.monotonic() + patience
            while _answers(self.path):
                if time.monotonic() > deadline:
                    raise AlreadyRunning(
                        f"another supervisor listens on {self.path}",
                        detail=f"It runs an engine {engine!r} whose shared memory is not on this /dev/shm.",
                        hint="Choose another name, or give each its own TMPDIR",
                    )
                time.sleep(0.02)
            if os.path.lexists(self.path):
                os.unlink(self.path)
            before = os.umask(0o177)
            try:
                self.socket.bind(self.path)
            finally:
                os.umask(before)
            self.socket.listen(BACKLOG)  # from here on it is seen to be alive
            self._bound = identity(self.path)
        finally:
            os.close(locked)

    def is_reached(self) -> bool:
        """Whether the path still leads here: a cleaner of temporary files may have been there."""
        return self._bound is not None and identity(self.path) == self._bound

    def unlink(self) -> None:
        """Before the socket is closed: until then its inode is in use, and no other can have the same number."""
        if self.is_reached():
            os.unlink(self.path)
        self._bound = None

    def close(self) -> None:
        self.unlink()
        self.socket.close()


def _answers(path: str) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except BlockingIOError:
            return True  # more wait for it than it takes
        except OSError:
            return False
        return True
