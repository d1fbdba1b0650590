"""Columns of keys and of numbers, as C takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from shardmem.state.keys import plain_key

NUMBERS: dict[Any, str] = {int: "i8", float: "f8"}  # types of values that are kept as numbers
_PLAIN = {int, str, bytes}


class Keyed(Protocol):
    """A batch."""

    def __len__(self) -> int: ...
    @property
    def keys(self) -> Any: ...
    def key_source(self) -> Any: ...


ManyKeys = Keyed | np.ndarray | Sequence[Any]


def source_of(keys: ManyKeys) -> Any:
    """See look_up in csrc/many.c. Raises TypeError and ValueError for what cannot be a key."""
    if hasattr(keys, "key_source"):
        return keys.key_source()
    if isinstance(keys, np.ndarray):
        if keys.ndim != 1:
            raise ValueError(f"keys are an array of shape {keys.shape}, and not a column")
        if keys.dtype.kind in "iu":
            return np.ascontiguousarray(keys, f"{keys.dtype.kind}8"), keys.dtype.kind == "u"
    return [key if type(key) in _PLAIN else plain_key(key) for key in each_of(keys)]


def each_of(keys: ManyKeys) -> Iterable[Any]:
    each: Any = keys
    if hasattr(keys, "key_source"):
        each = each.keys
    found: Iterable[Any] = each.tolist() if isinstance(each, np.ndarray) else each
    return found


def numbers_of(given: Any, plain: Any, whose: str) -> np.ndarray:
    """As int64 of a state of int, as float64 of one of float."""
    if plain not in NUMBERS:
        raise TypeError(f"values of {whose} are no numbers, so nothing can be added to them")
    array = np.asarray(given)
    if array.dtype.kind not in ("biu" if plain is int else "biuf") or array.ndim > 1:
        what = f"{array.dtype} of shape {array.shape}" if array.ndim else type(given).__name__
        raise TypeError(f"{whose} is of {plain.__name__}, and was given {what}")
    if array.dtype == np.uint64 and plain is int and array.size and int(array.max()) >= 1 << 63:
        raise OverflowError(f"{whose} was given {array.max()}, which does not fit into int64")
    return np.asarray(array, NUMBERS[plain], order="C")  # of one number, which has no dimension, too
