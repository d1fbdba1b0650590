"""The verdict on events that fail alone, over what a shard can meet: bad events, a sink that is away for some time, and
any order of tries. Each rule that is left out is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmem.policy import Place, Trial, Trials, Verdict, retry_wait

MOST = 3


@dataclass
class Shard:
    """One that handles events one by one, as a worker would. bad: those that always fail; away: from which try to which
    the sink is."""

    trials: Trials
    events: list[int]  # key of each
    bad: set[int]
    away: range
    now: float = 0.0
    handled: int = 0
    tries: int = 0
    order: list[int] = field(default_factory=list)
    aside: set[int] = field(default_factory=set)
    left: list[int] = field(default_factory=list)
    unwitnessed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events, self.left = list(self.events), list(range(len(self.events)))

    def arrives(self, key: int) -> None:
        self.left.append(len(self.events))
        self.events.append(key)

    def fails(self, event: int) -> bool:
        self.tries += 1
        return event in self.bad or self.tries in self.away

    def succeeded(self, event: int) -> None:
        self.order.append(event)
        self.aside.discard(event)
        self.handled += 1
        self.trials.end(event)
        self.trials.succeeded(self.now)
        self.unwitnessed.clear()

    def set_aside(self, event: int) -> None:
        taken = self.trials.events[event].place is Place.TAKEN
        witnessed = self.handled > self.trials.events[event].seen
        self.aside.add(event)
        if not witnessed:
            self.unwitnessed.append(event)
            assert len(self.unwitnessed) <= 3, "more than three in a row without a witness"
        assert not self.trials.in_doubt
        if not self.trials.quarantined(event, self.now, self.handled):
            assert not taken

    def failed(self, event: int) -> None:
        was_in_doubt = self.trials.in_doubt
        verdict = self.trials.failed(event, self.now, self.handled)
        if verdict is Verdict.QUARANTINE:
            assert self.handled > self.trials.events[event].seen, "no witness"
            assert self.trials.events[event].tries >= MOST
            self.set_aside(event)
        elif verdict is Verdict.DOUBT and not was_in_doubt:
            self.aside.difference_update(self.trials.take_back())
            self.unwitnessed.clear()

    def free(self) -> int | None:
        """The next event of a key that does not wait."""
        waiting = {each.key for each in self.trials.events.values() if each.place is not Place.ASIDE}
        return next((each for each in self.left if self.events[each] not in waiting), None)

    def step(self) -> bool:
        """Whether anything is left."""
        self.now += 0.05
        event = self.trials.ready(self.now, self.handled)
        if event is not None:
            if self.trials.is_condemned(event, self.handled):
                self.set_aside(event)
            elif self.fails(event):
                self.failed(event)
            else:
                self.succeeded(event)
        if (free := self.free()) is not None:
            self.left.remove(free)
            if self.fails(free):
                self.trials.add(free, Trial(free, self.events[free], self.handled))
                self.failed(free)
            else:
                self.succeeded(free)
        elif (alone := self.trials.alone()) is not None:
            self.set_aside(alone)
        return bool(self.left or any(each.place is not Place.ASIDE for each in self.trials.events.values()))


def run(seed: int, make: Callable[[], Trials] = lambda: Trials(MOST, 0.1)) -> None:
    draw = random.Random(seed)
    keys = [draw.randrange(6) for _ in range(draw.randrange(1, 40))]
    bad = {event for event in range(len(keys)) if draw.random() < draw.choice([0, 0.1, 0.5])}
    begin = draw.randrange(60)
    away = range(begin, begin + draw.choice([0, 0, 5, 100]))
    shard = Shard(make(), keys, bad, away)
    for _ in range(3000):
        if not shard.step():
            break
        if shard.trials.in_doubt and shard.free() is None:  # none that is left can end the doubt: what comes later does
            shard.arrives(99)
    else:
        raise AssertionError("it does not come to an end")
    good = [event for event in range(len(shard.events)) if event not in shard.bad]
    if not away:
        assert sorted(shard.order) == good, "a good event was quarantined"
    for key in set(shard.events):
        mine = [event for event in shard.order if shard.events[event] == key]
        assert mine == sorted(mine), "out of order"
    assert shard.aside | set(shard.order) == set(range(len(shard.events))), "lost"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_good_events_are_handled_in_order_and_bad_ones_set_aside_with_a_witness(seed: int) -> None:
    run(seed)


class NoWitness(Trials):
    """Attempts alone decide."""

    def failed(self, event: int, now: float, handled: int) -> Verdict:
        verdict = super().failed(event, now, handled)
        return Verdict.QUARANTINE if verdict is Verdict.UNWITNESSED else verdict


class NoDoubt(Trials):
    """Whatever fails in a row, it is the events."""

    def failed(self, event: int, now: float, handled: int) -> Verdict:
        trial = self.events[event]
        trial.tries += 1
        if trial.tries < self.max_attempts:
            return Verdict.AGAIN
        return Verdict.QUARANTINE if handled > trial.seen else Verdict.UNWITNESSED


class LatestFirst(Trials):
    """The events of a key in another order."""

    def firsts(self) -> list[int]:
        return sorted((event for event, each in self.events.items() if each.place is not Place.ASIDE), reverse=True)


@pytest.mark.parametrize("fault", [NoWitness, NoDoubt, LatestFirst])
def test_a_rule_that_is_left_out_is_found(fault: type[Trials]) -> None:
    for seed in range(3000):
        try:
            run(seed, lambda: fault(MOST, 0.1))
        except AssertionError:
            return
    raise AssertionError("not found")


def test_waits_grow_to_the_longest_and_differ() -> None:
    assert [retry_wait(tries, 30.0, 1.0) for tries in (0, 1, 2, 9, 1000)] == [0.1, 0.2, 0.4, 30.0, 30.0]
    assert retry_wait(0, 30.0, 0.0) == pytest.approx(0.075) and retry_wait(1000, 0.0, 0.5) == 0.0


def test_pauses_get_shorter_while_many_events_are_quarantined() -> None:
    trials = Trials(2, 1.0)
    for event in range(10):
        trials.add(event, Trial(event, event, 0))
        trials.failed(event, 0.0, 1)
        assert trials.events[event].due == pytest.approx(1.0 / (1 + event))
        assert trials.failed(event, 0.0, 1) is Verdict.QUARANTINE
        assert trials.quarantined(event, 0.0, 1)
