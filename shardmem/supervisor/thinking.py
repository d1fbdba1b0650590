"""A strategy of the user's own is asked in a thread: it may think for seconds, and the supervisor goes on meanwhile.

A quick answer is waited for, so a strategy that takes milliseconds answers in the same tick. The plan of a slow one is
carried out when it comes, as far as it makes sense by then; and then it is left alone for as long again, because the
thread and the supervisor share one interpreter.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from shardmem.policy import DirectlyAsked, LeastLoad, LeastSlots, Move, Plan, Strategy, Undecided, View, fault_of

QUICK = 0.05  # seconds that an answer is waited for
SLOW = 0.5  # seconds of thinking that are worth a word


class _Question:
    """view: what a plan was asked for with; None: it was no plan."""

    def __init__(self, work: Callable[[], Any], view: View | None) -> None:
        self._work, self.view, self.began, self.seconds = work, view, time.monotonic(), 0.0
        self.answered = threading.Event()
        self._answer: Any = None
        self._error: BaseException | None = None

    def think(self) -> None:
        try:
            self._answer = self._work()
        except BaseException as error:  # noqa: BLE001 - the user's code; whoever asked gets it
            self._error = error
        self.seconds = time.monotonic() - self.began
        self.answered.set()

    def answer(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._answer


class Thinking(DirectlyAsked):
    """Asks one thing at a time."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asked: _Question | None = None
        self._took = self._not_before = 0.0

    def plan(self, strategy: Strategy, view: View) -> Plan:
        """Raises Undecided; what the strategy raises."""
        if _is_ours(strategy):
            return super().plan(strategy, view)
        earlier = self._taken()
        if earlier is not None and earlier.view is not None:
            hot, moves = earlier.answer()
            moves = _still_sound(moves, view)
            if moves or _is_the_same(earlier.view, view):
                return Plan(hot, moves)
            self._taken()
        plan: Plan = self._ask(lambda: DirectlyAsked.plan(self, strategy, view), view)
        return plan

    def allocate(self, strategy: Strategy, slot: int, view: View) -> int:
        """Raises the same."""
        if _is_ours(strategy):
            return super().allocate(strategy, slot, view)
        self._taken()
        shard: int = self._ask(lambda: strategy.allocate(slot, view), None)
        return shard

    @property
    def complaint(self) -> str:
        asked = self._asked
        seconds = self._took if asked is None else max(self._took, time.monotonic() - asked.began)
        return f"it takes {seconds:.1f} s for a plan" if seconds > SLOW else ""

    def _ask(self, work: Callable[[], Any], view: View | None) -> Any:
        if self._thread is None:  # a daemon: one that never answers cannot keep the supervisor from ending
            self._thread = threading.Thread(target=self._think, name="strategy", daemon=True)
            self._thread.start()
        self._asked = question = _Question(work, view)
        self._questions.put(question)
        if not question.answered.wait(QUICK):
            raise Undecided(time.monotonic() - question.began)
        self._taken()
        return question.answer()

    def _taken(self) -> _Question | None:
        """What has been answered since. Raises Undecided: it still thinks, or is left alone."""
        question, now = self._asked, time.monotonic()
        if question is None:
            if now < self._not_before:
                raise Undecided(self._took)
            return None
        if not question.answered.is_set():
            raise Undecided(now - question.began)
        self._asked, self._took = None, question.seconds
        self._not_before = now + (question.seconds if question.seconds > SLOW else 0.0)
        return question

    def _think(self) -> None:
        while True:
            self._questions.get().think()


def _is_ours(strategy: Strategy) -> bool:
    return type(strategy) in (LeastLoad, LeastSlots)  # milliseconds at any size


def _is_the_same(before: View, now: View) -> bool:
    """So that nothing to move then is nothing to move now."""
    return before.shards == now.shards and before.eager == now.eager and np.array_equal(before.owners, now.owners)


def _still_sound(moves: Any, view: View) -> Any:
    """Without those that something else has overtaken. What makes no sense at all is for the table to complain of."""
    with contextlib.suppress(TypeError, ValueError):
        found: dict[int, Move] = {}
        for each in moves:
            move = Move(*map(int, each))
            if not fault_of(move, view, found):
                found[move.slot] = move
        return list(found.values())
    return moves
