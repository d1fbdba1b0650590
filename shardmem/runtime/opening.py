"""A handler whose `open` asks for another try later: what it needs is away, and may be for long.

Its worker lives and waits, as one whose `handle` does: the shard has not failed, producers go on until its lanes are
full. It hands nothing over and takes nothing up before it is open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shardmem.memory.engine_segment import ControlSegment
from shardmem.runtime.explain import trace_of
from shardmem.runtime.forked import end_if_forked
from shardmem.runtime.handler import Handler
from shardmem.runtime.outcomes import OnError, Retry, RetryOn
from shardmem.runtime.waiting import DRAINING_WAIT_S, REST_S, SAID_EACH_S, Waiting

log = logging.getLogger("shardmem.worker")


class ToldToStop(BaseException):
    """The worker is to end, and its handler is not open."""


class Opening:
    """said: what the last life of the shard said of its waiting. is_told: whether the worker is to end. say: reports to
    the supervisor."""

    def __init__(
        self,
        control: ControlSegment,
        shard: int,
        rules: OnError,
        said: str,
        is_told: Callable[[], bool],
        say: Callable[..., None],
    ) -> None:
        self._control, self._shard, self._rules, self._said = control, shard, rules, said
        self._is_told, self._say = is_told, say
        self._retry_on = RetryOn(rules.retry_on)

    def until_open(self, opened: Callable[[], Handler]) -> Handler:
        """The handler that `opened` makes. Raises what that raises and no other try helps; ToldToStop."""
        waiting, was = None, ""
        while True:
            try:
                handler = opened()
            except BaseException as error:
                end_if_forked(error)
                if waiting is None:
                    waiting = Waiting(self._control, self._shard, self._rules.retry_max_wait, self._said)
                    was = waiting.kind
                retry = self._retry_on.retry_of(error)
                if retry is None or waiting.has_lasted(self._rules.retry_for):
                    raise
                self._wait(waiting, retry, error)
                continue
            if waiting is not None:
                log.info("shard %d: its handler is open, after %.3g s", self._shard, waiting.age)
                waiting.doubt() if was == "doubt" else waiting.over()  # that was about events, and is not over
            return handler

    def _wait(self, waiting: Waiting, retry: Retry, error: BaseException) -> None:
        reason = retry.reason or "it asks for another try later"
        wait = waiting.begin("retry", f"open() of the handler: {reason}", retry.wait())
        self._say(waits_to_open=True)
        if waiting.tries == 1 or wait > SAID_EACH_S:
            trace = trace_of(error) if waiting.tries == 1 else reason
            log.warning("shard %d cannot open its handler, and tries again in %.3g s: %s", self._shard, wait, trace)
        while waiting.left:
            if self._is_told():
                raise ToldToStop
            if waiting.left > DRAINING_WAIT_S and self._control.state == "draining":
                waiting.hurry(DRAINING_WAIT_S)
            self._control.beat_worker(self._shard)
            time.sleep(min(waiting.left, REST_S))
