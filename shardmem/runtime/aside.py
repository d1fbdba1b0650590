"""Events that leave their lane for the quarantine, and those that come back from it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from shardmem.errors import ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import bytes_at, ffi
from shardmem.memory.reader import Reader, TrialView, places_aside
from shardmem.runtime.batch import INDEX_BYTES, Batch, Scratch
from shardmem.runtime.quarantine import Entry, Quarantine, Quarantined, is_there
from shardmem.runtime.sqlite import FileVanished

if TYPE_CHECKING:
    from shardmem.memory.native import CData, sm_batch


log = logging.getLogger("shardmem.worker")


class Failure(NamedTuple):
    """Why an event is set aside. kind: exception, death or rejected."""

    kind: str
    reason: str
    trace: str = ""
    attempts: int = 1


class Aside:
    """Every method raises ShardmemError when the quarantine takes no more, or cannot be used: nothing has changed
    then.

    An event is in the file before its row is set aside in shared memory: killed in between, it is there twice rather
    than nowhere. When the row is handed out again, the handler may take it. So what comes again is taken out again.
    """

    def __init__(self, control: ControlSegment, shard: int, reader: Reader, file: str, limit: int) -> None:
        self._control, self._shard, self._reader = control, shard, reader
        self._file, self._limit = file, limit
        self._opened: Quarantine | None = None
        self._scratch = Scratch()

    @contextlib.contextmanager
    def _quarantine(self) -> Iterator[Quarantine]:
        """One that was removed is an error once; then there is a new one."""
        if self._opened is None:
            self._opened = Quarantine(self._file, self._limit)
        try:
            yield self._opened
        except FileVanished:
            self._opened = None
            raise

    def add(self, batch: sm_batch, failures: Mapping[int, Failure]) -> tuple[bytes, list[Entry]]:
        """Rows of the batch in hand, and why. Where they lie, for the reader to set them aside. Raises BufferError if a
        frame has changed."""
        rows, schema = sorted(failures), self._control.schema
        row_bytes = schema.geometry()["row_bytes"]
        picked, _spans = _picked(batch, rows, row_bytes)
        work = Batch(schema, self._control.slots, self._shard, picked, self._scratch, self._control.partitions)
        keys = work.keys.tolist() if schema.is_records and work.keys is not None else work.keys
        payloads = _rows_of(work, row_bytes) if schema.is_records else work.payloads
        sequences, slots = work.sequences.tolist(), work.slots.tolist()
        came_with = [work.came_with(at) for at in range(len(rows))]
        work._end()
        places, generation = self._reader.rows_in_hand(rows), self._control.view_shard(self._shard).generation
        described, entries = schema.describe(), []
        for at, (row, place) in enumerate(zip(rows, places)):
            entries.append(
                Entry(
                    self._origin(generation, place.seat, place.position, place.row),
                    shard=self._shard,
                    slot=slots[at],
                    seat=place.seat,
                    sequence=sequences[at],
                    kind=failures[row].kind,
                    reason=failures[row].reason,
                    traceback=failures[row].trace,
                    attempts=failures[row].attempts,
                    key=keys[at] if keys is not None else None,
                    payload=payloads[at],
                    schema=described,
                    came_with=came_with[at],
                )
            )
        with self._quarantine() as quarantine:
            quarantine.add(*entries)
        return b"".join(place.raw for place in places), entries

    # ---- rows that are handed out again ------------------------------------------------------------------------------

    def retract(self, places: bytes) -> None:
        """Those of these rows that were added."""
        generation = self._control.view_shard(self._shard).generation
        origins = [self._origin(generation, at.seat, at.position, at.row) for at in places_aside(places)]
        if origins:
            with contextlib.suppress(FileVanished), self._quarantine() as quarantine:
                quarantine.retract(origins)

    def retract_left(self) -> None:
        """Those that the last life had added before it died. What cannot be looked at says nothing of them, and must
        not keep the shard from its work."""
        if not is_there(self._file):
            return
        own = self._origin(self._control.view_shard(self._shard).generation, 0, 0, 0)[: -len("0/0/0")]
        try:
            with self._quarantine() as quarantine:
                left = [origin for origin in quarantine.origins(own) if self._is_left(origin)]
                if left:
                    quarantine.retract(left)
        except ShardmemError as error:
            log.error("events that the last worker of shard %d added may be there twice: %s", self._shard, error)

    def _is_left(self, origin: str) -> bool:
        try:
            seat, position, row = map(int, origin.split("/")[-3:])
            return self._reader.is_left(seat, position, row)
        except (ValueError, OverflowError):
            return False  # damaged

    # ---- one that was set aside and may come back --------------------------------------------------------------------

    def take(self, trial: TrialView) -> None:
        """It counts as replayed: nobody else replays it."""
        with self._quarantine() as quarantine:
            quarantine.take(self._origin_of(trial))

    def taken(self, trial: TrialView) -> tuple[Quarantined, Batch] | None:
        """It, and a batch of it. None: it was purged."""
        with self._quarantine() as quarantine:
            event = quarantine.by_origin(self._origin_of(trial))
        if event is None:
            return None
        control = self._control
        made = Batch.of_event(
            control.schema,
            control.slots,
            self._shard,
            event.key,
            event.payload,
            event.seat,
            event.sequence,
            event.slot,
            event.came_with,
        )
        return event, made

    def give_back(self, trial: TrialView) -> None:
        with self._quarantine() as quarantine:
            quarantine.give_back(self._origin_of(trial))

    def remove(self, trial: TrialView) -> None:
        """It was handled."""
        with self._quarantine() as quarantine:
            quarantine.remove(self._origin_of(trial))

    def _origin_of(self, trial: TrialView) -> str:
        generation = self._control.view_shard(self._shard).generation
        return self._origin(generation, trial.seat, trial.position, trial.row)

    def _origin(self, generation: int, seat: int, position: int, row: int) -> str:
        return f"{self._control.geometry.engine_id:x}/{self._shard}/{generation}/{seat}/{position}/{row}"


def _picked(batch: sm_batch, rows: list[int], row_bytes: int) -> tuple[sm_batch, CData]:
    """A batch of these rows of it alone, in ascending order, and its spans, which have to be kept as long. Of 4,096
    rows one may be rejected: keys and payloads of all the others need not be read for that."""
    picked, spans = ffi.new("sm_batch *"), ffi.new("sm_span[]", len(rows))
    at = number = 0
    for one, row in enumerate(rows):
        while row - at >= batch.span[number].count:
            at += batch.span[number].count
            number += 1
        spans[one] = batch.span[number]
        span, offset = spans[one], row - at
        span.rows += offset * (row_bytes or INDEX_BYTES)
        span.sequence += offset
        span.first += offset
        span.count = 1
        if not row_bytes:
            ends = ffi.cast("uint32_t *", span.rows)
            picked.bytes += max(0, ends[3] - (ends[-1] if span.first else 0))
    picked.rows = picked.spans = len(rows)
    picked.span = spans
    return picked, spans


def _rows_of(work: Batch, size: int) -> list[bytes]:
    rows: list[bytes] = []
    for span in (work._c.span[i] for i in range(work._c.spans)):
        whole = bytes_at(span.rows, size * span.count)
        rows += [whole[at : at + size] for at in range(0, len(whole), size)]
    return rows
