"""An engine keeps a spare process some seconds after its last start; a figure is of an engine that has run longer."""

from __future__ import annotations

import time
from typing import Any

import psutil

IMPORTS = 1.5  # seconds that it has for the handler's module


def await_spare(engine: Any) -> None:
    status = engine.status()
    supervisor = psutil.Process(status["supervisor"]["pid"])
    workers = {shard["pid"] for shard in status["shards"]}
    while {child.pid for child in supervisor.children()} <= workers:
        time.sleep(0.05)
    time.sleep(IMPORTS)
