"""Messages of a partition as columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from shardmem.runtime.columns import Keys
from shardmem.runtime.origins import columns_of_headers
from shardmem.schema import KEY_NONE, KEY_STR
from shardmem.sources.contract import Columns, Position
from shardmem.sources.nats.reader import Message
from shardmem.sources.nats.topics import Topic

REMOVED = "KV-Operation"  # of a message of a key-value bucket that has no value: DEL, PURGE


def columns_of(
    partition: str, messages: Sequence[Message], topic: Topic, key_header: str | None, headers: bool
) -> Columns:
    contents = [message.content for message in messages]
    if key_header is None:
        keys = [topic.key_of(content.subject) for content in contents]
    else:
        keys = [(content.headers or {}).get(key_header) for content in contents]
    missing = np.array([bool(content.headers) and REMOVED in (content.headers or {}) for content in contents])
    offsets = np.array([message.offset for message in messages], "u8")
    return Columns(
        partition,
        offsets,
        Position(int(offsets[-1]) + 1),
        payloads=_joined([content.data for content in contents]),
        keys=_keys_of(keys),
        timestamps=np.array([message.milliseconds for message in messages], "i8"),
        headers=columns_of_headers([_headers_of(content) for content in contents]) if headers else None,
        missing=missing if missing.any() else None,
        bytes=sum(len(content.data) for content in contents),
    )


def _keys_of(keys: Sequence[str | None]) -> Keys | None:
    if not any(key is not None for key in keys):
        return None
    data, offsets = _joined([(key or "").encode() for key in keys])
    kinds = np.array([KEY_NONE if key is None else KEY_STR for key in keys], "u1")
    return Keys(KEY_STR if (kinds == KEY_STR).all() else kinds, None, data, offsets)


def _joined(parts: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    return b"".join(parts), np.fromiter(accumulate(map(len, parts), initial=0), "u8", len(parts) + 1)


def _headers_of(content: Any) -> list[tuple[str, bytes | None]]:
    return [(name, str(value).encode()) for name, value in (content.headers or {}).items()]
