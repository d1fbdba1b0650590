"""The board: what is known to the supervisor alone and stands in no word of shared memory, for whoever reads the status
and for the supervisor that takes over. It is written with every tick, and before a command is answered that it keeps.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from shardmem import __version__
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.reload import Reload

LONGEST = 200  # characters of the handler's name


class Board:
    """places: where the API listens."""

    def __init__(self, fleet: Fleet, reload: Reload, places: Callable[[], dict[str, str | None]]) -> None:
        self._fleet, self._reload, self._places = fleet, reload, places

    def post(self) -> None:
        """Without what is only to look at, if all is too much."""
        fleet = self._fleet
        board = {
            **fleet.planner.describe(time.monotonic()),
            "reload": self._reload.owed,
            "limits": asdict(fleet.stuck.limits),
            "ready_while_waiting": fleet.config.ready_while_waiting,
            "version": __version__,
            "handler": str(fleet.workers.launch_config[1].name)[:LONGEST],
            "host": socket.gethostname(),
            **self._places(),
        }
        extras: list[dict[str, Any]] = [{"lives": fleet.workers.describe()}, {}, {"decisions": [], "hot_slots": []}]
        for extra in extras:
            if fleet.control.post("decisions", json.dumps({**board, **extra}).encode()):
                return
