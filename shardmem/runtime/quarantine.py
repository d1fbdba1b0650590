"""Where events go that keep killing or failing their handler: one SQLite file per engine, bounded, never dropping silently."""
from __future__ import annotations

import json
import time
from typing import Any, Iterable, NamedTuple

from shardmem.errors import ShardmemError
from shardmem.runtime.sqlite import Database

_SCHEMA = """
create table if not exists events (
    id integer primary key autoincrement, at real not null, shard integer not null, slot integer not null,
    seat integer not null, sequence integer not null, kind text not null, reason text not null, traceback text not null,
    attempts integer not null, key text not null, payload blob not null, schema text not null, replayed_at real,
    origin text not null unique);  -- the one row of shared memory that it was: setting it aside again changes nothing
"""
_FIELDS = "id, at, shard, slot, seat, sequence, kind, reason, traceback, attempts, key, payload, schema, replayed_at"


class QuarantineFull(ShardmemError):
    """The quarantine holds as many events as it may; the shard stops, and nothing is lost."""


class Quarantined(NamedTuple):
    """One event. at, replayed_at: seconds since 1970. key: as it was pushed. payload: its bytes, or those of the row."""

    id: int
    at: float
    shard: int
    slot: int
    seat: int
    sequence: int
    kind: str  # "exception" or "death"
    reason: str
    traceback: str
    attempts: int
    key: Any
    payload: bytes
    schema: dict[str, Any]
    replayed_at: float | None


class Quarantine:
    """Raises ShardmemError when the file cannot be used."""

    def __init__(self, path: str, limit: int | None = None) -> None:
        self.path, self._limit = path, limit
        self._database = Database(path, _SCHEMA, "the quarantine file", durable=True)

    def add(self, origin: str, *, shard: int, slot: int, seat: int, sequence: int, kind: str, reason: str, traceback: str,
            attempts: int, key: Any, payload: bytes, schema: dict[str, Any]) -> None:
        """Raises QuarantineFull. Adding what is there already changes nothing."""
        with self._database.transaction() as connection:
            if connection.execute("select 1 from events where origin = ?", (origin,)).fetchone():
                return
            held = connection.execute("select count(*) from events where replayed_at is null").fetchone()[0]
            if self._limit is not None and held >= self._limit:
                raise QuarantineFull(f"the quarantine {self.path} holds {held:,} events, which is its limit "
                                     f"(quarantine_limit={self._limit:,}); the next would be {reason}. Look at them with "
                                     f"'shardmem quarantine list', then replay or purge them, or raise the limit; the shard "
                                     f"stops here and its events stay in shared memory")
            connection.execute(f"insert into events ({_FIELDS}, origin) values (null{', ?' * 13}, ?)",
                               (time.time(), shard, slot, seat, sequence, kind, reason, traceback, attempts,
                                _key_text(key), payload, json.dumps(schema), None, origin))

    def events(self, ids: Iterable[int] | None = None, *, replayed: bool = False) -> list[Quarantined]:
        """Oldest first; without those that were replayed, unless asked for. Raises ShardmemError for an id that is not there."""
        found = {row[0]: _read(row) for row in self._database.rows(f"select {_FIELDS} from events order by id")}
        if ids is None:
            return [event for event in found.values() if replayed or event.replayed_at is None]
        missing = [str(number) for number in ids if number not in found]
        if missing:
            raise ShardmemError(f"there is no event {', '.join(missing)} in {self.path}; 'shardmem quarantine list' shows them")
        return [found[number] for number in ids]

    def replayed(self, number: int) -> None:
        with self._database.transaction() as connection:
            connection.execute("update events set replayed_at = ? where id = ?", (time.time(), number))

    def purge(self, ids: Iterable[int] | None = None) -> int:
        """Remove these, or all; how many they were."""
        numbers = [event.id for event in self.events(ids, replayed=True)]
        with self._database.transaction() as connection:
            connection.executemany("delete from events where id = ?", [(number,) for number in numbers])
        return len(numbers)

    def close(self) -> None:
        self._database.close()


def _key_text(key: Any) -> str:
    if isinstance(key, bytes):
        return json.dumps({"bytes": key.hex()})
    if isinstance(key, str):
        return json.dumps({"str": key.encode("utf-8", "surrogateescape").hex()})
    return json.dumps({"int": None if key is None else int(key)})


def _read(row: tuple) -> Quarantined:
    (kind, value), = json.loads(row[10]).items()
    key = (value if kind == "int" else bytes.fromhex(value) if kind == "bytes" else
           bytes.fromhex(value).decode("utf-8", "surrogateescape"))
    return Quarantined(*row[:10], key, bytes(row[11]), json.loads(row[12]), row[13])
