"""When the rows of a batch that was handled are committed, and how a handler is told of slots that come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from shardmem.errors import HandlerError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.reader import Reader
from shardmem.runtime.batch import Batch
from shardmem.runtime.handler import Handler, optional
from shardmem.settings import some
from shardmem.text import of_error

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch


# The longest sleep of a worker: a signal may have come just before it, and it gives signs of life.
REST_NS = 1_000_000_000


class Commit(Protocol):
    """When the rows of batches that were handled are committed, and what becomes of the state that they made."""

    handler: Handler
    saves: bool  # into files: state, or messages to be published

    @property
    def patience_ns(self) -> int:
        """How long the worker may sleep."""

    @property
    def is_deferring(self) -> bool:
        """Whether something was handled that is not saved."""

    def take(self, batch: sm_batch) -> bool:
        """Before the handler gets it: what is in its state already is left out. False: nothing is left of it, and it
        counts as handled."""

    def enter(self, slot: int) -> None:
        """What is handled next is an event of this slot that is in no lane."""

    def handle(self, batch: Batch) -> None:
        """Call the handler. Raises what it raises."""

    def take_up(self) -> None:
        """Before the first batch: what the predecessor had saved, in lanes and in the handler, which gains its
        slots."""

    def handled(self, rejected: bytes) -> bool:
        """The batch in hand was handled, but for the rows that it rejected: places in the lanes. False: a lane changed
        under it, and moves no further."""

    def set_aside(self) -> None:
        """The one row in hand was set aside, and all before it is saved."""

    def step(self, idle: bool) -> None:
        """Between batches: save if it is time to."""

    def settle(self) -> None:
        """Nothing is deferred after this."""

    def touch(self, slots: Iterable[int]) -> None:
        """The handler has been given an event of these that is in no lane."""

    def failing(self) -> None:
        """The batch in hand has failed, and has perhaps changed the state of its slots before it did."""

    def roll_back(self) -> None:
        """The handler forgets what it did since the last commit; the rows behind it come again."""

    def hand_over(self, slots: list[int]) -> None:
        """These slots have no rows left here: save them and forget them. The handler has lost them."""

    def restore(self, slots: Iterable[int]) -> None:
        """These slots are handled here from now on. The handler has gained them."""

    def close(self) -> None:
        """The worker ends in good order, and nothing is deferred."""


class Immediate:
    """Heads move when the handler has returned."""

    patience_ns = REST_NS
    is_deferring = saves = False

    def __init__(self, control: ControlSegment, shard: int, reader: Reader, handler: Handler) -> None:
        self._control, self._shard, self._reader, self.handler = control, shard, reader, handler

    def take(self, batch: sm_batch) -> bool:
        return True

    def enter(self, slot: int) -> None: ...

    def handle(self, batch: Batch) -> None:
        self.handler.handle(batch)

    def take_up(self) -> None:
        self.restore(owned_slots(self._control, self._shard))

    def handled(self, rejected: bytes) -> bool:
        return (not rejected or self._reader.set_aside_rows(rejected)) and self._reader.commit()

    def set_aside(self) -> None: ...

    def step(self, idle: bool) -> None: ...

    def settle(self) -> None: ...

    def touch(self, slots: Iterable[int]) -> None: ...

    def failing(self) -> None: ...

    def roll_back(self) -> None: ...

    def hand_over(self, slots: list[int]) -> None:
        for slot in slots:
            call(self.handler, self._shard, "drop", slot)
        tell(self.handler, self._shard, "lost", slots)

    def restore(self, slots: Iterable[int]) -> None:
        tell(self.handler, self._shard, "gained", slots)

    def close(self) -> None: ...


def owned_slots(control: ControlSegment, shard: int) -> set[int]:
    """Slots whose rows the worker of a shard handles now. The table is read before the holds: a slot that begins to
    move in between is seen as moving."""
    owners, _ = control.slot_table()
    owned = set(np.flatnonzero(owners == shard).tolist())
    for move in control.moves():
        if move.source == shard and move.phase in ("rerouting", "draining") and not move.drained:
            owned.add(move.slot)
        elif not (move.target == shard and move.phase == "releasing" and move.restored):
            owned.discard(move.slot)
    return owned


def tell(handler: Handler, shard: int, method: str, slots: Iterable[int]) -> None:
    """What the handler raises fails the worker, as `restore` and `drop` do."""
    if told := sorted(slots):
        call(handler, shard, method, told)


def call(handler: Handler, shard: int, method: str, about: int | list[int], *values: Any) -> Any:
    try:
        return optional(handler, method)(about, *values)
    except Exception as error:
        what = f"slot {about}" if isinstance(about, int) else f"{some(len(about), 'slot')} from {about[0]} on"
        raise HandlerError(
            f"{method}({what}) of the handler of shard {shard} raised {of_error(error)}; what "
            f"was not committed yet stays in shared memory"
        ) from error
