"""Two hosts that take partitions from each other, at random, on the types that ship: the state store, what was applied,
snapshots and where they are kept. Workers die, hosts go on with what they have lost, commits are refused.

`Faults` are mistakes that each must be caught: tests/model/test_hosts.py.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardmem.remote.snapshots import Snapshots, name_of
from shardmem.runtime.applied import Applied
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.state import StateStore
from shardmem.state.keys import prefix, slot_of, store_key
from shardmem.state.partitions import Layout
from shardmem.state.store import Changes

LAYOUT = Layout(8, 2)
KEYS = 5
TOPIC = "t"


class Faults(NamedTuple):
    snapshot_without_applied: bool = False
    commits_before_upload: bool = False  # how far it is now, and the snapshot of before
    restores_uncommitted: bool = False  # the newest that is there
    skips_below: bool = False  # < instead of <=
    looks_late: bool = False  # how far all was handled, when the snapshot has been taken
    keeps_applied: bool = False  # when what was handled is undone
    keeps_what_it_has: bool = False  # of a partition that another host has had since


class Store:
    """A remote, in memory."""

    url = "memory:"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, name: str, path: str) -> None:
        self.held[name] = Path(path).read_bytes()

    def get(self, name: str, path: str) -> None:
        Path(path).write_bytes(self.held[name])

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.held if name.startswith(prefix)]

    def delete(self, names: Iterable[str]) -> None:
        for name in list(names):
            del self.held[name]


class Host:
    def __init__(self, directory: Path, engine: int, remote: Store, faults: Faults) -> None:
        self.directory, self.engine, self.faults = str(directory), engine, faults
        self.snapshots = Snapshots(remote, StateFiles(self.directory, engine), LAYOUT)
        self.at = {0: 0, 1: 0}  # the next event of each partition that this host reads
        self.saved_at = {0: 0, 1: 0}
        self.ready: dict[int, tuple[int, str]] = {}
        self.incarnation = 0
        self.begin_life()

    def begin_life(self) -> None:
        self.incarnation += 1
        self.store = StateStore(self.directory, 0, self.engine, LAYOUT.slots, keep=True)
        self.store.begin_life(self.incarnation, 1)
        self.applied = Applied()
        self.applied.share_out(LAYOUT)
        self.applied.know([(TOPIC, 0), (TOPIC, 1)])
        self.counts: dict[bytes, int] = {}
        self.claim(range(LAYOUT.slots))

    def claim(self, slots: range) -> None:
        self.store.claim(slots)
        self.applied.take_up(self.store.applied(), set(slots))

    def die(self) -> None:
        """Its successor is given again what was not saved."""
        self.store.leave()
        kept = self.applied
        self.begin_life()
        if self.faults.keeps_applied:
            self.applied = kept
        self.at = dict(self.saved_at)

    def handle(self, number: int, events: int) -> None:
        for offset in range(self.at[number], self.at[number] + events):
            key = offset % KEYS
            slot = LAYOUT.slots_of(number)[slot_of(key, LAYOUT.width)]
            rows, slots, offsets = np.array([number], "u4"), np.array([slot], "u4"), np.array([offset], "u8")
            places = self.applied.places(rows, slots)
            checked = offsets + np.uint64(1) if self.faults.skips_below else offsets
            if not self.applied.has(places, checked)[0]:
                stored = prefix(slot) + store_key(key, b"n", LAYOUT.slots)[2:]
                self.counts[stored] = self.count(stored) + 1
                self.applied.advance(places, offsets)
        self.at[number] += events

    def count(self, stored: bytes) -> int:
        if stored not in self.counts:
            row = self.store.get(stored)
            return 0 if row is None else int(row[0])
        return self.counts[stored]

    def save(self) -> None:
        rows = {stored: (b"%d" % count, 1, None) for stored, count in self.counts.items()}
        self.store.save([], Changes(dict(rows)), b"", applied=self.applied.changes())
        self.applied.saved()
        self.counts.clear()
        self.saved_at = dict(self.at)

    def upload(self, number: int, meanwhile: int) -> None:
        """meanwhile: events that are handled and saved while the snapshot is taken, before its slots are read and
        after."""
        safe = self.saved_at[number]
        self.handle(number, meanwhile // 2)
        self.save()
        id = self.snapshots.take(number)
        self.handle(number, meanwhile - meanwhile // 2)
        self.save()
        self.ready[number] = self.saved_at[number] if self.faults.looks_late else safe, id

    def take_up(self, number: int, offset: int, id: str | None) -> None:
        if not self.faults.keeps_what_it_has:
            self.snapshots.restore(number, id)
        self.save()  # of the other partition; what is here of this one is not looked at any more
        self.claim(LAYOUT.slots_of(number))
        self.at[number] = self.saved_at[number] = offset
        self.ready.pop(number, None)


class World:
    """committed: what the broker says, of each partition."""

    def __init__(self, directory: Path, seed: int, faults: Faults = Faults()) -> None:
        self.chance, self.faults, self.remote = random.Random(seed), faults, Store()
        self.hosts = [Host(directory / f"host-{n}", n + 1, self.remote, faults) for n in range(2)]
        self.owner = {0: 0, 1: 0}
        self.committed: dict[int, tuple[int, str | None]] = {0: (0, None), 1: (0, None)}
        self.log = 0
        if faults.snapshot_without_applied:
            for host in self.hosts:
                host.snapshots._files.export = _without_applied(host.snapshots._files.export)  # type: ignore[method-assign]

    def run(self, steps: int) -> str | None:
        """What is wrong in the end."""
        for _ in range(steps):
            self.step()
        for number in (0, 1):
            host = self.hosts[self.owner[number]]
            host.handle(number, self.log - host.at[number])
            host.save()
            if fault := self.fault_of(host, number):
                return fault
        return None

    def step(self) -> None:
        chance = self.chance
        number, host = chance.randrange(2), chance.choice(self.hosts)
        what = chance.random()
        self.log += chance.randrange(3)
        more = min(chance.randrange(12), max(0, self.log - host.at[number]))
        if self.hosts[self.owner[number]] is not host and chance.random() < 0.8:
            more = 0  # what it has lost, it falls behind with
        if what < 0.45:
            host.handle(number, more)
        elif what < 0.6:
            host.save()
        elif what < 0.68:
            host.die()
        elif what < 0.8:
            host.upload(number, more)
        elif what < 0.93:
            self.commit(host, number)
        else:
            self.move(number)

    def commit(self, host: Host, number: int) -> None:
        if number not in host.ready or self.hosts[self.owner[number]] is not host:
            return  # refused
        offset, id = host.ready[number]
        self.committed[number] = host.saved_at[number] if self.faults.commits_before_upload else offset, id
        host.snapshots.committed(number, id)

    def move(self, number: int) -> None:
        """To the other host. This one may go on for as long as it likes."""
        self.owner[number] = 1 - self.owner[number]
        offset, id = self.committed[number]
        if self.faults.restores_uncommitted and (names := self.remote.names(f"partition-{number:05d}/")):
            sequence, _, digest = max(names).partition("/")[2].removesuffix(".sqlite").partition("-")
            id = f"{int(sequence)}-{digest}"
            assert name_of(number, id) == max(names)
        self.hosts[self.owner[number]].take_up(number, offset, id)

    def fault_of(self, host: Host, number: int) -> str | None:
        for key, expected in Counter(offset % KEYS for offset in range(self.log)).items():
            slot = LAYOUT.slots_of(number)[slot_of(key, LAYOUT.width)]
            found = host.count(prefix(slot) + store_key(key, b"n", LAYOUT.slots)[2:])
            if found != expected:
                return f"partition {number}, key {key}: {found} of {expected} events are counted"
        return None

    def close(self) -> None:
        for host in self.hosts:
            host.store.leave()


def _without_applied(export: Callable[[Layout, int, str], None]) -> Callable[[Layout, int, str], None]:
    def exported(layout: Layout, number: int, path: str) -> None:
        export(layout, number, path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
            made.execute("delete from applied")

    return exported
