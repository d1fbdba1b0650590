"""A shard that waits: why, since when, and when it tries again. In shared memory, so that its next worker goes on
waiting and everybody can see it."""

from __future__ import annotations

import random

from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import WAITING
from shardmem.memory.words import name_of, now_ns
from shardmem.policy import retry_wait

LONGEST = 30 * 86400.0  # seconds that a handler may ask for at once
REST_S = 0.02  # slept at once; a stop and a handoff are answered in between
DRAINING_WAIT_S = 1.0  # the longest wait while the engine drains: who stops it wants to know whether the sink is back
SAID_EACH_S = 10.0  # waits that are longer are logged each
LOG_S = 1.0  # what fails is logged no more often: which event does it is said when it is known


class Waiting:
    """kind: "" (it does not wait), "retry" (its handler said so), "doubt" (too many events failed in a row),
    "quarantine" (that takes no more). tries: in vain so far. most: seconds between two tries. reason: what the last
    life said."""

    def __init__(self, control: ControlSegment, shard: int, most: float, reason: str) -> None:
        self._control, self._shard, self._most = control, shard, most
        view = control.view_shard(shard)
        self.kind = name_of(WAITING, view.waiting_kind)
        self.tries, self._since_ns, self._until_ns = view.waiting_tries, view.waiting_since_ns, view.waiting_until_ns
        if self.kind not in WAITING:
            self.over()
        elif self.kind:
            control.set_worker_error(shard, reason)
            # a damaged word must not make it wait for ever
            self._until_ns = min(self._until_ns, now_ns() + int(most * 1e9))

    @property
    def left(self) -> float:
        """Seconds until the next try."""
        return max(0.0, (self._until_ns - now_ns()) / 1e9) if self.kind else 0.0

    @property
    def age(self) -> float:
        return max(0.0, (now_ns() - self._since_ns) / 1e9) if self.kind else 0.0

    def has_lasted(self, most: float | None) -> bool:
        """Whether the handler has asked for another try later for longer than it may; None: it may for ever."""
        return most is not None and self.kind == "retry" and self.age > most

    def begin(self, kind: str, reason: str, after: float | None = None) -> float:
        """One more try was in vain. after: seconds, if the handler says how long. How long it is now."""
        if not self.kind:
            self.tries, self._since_ns = 0, now_ns()
        wait = retry_wait(self.tries, self._most, random.random()) if after is None else min(after, LONGEST)
        self.kind, self.tries, self._until_ns = kind, self.tries + 1, now_ns() + int(wait * 1e9)
        self._control.set_worker_error(self._shard, reason)
        self._store()
        return wait

    def hurry(self, most: float) -> None:
        self._until_ns = min(self._until_ns, now_ns() + int(most * 1e9))
        self._store()

    def doubt(self) -> None:
        """It is not said yet that it waits, but the next life has to know."""
        if not self.kind:
            self.tries, self._since_ns, self._until_ns = 0, now_ns(), now_ns()
        self.kind = "doubt"
        self._store()

    def over(self) -> None:
        self.kind = ""
        self._control.set_worker_error(self._shard, "")
        self._store()

    def _store(self) -> None:
        self._control.set_worker_waiting(
            self._shard, WAITING.index(self.kind), self.tries, self._since_ns, self._until_ns
        )
