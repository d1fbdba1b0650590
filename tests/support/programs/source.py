"""Events of a program that produces, written down before and after each call."""

from __future__ import annotations

import random

import numpy as np

import shardmem
from support.recorder import payload, records
from support.rig import Log


class Source:
    """Events of one test-level producer: keys drawn at random, numbers rising per key."""

    def __init__(self, producer: int, log: Log, keys: int = 8, seed: int | None = None) -> None:
        self.id, self._log = producer, log
        self._random = random.Random(producer if seed is None else seed)
        self._numbers = [0] * keys

    def take(self, count: int) -> tuple[list[int], list[int]]:
        keys = [self._random.randrange(len(self._numbers)) for _ in range(count)]
        numbers = []
        for key in keys:
            numbers.append(self._numbers[key])
            self._numbers[key] += 1
        return keys, numbers

    def push(
        self, producer: shardmem.Producer, method: str, count: int, filler: int, timeout: float | None = None
    ) -> None:
        """One call, logged before and after."""
        keys, numbers = self.take(1 if method == "push" else count)
        self._log.rows("offered", self.id, keys, numbers)
        options = {} if timeout is None else {"timeout": timeout}
        if method == "send":
            producer.send(records(self.id, keys, numbers), **options)
        else:
            payloads = [
                payload(self.id, key, number, self._random.randrange(filler + 1)) for key, number in zip(keys, numbers)
            ]
            if method == "push":
                producer.push(keys[0], payloads[0], **options)
            elif method == "push_many":
                producer.push_many(keys, payloads, **options)
            else:
                producer.push_columns(
                    np.array(keys), b"".join(payloads), np.cumsum([0, *map(len, payloads)]), **options
                )
        self._log.rows("accepted", self.id, keys, numbers)
