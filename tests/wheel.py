"""An installed wheel works on its own: an engine runs, handles, and its command line answers. `python tests/wheel.py`,
anywhere but in the source tree."""

from __future__ import annotations

import subprocess
import sys

import shardmem


def handle(batch: shardmem.Batch) -> None:
    assert [(7, b"seven")] == list(batch)


if __name__ == "__main__":
    with shardmem.Engine(handler=handle) as engine, engine.producer() as producer:
        producer.push(7, b"seven")
        producer.flush(10)
    status = engine.status()
    assert 1 == status["accounting"]["handled"], status
    said = subprocess.run([sys.executable, "-m", "shardmem", "--version"], capture_output=True, text=True, check=True)
    assert shardmem.__version__ in said.stdout, said.stdout
