"""The control loop of a running engine: at its pace, and whenever a worker reports, a look and what follows of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shardmem.policy import DecisionKind
from shardmem.supervisor.background import Background
from shardmem.supervisor.board import Board
from shardmem.supervisor.commands import Commands
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life
from shardmem.supervisor.pace import TICK
from shardmem.supervisor.replacements import Replacements

log = logging.getLogger("shardmem.supervisor")


class ControlLoop:
    def __init__(
        self,
        fleet: Fleet,
        life: Life,
        commands: Commands,
        replacements: Replacements,
        background: Background,
        board: Board,
    ) -> None:
        self._fleet, self._life, self._commands, self._replacements = fleet, life, commands, replacements
        self._background, self._board = background, board
        self._logged_decision = ""
        self._logged_error: str | None = None

    async def run(self) -> None:
        """Until a stop is asked for."""
        due, pace = 0.0, self._fleet.pace
        while not self._life.is_stopping:
            now = time.monotonic()
            if now >= due:
                if not self._attempt(self.tick, self._board.post):
                    pace.stir()
                due = now + pace.interval
            else:
                pace.stir()
                due = min(due, now + TICK)
                self._attempt(lambda: self._fleet.step(time.monotonic()))
            await self._life.wait(max(0.0, min(due - time.monotonic(), self._fleet.patience)))
        pace.stir()
        self._fleet.conditions.end(f"engine {self._fleet.config.name!r} is being stopped")

    def announce(self) -> None:
        """The board, before the first tick: whoever waits for the engine reads it at once."""
        self._attempt(self._board.post)

    def _attempt(self, *work: Callable[[], None]) -> bool:
        try:
            for each in work:
                each()
            return True
        except Exception as error:  # the strategy may be the user's: what was decided before stands, and workers go on
            if str(error) != self._logged_error:
                log.exception("no decision can be made")
            self._logged_error = str(error)
            return False

    def tick(self) -> None:
        """One look at the load. What the policy decides is said at once; that it is done is seen in the background."""
        fleet = self._fleet
        decision = fleet.tick(time.monotonic())
        for shard, (quarantined, broken) in fleet.sampler.quarantine.items():
            fleet.history.look(shard, quarantined, broken)
        if fleet.config.elastic and decision.kind is not DecisionKind.NONE:
            if str(decision.reason) != self._logged_decision:
                log.info("%s %s: %s", decision.kind, decision.count or "", decision.reason)
            self._logged_decision = str(decision.reason)
            with self._commands.noting(f"{decision.kind} {decision.count}, because {decision.reason}"):
                if (work := self._commands.follow(decision)) is not None:
                    self._background.start("the policy's last decision", work)
        if (due := self._replacements.due()) is not None:
            shard, why = due
            self._background.start(f"recycling shard {shard}", self._replacements.recycle(shard, why))
