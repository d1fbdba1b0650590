"""One call of a producer that cannot be finished at once: retry, backpressure, what is refused and how that is
counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from shardmem.errors import (
    Backpressure,
    Interrupted,
    NotRunning,
    OutOfMemory,
    SegmentCorrupt,
    ShardmemError,
    Unavailable,
)
from shardmem.memory.native import lib
from shardmem.runtime.waits import LaneWait, Pause, Steps

if TYPE_CHECKING:
    from shardmem.runtime.attachment import Attachment

Mode = Literal["block", "fail", "drop_newest", "drop_oldest", "sample"]
MODES: tuple[str, ...] = get_args(Mode)
DROPS = ("drop_newest", "drop_oldest", "sample", "kept")  # without an engine, whatever they do about a full lane
DEFAULT: Any = type("default", (), {"__repr__": lambda self: "the engine's backpressure"})()
KEPT: Any = type("kept", (), {"__repr__": lambda self: "of a sample: it waits for room"})()
STARTS = 0.005  # seconds between two looks at an engine that starts
AWAY = 0.02  # at one that is not there
QUIET = 10.0  # seconds without an engine before the log hears of it

log = logging.getLogger("shardmem.producer")


class Sending(Protocol):
    """What a call knows of its producer. _timeout: seconds that a call which says nothing waits; None: as long as it
    takes."""

    engine: str
    backpressure: str
    _timeout: float | None
    _spin_ns: int
    _sample_every: int
    _sampled: int  # events that mode "sample" has refused so far
    _interrupted: bool
    _attached: Attachment


class Call:
    """One call of a producer that could not be finished at once: what to do about it, and for how long."""

    def __init__(self, producer: Sending, timeout: float | None, keeps: bool = False) -> None:
        """keeps: what finds no room is not refused: its source has it, and pushes it again."""
        self._producer, self.keeps = producer, keeps
        self._mode = producer.backpressure if timeout is DEFAULT else "kept" if timeout is KEPT else "block"
        self._lost = 0
        timeout = producer._timeout if timeout is DEFAULT else None if timeout is KEPT else timeout
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r}; None, or seconds from 0 on")
        self._timeout = timeout
        self._started = time.monotonic()
        self._blocked = self._said = False
        self._away: str | None = None  # why nothing is accepted, if it is not for a full lane

    @property
    def skips(self) -> bool:
        """Whether what finds no room is dropped and counted, and the call goes on with the rest."""
        return self._mode in ("drop_newest", "sample") and self._away is None

    def mend(self, status: int, shard: int, rest: Callable[[], tuple[Any, int]]) -> Steps[bool]:
        """Remove the obstacle, waiting if need be. True: call again. False: the time is over.

        rest: what is not accepted yet and how much that is; an error that ends the call carries it as `.rest`.
        """
        try:
            return (yield from self._mend(status, shard))
        except ShardmemError as error:
            left, count = rest()
            raise self.explained(error, left, count)  # noqa: B904

    def explained(self, error: ShardmemError, rest: Any, count: int, already: int = 0) -> ShardmemError:
        """The error of a call that ends early, with what was not accepted, which counts as refused."""
        error.rest = rest  # type: ignore[attr-defined]
        self._producer._attached.count_refused("full" if isinstance(error, OutOfMemory) else "stopped", count - already)
        return error

    def _mend(self, status: int, shard: int) -> Steps[bool]:
        producer, self._away = self._producer, None
        if status == lib.SM_FULL:
            return (yield from self._make_room(shard))
        if status in (lib.SM_STOPPED, lib.SM_CLOSED):
            return (yield from self._find_engine())
        if status == lib.SM_FENCED:
            return (yield from self._change_seats())
        if status == lib.SM_UNROUTED:  # about to start: there is no slot table yet
            return (yield from self._pause(STARTS))
        if status == lib.SM_FORKED:
            producer._attached.leave_parents_seat()
        elif status == lib.SM_NEED_LANE:
            if (seat := producer._attached.seat) is not None:
                seat.open_lane(shard)
        elif status == lib.SM_CORRUPT:
            if (seat := producer._attached.seat) is not None and seat.is_cut_short(shard):
                return (yield from self._pause(STARTS))  # it gets another inbox
            raise SegmentCorrupt(
                f"the lane of this producer to shard {shard} contradicts itself (its head is beyond its tail); nothing "
                f"more is pushed into it"
            )
        else:
            raise ShardmemError(f"unexpected status {status} of the lane to shard {shard}")
        return True

    def _make_room(self, shard: int) -> Steps[bool]:
        producer, left = self._producer, self.left()
        if self.skips:
            return False
        if (seat := producer._attached.seat) is None:
            return True
        if self._mode == "drop_oldest":
            lib.sm_evict(seat.sender, shard)
        elif left == 0:
            return False
        self._blocked = True
        wait = LaneWait(seat, shard, None, producer._spin_ns, left)
        yield wait
        producer._attached.expect_open(" by another thread")
        self._expect_no_interrupt("a lane was full")
        if not wait.is_over:  # where there is room now, a stat of the engine's memory for each wait cost a tenth
            producer._attached.expect_progress(seat, shard)
        return True

    def _find_engine(self) -> Steps[bool]:
        """The engine accepts nothing: until it does, or another of its name."""
        producer = self._producer
        state = producer._attached.find_engine()
        if state is None:
            return True
        if state == "starting":
            return (yield from self._pause(STARTS))
        if not producer._attached.is_awaited:
            raise NotRunning(f"engine {producer.engine!r} is {state}; it accepts nothing any more")
        self._away = f"engine {producer.engine!r} is {state}"
        if self._mode in DROPS:
            return False
        return (yield from self._pause(AWAY))

    def _change_seats(self) -> Steps[bool]:
        """The seat is another's. What was pushed from it is handled first: later events of its keys may not pass it."""
        producer = self._producer
        seat = producer._attached.seat
        if seat is None or producer._attached.leave_lost_seat(seat):
            return True
        self._away = f"seat {seat.number} of engine {producer.engine!r} was taken by another process"
        del seat
        return (yield from self._pause(STARTS))

    def _pause(self, seconds: float) -> Steps[bool]:
        left = self.left()
        if left == 0:
            return False
        yield Pause(seconds if left is None else min(seconds, left))
        self._expect_no_interrupt("the engine was away")
        if self._away and not self._said and time.monotonic() - self._started > QUIET:
            self._said = True
            log.warning("%s; a call has waited for %.0f s and goes on waiting", self._away, QUIET)
        return True

    def _expect_no_interrupt(self, when: str) -> None:
        if self._producer._interrupted:
            raise Interrupted(f"interrupted while {when}")

    def left(self) -> float | None:
        """Seconds; None without a limit."""
        return None if self._timeout is None else max(0.0, self._timeout - (time.monotonic() - self._started))

    def of_one(self) -> float | None:
        """The timeout of a call within this one."""
        return KEPT if self._mode == "kept" else DEFAULT if self._mode in DROPS else self.left()

    def sampled(self, refused: int) -> list[int]:
        """In mode "sample": which of so many refused events are kept all the same, every n-th over all calls."""
        if self._mode != "sample":
            return []
        producer = self._producer
        start = -producer._sampled % producer._sample_every
        producer._sampled += refused
        return list(range(start, refused, producer._sample_every))

    def dropped(self, count: int) -> None:
        self._lost += count
        reason = "stopped" if self._away else "sampled" if self._mode == "sample" else "full"
        self._producer._attached.count_refused(reason, count)

    def kept(self, count: int, accepted: int) -> None:
        """So many were kept of those that found no room, and accepted; what was not is counted already."""
        self._lost += count - accepted

    def done(self, offered: int) -> int:
        """How many were accepted."""
        if self._blocked:
            self._producer._attached.count_blocked(int((time.monotonic() - self._started) * 1e9))
        return offered - self._lost

    def give_up(self, offered: int, left: int, rest: Any, shard: int) -> int:
        """The time is over: what is left is refused, with an error, unless it is to be dropped."""
        if self._away and self._mode in DROPS:
            self.dropped(left)
            return self.done(offered)
        accepted, waited = self.done(offered) - left, time.monotonic() - self._started
        if self._away:
            self._producer._attached.count_refused("stopped", left)
            raise Unavailable(self._away, rest, accepted, left, waited)
        if not self.keeps:
            self._producer._attached.count_refused("timeout" if self._timeout else "full", left)
        raise Backpressure(rest, accepted, left, shard, waited)
