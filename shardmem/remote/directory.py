"""Snapshots in a directory that all hosts have mounted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator

from shardmem.remote.targets import RemoteError


class Directory:
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
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RemoteError(f"{self.url}: {what}: {error.strerror or error}") from error
