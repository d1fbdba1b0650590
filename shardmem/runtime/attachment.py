"""What a producer is attached to: the engine of its name, whichever runs now, or none; and what became of the events
that it pushed into those that ended."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from shardmem.errors import HandlerError, LayoutMismatch, NotRunning, SegmentCorrupt
from shardmem.memory.native import REASONS, lib
from shardmem.memory.segment import control_name, path_of
from shardmem.runtime.seat import Counts, Seat
from shardmem.schema import Schema

Marks = dict[tuple[int, int, int], int]  # engine, shard, generation of its inbox -> tail of the producer's lane in it

log = logging.getLogger("shardmem.producer")

_all: weakref.WeakSet[Attachment] = weakref.WeakSet()


class Attachment:
    """Changes seats under a lock; calls that are inside of one keep it until they are out.

    seat: None: it has none, for now or for good. is_awaited: whether calls wait for an engine that is stopped.
    """

    def __init__(
        self,
        engine: str,
        wait: float,
        reconnects: bool,
        name: str | None,
        on_seat: Callable[[Seat], None],
        on_none: Callable[[], None],
    ) -> None:
        """name: of the seats that it takes. Raises NotRunning (no such engine, or it is stopping), LayoutMismatch,
        SegmentError, AlreadyRunning."""
        self.engine, self.closed = engine, False
        self._reconnects, self._name = reconnects, name
        self.seat: Seat | None = None
        self._on_seat, self._on_none = on_seat, on_none
        self._before, self._unhandled = Counts(), 0  # of seats that were left; events of theirs that nobody will handle
        self._failed_engines: set[int] = set()  # that ended with such events
        self._changing = threading.RLock()
        seat = Seat.at(engine, name, wait)
        self.schema = seat.control.schema
        self.is_awaited = reconnects and seat.control.is_named
        self._sit(seat)
        _all.add(self)

    def call(self, function: Callable[..., int], *arguments: Any) -> int:
        """One call of C. The seat is kept for so long and no longer: the next wait may be for another engine."""
        seat = self.seat
        return lib.SM_CLOSED if seat is None else function(seat.sender, *arguments)

    def close(self) -> None:
        with self._changing:
            if not self.closed:
                self.closed = True
                self._stand_up()

    # ---- seats -------------------------------------------------------------------------------------------------------

    def find_engine(self) -> str | None:
        """The engine refuses, or there was none: what is it at? None: call again. Raises what connecting raises."""
        with self._changing:
            self.expect_open()
            if (seat := self.seat) is not None:
                if seat.is_inherited:
                    return None  # the next call says so
                if (state := seat.state) != "gone":
                    return None if state == "running" else state
                self._let_go(seat)
                del seat
            if not self._reconnects or not os.path.exists(path_of(control_name(self.engine))):
                return "stopped"
            why = self._sit_again()
            if why is None and self.seat is not None:
                log.info("attached to engine %s, which was run again; seat %d", self.engine, self.seat.number)
            return why

    def own_seat(self) -> Seat | None:
        """Not the parent's."""
        if self.seat is not None and self.seat.is_inherited:
            self.leave_parents_seat()
        return self.seat

    def leave_parents_seat(self) -> None:
        """In a forked child: the parent keeps its seat, this process takes its own."""
        with self._changing:
            if self.seat is not None and self.seat.is_inherited:
                self._stand_up()
                self._before, self._unhandled = Counts(), 0
                self._sit_again()

    def leave_lost_seat(self, seat: Seat) -> bool:
        """Another process holds it, though this one never gave it up. False: not yet, it has not handled everything."""
        with self._changing:
            if self.seat is seat:
                if seat.state != "gone" and not seat.has_handled_all():
                    return False
                log.warning(
                    "seat %d of engine %s was taken by process %d while this one had it; it takes another",
                    *(seat.number, self.engine, seat.control.view_seat(seat.number).pid),
                )
                self._stand_up()
            return True

    def _sit(self, seat: Seat) -> None:
        self._on_seat(seat)
        self.seat = seat

    def _sit_again(self) -> str | None:
        """None when there is a seat, else why not."""
        try:
            seat = Seat.at(self.engine, self._name)
        except NotRunning:
            return "stopped"
        if (schema := seat.control.schema) != self.schema:
            seat.leave()
            raise LayoutMismatch(
                f"engine {self.engine!r} was run again with another schema: it carries {_described(schema)}, and this "
                f"producer pushes {_described(self.schema)}",
                hint=f"Connect again, `shardmem.connect({self.engine!r})`, and push what it carries now",
            )
        self._sit(seat)
        return None

    def _stand_up(self) -> None:
        self._on_none()
        seat, self.seat = self.seat, None
        if seat is None or seat.is_inherited:
            return
        seat.leave()
        self._before = self._before.plus(seat.counts())

    def _let_go(self, seat: Seat) -> None:
        """Its engine is gone, with its memory; what it has not handled by now nobody will."""
        if left := seat.counts().in_flight:
            self._unhandled += left
            self._failed_engines.add(seat.control.geometry.engine_id)
        self._stand_up()

    # ---- what calls that wait expect ---------------------------------------------------------------------------------

    def expect_open(self, by: str = "") -> None:
        if self.closed:
            raise NotRunning(f"this producer {'was' if by else 'is'} closed{by}")

    def expect_progress(self, seat: Seat, shard: int) -> None:
        """Raises when nobody will ever make room in this lane."""
        if seat.control.shard_state(shard) == "failed":
            raise HandlerError(
                f"shard {shard} of engine {self.engine!r} has failed: "
                f"{seat.control.shard_error(shard) or 'no reason recorded'}",
                detail="What it accepted stays in shared memory.",
                hint="Mend the cause, then `shardmem reload`",
            )
        if lib.sm_sender_broken(seat.sender, shard):
            raise SegmentCorrupt(
                f"the worker of shard {shard} found the lane of producer {seat.number} (this one) corrupt and "
                f"reads it no more; what it had accepted is lost to that worker: close, connect again, and "
                f"look for a program that writes into memory that is not its own"
            )
        with self._changing:
            if self.seat is seat and seat.state == "gone":
                self._let_go(seat)

    def expect_engine(self, seat: Seat) -> None:
        """Raises when it has ended before it had handled everything."""
        if (state := seat.state) == "stopped":
            raise NotRunning(
                f"engine {self.engine!r} was stopped; what it had accepted but not handled is in shared memory"
            )
        if state == "gone":
            self._unhandled = 0
            raise NotRunning(f"engine {self.engine!r} ended before it had handled everything, and its memory is gone")

    def expect_none_lost(self) -> None:
        """Raises once."""
        if (seat := self.seat) is not None:
            seat.expect_none_cut_short()
        if self._unhandled:
            lost, self._unhandled = self._unhandled, 0
            raise NotRunning(f"{lost:,} events were not handled: engine {self.engine!r} ended, and its memory is gone")

    # ---- positions and counts ----------------------------------------------------------------------------------------

    def position(self) -> Marks:
        if (seat := self.own_seat()) is None:
            return {}
        engine, lanes = seat.control.geometry.engine_id, list(seat.inboxes.items())
        found = {(engine, shard, inbox.generation): seat.position(shard) for shard, inbox in lanes}
        return {lane: at[0] for lane, at in found.items() if at is not None}

    def has_come_to(self, position: Marks) -> bool:
        seat = self.own_seat()
        for (engine, shard, generation), target in position.items():
            if engine in self._failed_engines:
                return False
            if seat is None or seat.control.geometry.engine_id != engine:
                continue  # the engine ended since, and had handled all
            inbox = seat.inboxes.get(shard)
            if inbox is not None and inbox.generation == generation and not seat.has_come_to(shard, target):
                return False  # of another generation: the shard ended since, which it does with empty lanes
        return True

    def counts(self) -> Counts:
        with self._changing:
            seat = self.own_seat()
            return self._before if seat is None else self._before.plus(seat.counts())

    def count_refused(self, reason: str, events: int) -> None:
        if self.call(lib.sm_count_refused, REASONS.index(reason), events) != lib.SM_OK:
            self._before = self._before.plus(Counts(refused={reason: events}))

    def count_blocked(self, nanoseconds: int) -> None:
        self.call(lib.sm_count_blocked, nanoseconds)


def _described(schema: Schema) -> str:
    return f"records of dtype {schema.dtype} with key {schema.key!r}" if schema.is_records else "events"


def _new_locks() -> None:
    for attachment in list(_all):
        attachment._changing = threading.RLock()  # a thread that does not exist here may have held it


os.register_at_fork(after_in_child=_new_locks)
