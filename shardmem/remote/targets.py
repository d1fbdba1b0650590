"""Where snapshots are kept. A name is there with all of its content or not at all, and its content never changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shardmem.errors import ShardmemError


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
