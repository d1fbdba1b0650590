"""One call of a producer that cannot be finished at once: retry, backpressure, what is refused and how that is
counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from shardmem.errors import Backpressure, Interrupted, NotRunning, OutOfMemory, SegmentCorrupt, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import REASONS, lib

if TYPE_CHECKING:
    from shardmem.memory.native import sm_sender

Mode = Literal["block", "fail", "drop_newest", "drop_oldest", "sample"]
MODES: tuple[str, ...] = get_args(Mode)
SLICE = 0.1  # the longest single wait, so that signals, a stop and a failed shard are noticed
DEFAULT: Any = type("default", (), {"__repr__": lambda self: "the engine's backpressure"})()
PROBE: Any = type("probe", (), {"__repr__": lambda self: "one try that is not counted as refused"})()


class Sending(Protocol):
    """What a call knows of its producer. _timeout: seconds that a call which says nothing waits; None: as long as it
    takes."""

    engine: str
    seat: int
    backpressure: str
    _timeout: float | None
    _spin_ns: int
    _sample_every: int
    _sampled: int  # events that mode "sample" has refused so far
    _closed: bool
    _interrupted: bool
    _sender: sm_sender
    _control: ControlSegment

    def _usable(self) -> None: ...

    def _open_lane(self, shard: int) -> None: ...

    def _reattach(self) -> None: ...

    def _still_handled(self, shard: int) -> None: ...


class Call:
    """One call of a producer that could not be finished at once: what to do about it, and for how long."""

    def __init__(self, producer: Sending, timeout: float | None) -> None:
        self._producer = producer
        self._mode = producer.backpressure if timeout is DEFAULT else "block"
        self._probe = timeout is PROBE
        self._lost = 0
        timeout = producer._timeout if timeout is DEFAULT else 0.0 if self._probe else timeout
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r}; None, or seconds from 0 on")
        self._timeout = timeout
        self._started = time.monotonic()
        self._blocked = False

    @property
    def drops(self) -> bool:
        """Whether what finds no room is dropped and counted instead of waited for."""
        return self._mode in ("drop_newest", "sample")

    def mend(self, status: int, shard: int, rest: Callable[[], tuple[Any, int]]) -> bool:
        """Remove the obstacle, waiting if need be. True: call again. False: the time is over.

        rest: what is not accepted yet and how much that is; an error that ends the call carries it as `.rest`.
        """
        try:
            return self._mend(status, shard)
        except ShardmemError as error:
            left, count = rest()
            raise self.explained(error, left, count)  # noqa: B904

    def explained(self, error: ShardmemError, rest: Any, count: int, already: int = 0) -> ShardmemError:
        """The error of a call that ends early, with what was not accepted, which counts as refused."""
        error.rest = rest  # type: ignore[attr-defined]
        reason = "full" if isinstance(error, OutOfMemory) else "stopped"
        lib.sm_count_refused(self._producer._sender, REASONS.index(reason), count - already)
        return error

    def _mend(self, status: int, shard: int) -> bool:
        producer = self._producer
        if status == lib.SM_NEED_LANE:
            producer._open_lane(shard)
        elif status == lib.SM_FULL:
            return self._make_room(shard)
        elif status == lib.SM_FORKED:
            producer._reattach()
        elif status == lib.SM_CLOSED:
            producer._usable()
            raise NotRunning("this producer is closed")
        elif status == lib.SM_STOPPED and producer._control.state != "starting":
            raise NotRunning(f"engine {producer.engine!r} is {producer._control.state}; it accepts nothing any more")
        elif status in (lib.SM_STOPPED, lib.SM_UNROUTED):  # about to start: no shard, or no slot table yet
            if self.left() == 0:
                return False
            time.sleep(0.005)
        elif status == lib.SM_CORRUPT:
            raise SegmentCorrupt(
                f"the lane of producer {producer.seat} to shard {shard} contradicts itself (its head is "
                f"beyond its tail); nothing more is pushed into it"
            )
        else:
            raise ShardmemError(f"unexpected status {status} of the lane to shard {shard}")
        return True

    def _make_room(self, shard: int) -> bool:
        producer, left = self._producer, self.left()
        if self.drops:
            return False
        if self._mode == "drop_oldest":
            lib.sm_evict(producer._sender, shard)
        elif left == 0:
            return False
        self._blocked = True
        slice_ns = int(1e9 * (SLICE if left is None else min(SLICE, left)))
        lib.sm_wait_room(producer._sender, shard, producer._spin_ns, slice_ns)
        if producer._closed:
            raise NotRunning("this producer was closed by another thread")
        if producer._interrupted:
            raise Interrupted("interrupted while a lane was full")
        producer._still_handled(shard)
        return True

    def left(self) -> float | None:
        """Seconds; None without a limit."""
        return None if self._timeout is None else max(0.0, self._timeout - (time.monotonic() - self._started))

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
        lib.sm_count_refused(
            self._producer._sender, REASONS.index("sampled" if self._mode == "sample" else "full"), count
        )

    def done(self, offered: int) -> int:
        """How many were accepted."""
        if self._blocked:
            lib.sm_count_blocked(self._producer._sender, int((time.monotonic() - self._started) * 1e9))
        return offered - self._lost

    def give_up(self, offered: int, accepted: int, rest: Any, shard: int) -> int:
        """The time is over: count what is refused, and raise."""
        self.done(offered)
        refused = offered - accepted
        if not self._probe:
            lib.sm_count_refused(self._producer._sender, REASONS.index("timeout" if self._timeout else "full"), refused)
        raise Backpressure(rest, accepted, refused, shard, time.monotonic() - self._started)
