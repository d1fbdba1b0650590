"""Where events go that keep killing or failing their handler: one SQLite file per engine, bounded, never dropping
silently."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from shardmem.errors import ShardmemError
from shardmem.runtime.origins import came_with_of
from shardmem.runtime.sqlite import LOOK_PATIENCE, PATIENCE, Database, Reading

_SCHEMA = """
create table if not exists events (
    id integer primary key autoincrement, at real not null, shard integer not null, slot integer not null,
    seat integer not null, sequence integer not null, kind text not null, reason text not null, traceback text not null,
    attempts integer not null, key text not null, payload blob not null, schema text not null, replayed_at real,
    origin text not null unique);  -- the one row of shared memory that it was: setting it aside again changes nothing
create index if not exists held on events (id) where replayed_at is null;
"""
_FIELDS = "id, at, shard, slot, seat, sequence, kind, reason, traceback, attempts, key, payload, schema, replayed_at"
_WITHOUT = _FIELDS.replace("payload", "null")
_LAST_MOMENT = 1e11  # seconds since 1970; what is later is not a time that was written
_AT_ONCE = 500  # events in one query
_WHAT = "the quarantine file"
_IF_GONE = "What it held is lost; what is quarantined from now on goes into a new one"
_CAME_WITH = "came_with"

NoneType = type(None)
Self = TypeVar("Self", bound="QuarantineReader")


class QuarantineFull(ShardmemError):
    """The quarantine holds as many events as it may; the shard stops, and nothing is lost."""


class NoSuchEvent(ShardmemError):
    """There is no event of that number."""


class Quarantined(NamedTuple):
    """One event. at, replayed_at: seconds since 1970. key: as it was pushed. payload: its bytes, or those of the row;
    empty if it was not asked for, None of a tombstone. size: how many they are. came_with: what `origins.described`
    said."""

    id: int
    at: float
    shard: int
    slot: int
    seat: int
    sequence: int
    kind: str  # "exception", "death" or "rejected"
    reason: str
    traceback: str
    attempts: int
    key: Any
    payload: bytes | None
    schema: dict[str, Any]
    replayed_at: float | None
    size: int
    came_with: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An event on its way into the quarantine. origin: the one row of shared memory that it is. came_with: what it had
    from its broker, kept beside the schema: both say what its bytes are."""

    origin: str
    shard: int
    slot: int
    seat: int
    sequence: int
    kind: str
    reason: str
    traceback: str
    attempts: int
    key: Any
    payload: bytes | None
    schema: dict[str, Any]
    came_with: dict[str, Any] = field(default_factory=dict)


class QuarantineReader:
    """Looks, and changes nothing. Raises ShardmemError when the file cannot be used, or an event in it is damaged.
    owner: the uid whose file it is, if not this process's. patience: seconds to wait for whoever opens or closes it."""

    _database: Database | Reading

    def __init__(self, path: str, owner: int | None = None, patience: float = LOOK_PATIENCE) -> None:
        self.path = path
        self._database = Reading(path, _WHAT, owner, patience)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def count(self) -> int:
        """Those that count for the limit: they were not replayed."""
        return int(self._database.rows("select count(*) from events where replayed_at is null")[0][0])

    def numbers(self, ids: Iterable[int] | None = None, *, replayed: bool = False) -> list[int]:
        """These ids, or of all events, oldest first; without those that were replayed, unless asked for. Raises
        ShardmemError for one that is not there."""
        known = dict(self._database.rows("select id, replayed_at from events order by id"))
        if ids is None:
            return [number for number, when in known.items() if replayed or when is None]
        wanted = list(dict.fromkeys(ids))
        if missing := [str(number) for number in wanted if number not in known]:
            raise NoSuchEvent(
                f"there is no event {', '.join(missing)} in {self.path}; 'shardmem quarantine list' shows them"
            )
        return wanted

    def events(
        self,
        ids: Iterable[int] | None = None,
        *,
        replayed: bool = False,
        newest: int | None = None,
        payloads: bool = True,
    ) -> list[Quarantined]:
        """Those of `numbers`; or so many of them, the newest first."""
        wanted = self.numbers(ids, replayed=replayed)
        wanted = wanted if newest is None else wanted[::-1][:newest]
        query = f"select {_FIELDS if payloads else _WITHOUT}, length(payload) from events where id in "
        found: dict[int, Quarantined] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            for row in self._database.rows(f"{query} ({','.join('?' * len(some))})", *some):
                found[row[0]] = self._read(row)
        return [found[number] for number in wanted if number in found]  # others may purge meanwhile

    def _read(self, row: tuple[Any, ...]) -> Quarantined:
        try:
            return _read(row)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ShardmemError(
                f"event {row[0]} of the quarantine file {self.path} is damaged: {type(error).__name__}: {error}",
                hint=f"Delete it: `shardmem quarantine purge {row[0]}`",
            ) from error

    def close(self) -> None:
        self._database.close()


