"""A broker in one SQLite file, for tests: topics, groups, commits. Any number of processes may open the file, so that
engines of several names are several hosts of one group.

It keeps to what shardmem asks of a broker. Of a group, one member at a time owns a partition: whoever is to give it up
keeps it until it says so, at its next heartbeat, or until its session is over. Commits of anybody else are refused.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardmem.errors import ShardmemError, Superseded
from shardmem.runtime.columns import KEY_UNSIGNED, Keys
from shardmem.runtime.encode import Key, plain_key
from shardmem.schema import KEY_INT
from shardmem.sources.contract import BrokerUnavailable, Columns, Position, partition_of, topic_and_number

_TABLES = """
create table if not exists topic (name text primary key, partitions int, number int) without rowid;
create table if not exists log (topic text, number int, base int, count int, data blob,
    primary key (topic, number, base)) without rowid;
create table if not exists tail (topic text, number int, offset int, primary key (topic, number)) without rowid;
create table if not exists member (grp text, id text, instance text, epoch int, session int, patience int, until int,
    topics text, primary key (grp, id)) without rowid;
create table if not exists part (grp text, topic text, number int, owner text, target text, since int,
    inherited int, primary key (grp, topic, number)) without rowid;
create table if not exists committed (grp text, topic text, number int, offset int, metadata text,
    primary key (grp, topic, number)) without rowid;
