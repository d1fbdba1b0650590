"""A handler that makes and frees arrays with each batch, as handlers in numpy do."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np

from shardmem import Batch, Context, Handler

ROUNDS = 400


class Allocating(Handler):
    """Of its one event it makes many batches, and notes how many pages it was given for them."""

    def open(self, context: Context) -> None:
        self.noted = Path(os.environ["RECORD_DIR"]) / "faults"

    def handle(self, batch: Batch) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(ROUNDS):
            arrays = [np.empty(20_000), np.empty(20_000), np.empty(20_000)]
            for array in arrays:
                array.fill(1.0)
            del arrays, array
        self.noted.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
