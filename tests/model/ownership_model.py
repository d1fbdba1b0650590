"""Two hosts, one partition, one broker, and the Ownership that ships: everything around it is made up here, and takes
its steps in every order.

Not modelled: several lanes of a host (test_lane.py, test_handoff.py), state (state_model.py). A call of the source or
of Ownership is one step, but for the two moments at which a kill leaves something half done: in the middle of a push,
and of a drain, which workers go through.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from shardmem.errors import Backpressure, Superseded
from shardmem.sources.contract import Columns, Position
from shardmem.sources.ownership import Ownership, OwnershipSettings

PARTITION = "t/0"
EVENTS = 2
ROOM = 1  # events that a lane has room for
READ = 2  # events of one poll
QUIET = logging.getLogger("model")
QUIET.disabled = True


class Killed(Exception):
    """The process of the source, in the middle of a call."""


class Limits(NamedTuple):
    """How often what may happen happens."""

    moves: int = 2
    freezes: int = 1
    kills: int = 1
    deaths: int = 1


class Table:
    """The partition table of a host, of one row."""

    count = 1

    def __init__(self) -> None:
        self.epoch, self.state, self.at, self.handled = 0, "none", 0, 0

    def row(self, topic: str, number: int) -> int:
        return 0

    def rows(self) -> list[Any]:
        return [SimpleNamespace(row=0, topic="t", number=0, state=self.state)]

    def begin(self, row: int, offset: int) -> int:
        self.epoch, self.state, self.at, self.handled = self.epoch + 1, "owned", offset, offset
        return self.epoch

    def resume(self, row: int) -> int:
        assert self.state != "none"
        return self.epoch

    def end(self, row: int) -> None:
        self.epoch, self.state = self.epoch + 1, "none"

    def set_state(self, row: int, state: str) -> None:
        self.state = state

    def pushed(self, row: int) -> int:
        return self.at

    def set_pushed(self, row: int, offset: int) -> None:
        self.at = offset

    def safe(self, row: int) -> int:
        return self.handled

    def set_safe(self, row: int, offset: int) -> None:
        self.handled = offset

    def slots_of(self, number: int) -> range:
        return range(1)

    def renew(self, rows: Sequence[int], until_ns: int) -> None:
        """The lease is the world's: see World.leased."""


@dataclass
class Lane:
    """Producer and lane of a host. frames: (epoch, offset) of each event that was pushed; head: how many are done."""

    host: Host
    frames: list[tuple[int, int]] = field(default_factory=list)
    head: int = 0
    cut: bool = False  # the next push is cut short by a kill: its events are there, and the table does not say so
    call: int = 0  # where the last push began

    def push_columns(self, keys: Any, data: Any, offsets: Any, *, timeout: float, origin: Any, **more: Any) -> None:
        table = self.host.table
        if origin.epoch != table.epoch:
            raise Superseded("it is in another epoch")
        room = ROOM - (len(self.frames) - self.head)
        taken = origin.offsets[:room].tolist()
        self.call = len(self.frames)
        self.frames += [(origin.epoch, offset) for offset in taken]
        if self.cut:
            raise Killed
        left = len(origin.offsets) - len(taken)
        table.at = int(origin.offsets[len(taken)]) if left else taken[-1] + 1
        if left:
            error = Backpressure(None, len(taken), left, 0, 0.0)
            error.left = np.arange(len(taken), len(taken) + left)
            raise error

    def recover(self, table: Table) -> dict[int, np.ndarray]:
        found = [offset for epoch, offset in self.frames[self.call :] if epoch == table.epoch and offset >= table.at]
        return {0: np.array(found, "u8")} if found else {}

    def position(self) -> int:
        return len(self.frames)

    def handled(self, position: int) -> bool:
        return self.head >= position

    def flush(self, timeout: float, slots: Any = None) -> None:
        """Workers go on meanwhile, or, when the drain is to be late, do not."""
        while self.head < len(self.frames):
            if self.host.is_late or not self.host.world.may_work(self.host):
                self.host.now += 1000
                raise TimeoutError
            self.host.world.work(self.host)


