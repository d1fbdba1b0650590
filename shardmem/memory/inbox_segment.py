"""The inbox segment of one shard: a header and one lane per seat."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shardmem.memory.native import ffi, lib
from shardmem.memory.refusals import refused
from shardmem.memory.segment import Segment, inbox_name, path_of

if TYPE_CHECKING:
    from shardmem.memory.native import sm_geometry

PAGE = 4096


class Engine(Protocol):
    """What an inbox knows of its control segment."""

    engine: str
    geometry: sm_geometry
    max_producers: int


@dataclass(frozen=True)
class LaneView:
    """One lane at one moment: positions and the counts that belong to them."""

    seat: int
    tail: int
    head: int
    accepted: int
    handled: int
    quarantined: int
    shed: int  # as its producer asked, and those that were lost
    skipped: int
    lost: int
    broken: bool

    @property
    def in_flight(self) -> int:
        return self.accepted - self.handled - self.quarantined - self.shed - self.skipped

    @property
    def waiting(self) -> int:
        """Events that its worker will still take. Whether there are any is told by the positions: only they are
        checked, and a damaged count must not keep anybody waiting."""
        return max(1, self.in_flight) if self.head != self.tail and not self.broken else 0


class InboxSegment:
    """The inbox segment of one shard: a header and one lane per seat."""

    def __init__(self, control: Engine, segment: Segment, shard: int, generation: int) -> None:
        self.control, self.segment, self.shard, self.generation = control, segment, shard, generation
        self.address = segment.address
        self._counts = 0, 0, 0, 0, 0

    @classmethod
    def create(cls, control: Engine, shard: int, generation: int) -> InboxSegment:
        """A fresh inbox. Only its header is reserved: a lane is when its seat first opens it."""
        geometry, name = control.geometry, inbox_name(control.engine, shard, generation)
        try:
            segment = Segment.create(name, geometry.inbox_bytes, PAGE, f"the inbox of shard {shard}")
        except FileExistsError:
            # Left by a supervisor that was killed before it told anybody of it, or by an engine whose control segment
            # is gone. The caller holds the supervisor's lease, so nobody else is creating it now.
            try:
                os.unlink(path_of(name))
            except OSError as error:
                raise refused(f"cannot remove {path_of(name)}, which is in the way", error) from error
            segment = Segment.create(name, geometry.inbox_bytes, PAGE, f"the inbox of shard {shard}")
        lib.sm_inbox_format(segment.address, geometry, shard, generation)
        return cls(control, segment, shard, generation)

    def repair(self) -> bool:
        """By its supervisor: whether its header said something else, until now."""
        return bool(lib.sm_inbox_mend(self.address, self.control.geometry, self.shard, self.generation))

    def reserve_lane(self, seat: int) -> None:
        """Raises OutOfMemory; the lane is not open then and nothing of it was touched."""
        geometry = self.control.geometry
        self.segment.reserve(
            geometry.lanes_offset + geometry.lane_stride * seat,
            geometry.lane_stride,
            f"the lane of producer {seat} to shard {self.shard}",
        )

    def lanes(self) -> list[LaneView]:
        """The open lanes. One that is said to be open and has no memory is broken, and not looked at: that would take
        memory, or be a SIGBUS where there is none. An inbox that was cut short has none."""
        if not self.segment.is_whole:
            return []
        geometry, view, found = self.control.geometry, ffi.new("sm_lane_view *"), []
        seats = ffi.new("uint32_t[]", self.control.max_producers)
        for seat in seats[0 : lib.sm_open_lanes(self.address, geometry, seats)]:
            if self.segment.is_hole(geometry.lanes_offset + geometry.lane_stride * seat):
                found.append(LaneView(seat, 0, 0, 0, 0, 0, 0, 0, 0, True))
                continue
            lib.sm_view_lane(self.address, geometry, seat, view)
            found.append(
                LaneView(
                    seat,
                    view.tail,
                    view.head,
                    view.accepted,
                    view.handled,
                    view.quarantined,
                    view.shed + view.lost,
                    view.skipped,
                    view.lost,
                    bool(view.broken),
                )
            )
        return found if self.segment.is_whole else []

    def oldest_ns(self, lanes: list[LaneView]) -> int | None:
        """When the first of the events was sent that are not handled yet, of lanes that `lanes` found; None: there are
        none. On the clock of `now_ns`, and never later than now, whatever a frame says."""
        now = lib.sm_now_ns()
        sent = (
            lib.sm_lane_oldest_ns(self.address, self.control.geometry, lane.seat)
            for lane in lanes
            if lane.head != lane.tail and not lane.broken
        )
        return min((min(each, now) for each in sent if each > 0), default=None)

    def has_lane(self, seat: int) -> bool:
        """Whether a lane that is reserved was not cut off since."""
        geometry = self.control.geometry
        return self.segment.has(geometry.lanes_offset + geometry.lane_stride * seat)

    def counts(self, seat: int) -> tuple[int, int, int, int, int]:
        """Of a lane that is reserved: accepted, handled, quarantined, shed and skipped. As they were at the last look,
        when the inbox has been cut short since."""
        if self.has_lane(seat):
            view = ffi.new("sm_lane_view *")
            lib.sm_view_lane(self.address, self.control.geometry, seat, view)
            self._counts = view.accepted, view.handled, view.quarantined, view.shed + view.lost, view.skipped
        return self._counts

    def wake(self) -> None:
        lib.sm_wake(self.address)

    def close(self) -> None:
        self.segment.close()
        self.address = ffi.NULL
