"""A handler for the tests of the page: what it is given says what it does."""

from __future__ import annotations

import os


def handle(batch) -> None:
    for key, payload in batch:
        word, _, path = payload.decode().partition(" ")
        if word == "hold":
            os.close(os.open(path, os.O_RDONLY))  # a FIFO: until the test opens its other end
        elif word == "bad" and not os.path.exists(path):
            raise ValueError(f"cannot handle {key}")
