"""What the files of an engine's state say."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from shardmem.runtime.state_reader import StateReader


def kept(directory: str, name: str) -> dict[Any, Any]:
    """The values of a keyed state, by key."""
    with contextlib.closing(StateReader(directory)) as reader:
        return {key: msgspec.msgpack.decode(row[0]) for _, _, key, row in reader.rows(name)}
