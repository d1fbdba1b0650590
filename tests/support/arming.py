"""A strategy that lets a test arm a point of the supervisor: the supervisor asks its strategy four times a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shardmem.policy import LeastLoad
from support.handlers.counting import arm_when_told


class Arming(LeastLoad):
    def rebalance(self, view: Any) -> Any:
        arm_when_told(Path(os.environ["RECORD_DIR"]) / "arm-supervisor")
        return super().rebalance(view)
