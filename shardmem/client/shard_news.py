"""Tells a program of the shards that its engine creates and removes, while it does something else."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from shardmem.errors import ConfigError
from shardmem.runtime.child import Report, ReportReader

FINISH = 1.0  # seconds that the end of an engine waits for callbacks

OnShard = Callable[[int], object]

log = logging.getLogger("shardmem.engine")


class ShardNews:
    """The program's functions, called one after the other in a thread of their own: one that blocks delays only the
    next. What they raise is logged, and changes nothing. Raises ConfigError.
    """

    def __init__(self, on_created: OnShard | None, on_removed: OnShard | None) -> None:
        for name, function in (("on_shard_created", on_created), ("on_shard_removed", on_removed)):
            if function is not None and not callable(function):
                raise ConfigError(f"{name}={function!r} is not callable; it is called with the number of a shard")
        self._on_created, self._on_removed = on_created, on_removed
        self._queue: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def is_wanted(self) -> bool:
        return self._on_created is not None or self._on_removed is not None

    def read(self, reports: ReportReader) -> ReportReader | NewsReader:
        """Where the other reports are to be read; there are no threads when nothing is to be called."""
        if not self.is_wanted:
            return reports
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shardmem-shard-callbacks", daemon=True)
            self._thread.start()
        return NewsReader(reports, self)

    def tell(self, report: Report | None) -> None:
        """None: no more will come."""
        self._queue.put(report)

    def finish(self) -> None:
        """Waits for callbacks, but not in one of them: it may end the engine itself."""
        if self._thread is not None:
            self.tell(None)
            if threading.current_thread() is not self._thread:
                self._thread.join(FINISH)

    def _run(self) -> None:
        while (report := self._queue.get()) is not None:
            try:
                if "shard_created" in report and self._on_created is not None:
                    self._on_created(report["shard_created"])
                if "shard_removed" in report and self._on_removed is not None:
                    self._on_removed(report["shard_removed"])
            except Exception:
                log.exception("a callback of the engine failed (%s)", report)


class NewsReader:
    """The one reader of a supervisor's reports, in a thread: news of shards go to the callbacks, the rest to `next` and
    `last`, as a ReportReader has them."""

    def __init__(self, reports: ReportReader, news: ShardNews) -> None:
        self._reports, self._news = reports, news
        self._rest: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="shardmem-reports", daemon=True).start()

    def next(self, timeout: float | None = None) -> Report | None:
        try:
            report = self._rest.get(timeout=timeout)
        except queue.Empty:
            return None
        if report is None:
            self._rest.put(None)  # the end stays the end
        return report

    def last(self) -> Report | None:
        last = None
        while (report := self.next()) is not None:
            last = report
        return last

    def close(self) -> None:
        """The thread closes its end when the supervisor has: not before, or it would read from another file by then."""

    def _run(self) -> None:
        while (report := self._reports.next()) is not None:
            if "shard_created" in report or "shard_removed" in report:
                self._news.tell(report)
            else:
                self._rest.put(report)
        self._reports.close()
        self._rest.put(None)
