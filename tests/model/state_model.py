"""The state of one slot through checkpoints, a handoff and deaths: what `runtime/checkpoint.py` and `runtime/state.py`
do, step by step, each step as small as a kill can find it.

Shard A has two events of the slot, then the slot moves to B, which has a third. The first event arms a timer. A file is
(owner, count, timer armed, times fired, position): what one transaction leaves. Memory is the same without owner and
position, or nothing when the worker is dead.

`Faults` are mistakes that each must be caught: tests/model/test_state.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .explorer import Explored, Violation, explore, find_violation

EVENTS = (2, 1)  # of A, of B
DEATHS = 3


class Memory(NamedTuple):
    count: int = 0
    armed: bool = False
    fired: int = 0


class File(NamedTuple):
    owner: int = 0
    memory: Memory = Memory()
    position: int = 0  # how many events of the shard's lane it reflects


class State(NamedTuple):
    files: tuple[File, File] = (File(1), File())
    memory: tuple[Memory | None, Memory | None] = (Memory(), None)
    taken: tuple[int, int] = (0, 0)  # events of the lane that the worker in memory has handled
    head: tuple[int, int] = (0, 0)
    phase: str = "before"  # draining, releasing, after
    deaths: int = DEATHS


class Faults(NamedTuple):
    heads_before_save: bool = False  # a checkpoint moves heads, then saves
    drained_before_save: bool = False  # A says drained, and has not saved yet
    timer_outside: bool = False  # a timer is deleted when it fires, not with what it did
    timer_kept: bool = False  # what it did is saved, and the timer is not deleted
    without_number: bool = False  # B copies rows and does not say that it is the newer owner
    purge_unseen: bool = False  # A deletes its rows when it has given them, not when B has them
    forgets_ranges: bool = False  # a successor does not look at the position that its file has


def _with(pair: tuple, shard: int, value: object) -> tuple:
    return (value, pair[1]) if shard == 0 else (pair[0], value)


def _owns(state: State, shard: int) -> bool:
    return state.phase in ("before", "draining") if shard == 0 else state.phase == "after"


class Model:
    def __init__(self, faults: Faults = Faults()) -> None:
        self.faults = faults

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for shard, name in enumerate("AB"):
            if state.memory[shard] is not None:
                yield from self._worker(state, shard, name)
                if state.deaths:
                    yield f"{name} dies", self._dead(state, shard)
            elif _owns(state, shard):
                yield f"{name} starts again", self._started(state, shard)
        if state.phase == "before":
            yield "the slot is rerouted", state._replace(phase="draining")
        if state.phase == "draining" and state.memory[0] is not None and state.taken[0] == EVENTS[0]:
            yield from self._drain(state)
        if state.phase == "releasing":
            yield from self._claim(state)
        yield from self._purge(state)

    # ---- a worker --------------------------------------------------------------------------------------------------

    def _worker(self, state: State, shard: int, name: str) -> Iterator[tuple[str, State]]:
        memory, file = state.memory[shard], state.files[shard]
        if not _owns(state, shard):
            return
        if state.taken[shard] < EVENTS[shard]:
            after = memory._replace(count=memory.count + 1, armed=memory.armed or memory.count == 0)
            yield (
                f"{name} handles",
                state._replace(
                    memory=_with(state.memory, shard, after), taken=_with(state.taken, shard, state.taken[shard] + 1)
                ),
            )
        if memory.armed:
            after = memory._replace(armed=self.faults.timer_kept, fired=memory.fired + 1)
            fired = state._replace(memory=_with(state.memory, shard, after))
            if self.faults.timer_outside:
                gone = file._replace(memory=file.memory._replace(armed=False))
                fired = fired._replace(files=_with(state.files, shard, gone))
            yield f"{name}'s timer fires", fired
        saved = file._replace(memory=memory, position=state.taken[shard])
        if self.faults.heads_before_save:
            if state.head[shard] != state.taken[shard]:
                yield f"{name} moves heads", state._replace(head=_with(state.head, shard, state.taken[shard]))
            elif saved != file:
                yield f"{name} saves", state._replace(files=_with(state.files, shard, saved))
        elif saved != file:
            yield f"{name} saves", state._replace(files=_with(state.files, shard, saved))
        elif state.head[shard] != file.position:
            yield f"{name} moves heads", state._replace(head=_with(state.head, shard, file.position))

    def _dead(self, state: State, shard: int) -> State:
        return state._replace(memory=_with(state.memory, shard, None), deaths=state.deaths - 1)

    def _started(self, state: State, shard: int) -> State:
        """It commits the ranges that its predecessor saved, then takes up what its file says."""
        file = state.files[shard]
        head = state.head[shard] if self.faults.forgets_ranges else max(state.head[shard], file.position)
        return state._replace(
            memory=_with(state.memory, shard, file.memory),
            head=_with(state.head, shard, head),
            taken=_with(state.taken, shard, head),
        )

    # ---- the handoff -----------------------------------------------------------------------------------------------

    def _drain(self, state: State) -> Iterator[tuple[str, State]]:
        """hand_over: the last checkpoint, then the word in shared memory."""
        file = state.files[0]
        is_saved = (file.memory, file.position, state.head[0]) == (state.memory[0], state.taken[0], state.taken[0])
        if is_saved or self.faults.drained_before_save:
            gone = state._replace(phase="releasing", memory=_with(state.memory, 0, None))
            if self.faults.purge_unseen:
                gone = gone._replace(files=_with(state.files, 0, file._replace(memory=Memory())))
            yield "A says drained", gone

    def _claim(self, state: State) -> Iterator[tuple[str, State]]:
        """restore: rows and number in one transaction, then the word. It can die between the two."""
        theirs, mine = state.files
        if theirs.owner >= mine.owner:
            number = 0 if self.faults.without_number else theirs.owner + 1
            copied = mine._replace(owner=number, memory=theirs.memory)
            if copied != mine:
                yield "B copies the rows", state._replace(files=(theirs, copied))
        if mine.owner > theirs.owner or (self.faults.without_number and mine.memory == theirs.memory):
            yield "B says restored", state._replace(phase="after", memory=_with(state.memory, 1, mine.memory))

    def _purge(self, state: State) -> Iterator[tuple[str, State]]:
        a, b = state.files
        if state.phase in ("releasing", "after") and b.owner > a.owner and a.memory != Memory():
            yield "A deletes its rows", state._replace(files=(a._replace(memory=Memory()), b))

    # ---- what has to be ----------------------------------------------------------------------------------------------

    @staticmethod
    def final(state: State) -> bool:
        newest = max(state.files)
        return state.phase == "after" and newest == File(2, Memory(3, False, 1), EVENTS[1]) and state.head == EVENTS

    @staticmethod
    def invariant(state: State) -> str | None:
        for name, memory in zip("AB", state.memory):
            if memory is not None and memory.count > sum(EVENTS):
                return f"{name} has counted an event twice"
            if memory is not None and memory.fired > 1:
                return f"{name}'s timer has fired twice in the state"
            if memory is not None and memory.armed and memory.count == 0:
                return f"{name} has a timer that no event has set"
        if state.phase == "after" and max(state.files).owner != state.files[1].owner:
            return "whoever looks for the newest rows finds those of A"
        return None

    def explore(self) -> Explored:
        return explore(State(), self.steps, **self._wanted())

    def violation(self) -> Violation | None:
        return find_violation(State(), self.steps, **self._wanted())

    def _wanted(self) -> dict:
        return {
            "invariant": self.invariant,
            "final": self.final,
            "unhelpful": lambda label: label.endswith("dies"),
            "limit": 300_000,
        }


# ---- a value that expires, and an event that comes at the same time --------------------------------------------------


class Expiry(NamedTuple):
    """Time goes from 0 to END. A value written at t is to be there until t + TTL, and gone soon after."""

    now: int = 0
    written: int | None = None  # in memory; None: there is none
    timer: int | None = None
    saved: tuple[int | None, int | None] = (None, None)
    writes: int = 3
    deaths: int = 1
    lost: bool = False  # a value has expired before its time


TTL, END = 2, 7


def expiry_steps(state: Expiry, blind: bool = False, unarmed: bool = False) -> Iterator[tuple[str, Expiry]]:
    """blind: a timer that fires does not look when the value was last written. unarmed: a value that was written again
    is given no further timer."""
    is_due = state.timer is not None and state.timer <= state.now
    if state.now < END and not is_due:
        yield "time goes on", state._replace(now=state.now + 1)
    if state.writes and state.now < END - TTL - 1:
        armed = state.timer if state.timer is not None else state.now + TTL
        yield "an event writes", state._replace(written=state.now, timer=armed, writes=state.writes - 1)
    if is_due:
        until = None if state.written is None else state.written + TTL
        if until is not None and until > state.now and not blind:
            yield "the timer is moved", state._replace(timer=None if unarmed else until)
        else:
            early = until is not None and until > state.now
            yield "the value expires", state._replace(written=None, timer=None, lost=state.lost or early)
    if (state.written, state.timer) != state.saved:
        yield "saved", state._replace(saved=(state.written, state.timer))
    if state.deaths:
        written, timer = state.saved
        yield "dies", state._replace(written=written, timer=timer, deaths=state.deaths - 1)


def expiry_invariant(state: Expiry) -> str | None:
    if state.lost:
        return "a value has expired before its time"
    if state.written is not None and state.written + TTL < state.now and state.timer is None:
        return "a value stays for ever"
    return None


def expiry_final(state: Expiry) -> bool:
    return state.now == END and state.written is None and state.timer is None
