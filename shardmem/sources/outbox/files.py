"""What waits in the outboxes of the workers' files, in an order in which it may be published.

In a file that is the order of its numbers. Between files there is one where slots went from one to the other: what the
new owner sent waits until the old owner's file has nothing left of before (`outbox_after`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

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
    """Raises ShardmemError when a file cannot be used."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def waiting(self, behind: Mapping[str, int]) -> Iterator[Waiting]:
        """behind: of a file, the number up to which they are known already."""
        for path in sorted(shard_files(self._directory).values()):
            with self._opened(path) as connection:
                name = os.path.basename(path)
                last = self._last(connection)
                rows = connection.execute(
                    "select number, topic, key, value, headers, origin, (select engine from life) from outbox "
                    "where number > ? and number <= ? order by number limit ?",
                    (behind.get(name, 0), last, ROWS),
                ).fetchall()
            for number, topic, key, value, packed, origin, engine in rows:
                told = origin or f"{engine}/{name.partition('.')[0]}/{number}"
                headers = [*unpack_headers(packed), (ID, told.encode())]
                yield Waiting(name, number, topic, key, value, headers)

    def _last(self, connection: sqlite3.Connection) -> int:
        """The highest number that waits for no other file. What need not wait any more is forgotten."""
        for number, file, upto in connection.execute(
            "select number, file, upto from outbox_after order by number"
        ).fetchall():
            path = os.path.join(self._directory, file)
            if os.path.exists(path):
                with self._opened(path) as other:
                    if other.execute("select 1 from outbox where number <= ? limit 1", (upto,)).fetchone():
                        return int(number)
            connection.execute("delete from outbox_after where number = ? and file = ?", (number, file))
        return 1 << 62

    def position(self) -> dict[str, int]:
        """How far each file goes now."""
        found = {}
        for path in shard_files(self._directory).values():
            with self._opened(path) as connection:
                last = connection.execute("select max(number) from outbox").fetchone()[0]
            if last is not None:
                found[os.path.basename(path)] = int(last)
        return found

    def has_published(self, position: Mapping[str, int]) -> bool:
        """All that there was then."""
        for file, upto in position.items():
            path = os.path.join(self._directory, file)
            if os.path.exists(path):
                with self._opened(path) as connection:
                    if connection.execute("select 1 from outbox where number <= ? limit 1", (upto,)).fetchone():
                        return False
        return True

    def remove(self, file: str, upto: int) -> None:
        """They are published."""
        path = os.path.join(self._directory, file)
        if os.path.exists(path):
            with self._opened(path) as connection:
                connection.execute("delete from outbox where number <= ?", (upto,))

    def count(self) -> int:
        found = 0
        for path in shard_files(self._directory).values():
            with self._opened(path) as connection:
                first, last = connection.execute("select min(number), max(number) from outbox").fetchone()
                found += 0 if first is None else last - first + 1
        return found

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[sqlite3.Connection]:
        with explained("the state file", path):
            address = f"file:{quote(path)}?mode=rw"
            with contextlib.closing(
                sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
            ) as connection:
                yield connection
