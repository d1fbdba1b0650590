"""What a handler raised, in words; and then nothing of it refers to the batch any more."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

from shardmem.runtime.batch import Batch
from shardmem.text import of_error

TRACE_CHARS = 20_000


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
        where = f"event with key {short(key)}, sequence {sequences[at]} of producer {producers[at]}"
        if payloads is not None:
            where += f", payload {short(payloads[at])}"
    else:
        first, last = (keys[0], keys[-1]) if keys is not None else (None, None)
        where = (
            f"batch of {len(batch)} events, keys {short(first)} to {short(last)}, sequences {sequences[0]} of "
            f"producer {producers[0]} to {sequences[-1]} of producer {producers[-1]}"
        )
    return f"the handler of shard {batch.shard} raised {of_error(error)} at the {where}"


def trace_of(error: BaseException) -> str:
    """Its traceback, as text that can be encoded and has an end."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    except Exception as second:  # what it says is the user's code
        text = f"{of_error(error)}\n(its traceback cannot be had: {of_error(second)})"
    return text[-TRACE_CHARS:].encode(errors="backslashreplace").decode()


def let_go(batch: Batch, error: BaseException) -> None:
    """Of the error, and all that it came from, no frame is left. Where arguments or attributes refer to rows of the
    batch, as `raise ValueError("bad row", row)` does, they go too: only then, because the same error may be raised
    again. Raises BatchEscaped if others refer to it."""
    chain, found = [error], set[int]()
    for each in chain:
        if id(each) in found:
            continue
        found.add(id(each))
        members = getattr(each, "exceptions", ()) if isinstance(each, _GROUP) else ()
        chain += [next for next in (each.__cause__, each.__context__, *members) if next is not None]
    for each in chain:
        with contextlib.suppress(Exception):
            traceback.clear_frames(each.__traceback__)
        each.__traceback__ = each.__cause__ = each.__context__ = None
    if batch._is_held():
        for each in chain:
            with contextlib.suppress(Exception):
                each.args = ()
            with contextlib.suppress(Exception):
                vars(each).clear()
    batch._end()


def short(value: Any) -> str:
    """A key or a payload, for people."""
    if isinstance(value, (bytes, str)) and len(value) > 80:
        return f"{value[:77]!r}... ({len(value)} {'bytes' if isinstance(value, bytes) else 'characters'})"
    return repr(value)


_GROUP: Any = getattr(__import__("builtins"), "BaseExceptionGroup", ())  # Python 3.10 has none