create table if not exists fact (name text primary key, value int) without rowid;
"""
_SIZES = struct.Struct("<4q")
BUSY = 30.0  # seconds that another process may write
Headers = Sequence[tuple[str, bytes | None]]


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Membership:
    """epoch: of the group, at the moment of joining: an earlier one is refused."""

    group: str
    member: str
    epoch: int


class FakeBroker:
    def __init__(self, path: str, clock_ns: Callable[[], int] = boottime_ns) -> None:
        """clock_ns: what sessions are measured with; of all processes the same."""
        self.path, self._clock_ns = str(path), clock_ns
        self._of_thread = threading.local()
        connection = self._connection()
        connection.execute("pragma journal_mode = wal")
        connection.executescript(_TABLES)

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            found = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            found.execute("pragma synchronous = off")  # it outlives processes, and need not outlive the machine
            self._of_thread.connection = found
        return found

    def close(self) -> None:
        """Of this thread; others' go with their thread."""
        self._connection().close()
        del self._of_thread.connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("begin immediate")
        try:
            yield connection
        except BaseException:
            connection.execute("rollback")
            raise
        connection.execute("commit")

    # ---- topics ------------------------------------------------------------------------------------------------------

    def create_topic(self, name: str, partitions: int) -> None:
        """One that is there grows."""
        with self._writing() as connection:
            (number,) = connection.execute("select count(*) from topic").fetchone()
            connection.execute(
                "insert into topic values (?, ?, ?) on conflict do update set partitions = excluded.partitions",
                (name, partitions, number),
            )
            for each in range(partitions):
                connection.execute("insert or ignore into tail values (?, ?, 0)", (name, each))

    def partition_counts(self) -> dict[str, int]:
        self._expect_reachable()
        return dict(self._connection().execute("select name, partitions from topic").fetchall())

    def produce(
        self,
        topic: str,
        events: Iterable[tuple[Key, bytes | None]],
        *,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
        skip: int = 0,
    ) -> None:
        """Keys and payloads; None: a tombstone. partition: of all of them; else their keys say it. timestamp: ms since
        1970. headers: of each. skip: offsets that nothing has, as a compacted topic has."""
        with self._writing() as connection:
            row = connection.execute("select partitions from topic where name = ?", (topic,)).fetchone()
            if row is None:
                raise ShardmemError(f"there is no topic {topic!r}")
            parts: dict[int, list[tuple[Key, bytes | None]]] = {}
            for i, (key, payload) in enumerate(events):
                number = partition if partition is not None else i % row[0] if key is None else _hash(key) % row[0]
                parts.setdefault(number, []).append((key, payload))
            stamp = time.time_ns() // 1_000_000 if timestamp is None else timestamp
            for number, part in parts.items():
                self._append(connection, topic, number, part, stamp, headers, skip)

    def _append(
        self,
        connection: sqlite3.Connection,
        topic: str,
        number: int,
        part: list[tuple[Key, bytes | None]],
        stamp: int,
        headers: Headers,
        skip: int,
    ) -> None:
        (base,) = connection.execute(
            "select offset from tail where topic = ? and number = ?", (topic, number)
        ).fetchone()
        base += skip
        data = _Chunk.of(part, stamp, headers).to_bytes()
        connection.execute("insert into log values (?, ?, ?, ?, ?)", (topic, number, base, len(part), data))
        connection.execute(
            "update tail set offset = ? where topic = ? and number = ?", (base + len(part), topic, number)
        )

    def end(self, partition: str) -> int:
        """The offset of its next event."""
        self._expect_reachable()
        row = (
            self._connection()
            .execute("select offset from tail where topic = ? and number = ?", topic_and_number(partition))
            .fetchone()
        )
        if row is None:
            raise ShardmemError(f"there is no partition {partition}")
        return int(row[0])

    def fetch(self, partition: str, offset: int, most: int, headers: bool = False) -> Columns | None:
        """Events from an offset on; None: there are none."""
        self._expect_reachable()
        place = topic_and_number(partition)
        execute = self._connection().execute
        row = execute(
            "select base, count, data from log where topic = ? and number = ? and base <= ? order by base desc limit 1",
            (*place, offset),
        ).fetchone()
        if row is None or row[0] + row[1] <= offset:
            row = execute(
                "select base, count, data from log where topic = ? and number = ? and base >= ? order by base limit 1",
                (*place, offset),
            ).fetchone()
        if row is None:
            return None
        base, count, data = row
        first = max(0, offset - base)
        return _Chunk.from_bytes(data).columns(partition, base, first, min(count, first + most), headers)

    # ---- groups ------------------------------------------------------------------------------------------------------

    def join(
        self, group: str, topics: Sequence[str], session: float, *, instance: str | None = None, patience: float = 60.0
    ) -> Membership:
        """instance: a name that a member keeps: who joins with it is that member again, and has its partitions.
        session: seconds without a heartbeat after which it is none any more. patience: seconds that it may take to
        give partitions up."""
        self._expect_reachable()
        member = f"{instance or 'member'}-{uuid.uuid4().hex[:12]}"
        with self._writing() as connection:
            self._expire(connection, group)
            epoch = self._next_epoch(connection)
            before = connection.execute(
                "select id from member where grp = ? and instance = ?", (group, instance)
            ).fetchone()
            connection.execute(
                "insert into member values (?, ?, ?, ?, ?, ?, ?, ?)",
                (group, member, instance, epoch, int(session * 1e9), int(patience * 1e9), 0, "\n".join(topics)),
            )
            self._extend(connection, group, member)
            if before is not None:
                connection.execute(
                    "update part set owner = ?, inherited = 1 where grp = ? and owner = ?", (member, group, before[0])
                )
                connection.execute("update part set target = ? where grp = ? and target = ?", (member, group, *before))
                connection.execute("delete from member where grp = ? and id = ?", (group, before[0]))
            self._share_out(connection, group)
        return Membership(group, member, epoch)

    def heartbeat(self, membership: Membership, held: Collection[str]) -> list[str]:
        """What it may own from here on; what it does not hold any more is another's to have. Raises Superseded."""
        self._expect_reachable()
        group, member = membership.group, membership.member
        with self._writing() as connection:
            self._check(connection, membership)
            self._extend(connection, group, member)
            self._share_out(connection, group)
            rows = connection.execute(
                "select topic, number, owner, target, inherited from part where grp = ?", (group,)
            ).fetchall()
            connection.execute("update part set inherited = 0 where grp = ? and owner = ?", (group, member))
            found = []
            for topic, number, owner, target, inherited in rows:
                name = partition_of(topic, number)
                if owner == member and target != member and inherited:
                    found.append(name)  # what was the process's before: it is given up in good order, too
                elif owner == member and target != member and name not in held:
                    self._set_owner(connection, group, topic, number, None)
                elif target == member and owner in (None, member):
                    self._set_owner(connection, group, topic, number, member)
                    found.append(name)
            return found

    def leave(self, membership: Membership) -> None:
        with contextlib.suppress(Superseded), self._writing() as connection:
            self._check(connection, membership)
            self._remove(connection, membership.group, membership.member)
            self._share_out(connection, membership.group)

    def commit(self, membership: Membership, positions: Mapping[str, Position]) -> None:
        """Raises Superseded: nothing was written."""
        self._expect_reachable()
        group = membership.group
        with self._writing() as connection:
            self._check(connection, membership)
            for name, position in positions.items():
                topic, number = topic_and_number(name)
                owner = connection.execute(
                    "select owner from part where grp = ? and topic = ? and number = ?", (group, topic, number)
                ).fetchone()
                if owner is None or owner[0] != membership.member:
                    raise Superseded(f"{name} is not owned by {membership.member}")
                connection.execute(
                    "insert or replace into committed values (?, ?, ?, ?, ?)",
                    (group, topic, number, position.offset, position.metadata),
                )

    def committed(self, group: str, partitions: Iterable[str]) -> dict[str, Position | None]:
        self._expect_reachable()
        found: dict[str, Position | None] = {}
        for name in partitions:
            row = (
                self._connection()
                .execute(
                    "select offset, metadata from committed where grp = ? and topic = ? and number = ?",
                    (group, *topic_and_number(name)),
                )
                .fetchone()
            )
            found[name] = None if row is None else Position(*row)
        return found

    # ---- what a test does to it --------------------------------------------------------------------------------------

    def owners(self, group: str) -> dict[str, str | None]:
        """The member that owns each partition."""
        with self._writing() as connection:
            self._expire(connection, group)
            rows = connection.execute("select topic, number, owner from part where grp = ?", (group,)).fetchall()
        return {partition_of(topic, number): owner for topic, number, owner in rows}

    def set_reachable(self, reachable: bool) -> None:
        """False: every call of a client raises BrokerUnavailable."""
        with self._writing() as connection:
            connection.execute("insert or replace into fact values ('away', ?)", (not reachable,))

    def expel(self, group: str, member: str) -> None:
        """Its session is over now."""
        with self._writing() as connection:
            self._remove(connection, group, member)
            self._share_out(connection, group)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _expect_reachable(self) -> None:
        row = self._connection().execute("select value from fact where name = 'away'").fetchone()
        if row is not None and row[0]:
            raise BrokerUnavailable(f"the broker in {self.path} does not answer")

    def _next_epoch(self, connection: sqlite3.Connection) -> int:
        connection.execute(
            "insert into fact values ('epoch', 1) on conflict do update set value = value + 1 where name = 'epoch'"
        )
        return int(connection.execute("select value from fact where name = 'epoch'").fetchone()[0])

    def _check(self, connection: sqlite3.Connection, membership: Membership) -> None:
        """Raises Superseded unless it is a member."""
        self._expire(connection, membership.group)
        row = connection.execute(
            "select epoch from member where grp = ? and id = ?", (membership.group, membership.member)
        ).fetchone()
        if row is None or row[0] != membership.epoch:
            raise Superseded(f"{membership.member} is no member of group {membership.group} any more")

    def _extend(self, connection: sqlite3.Connection, group: str, member: str) -> None:
        connection.execute(
            "update member set until = ? + session where grp = ? and id = ?", (self._clock_ns(), group, member)
        )

    def _expire(self, connection: sqlite3.Connection, group: str) -> None:
        now = self._clock_ns()
        late = connection.execute("select id from member where grp = ? and until <= ?", (group, now)).fetchall()
        late += connection.execute(
            "select distinct member.id from member join part on part.grp = member.grp and part.owner = member.id "
            "where member.grp = ? and part.target is not part.owner and part.since + member.patience <= ?",
            (group, now),
        ).fetchall()
        for (member,) in late:
            self._remove(connection, group, member)
        if late:
            self._share_out(connection, group)

    def _remove(self, connection: sqlite3.Connection, group: str, member: str) -> None:
        connection.execute("delete from member where grp = ? and id = ?", (group, member))
        connection.execute("update part set owner = null where grp = ? and owner = ?", (group, member))
        connection.execute("update part set target = null where grp = ? and target = ?", (group, member))

    def _set_owner(
        self, connection: sqlite3.Connection, group: str, topic: str, number: int, owner: str | None
    ) -> None:
        connection.execute(
            "update part set owner = ? where grp = ? and topic = ? and number = ?", (owner, group, topic, number)
        )

    def _share_out(self, connection: sqlite3.Connection, group: str) -> None:
        """Who is to have which: as even as can be, and no more moves than that takes. Partitions of one number go
        together, whatever their topic."""
        members = connection.execute("select id, topics from member where grp = ? order by id", (group,)).fetchall()
        wanted = {topic for _, topics in members for topic in topics.split("\n")}
        numbers: dict[int, list[str]] = {}
        for topic, partitions in connection.execute("select name, partitions from topic").fetchall():
            for number in range(partitions if topic in wanted else 0):
                numbers.setdefault(number, []).append(topic)
                connection.execute(
                    "insert or ignore into part values (?, ?, ?, null, null, 0, 0)", (group, topic, number)
                )
        targets = dict(
            connection.execute(
                "select number, max(target) from part where grp = ? group by number", (group,)
            ).fetchall()
        )
        names = [member for member, _ in members]
        for number, target in _balanced({each: targets.get(each) for each in sorted(numbers)}, names).items():
            connection.execute(
                "update part set target = ?, since = ? where grp = ? and number = ? and target is not ?",
                (target, self._clock_ns(), group, number, target),
            )


