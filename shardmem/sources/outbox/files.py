"""What waits in the outboxes of the workers' files, in an order in which it may be published.

In a file that is the order of its numbers. Between files there is one where slots went from one to the other: what the
new owner sent waits until the old owner's file has nothing left of before (`outbox_after`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
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
            for number, topic, key, value, packed, origin, engine in self._in(
                path, partial(self._waiting, behind=behind.get(name, 0)), []
            ):
                told = origin or f"{engine}/{name.partition('.')[0]}/{number}"
                headers = [*unpack_headers(packed), (ID, told.encode())]
                yield Waiting(name, number, topic, key, value, headers)

    def _waiting(self, connection: sqlite3.Connection, behind: int) -> list[tuple[Any, ...]]:
        return connection.execute(
            "select number, topic, key, value, headers, origin, (select engine from life) from outbox "
            "where number > ? and number <= ? order by number limit ?",
            (behind, self._last(connection), ROWS),
        ).fetchall()

    def _last(self, connection: sqlite3.Connection) -> int:
        """The highest number that waits for no other file. What need not wait any more is forgotten."""
        for number, file, upto in connection.execute(
            "select number, file, upto from outbox_after order by number"
        ).fetchall():
            if not self.has_published({file: upto}):
                return int(number)
            connection.execute("delete from outbox_after where number = ? and file = ?", (number, file))
        return 1 << 62

    def position(self) -> dict[str, int]:
        """How far each file goes now."""
        found = {}
        for path in shard_files(self._directory).values():
            last = self._in(path, lambda each: each.execute("select max(number) from outbox").fetchone()[0], None)
            if last is not None:
                found[os.path.basename(path)] = int(last)
        return found

    def has_published(self, position: Mapping[str, int]) -> bool:
        """All that there was then."""
        query = "select 1 from outbox where number <= ? limit 1"
        return not any(
            self._in(os.path.join(self._directory, file), lambda each: each.execute(query, (upto,)).fetchone(), None)
            for file, upto in position.items()
        )

    def remove(self, file: str, upto: int) -> None:
        """They are published."""
        path, query = os.path.join(self._directory, file), "delete from outbox where number <= ?"
        self._in(path, lambda each: each.execute(query, (upto,)), None)

    def count(self) -> int:
        found = 0
        for path in shard_files(self._directory).values():
            query = "select min(number), max(number) from outbox"
            first, last = self._in(path, lambda each: each.execute(query).fetchone(), (None, None))
            found += 0 if first is None else last - first + 1
        return found

    def _in(self, path: str, ask: Callable[[sqlite3.Connection], Any], nothing: Any) -> Any:
        address = f"file:{quote(path)}?mode=rw"
        try:
            with (
                explained("the state file", path),
                contextlib.closing(
                    sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
                ) as connection,
            ):
                return ask(connection)
        except ShardmemError as error:
            if "no such table" in str(error) or not os.path.exists(path):
                return nothing
            raise