class Member:
    """The source of a host, as the broker sees it."""

    topics, session, ended = ("t",), 1.0, False

    def __init__(self, host: Host) -> None:
        self.host, self.at, self.is_paused = host, None, False

    def committed(self, names: Sequence[str], timeout: float) -> Mapping[str, Position | None]:
        return {PARTITION: self.host.world.committed}

    def start(self, partition: str, offset: int | None) -> None:
        self.at = offset or 0

    def confirmed_ns(self) -> int:
        return 1

    def pause(self, names: Sequence[str]) -> None:
        self.is_paused = True

    def resume(self, names: Sequence[str]) -> None:
        self.is_paused = False

    def commit(self, positions: Mapping[str, Position], sync: bool) -> None:
        world = self.host.world
        if world.owner != self.host.name:
            raise Superseded("another owns it")
        if world.committed is not None and positions[PARTITION].offset < world.committed.offset:
            world.wrong = f"{self.host.name} committed {positions[PARTITION].offset} after {world.committed.offset}"
        world.committed = positions[PARTITION]

    def read(self) -> Columns | None:
        if self.at is None or self.is_paused or self.at >= EVENTS:
            return None
        offsets = np.arange(self.at, min(self.at + READ, EVENTS), dtype="u8")
        self.at = int(offsets[-1]) + 1
        count = len(offsets)
        return Columns(PARTITION, offsets, Position(self.at), (b"", np.zeros(count + 1, "i8")))


class Host:
    def __init__(self, world: World, name: str, kind: type[Ownership]) -> None:
        self.world, self.name, self.kind = world, name, kind
        self.table, self.lane, self.now, self.is_late = Table(), Lane(self), 0, False
        self.lives = 0
        self.is_alive = True  # the whole of it, with its memory
        self.is_frozen = self.is_told_lost = False
        self.start()

    def start(self) -> None:
        """The process of the source, again."""
        self.lives += 1
        self.lane.cut = False
        self.member = Member(self)
        settings = OwnershipSettings(drain_timeout=10.0, commit_interval=0.0)
        self.ownership = self.kind(
            self.member,  # type: ignore[arg-type]
            self.lane,  # type: ignore[arg-type]
            self.table,  # type: ignore[arg-type]
            settings,
            engine=self.name,
            log=QUIET,
            clock=self.clock,
        )

    def clock(self) -> float:
        return float(self.now)

    def state(self) -> tuple[Any, ...]:
        """Whatever the future depends on: epochs and places in the lane as seen from now."""
        own, table, lane = self.ownership, self.table, self.lane
        held = [
            (
                each.epoch == table.epoch,
                each.pushed,
                each.safe,
                each.committed,
                each.read,
                each.marked,
                each.known.tolist(),
            )
            + (None if each.rest is None else each.rest.offsets.tolist(),)
            for each in own.held.values()
        ]
        marks = [
            (max(0, mark - lane.head), [at for each, at in those if each is own.held.get(PARTITION)])
            for mark, those in own._marks
        ]
        first = min(lane.head, lane.call)
        frames = [(epoch == table.epoch, offset) for epoch, offset in lane.frames[first:]]
        return (
            (table.state, table.at, table.handled, frames, lane.head - first, lane.call - first),
            (self.member.at, self.member.is_paused, held, marks, sorted(own.undecided), sorted(own._left)),
            (
                self.is_alive,
                self.is_frozen,
                self.is_told_lost,
                {row: each.tolist() for row, each in own._in_lanes.items()},
            ),
        )


