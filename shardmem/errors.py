"""The errors of shardmem. Each says what happened, with which value, against which limit; `.hint` says what to do.

The form is PostgreSQL's: `.text` is one line without a full stop, `.detail` is a sentence more, `.hint` is advice, in
which code stands in backticks. `str(error)` is text and detail; a traceback shows the hint below it, as a note.

ShardmemError
├── ConfigError           a setting is wrong; one error lists all faults
├── SegmentError          shared memory is not what it should be
│   ├── LayoutMismatch    made by another version of shardmem, or for another schema
│   ├── SegmentCorrupt    a word contradicts the geometry
│   └── OutOfMemory       /dev/shm has too little room
├── Backpressure          events were refused; `.rest` is exactly what was not accepted
│   └── Unavailable       because the engine is stopped and was not run again in time; a NotRunning, too
├── Interrupted           a call that waited for room was told to give up
├── NotRunning            the engine does not exist, is stopping, or this end of it is closed
├── AlreadyRunning        another process holds the role
├── Superseded            a command will not be done, because another one was given since
├── BatchEscaped          a view of a batch was kept past its end
├── StateError            a value of keyed state cannot be saved, read or upgraded, or is not of this shard
└── HandlerError          the user's handler failed; the events it had in hand stay in shared memory
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable, Mapping
from typing import Any


class ShardmemError(Exception):
    """Base of all errors that shardmem raises on its own account. left: of a call of a producer with many events, the
    numbers of those that were not accepted."""

    left: Any = ()

    def __init__(self, text: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(text)
        self.text, self.detail, self.hint = text, detail, hint
        if hint:
            self.__notes__ = [f"hint: {hint}"]  # tracebacks show them, from Python 3.11 on

    def __str__(self) -> str:
        return f"{self.text}. {self.detail}" if self.detail else self.text

    def __reduce__(self) -> tuple[Any, ...]:
        """Without `__init__`: what it is given differs from class to class, what it sets is in `__dict__`."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def describe(self) -> dict[str, Any]:
        """As JSON: what the control API answers, what `--json` prints, and what an embedded supervisor reports."""
        return {"error": str(self), "hint": self.hint, "kind": type(self).__name__}

    @staticmethod
    def of(described: Mapping[str, Any]) -> ShardmemError:
        """The error of another process, from what `describe` made of it there."""
        text, hint, kind = described["error"], described.get("hint"), described.get("kind")
        if kind == "OutOfMemory" and "need" in described:
            return OutOfMemory(text, described["need"], described["free"], hint=hint)
        return _BY_NAME.get(kind or "", ShardmemError)(text, hint=hint)


def with_hint(error: BaseException) -> str:
    """Text, detail and hint in one line, where there is room for no more: a log record, the reason of a shard."""
    hint = getattr(error, "hint", None)
    return f"{error} (hint: {hint})" if hint else str(error)


class ConfigError(ShardmemError):
    """Wrong settings. `faults` holds one sentence for each."""

    def __init__(self, faults: str | Iterable[str], *, detail: str | None = None, hint: str | None = None) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        text = self.faults[0] if len(self.faults) == 1 else "\n".join(f"- {fault}" for fault in self.faults)
        super().__init__(text, detail=detail, hint=hint)


class SegmentError(ShardmemError):
    """Shared memory is not what it should be."""


class LayoutMismatch(SegmentError):
    """The segment was made by another version of shardmem or for another schema."""


class SegmentCorrupt(SegmentError):
    """A word in shared memory contradicts the geometry."""


class OutOfMemory(SegmentError):
    """/dev/shm has too little room. `need` and `free` are bytes. Nothing was touched."""

    def __init__(self, text: str, need: int, free: int, *, detail: str | None = None, hint: str | None = None) -> None:
        self.need, self.free = need, free
        super().__init__(text, detail=detail, hint=hint)

    @classmethod
    def of_segment(cls, what: str, need: int, free: int, directory: str) -> OutOfMemory:
        return cls(
            f"{what} needs {need:,} bytes of shared memory and {directory} has {free:,} free",
            need,
            free,
            hint=f"Lower `lane_bytes`, or make {directory} larger: `docker run --shm-size`, a memory-backed emptyDir "
            f"with sizeLimit in Kubernetes, `mount -o remount,size=... {directory}`",
        )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "need": self.need, "free": self.free}


class Backpressure(ShardmemError):
    """Events were refused because a lane is full. Nothing of them was written.

    rest: exactly what was not accepted, in order and in the form it was offered: `(key, payload)` after `push`,
        `(keys, payloads)` after `push_many`, `(keys, data, offsets)` after `push_columns`, an array after `send`.
    accepted: how many events of the call were accepted.
    shard: the shard whose lane was full; None: not because of a lane (Unavailable).
    """

    shard: int | None

    def __init__(self, rest: Any, accepted: int, refused: int, shard: int, waited: float) -> None:
        self.rest, self.accepted, self.shard = rest, accepted, shard
        super().__init__(
            f"the lane to shard {shard} is full: {refused:,} of {accepted + refused:,} events were not accepted "
            f"after {waited:.3g} s",
            detail="They are in .rest.",
            hint="Wait longer (`timeout`), run more shards, or raise `lane_bytes`",
        )


class Interrupted(ShardmemError):
    """A call that waited for room was told to give up: `Producer.interrupt`."""


class NotRunning(ShardmemError):
    """The engine does not exist, is stopping, or this end of it is closed."""


class Unavailable(Backpressure, NotRunning):
    """Events were refused because the engine is stopped. The producer attaches again when it is run again: try later,
    as after any Backpressure.
    """

    def __init__(self, why: str, rest: Any, accepted: int, refused: int, waited: float) -> None:
        self.rest, self.accepted, self.shard = rest, accepted, None
        ShardmemError.__init__(
            self,
            f"{why}: {refused:,} of {accepted + refused:,} events were not accepted after {waited:.3g} s",
            detail="They are in .rest.",
            hint="Run the engine again: this producer attaches by itself, at its next call",
        )


class AlreadyRunning(ShardmemError):
    """Another process holds the role (supervisor of this engine, worker of this shard, every producer seat)."""


class TooManyProducers(AlreadyRunning):
    """Every seat of the engine is taken by a live producer."""


class Superseded(ShardmemError):
    """What a command asked for will not come, because another one was given since. Nothing has failed."""


class BatchEscaped(ShardmemError):
    """A view of a batch was kept past the return of the handler; its memory is about to be reused."""


class StateError(ShardmemError):
    """A value of keyed state cannot be saved, read or upgraded, or its key belongs to another shard. Names both."""


class HandlerError(ShardmemError):
    """The user's handler could not be loaded, or failed. The events it had in hand stay in shared memory."""


_BY_NAME: dict[str, type[ShardmemError]] = {  # those that are made of their text
    each.__name__: each
    for each in (
        ConfigError,
        SegmentError,
        LayoutMismatch,
        SegmentCorrupt,
        NotRunning,
        AlreadyRunning,
        TooManyProducers,
        Superseded,
        BatchEscaped,
        HandlerError,
        Interrupted,
        StateError,
    )
}
