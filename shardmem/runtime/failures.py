"""A batch that fails: tried again, halved, and down to one event, which is set aside in the quarantine at the limit.

The record of attempts is in shared memory (csrc/attempt.c), so it makes no difference whether the handler raised or
took its worker with it: the successor goes on where the predecessor died.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardmem.errors import HandlerError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import bytes_at
from shardmem.memory.reader import Reader
from shardmem.runtime.batch import Batch
from shardmem.runtime.checkpoint import Commit
from shardmem.runtime.quarantine import Quarantine
from shardmem.text import of_error

if TYPE_CHECKING:
    from shardmem.memory.native import sm_batch

MOST_IN_A_ROW = 16  # events that fail one after the other, with no success between: then it is not the events
LONGEST_PAUSE = 5.0

log = logging.getLogger("shardmem.worker")


@dataclass(frozen=True)
class OnError:
    """What the configuration says: see config.py."""

    on_error: str
    max_attempts: int
    retry_backoff: float
    quarantine_file: str
    quarantine_limit: int


class Failures:
    """What this worker does with failures. batch: the C view of the batch in hand."""

    def __init__(
        self,
        control: ControlSegment,
        shard: int,
        reader: Reader,
        batch: sm_batch,
        commit: Commit,
        rules: OnError,
        ended: str | None,
        pause: Callable[[float], None],
        say: Callable[..., None],
    ) -> None:
        self._control, self._shard, self._reader, self._batch = control, shard, reader, batch
        self._commit, self._rules, self._pause, self._say = commit, rules, pause, say
        self._ended = ended or "it exited without a report"
        self._quarantine: Quarantine | None = None

    def must_quarantine(self) -> bool:
        """Whether the batch in hand is one event that has killed its worker as often as it may. Then it is set
        aside."""
        if self._batch.tries < self._rules.max_attempts:
            return False
        tries = self._batch.tries
        self._not_too_many(
            f"an event was in hand, alone, when the worker died, {tries} times; the last time: {self._ended}"
        )
        self._set_aside(
            "death",
            f"it was in hand, alone, when the worker died, {tries} times; the last time: {self._ended}",
            "",
            tries,
        )
        return True

    def raised(self, work: Batch, error: BaseException) -> None:
        """The handler raised. Returns when the next batch may be taken; raises HandlerError when the worker is to
        stop."""
        rules, batch = self._rules, self._batch
        if not self._reader.recheck():
            self._give_back(work, error)
            return
        text, what = explain(work, error), of_error(error)
        if rules.on_error == "stop":
            raise HandlerError(
                f"{text}. The events of this batch stay in shared memory and will be handed out again"
            ) from error
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
        self._let_go(work, error)
        rows, tries = batch.rows, batch.tries
        if rows == 1 and (rules.on_error == "quarantine" or tries + 1 >= rules.max_attempts):
            self._not_too_many(text)
            self._set_aside("exception", what, trace, tries + 1)
            self._commit.roll_back()
            return
        again = rules.on_error == "retry" and rows > 1 and not batch.suspected
        # once for people; how it is narrowed down is of interest to few
        log.log(
            logging.DEBUG if batch.suspected else logging.WARNING,
            "%.1000s; %s",
            text,
            "it is tried again" if again or rows == 1 else "it is tried in halves",
        )
        self._come_again(whole=again)
        if rules.on_error == "retry" and (again or rows == 1):
            self._pause(min(LONGEST_PAUSE, rules.retry_backoff * 2**tries))

    def _give_back(self, work: Batch, error: BaseException) -> None:
        """A frame changed under the batch, so it is not the handler's failure. What is left without that lane comes
        again."""
        log.error(
            "shard %d: a frame changed under the handler, which raised %s: %.500s; its lane is left alone, the other "
            "events of the batch come again",
            self._shard,
            type(error).__name__,
            error,
        )
        self._let_go(work, error)
        self._come_again(whole=True)

    def _let_go(self, work: Batch, error: BaseException) -> None:
        """Nothing refers to the batch any more; the state that it may have changed is known. Raises BatchEscaped."""
        traceback.clear_frames(error.__traceback__)  # they refer to the batch
        error.__traceback__ = None
        work._end()
        self._commit.failing()

    def _come_again(self, whole: bool) -> None:
        """The batch in hand is offered once more, in halves unless whole, and what it did to the state is undone."""
        self._reader.failed(whole=whole)
        self._commit.roll_back()

    def _not_too_many(self, text: str) -> None:
        if self._batch.in_a_row >= MOST_IN_A_ROW:
            raise HandlerError(
                f"{text}. It is the {self._batch.in_a_row + 1}th event in a row that fails, so it is not the events: "
                f"the shard stops. {self._batch.in_a_row} events are in quarantine "
                f"({self._rules.quarantine_file}), the rest stay in shared memory"
            )

    def _set_aside(self, kind: str, reason: str, trace: str, attempts: int) -> None:
        control, shard, span = self._control, self._shard, self._batch.span[0]
        event = Batch(control.schema, control.slots, shard, self._batch)
        records = control.schema.is_records
        try:
            keys = event.keys.tolist() if records and event.keys is not None else event.keys
            payload = bytes_at(span.rows, control.schema.geometry()["row_bytes"]) if records else event.payloads[0]
        except (
            BufferError
        ):  # it changed since it was found good; when it comes again it is good again, or its lane is broken
            self._reader.recheck()
            self._come_again(whole=True)
            return
        key = keys[0] if keys is not None else None
        sequence, slot = int(event.sequences[0]), int(event.slots[0])
        event._end()
        if self._quarantine is None:
            self._quarantine = Quarantine(self._rules.quarantine_file, self._rules.quarantine_limit)
        generation = control.view_shard(shard).generation
        self._quarantine.add(
            f"{control.geometry.engine_id:x}/{shard}/{generation}/{span.seat}/{span.position}/{span.first}",
            shard=shard,
            slot=slot,
            seat=span.seat,
            sequence=sequence,
            kind=kind,
            reason=reason,
            traceback=trace,
            attempts=attempts,
            key=key,
            payload=payload,
            schema=control.schema.describe(),
        )
        seat = span.seat
        self._reader.set_aside()
        log.error(
            "shard %d: the event with key %s, sequence %d of producer %d, is in quarantine after %d attempts: %.500s",
            shard,
            _short(key),
            sequence,
            seat,
            attempts,
            reason,
            extra={"slot": slot, "seat": seat},
        )
        self._say(quarantined=sequence)


def explain(batch: Batch, error: BaseException) -> str:
    """Which event, as exactly as can be known; the batch is still valid."""
    at = batch._position()
    sequences, producers = batch.sequences, batch.producers
    try:
        keys = batch.keys.tolist() if batch._schema.is_records and batch.keys is not None else batch.keys
        payloads = None if batch._schema.is_records or at is None else batch.payloads
    except BufferError:  # a frame changes while it is read
        keys = payloads = None
    if at is not None:
        key = keys[at] if keys is not None else None
        where = f"event with key {_short(key)}, sequence {sequences[at]} of producer {producers[at]}"
        if payloads is not None:
            where += f", payload {_short(payloads[at])}"
    else:
        first, last = (keys[0], keys[-1]) if keys is not None else (None, None)
        where = (
            f"batch of {len(batch)} events, keys {_short(first)} to {_short(last)}, sequences {sequences[0]} of "
            f"producer {producers[0]} to {sequences[-1]} of producer {producers[-1]}"
        )
    return f"the handler of shard {batch.shard} raised {of_error(error)} at the {where}"


def _short(value: Any) -> str:
    """A key or a payload, for people."""
    if isinstance(value, (bytes, str)) and len(value) > 80:
        return f"{value[:77]!r}... ({len(value)} {'bytes' if isinstance(value, bytes) else 'characters'})"
    return repr(value)