def _balanced(targets: Mapping[int, str | None], members: Sequence[str]) -> dict[int, str | None]:
    if not members:
        return dict.fromkeys(targets)
    least, more = divmod(len(targets), len(members))
    has: dict[str, list[int]] = {member: [] for member in members}
    free: list[int] = []
    for number, target in targets.items():
        (has[target] if target in has else free).append(number)
    for member in sorted(members, key=lambda each: -len(has[each])):
        room = least
        if more and len(has[member]) > least:
            room, more = least + 1, more - 1
        free += has[member][room:]
        del has[member][room:]
    for number in sorted(free):
        min(has.values(), key=len).append(number)
    return {number: member for member, numbers in has.items() for number in numbers}


def _hash(key: Key) -> int:
    kind, number, data = plain_key(key)
    return zlib.crc32(data or str(number).encode(), kind)


class _Chunk:
    """Events as they lie in the file: sizes, then each column."""

    def __init__(self, columns: Sequence[np.ndarray]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, events: Sequence[tuple[Key, bytes | None]], stamp: int, headers: Headers) -> _Chunk:
        plain = [plain_key(key) for key, _ in events]
        kinds = [KEY_UNSIGNED if kind == KEY_INT and number >> 63 == 1 else kind for kind, number, _ in plain]
        payloads = [payload or b"" for _, payload in events]
        head = _headers(headers)
        return cls(
            [
                np.array(kinds, "u1"),
                np.array([payload is None for _, payload in events], "u1"),
                np.array([number & (1 << 64) - 1 for _, number, _ in plain], "u8"),
                np.full(len(events), stamp, "i8"),
                np.cumsum([0, *(len(data) for *_, data in plain)], dtype="i8"),
                np.cumsum([0, *map(len, payloads)], dtype="i8"),
                np.frombuffer(b"".join(data for *_, data in plain), "u1"),
                np.frombuffer(b"".join(payloads), "u1"),
                np.frombuffer(head, "u1"),
            ]
        )

    def to_bytes(self) -> bytes:
        sizes = _SIZES.pack(len(self._columns[0]), *(len(column) for column in self._columns[6:]))
        return sizes + b"".join(column.tobytes() for column in self._columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> _Chunk:
        count, keys, payloads, headers = _SIZES.unpack_from(data)
        at, columns = _SIZES.size, []
        lengths = (count, count, count, count, count + 1, count + 1, keys, payloads, headers)
        for length, kind in zip(lengths, ("u1", "u1", "u8", "i8", "i8", "i8", "u1", "u1", "u1")):
            columns.append(np.frombuffer(data, kind, length, at))
            at += columns[-1].nbytes
        return cls(columns)

    def columns(self, partition: str, base: int, first: int, last: int, headers: bool) -> Columns:
        kinds, missing, numbers, times, key_ends, ends, keys, payloads, head = self._columns
        some, bounds = slice(first, last), slice(first, last + 1)
        count = last - first
        return Columns(
            partition,
            np.arange(base + first, base + last, dtype="u8"),
            Position(base + last),
            payloads=(payloads.data, ends[bounds]),
            keys=Keys(kinds[some], numbers[some], keys.data, key_ends[bounds]),
            timestamps=times[some],
            headers=(head.tobytes() * count, np.arange(count + 1) * len(head)) if headers else None,
            missing=missing[some].astype(bool) if missing[some].any() else None,
            bytes=int(ends[last] - ends[first]),
        )


def _headers(headers: Headers) -> bytes:
    """As Producer.push_columns takes them, of one event."""
    found = struct.pack("<I", len(headers))
    for key, value in headers:
        name = key.encode()
        found += struct.pack("<I", len(name)) + name + struct.pack("<i", -1 if value is None else len(value))
        found += value or b""
    return found
