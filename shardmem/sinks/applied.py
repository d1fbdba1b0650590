"""Which events a database has had: a table in it, written in the transaction that applies them.

    low      of a partition: everything before this offset has been handled, by whichever host, and comes no more except
             from hosts and replays that are too late
    high     of a key of a partition: the last of its events that was applied. Rows that `low` has passed are deleted
    event    of one without a key, which has no order

By key, and not by slot, since that is all that is in order: while an event that failed waits for its next try, later
events of its slot pass it, and a mark for the whole slot would leave it out for ever.

Two owners of a partition at a time, one of them frozen until now, find each other's rows locked: the second waits for
the commit of the first, and sees what that has applied.
"""

from __future__ import annotations

import numpy as np

from shardmem.runtime.outcomes import Retry
from shardmem.sinks.database import POSTGRESQL, Statements, chunks, marks
from shardmem.sinks.origins import Stream

TABLE = "shardmem_applied"
LOW, KEY, EVENT = 0, 1, 2  # kind
_CREATE = f"""create table if not exists {TABLE} (topic text not null, "partition" bigint not null,
    kind smallint not null, word bigint not null, upto bigint not null, primary key (topic, "partition", kind, word))"""
_PLACE = 'topic = ? and "partition" = ?'
_INSERT = f'insert into {TABLE} as was (topic, "partition", kind, word, upto) values'
_CONFLICT = 'on conflict (topic, "partition", kind, word) do'

Place = tuple[str, int]  # topic, partition
Mark = tuple[int, int]  # kind, word


def create(statements: Statements) -> None:
    """PostgreSQL asks for the right to create also where the table is there, and two who create it at once may get an
    error."""
    if statements.dialect is POSTGRESQL:
        statements.execute(f"select pg_advisory_xact_lock(hashtext('{TABLE}'))")
        if statements.rows(f"select to_regclass('{TABLE}')") != [(None,)]:
            return
    statements.execute(_CREATE)


def take(statements: Statements, stream: Stream) -> list[int]:
    """Those of these rows that were not applied before. From the commit on they are. Raises Retry when another owner of
    the partition was faster: what it has applied is seen at the next try."""
    place = stream.topic, stream.partition
    _lock(statements, place, "_shared")
    low = statements.rows(f"select upto from {TABLE} where {_PLACE} and kind = {LOW}", place)
    lowest = low[0][0] if low else 0
    kinds = np.where(stream.keyless, EVENT, KEY).tolist()
    words = np.where(stream.keyless, stream.offsets, stream.words).tolist()
    marked = list(zip(kinds, words, stream.offsets.tolist()))
    before = _read(statements, place, {(kind, word) for kind, word, offset in marked if offset >= lowest})
    now, fresh = dict(before), []
    for row, (kind, word, offset) in zip(stream.rows.tolist(), marked):
        if offset > now.get((kind, word), lowest - 1):
            now[kind, word] = offset
            fresh.append(row)
    _write(statements, place, before, now)
    return fresh


def forget(statements: Statements, place: Place, low: int) -> None:
    """Everything of a partition before this offset has been handled, and needs no rows any more."""
    _lock(statements, place, "")
    statements.execute(
        f"{_INSERT} (?, ?, {LOW}, 0, ?) {_CONFLICT} update set upto = excluded.upto where was.upto < excluded.upto",
        (*place, low),
    )
    statements.execute(f"delete from {TABLE} where {_PLACE} and kind <> {LOW} and upto < ?", (*place, low))


def _lock(statements: Statements, place: Place, shared: str) -> None:
    """Rows that are deleted while others look for them would be taken for events that were never applied."""
    if statements.dialect is POSTGRESQL:
        statements.execute(
            f"select pg_advisory_xact_lock{shared}(hashtextextended(?, ?))", (f"{TABLE} {place[0]}", place[1])
        )


def _read(statements: Statements, place: Place, wanted: set[Mark]) -> dict[Mark, int]:
    found: dict[Mark, int] = {}
    for kind in (KEY, EVENT):
        for some in chunks(sorted([word] for of, word in wanted if of == kind), 1):
            query = f"select word, upto from {TABLE} where {_PLACE} and kind = {kind} and word in {marks(1, len(some))}"
            rows = statements.rows(
                f"{query} order by word {statements.dialect.locking}", (*place, *(w for (w,) in some))
            )
            found.update(((kind, word), upto) for word, upto in rows)
    return found


def _write(statements: Statements, place: Place, before: dict[Mark, int], now: dict[Mark, int]) -> None:
    changed = sorted((*place, *mark, upto) for mark, upto in now.items() if before.get(mark) != upto)
    for is_known, what in ((True, "update set upto = excluded.upto"), (False, "nothing")):
        for some in chunks([row for row in changed if (row[2:4] in before) == is_known], 5):
            written = statements.execute(
                f"{_INSERT} {marks(len(some), 5)} {_CONFLICT} {what}", [value for row in some for value in row]
            )
            if written != len(some):
                raise Retry("another owner of the partition is applying the same events", after=0.0)
