"""The partition table of a control segment: which partitions of a broker's topics this engine takes events of, and how
far it has come with each. The source writes it; everybody reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shardmem.errors import ConfigError, Superseded
from shardmem.memory.native import ffi, lib
from shardmem.memory.words import name_of

if TYPE_CHECKING:
    from shardmem.memory.native import CData, sm_batch, sm_geometry, sm_partition_view

STATES = ("none", "restoring", "owned", "draining")
NO_PARTITION = 2**32 - 1  # of an event that came without an origin
NO_LIMIT = 0  # of a lease


class Control(Protocol):
    """What the table knows of its control segment."""

    address: CData
    geometry: sm_geometry
    slots: int


@dataclass(frozen=True)
class PartitionRow:
    """One row at one moment. pushed: all before this offset are in the lanes. safe: all before it need not be read
    again. owned_until_ns: on CLOCK_BOOTTIME; NO_LIMIT: workers take its events whatever the time is."""

    row: int
    topic: str
    number: int
    epoch: int
    state: str
    pushed: int
    safe: int
    owned_until_ns: int


class Partitions:
    """The table as anybody reads it. A row says for good of which topic and number it is."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._names: list[tuple[int, int]] = []  # topic and number of each row that was looked up
        self._topics: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """P: slots go by partition, and this many share them; 0: they go by key alone."""
        return lib.sm_partition_count(self._control.address)

    @property
    def version(self) -> int:
        """Another one whenever an epoch, a state, or the count has changed."""
        return lib.sm_partition_version(self._control.address)

    def rows(self) -> list[PartitionRow]:
        topics = self.topics
        return [
            PartitionRow(
                row,
                topics[view.topic] if view.topic < len(topics) else "?",
                view.number,
                view.epoch,
                name_of(STATES, view.state),
                view.pushed,
                view.safe,
                view.until_ns,
            )
            for row, view in enumerate(self._views())
        ]

    @property
    def topics(self) -> tuple[str, ...]:
        """Their names, by number."""
        text = ffi.new("char[]", lib.SM_TOPIC_BYTES)
        while len(self._topics) < lib.SM_MAX_TOPICS:
            used = lib.sm_view_topic(self._control.address, len(self._topics), text)
            if not used:
                break
            self._topics += (bytes(ffi.buffer(text, used)).decode(errors="replace"),)
        return self._topics

    def named(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(topic, number of the partition) of each of these rows of the table; of one that there is not,
        NO_PARTITION."""
        there = rows[rows < lib.SM_MAX_PARTITIONS]
        if len(there) and int(there.max()) >= len(self._names):
            self._names = [(view.topic, view.number) for view in self._views()]
        names = np.array([*self._names, (0, NO_PARTITION)], "u4")
        at = np.minimum(rows, len(self._names))
        return names[at, 0], names[at, 1]

    def view(self, row: int) -> sm_partition_view | None:
        """None: there is no such row."""
        return self._view(row) if row < lib.sm_partition_rows(self._control.address) else None

    def _views(self) -> Iterator[sm_partition_view]:
        return map(self._view, range(lib.sm_partition_rows(self._control.address)))

    def _view(self, row: int) -> sm_partition_view:
        view = ffi.new("sm_partition_view *")
        lib.sm_view_partition(self._control.address, row, view)
        return view

    def slots_of(self, number: int) -> range:
        """The slots of the events of a partition."""
        each = self._control.slots >> max(0, self.count - 1).bit_length()
        return range(number * each, (number + 1) * each)

    def slots_of_batch(self, batch: sm_batch, count: int) -> np.ndarray:
        """uint32 array: the slot of each event of a batch of this engine; 0 of one without key and origin."""
        slots = np.zeros(count, "u4")
        lib.sm_batch_slots(batch, self._control.address, self._control.slots, ffi.cast("uint32_t *", slots.ctypes.data))
        return slots


class PartitionTable(Partitions):
    """The table as its source writes it: the holder of the source's seat, and nobody else.

    A partition begins (`begin`), events of its epoch are pushed, its lease is renewed while the broker confirms that it
    is owned, and it ends (`end`). Workers pass over events of another epoch than the row's, and wait with those of a
    row whose lease is over.
    """

    def set_count(self, count: int) -> None:
        """Before the first push with an origin; the same again is fine. Raises ConfigError: another is set, or there
        are fewer slots."""
        if lib.sm_set_partition_count(self._control.address, self._control.geometry, count) == lib.SM_OK:
            return
        if self.count:
            raise ConfigError(
                f"the slots of this engine go by {self.count} partitions, not by {count}",
                detail="Keys would change their slots, and what is kept by slot would not be found.",
                hint="Stop the engine, empty, and run it again",
            )
        raise ConfigError(
            f"{count} partitions do not fit into {self._control.slots} slots: each needs one at least",
            hint="Raise `slots`",
        )

    def row(self, topic: str, number: int) -> int:
        """The row of a partition; a new one if it has none. Raises ConfigError: there are too many."""
        name = topic.encode()
        row = lib.sm_claim_partition(self._control.address, name, len(name), number)
        if row < 0:
            raise ConfigError(
                f"no room for partition {number} of topic {topic!r}: an engine takes at most {lib.SM_MAX_TOPICS} "
                f"topics, of names of up to {lib.SM_TOPIC_BYTES - 4} bytes, and {lib.SM_MAX_PARTITIONS} partitions "
                f"together"
            )
        return row

    def begin(self, row: int, offset: int) -> int:
        """It is owned from here on, from this offset; the new epoch. Events of earlier epochs are passed over. Its
        lease has no limit until it is renewed."""
        return lib.sm_begin_partition(self._control.address, row, offset)

    def end(self, row: int) -> None:
        """It is not owned any more. Events of it that nobody has in hand are passed over, and counted as lost."""
        lib.sm_end_partition(self._control.address, row)

    def resume(self, row: int) -> int:
        """The epoch, by the successor of a source that was killed on this host: what that had pushed stays good. Raises
        Superseded: nothing is begun there."""
        view = self._view(row)
        if name_of(STATES, view.state) == "none":
            raise Superseded(f"row {row} of the partition table is not owned; it has to begin")
        return view.epoch

    def set_state(self, row: int, state: str) -> None:
        """One of STATES; of a row that has begun, and not "none", which `end` is for."""
        lib.sm_set_partition_state(self._control.address, row, STATES.index(state))

    def pushed(self, row: int) -> int:
        return self._view(row).pushed

    def set_pushed(self, row: int, offset: int) -> None:
        """All before this offset are in the lanes, or are no events. A push with an origin says so itself, of its
        events."""
        lib.sm_set_pushed(self._control.address, row, offset)

    def safe(self, row: int) -> int:
        return self._view(row).safe

    def set_safe(self, row: int, offset: int) -> None:
        lib.sm_set_safe(self._control.address, row, offset)

    def renew(self, rows: Iterable[int], until_ns: int) -> None:
        """Workers may take events of these rows until then, on CLOCK_BOOTTIME; NO_LIMIT: whenever."""
        for row in rows:
            lib.sm_renew_partition(self._control.address, row, until_ns)
