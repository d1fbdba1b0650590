"""Snapshots beside the reading of a source: taken now and then, restored before a partition begins, and nothing waits
for them but who gives a partition up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shardmem.errors import ShardmemError
from shardmem.remote.snapshots import Snapshots
from shardmem.state_settings import RemoteSettings
from shardmem.text import of_error

TOGETHER = 2  # threads that take snapshots or restore
FIRST, MOST = 1.0, 30.0  # seconds before one that failed is tried again

Safe = Mapping[str, int]  # topic -> all events before this offset have been handled
Result = TypeVar("Result")


@dataclass(frozen=True)
class Uploaded:
    """A snapshot that may be committed. offsets: by topic, where its next owner begins."""

    number: int
    id: str
    offsets: Safe


@dataclass
class _Partition:
    due: float
    running: Future[Uploaded] | None = None
    last: Safe = field(default_factory=dict)
    failures: int = 0


class Uploads:
    """Called on one thread. Its partitions are numbers, each with all the topics that this host has of it."""

    def __init__(
        self,
        snapshots: Snapshots,
        settings: RemoteSettings,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshots, self._settings, self._log, self._clock = snapshots, settings, log, clock
        self._partitions: dict[int, _Partition] = {}
        self._room = threading.Semaphore(TOGETHER)
        self._ahead: Future[None] | None = None
        self._ahead_due = clock()
        self._fault: tuple[str, float] | None = None  # what is wrong, seconds since 1970 since when
        self._uploaded_at: float | None = None

    # ---- a partition comes and goes ----------------------------------------------------------------------------------

    def restore(self, number: int, id: str | None) -> Future[None]:
        """The state that the last commit names; when it is done, events of the partition may flow. Its result raises
        ShardmemError: then nothing has changed."""
        return self._begin(lambda: self._snapshots.restore(number, id))

    def go_on(self, number: int, id: str | None) -> None:
        """The state of this partition is here, and the last commit of this host names that snapshot."""
        self._snapshots.go_on(number, id)

    def give_up(self, number: int, safe: Safe, timeout: float) -> Uploaded | None:
        """A snapshot of what was handled; None: not in time, or not at all, and the one before stands."""
        deadline = self._clock() + timeout
        held = self._partitions.pop(number, None) or _Partition(0.0)
        if held.running is not None:
            wait([held.running], timeout)
        running = self._take(number, safe)
        if wait([running], max(0.0, deadline - self._clock())).not_done:
            return None
        return self._uploaded(held, running)

    def lost(self, number: int) -> None:
        """What is being uploaded of it is not to be committed."""
        self._partitions.pop(number, None)

    # ---- as long as it is here ---------------------------------------------------------------------------------------

    def step(self, safe: Mapping[int, Safe]) -> list[Uploaded]:
        """safe: of the partitions that this host owns. What was uploaded since; begins what is due."""
        now, found = self._clock(), []
        for number, offsets in safe.items():
            held = self._partitions.setdefault(number, _Partition(now + self._settings.remote_interval))
            if held.running is not None and held.running.done():
                running, held.running = held.running, None
                if (uploaded := self._uploaded(held, running)) is not None:
                    found.append(uploaded)
            if held.running is None and now >= held.due and dict(offsets) != held.last:
                held.due = now + self._settings.remote_interval
                held.running = self._take(number, dict(offsets))
        self._look_ahead(set(safe), now)
        return found

    def committed(self, uploaded: Uploaded) -> None:
        """Its commit was accepted."""
        self._begin(lambda: self._snapshots.committed(uploaded.number, uploaded.id)).add_done_callback(self._said)

    def describe(self) -> dict[str, Any]:
        """For status. error: why nothing is uploaded, and so nothing is committed; since: seconds since 1970."""
        error, since = self._fault or (None, None)
        return {"url": self._snapshots.target.url, "error": error, "since": since, "uploaded": self._uploaded_at}

    # ---- threads -----------------------------------------------------------------------------------------------------

    def _take(self, number: int, safe: Safe) -> Future[Uploaded]:
        """safe was true before the snapshot begins: so all before it is in the snapshot."""
        return self._begin(lambda: Uploaded(number, self._snapshots.take(number), safe))

    def _begin(self, work: Callable[[], Result]) -> Future[Result]:
        made: Future[Result] = Future()

        def run() -> None:
            with self._room:
                try:
                    made.set_result(work())
                except BaseException as error:
                    made.set_exception(error)

        # A daemon: the process may end while an object store does not answer.
        threading.Thread(target=run, daemon=True).start()
        return made

    def _uploaded(self, held: _Partition, running: Future[Uploaded]) -> Uploaded | None:
        self._said(running)
        if running.exception() is not None:
            held.failures += 1
            held.due = min(held.due, self._clock() + min(MOST, FIRST * 2 ** (held.failures - 1)))
            return None
        held.failures, self._uploaded_at = 0, time.time()
        held.last = running.result().offsets
        return running.result()

    def _said(self, running: Future[Any]) -> None:
        error = running.exception()
        if error is None:
            if self._fault is not None:
                self._log.info("%s: snapshots are uploaded again", self._snapshots.target.url)
            self._fault = None
            return
        text = str(error) if isinstance(error, ShardmemError) else of_error(error)
        if self._fault is None:
            self._log.warning("%s; commits stand still until it can be done, and events go on", text)
        self._fault = text, self._fault[1] if self._fault else time.time()

    def _look_ahead(self, owned: set[int], now: float) -> None:
        if not self._settings.standby or now < self._ahead_due or (self._ahead and not self._ahead.done()):
            return
        self._ahead_due = now + self._settings.remote_interval
        self._ahead = self._begin(lambda: self._snapshots.look_ahead(owned))
        self._ahead.add_done_callback(self._said)
