"""multiprocessing.Queue: pickles, a feeder thread in every producer, one pipe, two locks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from bench.harness import Contender, Trial
from bench.rivals import BARE


class Queue(Contender):
    name = "multiprocessing.Queue"
    # In the columns case too: it is what a program does today that has no columns to hand over.
    forms = {"lists": "list", "columns": "list", "push": "single", "latency": "single"}
    note = f"multiprocessing.Queue: {BARE}; order only where one process reads"

    def setup(self, trial: Trial) -> None:
        # Bounded: without a limit the producer runs ahead into memory, and lists got half as far.
        self.queue: Any = multiprocessing.get_context("fork").Queue(64 if trial.form == "list" else 16384)

    def sender(self, trial: Trial, index: int) -> Callable[[Any], Any]:
        return self.queue.put

    def receiver(self, trial: Trial, index: int) -> Callable[..., Any]:
        get = self.queue.get
        return (lambda most: get()) if trial.form == "list" else get


CONTENDERS = [Queue()]
