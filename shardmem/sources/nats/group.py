"""Which member of a group has which partitions, and how far each is: one record, that is only ever replaced by whoever
has read what it replaces.

JetStream has no consumer group that shares out partitions, and what it does have is not enough: anybody may
acknowledge to a durable consumer, so an old owner that was frozen would move the place of the new one; and a pinned
consumer is pinned by a time of the server's, whose end nobody is told before another client has it. One record in a
key-value bucket gives what is needed: a write that is refused when another was faster. An owner, its place and its
proof of life are in the same write, so one whose partitions were taken can neither commit nor believe that it has them.

Nobody's clock is compared with another's. A member raises its beat at every write. Whoever has seen the same beat for a
session, in looks of its own, takes the member for gone.

There is no input or output here: `Membership` turns a record and a time into the next record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec


class Member(msgspec.Struct):
    """life: which process of that name it is."""

    life: str
    beat: int = 0


class Partition(msgspec.Struct, omit_defaults=True):
    """epoch: how often it has got an owner. offset: all before it has been handled."""

    owner: str | None = None
    epoch: int = 0
    offset: int | None = None
    metadata: str = ""


class Record(msgspec.Struct):
    members: dict[str, Member] = {}
    partitions: dict[str, Partition] = {}

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def of_json(cls, data: bytes) -> Record:
        """Raises ValueError."""
        return msgspec.json.decode(data, type=cls)


class Place(NamedTuple):
    """What is committed of a partition. epoch: in which it was handled."""

    epoch: int
    offset: int
    metadata: str


class Displaced(Exception):
    """Another process has taken the name of this member."""


class NotOwner(Exception):
    """Another member has the partition."""


class Membership:
    """One member's part. life: which process of that name it is. session: seconds without a beat after which another is
    gone."""

    def __init__(self, name: str, life: str, session: float) -> None:
        self.name, self.life, self.session = name, life, session
        self._partitions: set[str] = set()
        self._has_joined = False
        self._looked_at: float | None = None
        self._beats: dict[str, tuple[Member, float]] = {}  # of the others, and when each was first seen

    # ---- what is read out of a record --------------------------------------------------------------------------------

    def owned(self, record: Record) -> dict[str, int]:
        """Our partitions, and the epoch in which each is ours. Raises Displaced."""
        me = record.members.get(self.name)
        if me is None or me.life != self.life:
            if me is not None and self._has_joined:
                raise Displaced(self.name)
            return {}
        return {
            name: partition.epoch
            for name, partition in record.partitions.items()
            if partition.owner == self.name and name in self._partitions
        }

    def surplus(self, record: Record) -> list[str]:
        """Those of ours that another has room for."""
        return sorted(self.owned(record))[self._share(record) :]

    def _share(self, record: Record) -> int:
        """As many partitions as this member should have."""
        members = sorted(record.members)
        each, more = divmod(len(self._partitions), len(members))
        return each + (members.index(self.name) < more)

    # ---- what is written ---------------------------------------------------------------------------------------------

    def step(self, record: Record, now: float, partitions: Iterable[str]) -> None:
        """A beat, and what follows from it: whoever is gone is left out, and of what nobody has we take our share.
        partitions: those that there are. Raises Displaced."""
        self._partitions.update(partitions)
        self.owned(record)
        if self._looked_at is None or now - self._looked_at > self.session / 2:
            self._beats.clear()  # we have not looked for long, and nobody could show us a beat
        self._looked_at = now
        for gone in self._silent(record, now):
            del record.members[gone]
        me = record.members.get(self.name)
        record.members[self.name] = Member(self.life, 0 if me is None else me.beat + 1)
        for name in self._partitions:
            record.partitions.setdefault(name, Partition())
        for partition in record.partitions.values():
            if partition.owner not in record.members:
                partition.owner = None
        free = sorted(name for name in self._partitions if record.partitions[name].owner is None)
        for name in free[: max(0, self._share(record) - len(self.owned(record)))]:
            partition = record.partitions[name]
            partition.owner, partition.epoch = self.name, partition.epoch + 1

    def _silent(self, record: Record, now: float) -> list[str]:
        others = {name: member for name, member in record.members.items() if name != self.name}
        self._beats = {
            name: self._beats[name] if name in self._beats and self._beats[name][0] == member else (member, now)
            for name, member in others.items()
        }
        return [name for name, (_, since) in self._beats.items() if now - since > self.session]

    def has_written(self) -> None:
        """A step of ours is in the record."""
        self._has_joined = True

    def commit(self, record: Record, places: Mapping[str, Place]) -> None:
        """All of them or none. Raises NotOwner, Displaced."""
        owned = self.owned(record)
        for name, place in places.items():
            if owned.get(name) != place.epoch:
                raise NotOwner(name)
        for name, place in places.items():
            record.partitions[name].offset, record.partitions[name].metadata = place.offset, place.metadata

    def release(self, record: Record, partitions: Iterable[str]) -> None:
        """Those of them that are ours are nobody's. Raises Displaced."""
        for name in self.owned(record).keys() & set(partitions):
            record.partitions[name].owner = None

    def leave(self, record: Record) -> None:
        """Raises Displaced."""
        self.release(record, self.owned(record))
        me = record.members.get(self.name)
        if me is not None and me.life == self.life:
            del record.members[self.name]
