"""Handlers for the tests of quarantine and of state: they live in a module of their own, because workers import them."""
from __future__ import annotations

import os
from pathlib import Path


def no_odd_ones(batch) -> None:
    if (batch.records["number"] % 2).any():
        raise ValueError("an odd one")


def no_odd_ones_of_events(batch) -> None:
    if not (Path(os.environ["RECORD_DIR"]) / "mended").exists() and any(int(data) % 2 for _, data in batch):
        raise ValueError("an odd one")
