"""The partition table between two hosts: a source that takes a partition up, pushes, dies, loses it and gets it back;
the workers of its lanes; the broker, which gives the partition to one host after the other.

Claimed, for every order of steps with a death of the source between any two of its steps, a worker that is slow by any
amount, and a host that is frozen while another takes its partition:

* no event is lost: each is handled here or behind what the other host begins at;
* no event is pushed twice in one epoch, though the source is killed in the middle of pushing several lanes;
* nothing of an epoch that is over is taken by a worker once it was told (the batch in hand goes on);
* nothing is taken after the lease is over: with a frozen source, at most the batch in hand is handled after the other
  host has begun;
* from every state the partition is pushed and handled to its end.

Modelled: one partition of a few offsets, two lanes (a push of two offsets goes to both), one worker for each. A push
is: say where it begins in the seat, publish lane by lane, say how far it is pushed. Time is in steps: the lease is
over, or it is not; the broker gives the partition to the other host only after the session, which is longer than the
lease. The other host begins at what is committed: the lowest offset not handled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from .explorer import explore, find_violation

OFFSETS, LANES = 4, 2  # a push has one offset for each lane
DEAD = None


class Source(NamedTuple):
    """epoch: that it pushes with. at: the next offset. there: of a killed one's last push, in the lanes already. todo:
    what this push still has to publish; nothing while it is between two pushes."""

    epoch: int
    at: int
    there: frozenset
    todo: tuple = ()
    pushed_to: int = 0  # what it will say when all is published


class State(NamedTuple):
    source: Source | None
    # shared memory
    epoch: int
    owned: bool
    pushed: int
    call: int  # number of the last push, as the seat says
    leased: bool
    lanes: tuple  # of (offset, epoch, number of its push), not taken yet
    history: tuple  # of the same, all that were ever published: what recover reads lies there
    # workers: what each has in hand
    hands: tuple
    # the broker: who has the partition; committed
    here: bool
    committed: int
    frozen: bool  # the source's host, but not its workers' batches in hand
    other_began: int  # offset at which the other host began; -1: it did not yet
    # what happened
    handled: tuple  # of each offset, how often it was handled here, in this ownership
    done: tuple  # of each offset, whether anybody handled it ever
    lives: int
    moves: int
    wrong: str | None = None


def lane_of(offset: int) -> int:
    return offset % LANES


def put(values: tuple, at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


class Model:
    """fault: one of FAULTS. deaths, moves: how many of them."""

    def __init__(self, fault: str = "", deaths: int = 2, moves: int = 1) -> None:
        self.fault, self.deaths, self.moves = fault, deaths, moves

    def initial(self) -> State:
        nothing = ((),) * LANES
        return State(
            DEAD,
            0,
            False,
            0,
            0,
            False,
            nothing,
            nothing,
            (None,) * LANES,
            True,
            0,
            False,
            -1,
            (0,) * OFFSETS,
            (False,) * OFFSETS,
            self.deaths,
            self.moves,
        )

    def invariant(self, state: State) -> str | None:
        if state.wrong:
            return state.wrong
        if not state.here and not all(state.done[: max(state.other_began, 0)]):
            return "the other host began behind an event that nobody has handled"
        if state.owned and state.here and not state.frozen:
            there = {offset for lane in state.history for offset, epoch, _ in lane if epoch == state.epoch}
            begun = min((offset for offset in range(OFFSETS) if not state.done[offset]), default=OFFSETS)
            if state.pushed > begun and not set(range(begun, state.pushed)) <= there:
                return "pushed says more than the lanes have"
        return None

    def final(self, state: State) -> bool:
        return all(state.done) and not any(state.lanes) and not any(hand is not None for hand in state.hands)

    # ---- the source --------------------------------------------------------------------------------------------------

    def source_steps(self, state: State) -> Iterator[tuple[str, State]]:
        source = state.source
        if state.frozen:
            return
        if source is DEAD:
            yield from self.begin(state)
            return
        if state.lives:
            yield "kill source", state._replace(source=DEAD, lives=state.lives - 1)
        if not state.here and not source.todo:  # the client says lost, or revoked: the epoch first
            yield (
                "source: ends the partition",
                state._replace(source=DEAD, owned=False, epoch=state.epoch + 1, leased=False),
            )
            return
        if not state.leased and state.here:
            yield "source: renews the lease", state._replace(leased=True)
        if source.todo:
            yield from self.publish(state, source)
        elif source.at < OFFSETS and state.here:
            yield "source: begins a push", self.begin_push(state, source)

    def begin(self, state: State) -> Iterator[tuple[str, State]]:
        if not state.here:
            if state.owned:  # it was killed while it owned it
                yield (
                    "source: finds that it is another's",
                    state._replace(owned=False, epoch=state.epoch + 1, leased=False),
                )
            return
        if state.owned and self.fault != "seek to committed while lanes live":
            there = self.recover(state)
            yield "source: resumes", state._replace(source=Source(state.epoch, state.pushed, there))
        elif state.owned:
            yield (
                "source: resumes at committed",
                state._replace(source=Source(state.epoch, state.committed, frozenset())),
            )
        else:
            yield (
                "source: begins the partition",
                state._replace(
                    source=Source(state.epoch + 1, state.committed, frozenset()),
                    epoch=state.epoch + 1,
                    owned=True,
                    pushed=state.committed,
                    leased=False,
                    handled=(0,) * OFFSETS,
                ),
            )

    def recover(self, state: State) -> frozenset:
        if self.fault == "recover ignores the lanes":
            return frozenset()
        lanes = state.lanes if self.fault == "recover reads only what is not taken" else state.history
        return frozenset(
            offset
            for lane in lanes
            for offset, epoch, call in lane
            if epoch == state.epoch and call == state.call and offset >= state.pushed
        )

    def begin_push(self, state: State, source: Source) -> State:
        """What the seat says first: a push that goes on where a killed one's ended is of the same number."""
        offsets = [offset for offset in range(source.at, min(source.at + LANES, OFFSETS)) if offset not in source.there]
        end = min(source.at + LANES, OFFSETS)
        goes_on = bool(source.there) and self.fault != "a push that goes on is one of its own"
        state = state._replace(call=state.call if goes_on else state.call + 1)
        if self.fault == "pushed written before the push":
            state = state._replace(pushed=end)
        return state._replace(source=source._replace(todo=(*offsets, "say"), pushed_to=end))

    def publish(self, state: State, source: Source) -> Iterator[tuple[str, State]]:
        todo = source.todo[0]
        rest = source._replace(todo=source.todo[1:])
        if todo == "say":
            rest = rest._replace(
                at=source.pushed_to, there=frozenset(each for each in source.there if each >= source.pushed_to)
            )
            yield f"source: pushed is {source.pushed_to}", state._replace(source=rest, pushed=source.pushed_to)
            return
        lane = lane_of(todo)
        event = (todo, source.epoch, state.call)
        wrong = state.wrong
        if any(offset == todo and epoch == source.epoch for offset, epoch, _ in state.history[lane]):
            wrong = f"offset {todo} is pushed twice in epoch {source.epoch}"
        yield (
            f"source: publishes {todo} in lane {lane}",
            state._replace(
                source=rest,
                lanes=put(state.lanes, lane, (*state.lanes[lane], event)),
                history=put(state.history, lane, (*state.history[lane], event)),
                wrong=wrong,
            ),
        )

    # ---- the workers -------------------------------------------------------------------------------------------------

    def worker_steps(self, state: State) -> Iterator[tuple[str, State]]:
        for lane in range(LANES):
            if state.hands[lane] is not None:
                yield f"worker {lane}: handles {state.hands[lane][0]}", self.handle(state, lane)
            elif state.lanes[lane]:
                (offset, epoch, _), rest = state.lanes[lane][0], state.lanes[lane][1:]
                if epoch != state.epoch and self.fault != "no epoch check":
                    yield f"worker {lane}: sheds {offset}", state._replace(lanes=put(state.lanes, lane, rest))
                elif state.leased or self.fault == "lease ignored":
                    wrong = state.wrong
                    if epoch != state.epoch:
                        wrong = f"offset {offset} of epoch {epoch} is taken in epoch {state.epoch}"
                    if state.other_began >= 0 and not state.here:
                        wrong = wrong or f"offset {offset} is taken here after the other host has begun"
                    hands = put(state.hands, lane, (offset, epoch))
                    yield (
                        f"worker {lane}: takes {offset}",
                        state._replace(lanes=put(state.lanes, lane, rest), hands=hands, wrong=wrong),
                    )

    def handle(self, state: State, lane: int) -> State:
        offset, epoch = state.hands[lane]
        handled, wrong = state.handled, state.wrong
        if epoch == state.epoch:
            handled = put(handled, offset, handled[offset] + 1)
            if handled[offset] > 1:
                wrong = f"offset {offset} is handled twice in one epoch"
        done = put(state.done, offset, True)
        return state._replace(hands=put(state.hands, lane, None), handled=handled, done=done, wrong=wrong)

    # ---- the broker, the clock, the other host -----------------------------------------------------------------------

    def world_steps(self, state: State) -> Iterator[tuple[str, State]]:
        lowest = next((offset for offset in range(OFFSETS) if not state.done[offset]), OFFSETS)
        if state.here and state.owned and lowest > state.committed and not state.frozen:
            yield f"source: commits {lowest}", state._replace(committed=lowest)
        if state.moves and state.here and not state.frozen and state.source is not DEAD:
            yield "the host is frozen", state._replace(frozen=True, moves=state.moves - 1)
        if state.frozen and state.leased:
            yield "the lease is over", state._replace(leased=False)
        if (
            state.frozen
            and state.here
            and not state.leased
            or (self.fault == "lease longer than the session" and state.frozen and state.here)
        ):
            yield "the session is over: the other host has it", state._replace(here=False)
        if not state.here and state.other_began < 0:
            yield f"the other host begins at {state.committed}", state._replace(other_began=state.committed)
        if not state.here and state.other_began >= 0:
            if state.committed < OFFSETS and not all(state.done[: state.committed + 1]):
                yield from self.other_handles(state)
            elif state.committed < OFFSETS:
                yield from self.other_handles(state)
            yield "the host goes on", state._replace(frozen=False)
            if not state.frozen and not state.owned:
                yield "the broker gives it back", state._replace(here=True, other_began=-1)
        if state.frozen and state.here:
            yield "the host goes on", state._replace(frozen=False)

    def other_handles(self, state: State) -> Iterator[tuple[str, State]]:
        offset = state.committed
        yield (
            f"the other host handles and commits {offset}",
            state._replace(done=put(state.done, offset, True), committed=offset + 1),
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self.source_steps(state)
        yield from self.worker_steps(state)
        yield from self.world_steps(state)


def run(model: Model, how=explore, limit: int = 900_000):
    return how(
        model.initial(),
        lambda state: () if model.final(state) else model.steps(state),
        invariant=model.invariant,
        final=model.final,
        unhelpful=lambda step: step.startswith(("kill", "the host is frozen")),
        limit=limit,
    )


@pytest.mark.parametrize("deaths, moves", [(3, 0), (1, 1)])
def test_no_event_is_lost_pushed_twice_or_taken_by_two_hosts(deaths, moves):
    found = run(Model(deaths=deaths, moves=moves))
    print(f"partition, {deaths} deaths, {moves} moves: {found}")
    assert found.states > 500, found


FAULTS = {
    "no epoch check": (0, 1),
    "lease ignored": (0, 1),
    "lease longer than the session": (0, 1),
    "pushed written before the push": (1, 0),
    "seek to committed while lanes live": (1, 0),
    "recover ignores the lanes": (1, 0),
    "recover reads only what is not taken": (1, 0),
    "a push that goes on is one of its own": (2, 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_partition_table_is_caught(fault):
    deaths, moves = FAULTS[fault]
    found = run(Model(fault, deaths, moves), find_violation)
    assert found is not None, f"{fault}: not caught"
    print(f"{fault}: caught in {len(found.trace)} steps: {found.what}")
    assert found.kind in ("invariant", "stuck", "trap"), found
