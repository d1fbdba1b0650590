"""Where snapshots are kept. A name is there with all of its content or not at all, and its content never changes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import unquote, urlsplit

from shardmem.errors import ConfigError, ShardmemError

MOST_NAMES = 1000  # that an object store deletes in one request


class RemoteError(ShardmemError):
    """The place of snapshots cannot be reached, or has not what is asked for."""


class Target(Protocol):
    """Every method raises RemoteError, and may take its time. Names have slashes."""

    url: str

    def put(self, name: str, path: str) -> None:
        """The content of a file under that name."""

    def get(self, name: str, path: str) -> None:
        """The other way round."""

    def names(self, prefix: str) -> list[str]:
        """In any order."""

    def delete(self, names: Iterable[str]) -> None: ...


def target_of(url: str) -> Target:
    """file:///directory or s3://bucket/prefix. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return Directory(url, unquote(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        from shardmem.remote.s3 import Bucket  # imports the client

        return Bucket(url, parts.netloc, unquote(parts.path).strip("/"))
    raise ConfigError(f"remote={url!r} is neither file:///directory nor s3://bucket/prefix")


class Directory:
    """One that all hosts have mounted."""

    def __init__(self, url: str, path: str) -> None:
        self.url, self._path = url, path

    def put(self, name: str, path: str) -> None:
        to = os.path.join(self._path, name)
        partial = f"{to}.{os.uname().nodename}-{os.getpid()}.partial"
        with self._explained(f"{name} cannot be written"):
            os.makedirs(os.path.dirname(to), mode=0o700, exist_ok=True)
            try:
                shutil.copyfile(path, partial)
                with open(partial, "rb+") as written:
                    os.fsync(written.fileno())
                os.replace(partial, to)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial)

    def get(self, name: str, path: str) -> None:
        with self._explained(f"{name} cannot be read"):
            shutil.copyfile(os.path.join(self._path, name), path)

    def names(self, prefix: str) -> list[str]:
        found, folder = [], os.path.join(self._path, os.path.dirname(prefix))
        with self._explained("its content cannot be listed"):
            for directory, _, files in os.walk(folder):
                inside = os.path.relpath(directory, self._path)
                found += [os.path.normpath(os.path.join(inside, each)) for each in files]
        return [name for name in found if name.startswith(prefix) and not name.endswith(".partial")]

    def delete(self, names: Iterable[str]) -> None:
        with self._explained("a snapshot cannot be deleted"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._path, name))

    @contextlib.contextmanager
    def _explained(self, what: str):  # type: ignore[no-untyped-def]
        try:
            yield
        except OSError as error:
            raise RemoteError(f"{self.url}: {what}: {error.strerror or error}") from error
