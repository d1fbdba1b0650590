"""multiprocessing.Pipe: bytes through a kernel pipe of 64 KiB, two system calls a message and side."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from bench.harness import Contender, Trial
from bench.rivals import BARE


class Pipe(Contender):
    name = "multiprocessing.Pipe"
    forms = {"records": "joined", "columns": "joined", "push": "single", "latency": "single"}
    note = f"multiprocessing.Pipe: {BARE}; one process at each end"

    def setup(self, trial: Trial) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipes = [fork.Pipe(duplex=False) for _ in range(trial.producers)]

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        return self.pipes[index][1].send_bytes

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        return self.pipes[index][0].recv_bytes


CONTENDERS = [Pipe()]
