"""What waits in the outboxes of the workers' files, in an order in which it may be published.

In a file that is the order of its numbers. Between files there is one where slots went from one to the other: what the
new owner sent waits until the old owner's file has nothing left of before (`outbox_after`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from shardmem.errors import ShardmemError
from shardmem.runtime.origins import Headers, unpack_headers
from shardmem.runtime.sqlite import PATIENCE, explained
from shardmem.runtime.state_files import shard_files

ID = "shardmem-id"  # the header that says which message it is
ROWS = 500  # of a file at a time


@dataclass(frozen=True)
class Waiting:
    """number: its place in the file."""

    file: str
    number: int
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


class OutboxFiles:
    """Raises ShardmemError when a file cannot be used. One that is just being made, or has just been removed since its
    shard is gone, has nothing that waits."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def waiting(self, behind: Mapping[str, int]) -> Iterator[Waiting]:
        """behind: of a file, the number up to which they are known already."""
        for path in sorted(shard_files(self._directory).values()):
            name = os.path.basename(path)
            rows = self._in(
                path,
                "select number, topic, key, value, headers, origin, (select engine from life) from outbox "
                "where number > ? order by number limit ?",
                (behind.get(name, 0), ROWS),
            )
            last = self._last(path)  # then: a slot may come to this shard meanwhile, and send
            for number, topic, key, value, packed, origin, engine in rows:
                if number > last:
                    break
                told = origin or f"{engine}/{name.partition('.')[0]}/{number}"
                headers = [*unpack_headers(packed), (ID, told.encode())]
                yield Waiting(name, number, topic, key, value, headers)

    def _last(self, path: str) -> int:
        """The highest number that waits for no other file. What need not wait any more is forgotten."""
        for number, file, upto in self._in(path, "select number, file, upto from outbox_after order by number"):
            if not self.has_published({file: upto}):
                return int(number)
            self._in(path, "delete from outbox_after where number = ? and file = ?", (number, file))
        return 1 << 62

    def position(self) -> dict[str, int]:
        """How far each file goes now."""
        found: dict[str, int] = {}
        for path in shard_files(self._directory).values():
            for (last,) in self._in(path, "select max(number) from outbox"):
                found |= {} if last is None else {os.path.basename(path): int(last)}
        return found

    def has_published(self, position: Mapping[str, int]) -> bool:
        """All that there was then."""
        query = "select 1 from outbox where number <= ? limit 1"
        return not any(self._in(self._path(file), query, (upto,)) for file, upto in position.items())

    def remove(self, file: str, upto: int) -> None:
        """They are published."""
        self._in(self._path(file), "delete from outbox where number <= ?", (upto,))

    def count(self) -> int:
        found = 0
        for path in shard_files(self._directory).values():
            for first, last in self._in(path, "select min(number), max(number) from outbox"):
                found += 0 if first is None else last - first + 1
        return found

    def _path(self, file: str) -> str:
        return os.path.join(self._directory, file)

    def _in(self, path: str, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            with (
                explained("the state file", path),
                contextlib.closing(
                    sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None)
                ) as connection,
            ):
                return connection.execute(query, values).fetchall()
        except ShardmemError as error:
            if "no such table" in str(error) or not os.path.exists(path):
                return []
            raise
