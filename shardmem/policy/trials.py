"""Events that fail alone: what is tried when, and which one is set aside.

An event is set aside for failing only with a *witness*: others of its shard were handled since it first failed. Where
nothing else is left to handle there can be none; then the number of attempts alone decides, for at most three in a row.
From the fourth that fails with no success in between, it is not the events: the shard is in *doubt*. It goes on trying,
sets nothing aside, and takes those three back. The first success ends the doubt, and all are judged again, in the order
in which they first failed.

    failed ──▶ AGAIN        it waits for its next try, and only its key with it
          ├──▶ UNWITNESSED  it has had its attempts; the first success condemns it, and so does `alone`
          ├──▶ QUARANTINE   it has had them, and others were handled meanwhile
          └──▶ DOUBT        the fourth in a row
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

UNWITNESSED_MOST = 3  # in a row
LONGEST_PAUSE = 5.0
FLOOD_S = 10.0  # events quarantined within this time shorten the pauses of the next: a thousand must not take minutes
FIRST_WAIT = 0.1


class Verdict(Enum):
    AGAIN, UNWITNESSED, QUARANTINE, DOUBT = "again", "unwitnessed", "quarantine", "doubt"


class Place(Enum):
    """Where an event on trial is: in its lane; or in the quarantine, set aside without a witness; or taken back."""

    LANE, ASIDE, TAKEN = "lane", "aside", "taken"


@dataclass
class Trial:
    """number: in this order they first failed. key: None for an event without one. seen: events of the shard that were
    handled when it first failed. tries: how often it has failed, alone. due: of its next try."""

    number: int
    key: int | None
    seen: int
    tries: int = 0
    due: float = 0.0
    place: Place = Place.LANE


class Trials:
    """Of one shard. `events` is by whatever the caller tells them apart; what is in it is to be kept by the caller, as
    is `in_doubt`: the next life of the worker begins with both. handled: events that the shard has handled, ever."""

    def __init__(self, max_attempts: int, backoff: float) -> None:
        self.max_attempts, self.backoff = max_attempts, backoff
        self.events: dict[int, Trial] = {}
        self.in_doubt = False
        self._quarantined: deque[float] = deque(maxlen=1000)
        self._turn = 0

    # ---- what is tried next ------------------------------------------------------------------------------------------

    def firsts(self) -> list[int]:
        """The first event of each key that waits: those behind it come after it."""
        keys: set[int] = set()
        found = []
        for event, trial in sorted(self.events.items(), key=lambda each: each[1].number):
            if trial.place is Place.ASIDE or trial.key in keys:
                continue
            if trial.key is not None:
                keys.add(trial.key)
            found.append(event)
        return found

    def ready(self, now: float, handled: int) -> int | None:
        """The event that is to be tried, or set aside (`is_condemned`) now. In doubt: one after the other."""
        firsts = self.firsts()
        if self.in_doubt:
            self._turn += 1
            return firsts[(self._turn - 1) % len(firsts)] if firsts else None
        for event in firsts:
            if self.is_condemned(event, handled) or (
                not self._has_had_its_tries(event) and self.events[event].due <= now
            ):
                return event
        return None

    def next_due(self) -> float | None:
        """When `ready` may find one, if nothing happens before."""
        return min(
            (self.events[event].due for event in self.firsts() if not self._has_had_its_tries(event)), default=None
        )

    def soonest(self) -> int | None:
        """The event that has waited longest for its next try: there is room for no more."""
        return min(
            self.firsts(), key=lambda event: (self._has_had_its_tries(event), self.events[event].due), default=None
        )

    def is_condemned(self, event: int, handled: int) -> bool:
        return not self.in_doubt and self._has_had_its_tries(event) and handled > self.events[event].seen

    def _has_had_its_tries(self, event: int) -> bool:
        return self.events[event].tries >= self.max_attempts

    # ---- what came of it ---------------------------------------------------------------------------------------------

    def add(self, event: int, trial: Trial) -> None:
        self.events[event] = trial

    def failed(self, event: int, now: float, handled: int) -> Verdict:
        """It failed, alone, once more."""
        trial = self.events[event]
        if self.in_doubt:
            return Verdict.DOUBT
        trial.tries += 1
        if sum(handled <= each.seen for each in self.events.values()) > UNWITNESSED_MOST:
            self.in_doubt = True
            return Verdict.DOUBT
        if not self._has_had_its_tries(event):
            trial.due = now + self._pause(trial.tries, now)
            return Verdict.AGAIN
        return Verdict.QUARANTINE if handled > trial.seen else Verdict.UNWITNESSED

    def alone(self) -> int | None:
        """Nothing else is left to be handled: the event that is to be set aside without a witness, if there is one."""
        ended = (event for event in self.firsts() if self._has_had_its_tries(event))
        return None if self.in_doubt else next(ended, None)

    def take_back(self) -> list[int]:
        """Of a shard in doubt: the events that it has set aside without a witness."""
        taken = [event for event, trial in self.events.items() if trial.place is Place.ASIDE]
        for event in taken:
            self.events[event].place = Place.TAKEN
        return taken

    def succeeded(self, now: float) -> list[int]:
        """Others were handled: the events whose quarantine is for good by that, and are on trial no more."""
        confirmed = [event for event, trial in self.events.items() if trial.place is Place.ASIDE]
        for event in confirmed:
            del self.events[event]
        if self.in_doubt:
            self.in_doubt = False
            for trial in self.events.values():
                trial.tries, trial.due = 0, now
        return confirmed

    def quarantined(self, event: int, now: float, handled: int) -> bool:
        """It was set aside. Whether for good."""
        trial = self.events[event]
        if handled > trial.seen:
            self._quarantined.append(now)
            del self.events[event]
            return True
        trial.place = Place.ASIDE
        return False

    def end(self, event: int) -> None:
        """It was handled, or is gone."""
        self.events.pop(event, None)

    def _pause(self, tries: int, now: float) -> float:
        while self._quarantined and now - self._quarantined[0] > FLOOD_S:
            self._quarantined.popleft()
        return min(LONGEST_PAUSE, self.backoff * 2.0 ** min(tries - 1, 30)) / (1 + len(self._quarantined))


def retry_wait(tries: int, most: float, chance: float) -> float:
    """Seconds until a shard that waits tries again, after so many tries in vain: from 0.1 s, doubled, to `most`.
    chance: from 0 to 1, any: workers that failed together must not come again together."""
    return min(most, FIRST_WAIT * 2.0 ** min(tries, 40)) * (0.75 + 0.25 * chance)
