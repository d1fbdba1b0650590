"""Events that leave their lane for the quarantine, and those that come back from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import bytes_at
from shardmem.memory.reader import Reader, TrialView
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.quarantine import Entry, Quarantine, Quarantined

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch


class Failure(NamedTuple):
    """Why an event is set aside. kind: exception, death or rejected."""

    kind: str
    reason: str
    trace: str = ""
    attempts: int = 1


class Aside:
    """Every method raises ShardmemError when the quarantine takes no more, or cannot be used: nothing has changed
    then."""

    def __init__(self, control: ControlSegment, shard: int, reader: Reader, file: str, limit: int) -> None:
        self._control, self._shard, self._reader = control, shard, reader
        self._file, self._limit = file, limit
        self._opened: Quarantine | None = None
        self._scratch = Scratch()

    @property
    def _quarantine(self) -> Quarantine:
        if self._opened is None:
            self._opened = Quarantine(self._file, self._limit)
        return self._opened

    def add(self, batch: sm_batch, failures: Mapping[int, Failure]) -> tuple[bytes, list[Entry]]:
        """Rows of the batch in hand, and why. Where they lie, for the reader to set them aside. Raises BufferError if a
        frame has changed."""
        rows = sorted(failures)
        control = self._control
        work = Batch(control.schema, control.slots, self._shard, batch, self._scratch, control.partitions)
        records = self._control.schema.is_records
        keys = work.keys.tolist() if records and work.keys is not None else work.keys
        payloads = _rows_of(work, self._control.schema.geometry()["row_bytes"]) if records else work.payloads
        sequences, slots = work.sequences.tolist(), work.slots.tolist()
        came_with = {row: work.came_with(row) for row in rows}
        work._end()
        places, generation = self._reader.rows_in_hand(rows), self._control.view_shard(self._shard).generation
        schema, entries = self._control.schema.describe(), []
        for row, place in zip(rows, places):
            entries.append(
                Entry(
                    self._origin(generation, place.seat, place.position, place.row),
                    shard=self._shard,
                    slot=slots[row],
                    seat=place.seat,
                    sequence=sequences[row],
                    kind=failures[row].kind,
                    reason=failures[row].reason,
                    traceback=failures[row].trace,
                    attempts=failures[row].attempts,
                    key=keys[row] if keys is not None else None,
                    payload=payloads[row],
                    schema=schema,
                    came_with=came_with[row],
                )
            )
        self._quarantine.add(*entries)
        return b"".join(place.raw for place in places), entries

    # ---- one that was set aside and may come back --------------------------------------------------------------------

    def take(self, trial: TrialView) -> None:
        """It counts as replayed: nobody else replays it."""
        self._quarantine.take(self._origin_of(trial))

    def taken(self, trial: TrialView) -> tuple[Quarantined, Batch] | None:
        """It, and a batch of it. None: it was purged."""
        event = self._quarantine.by_origin(self._origin_of(trial))
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
        self._quarantine.give_back(self._origin_of(trial))

    def remove(self, trial: TrialView) -> None:
        """It was handled."""
        self._quarantine.remove(self._origin_of(trial))

    def _origin_of(self, trial: TrialView) -> str:
        generation = self._control.view_shard(self._shard).generation
        return self._origin(generation, trial.seat, trial.position, trial.row)

    def _origin(self, generation: int, seat: int, position: int, row: int) -> str:
        return f"{self._control.geometry.engine_id:x}/{self._shard}/{generation}/{seat}/{position}/{row}"


def _rows_of(work: Batch, size: int) -> list[bytes]:
    rows: list[bytes] = []
    for span in (work._c.span[i] for i in range(work._c.spans)):
        whole = bytes_at(span.rows, size * span.count)
        rows += [whole[at : at + size] for at in range(0, len(whole), size)]
    return rows