class World:
    """A state. Its steps make copies of it."""

    def __init__(self, kind: type[Ownership] = Ownership, limits: Limits = Limits(), fence: bool = True) -> None:
        self.hosts = [Host(self, name, kind) for name in "ab"]
        self.owner: str | None = None
        self.leased: str | None = None  # whose workers may take events
        self.committed: Position | None = None
        self.handled = 0  # events that were, first in their order
        self.wrong: str | None = None
        self.is_planned = True  # nothing has happened after which events may be repeated
        self.left, self.fence = limits, fence

    # ---- as a state --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _print(self) -> str:
        facts = [host.state() for host in self.hosts]
        return repr(
            (facts, self.owner, self.leased, self.committed, self.handled, self.is_planned, self.left, self.wrong)
        )

    def __hash__(self) -> int:
        return hash(self._print)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, World) and self._print == other._print

    def __repr__(self) -> str:
        return f"owner={self.owner} committed={self.committed and self.committed.offset} handled={self.handled}"

    def copy(self) -> World:
        self.__dict__.pop("_print", None)
        return copy.deepcopy(self)

    # ---- workers -----------------------------------------------------------------------------------------------------

    def may_work(self, host: Host) -> bool:
        """Whether its workers may take the next frame: one of an earlier epoch is passed over by whoever looks."""
        if not host.is_alive or host.is_frozen or host.lane.head >= len(host.lane.frames):
            return False
        return host.lane.frames[host.lane.head][0] != host.table.epoch or self.leased == host.name or not self.fence

    def work(self, host: Host) -> None:
        epoch, offset = host.lane.frames[host.lane.head]
        host.lane.head += 1
        if epoch != host.table.epoch:
            return
        if self.owner != host.name:
            self.wrong = f"{host.name} handled {offset}, which {self.owner} owns"
        elif offset < self.handled and self.is_planned:
            self.wrong = f"{offset} was handled twice, and nothing had happened"
        elif offset > self.handled:
            self.wrong = f"{offset} was first handled after {self.handled - 1}"
        self.handled = max(self.handled, offset + 1)

    # ---- what may happen ---------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[str, World]]:
        for number, host in enumerate(self.hosts):
            for label, allowed, act in self._of_host(host):
                if allowed:
                    after = self.copy()
                    act(after, after.hosts[number])
                    yield f"{host.name} {label}", after

    def _of_host(self, host: Host) -> list[tuple[str, bool, Any]]:
        runs = host.is_alive and not host.is_frozen
        own, left = self.owner == host.name, self.left
        reads = runs and not host.is_told_lost and host.member.at is not None
        return [
            ("works", self.may_work(host), lambda world, it: world.work(it)),
            ("steps", runs and not host.is_told_lost, lambda world, it: it.ownership.step()),
            ("reads", reads and not host.member.is_paused and (host.member.at or 0) < EVENTS, World._read),
            ("gets it", runs and not host.is_told_lost and self.owner is None, World._gets),
            ("gives it up", own and runs and left.moves > 0, World._gives),
            (
                "gives it up, late",
                own and runs and left.moves > 0 and host.lane.head < len(host.lane.frames),
                World._late,
            ),
            ("is frozen past its session", own and runs and left.freezes > 0, World._freezes),
            ("goes on", host.is_frozen, World._thaws),
            ("hears that it lost it", runs and host.is_told_lost, World._hears),
            ("is killed: the source", own and runs and left.kills > 0, World._kill),
            (
                "is killed: the source, for longer than its session",
                own and runs and left.kills > 0,
                World._kill_for_long,
            ),
            ("is killed: the source, pushing", own and reads and left.kills > 0, World._kill_pushing),
            ("dies", own and runs and left.deaths > 0, World._dies),
        ]

    def _read(self, host: Host) -> None:
        columns = host.member.read()
        if columns is not None:
            host.ownership.take(columns)

    def _gets(self, host: Host) -> None:
        self.owner = self.leased = host.name
        host.ownership.assigned([PARTITION])
        host.ownership.step()

    def _gives(self, host: Host) -> None:
        self.left = self.left._replace(moves=self.left.moves - 1)
        host.ownership.revoking([PARTITION], host.clock() + 100)
        host.member.at = None
        self.owner = self.leased = None

    def _late(self, host: Host) -> None:
        host.is_late, self.is_planned = True, False
        lease = self.leased
        self._gives(host)
        self.leased = lease  # as long as nobody else gets it
        host.is_late = False

    def _freezes(self, host: Host) -> None:
        """Its lease is over before the broker gives the partition away."""
        self.left = self.left._replace(freezes=self.left.freezes - 1)
        host.is_frozen, host.is_told_lost, self.is_planned = True, True, False
        self.owner = self.leased = None

    def _thaws(self, host: Host) -> None:
        host.is_frozen = False
        try:
            host.ownership.commit()  # the first thing that it was about to do
        except Superseded:
            pass

    def _hears(self, host: Host) -> None:
        host.is_told_lost = False
        host.ownership.lost([PARTITION])
        host.member.at = None

    def _kill(self, host: Host) -> None:
        self.left = self.left._replace(kills=self.left.kills - 1)
        host.start()
        host.ownership.assigned([PARTITION])  # the name of its member is kept, and so is what it owns
        host.ownership.step()

    def _kill_for_long(self, host: Host) -> None:
        self.left = self.left._replace(kills=self.left.kills - 1)
        host.start()
        self.owner, self.leased, self.is_planned = None, None, False

    def _kill_pushing(self, host: Host) -> None:
        host.lane.cut = True
        try:
            self._read(host)
        except Killed:
            pass
        self._kill(host)

    def _dies(self, host: Host) -> None:
        self.left = self.left._replace(deaths=self.left.deaths - 1)
        host.is_alive, self.is_planned = False, False
        self.owner = self.leased = None


def invariant(world: World) -> str | None:
    done = 0 if world.committed is None else world.committed.offset
    return f"committed {done}, and handled {world.handled}" if done > world.handled else world.wrong


def is_final(world: World) -> bool:
    return world.committed is not None and world.committed.offset == EVENTS
