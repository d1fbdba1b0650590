"""Handlers that keep of a batch what they may not, or may."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardmem import Batch
from support.recorder import Recorder


class Keeper(Recorder):
    """Keeps a view of its first batch, made as the file `keep` says."""

    kept: Any = None

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        how = self.directory / "keep"
        if how.exists() and int(self.rows_of(batch)["number"][0]) >= self.first():
            self.kept = KEEP[how.read_text()](batch)

    def first(self) -> int:
        path = self.directory / "keep-from"
        return int(path.read_text()) if path.exists() else 0


class KeepsAndRaises(Keeper):
    """And then it fails, too."""

    def handle(self, batch: Batch) -> None:
        super().handle(batch)
        if self.kept is not None:
            raise ValueError("with a view in hand")


class KeepsCopies(Recorder):
    """Keeps a copy of every batch, and at each later one looks whether the copies still say the same."""

    def handle(self, batch: Batch) -> None:
        if not hasattr(self, "copies"):
            self.copies: list[tuple[Batch, list]] = []
        for copy, said in self.copies:
            if self.told_by(copy) != said:
                raise AssertionError("a copy has changed")
        self.copies.append((batch.copy(), self.told_by(batch)))
        super().handle(batch)

    @staticmethod
    def told_by(batch: Batch) -> list:
        events = [repr(event) for event in batch]  # of a record, tolist() would hold views of its inner arrays
        return [
            len(batch),
            events,
            list(batch.keys),
            batch.slots.tolist(),
            batch.sequences.tolist(),
            batch.producers.tolist(),
        ]


class LateUser(Recorder):
    """Keeps its first batch, and when the second comes does to it what the names of the files `late-*` say."""

    first: Any = None

    def handle(self, batch: Batch) -> None:
        if self.first is None:
            self.first = batch
        else:
            for path in self.directory.glob("late-*"):
                try:
                    KEEP[path.name.removeprefix("late-")](self.first)
                except Exception as error:
                    path.write_text(f"{type(error).__name__}: {error}")
        super().handle(batch)


class Careless(Recorder):
    """The same, and does not expect an error."""

    first: Any = None

    def handle(self, batch: Batch) -> None:
        self.first = self.first or batch
        super().handle(self.first)


KEEP = {
    # records
    "array": lambda batch: batch.records,
    "slice": lambda batch: batch.records[1:3],
    "field": lambda batch: batch.records["key"],
    "keys": lambda batch: batch.keys,
    "row": lambda batch: batch.records[0],
    "memoryview": lambda batch: memoryview(batch.records),
    "asarray": lambda batch: np.asarray(batch.records),
    "reshape": lambda batch: batch.records.reshape(2, -1)[::-1],
    "view": lambda batch: batch.records.view("u1"),
    "iterator": lambda batch: iter(batch),
    "array copy": lambda batch: batch.records.copy(),
    "fancy": lambda batch: batch.records[[0]],
    "sum": lambda batch: batch.records["key"].sum(),
    # events
    "columns": lambda batch: batch.columns(),
    "data": lambda batch: batch.columns().data[3:],
    "int keys": lambda batch: batch.columns().keys,
    "starts": lambda batch: batch.columns().starts,
    "pairs": lambda batch: list(batch),
    "payloads": lambda batch: batch.payloads,
    # both
    "batch": lambda batch: batch,
    "copy": lambda batch: batch.copy(),
    "slots": lambda batch: batch.slots,
    "sequences": lambda batch: batch.sequences,
    "producers": lambda batch: batch.producers,
    "len": len,
}
