"""The record of a group in a key-value bucket: read, changed and written again, and refused if another was faster."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from shardmem.sources.contract import SourceError
from shardmem.sources.nats.group import Record

TRIES = 50  # of a change that others are faster with


class GroupRecord:
    def __init__(self, js: JetStreamContext, bucket: str, group: str, replicas: int) -> None:
        self._js, self._bucket, self._key, self._replicas = js, bucket, group, replicas
        self._values: KeyValue | None = None
        self._changing = asyncio.Lock()  # of ours one at a time: they would only be in each other's way

    async def change(self, change: Callable[[Record], None]) -> tuple[Record, int]:
        """The record as it was written, and CLOCK_BOOTTIME before it was read. What `change` raises is raised, and
        nothing is written. Raises errors of nats; then it may have been written."""
        async with self._changing:
            values = self._values = self._values or await self._open()
            for _ in range(TRIES):
                began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                record, revision = await self._read(values)
                change(record)
                try:
                    await values.update(self._key, record.to_json(), last=revision)
                except nats.js.errors.KeyWrongLastSequenceError:
                    await asyncio.sleep(random.uniform(0, 0.02))
                    continue
                return record, began
        raise asyncio.TimeoutError

    async def _read(self, values: KeyValue) -> tuple[Record, int]:
        """What is read may be old, if another server of the cluster answers: then it cannot be replaced."""
        try:
            entry = await values.get(self._key)
        except nats.js.errors.KeyNotFoundError:
            return Record(), 0
        try:
            return Record.of_json(entry.value or b""), entry.revision or 0
        except ValueError as error:
            raise SourceError(
                f"key {self._key} of bucket {self._bucket} is not the record of a group: {error}",
                hint=f"Write another `group`, or delete the key: nats kv del {self._bucket} {self._key}",
            ) from None

    async def _open(self) -> KeyValue:
        try:
            return await self._js.key_value(self._bucket)
        except nats.js.errors.BucketNotFoundError:
            return await self._js.create_key_value(bucket=self._bucket, history=1, replicas=self._replicas)