class Quarantine(QuarantineReader):
    """What is added, replayed and purged, too."""

    _database: Database

    def __init__(
        self, path: str, limit: int | None = None, patience: float = PATIENCE, owner: int | None = None
    ) -> None:
        self.path, self._limit = path, limit
        self._database = Database(path, _SCHEMA, _WHAT, durable=True, patience=patience, owner=owner, if_gone=_IF_GONE)

    def add(self, *entries: Entry) -> None:
        """All or none. Raises QuarantineFull. Adding what is there already changes nothing."""
        with self._database.transaction() as connection:
            known = "select 1 from events where origin = ?"
            new = [each for each in entries if not connection.execute(known, (each.origin,)).fetchone()]
            held = connection.execute("select count(*) from events where replayed_at is null").fetchone()[0]
            if new and self._limit is not None and held + len(new) > self._limit:
                raise QuarantineFull(
                    f"the quarantine {self.path} holds {held:,} events, which is its limit "
                    f"(quarantine_limit={self._limit:,}); the next would be {new[0].reason}. Look at them with "
                    f"'shardmem quarantine list', then replay or purge them, or raise the limit; the shard "
                    f"waits until then and its events stay in shared memory"
                )
            at = time.time()
            connection.executemany(
                f"insert into events ({_FIELDS}, origin) values (null{', ?' * 13}, ?)",
                [
                    (
                        at,
                        each.shard,
                        each.slot,
                        each.seat,
                        each.sequence,
                        each.kind,
                        _encodable(each.reason),
                        _encodable(each.traceback),
                        each.attempts,
                        _key_text(each.key),
                        each.payload or b"",
                        json.dumps({**each.schema, **({_CAME_WITH: each.came_with} if each.came_with else {})}),
                        None,
                        each.origin,
                    )
                    for each in new
                ],
            )

    # ---- what its shard takes back: until it is handled, or given back, it counts as replayed --------------------

    def take(self, origin: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("update events set replayed_at = ? where origin = ?", (time.time(), origin))

    def give_back(self, origin: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("update events set replayed_at = null where origin = ?", (origin,))

    def by_origin(self, origin: str) -> Quarantined | None:
        found = self._database.rows("select id from events where origin = ?", origin)
        return self.events([found[0][0]], replayed=True)[0] if found else None

    def remove(self, origin: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("delete from events where origin = ?", (origin,))

    # ---- what was added, and was not set aside after all ---------------------------------------------------------

    def origins(self, prefix: str) -> list[str]:
        """Of events that were not replayed, those that begin so."""
        found = self._database.rows(
            "select origin from events where origin >= ? and origin < ? and replayed_at is null",
            prefix,
            prefix + "\U0010ffff",
        )
        return [origin for (origin,) in found]

    def retract(self, origins: Iterable[str]) -> None:
        """As if they had never been added; those that somebody has replayed meanwhile stay what they are."""
        with self._database.transaction() as connection:
            connection.executemany(
                "delete from events where origin = ? and replayed_at is null", [(origin,) for origin in origins]
            )

    def replayed(self, number: int) -> None:
        with self._database.transaction() as connection:
            connection.execute("update events set replayed_at = ? where id = ?", (time.time(), number))

    def purge(self, ids: Iterable[int] | None = None) -> int:
        """Remove these, or all; how many they were."""
        numbers = self.numbers(ids, replayed=True)
        with self._database.transaction() as connection:
            connection.executemany("delete from events where id = ?", [(number,) for number in numbers])
        return len(numbers)


def is_there(path: str) -> bool:
    """Whether anything was ever quarantined: a file that its maker did not live to fill holds nothing. What is no
    file is there too, and whoever opens it says what it is."""
    found = [os.lstat(each) for each in (path, f"{path}-wal") if os.path.lexists(each)]
    return any(each.st_size or not stat.S_ISREG(each.st_mode) for each in found)


def _encodable(text: str) -> str:
    """Half a surrogate pair in an exception's text stopped its shard: SQLite takes UTF-8 only."""
    return text.encode(errors="backslashreplace").decode()


def _key_text(key: Any) -> str:
    if isinstance(key, bytes):
        return json.dumps({"bytes": key.hex()})
    if isinstance(key, str):
        return json.dumps({"str": key.encode("utf-8", "surrogateescape").hex()})
    return json.dumps({"int": None if key is None else int(key)})


def _read(row: tuple[Any, ...]) -> Quarantined:
    """Raises ValueError, TypeError, KeyError: SQLite keeps whatever is put into a column."""
    id, at, shard, slot, seat, sequence, kind, reason, traceback, attempts, key, payload, schema, replayed_at, size = (
        row
    )
    described = json.loads(schema)
    came_with = described.pop(_CAME_WITH, {})
    if described["kind"] not in ("events", "records"):
        raise ValueError(f"schema {described['kind']!r}")
    came_with_of(came_with)
    for text in (kind, reason, traceback):
        if not isinstance(text, str):
            raise TypeError(f"a text is {type(text).__name__}")
    for number in (shard, slot, seat, sequence, attempts):
        if not isinstance(number, int):
            raise TypeError(f"a number is {type(number).__name__}")
    for when in (at, replayed_at or 0.0):
        if not 0 <= when < _LAST_MOMENT:
            raise ValueError(f"a time is {when!r}")
    if not isinstance(payload, (bytes, NoneType)):
        raise TypeError(f"the payload is {type(payload).__name__}")
    return Quarantined(
        id,
        at,
        shard,
        slot,
        seat,
        sequence,
        kind,
        reason,
        traceback,
        attempts,
        _key_of(key),
        None if came_with.get("tombstone") else payload or b"",
        described,
        replayed_at,
        size,
        came_with,
    )


def _key_of(text: str) -> Any:
    ((form, value),) = json.loads(text).items()
    if form == "int":
        if not isinstance(value, (int, NoneType)):
            raise TypeError(f"the key is {type(value).__name__}")
        return value
    data = bytes.fromhex(value)
    return data if form == "bytes" else data.decode("utf-8", "surrogateescape")
