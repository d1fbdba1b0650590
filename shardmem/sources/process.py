"""The process of one source of an engine: a supervisor starts it, as it starts workers.

TERM ends it: it takes no more, waits until what it has pushed was handled, commits and goes. Its supervisor may die and
another take over: it does not notice.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from shardmem.config import log_file, state_directory
from shardmem.errors import ConfigError, NotRunning, ShardmemError, with_hint
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import arm_from_environment
from shardmem.runtime import logs
from shardmem.runtime.child import ExitCode, Reports, SourceOrders, begin, read_orders
from shardmem.runtime.log_file import keep_in
from shardmem.runtime.partition_state import StateFiles
from shardmem.runtime.producer import Producer, connect
from shardmem.sources.broker import BrokerRunner
from shardmem.sources.configured import SourceSettings, sources_in
from shardmem.sources.contract import Rejected, is_broker
from shardmem.sources.files.rejects import DeadLetters
from shardmem.sources.kinds import EngineContext
from shardmem.sources.outbox.configured import publisher_of
from shardmem.sources.outbox.files import OutboxFiles
from shardmem.sources.runner import Limits, Runner
from shardmem.sources.wishes import Wishes, wishes_in
from shardmem.state_settings import remote_settings
from shardmem.status.sources import SourceFile, file_of, mark_of

TELL = 0.5  # seconds between two words on how it is going
GRACE = 60.0  # for what was pushed to be handled, when it is told to end
WELL = 10.0  # seconds after which the error of an earlier life is over

log = logging.getLogger("shardmem.sources")


def main() -> int:
    begin()
    arm_from_environment()
    if (told := read_orders(SourceOrders)) is None:
        return ExitCode.OK
    orders, reports = told
    sys.path.append(os.getcwd())  # a class of the user's own may be where the engine was started, as handlers are
    logs.set_up(orders.settings["log_format"], orders.settings["log_level"] or "info", orders.engine)
    keep_in(log_file(orders.directory, orders.engine))
    return SourceProcess(orders, reports).run()


class SourceProcess:
    def __init__(self, orders: SourceOrders, reports: Reports) -> None:
        self._orders, self._reports = orders, reports
        self.stop = threading.Event()
        self._state = "starting"
        self._error: str | None = None
        self._is_final = False
        self._runner: Runner | None = None
        self._seat: int | None = None
        self._told = 0
        self._began = time.monotonic()
        self._seeks = 0  # of those wished for, the newest that was passed on

    def run(self) -> int:
        orders = self._orders
        name = str(orders.source.get("name", "file"))
        self._wishes = file_of(orders.directory, orders.engine, name, "wishes")
        self._seeks = wishes_in(self._wishes).seek  # that was for the process before
        self._file = SourceFile(orders.directory, orders.engine, name)
        if not self._file.take():
            log.warning("source %s: another process is reading it", name)
            return ExitCode.ALREADY
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        self._tell()
        threading.Thread(target=self._tell_again, daemon=True).start()
        try:
            if orders.source["kind"] == "outbox":  # feeds nothing, and goes on when the engine takes nothing any more
                return self._drive(
                    publisher_of(orders.source, orders.directory, orders.engine, stop=self.stop, log=log)
                )
            seat = f"source:{name}"
            with connect(orders.engine, backpressure="block", wait=30.0, reconnect=False, seat=seat) as producer:
                (settings,) = sources_in(orders.source, producer.schema)
                return self._feed(producer, settings)
        except NotRunning as error:
            log.info("source %s: %s", name, error)
            return ExitCode.OK
        except ShardmemError as error:
            self._error = with_hint(error)
            self._reports.say(failed=self._error)
            log.error("source %s: %s", name, self._error)
            return self._end_code(error)
        finally:
            self._state = "ended" if self._error is None else "misconfigured" if self._is_final else "failed"
            self._tell()

    def _end_code(self, error: ShardmemError) -> int:
        """After one of the configuration nobody starts it again: it would say the same."""
        self._is_final = isinstance(error, ConfigError)
        return ExitCode.CONFIG if self._is_final else ExitCode.FAILED

    def _feed(self, producer: Producer, settings: SourceSettings) -> int:
        letters = DeadLetters(settings.dead_letter)

        def rejected(each: Rejected) -> None:
            letters.put(each)
            log.warning("source %s: not an event: %s", settings.name, each.text)

        try:
            self._seat = producer.seat
            return self._drive(self._runner_of(producer, settings, rejected))
        finally:
            letters.close()

    def _drive(self, runner: Runner) -> int:
        runner.wanted = wishes_in(self._wishes).pause
        runner.sought = self._seeks, None, 0
        self._runner = runner
        self._state = "running"
        self._reports.say(ready=True)
        code: int = ExitCode.OK
        try:
            runner.run()
        except ShardmemError as error:
            if not self.stop.is_set():
                code = self._end_code(error)
                self._error = with_hint(error)
                log.error("source %s: %s", self._file.name, self._error)
        self._state = "draining"
        try:
            if code != ExitCode.FAILED:
                runner.finish(True, grace=GRACE)
            else:
                runner.give_way()
        except ShardmemError as error:
            log.info("source %s: %s", self._file.name, error)
        if self._error is not None:
            self._reports.say(failed=self._error)
        return code

    def _runner_of(self, producer: Producer, settings: SourceSettings, rejected: Callable[[Rejected], None]) -> Runner:
        """Raises ConfigError, SourceError."""
        orders, whole = self._orders, settings.dead_letter is not None
        context = EngineContext(
            orders.engine, settings.name, orders.directory, producer.schema, producer.largest, whole
        )
        options: dict[str, Any] = {
            "limits": Limits(max_bad=0 if settings.on_bad == "stop" else None, rate=settings.rate),
            "stop": self.stop,
            "rejected": rejected,
            "log": log,
        }
        source = settings.kind.open_source(settings.own, context)
        if not is_broker(source) or settings.ownership is None:
            return Runner(source, producer, **options)

        def file(what: str) -> str:
            return file_of(orders.directory, orders.engine, settings.name, what)

        control = ControlSegment.attach(orders.engine)
        directory = state_directory(orders.directory, orders.engine)
        state_files = StateFiles(directory, control.geometry.engine_id, keep=orders.settings["keep_state"])
        state = remote_settings(orders.settings["state"])
        options["outbox"] = OutboxFiles(directory) if orders.settings["outbox"] else None
        return BrokerRunner(source, producer, control, settings.ownership, state_files, state, file, **options)

    def _end(self) -> None:
        self.stop.set()
        if self._runner is not None:
            self._runner.interrupt()

    def _tell_again(self) -> None:
        while True:
            time.sleep(TELL)
            if self._runner is not None:
                self._pass_on(wishes_in(self._wishes), self._runner)
            self._tell()

    def _pass_on(self, wishes: Wishes, runner: Runner) -> None:
        runner.wanted = wishes.pause
        if wishes.seek > self._seeks:
            self._seeks = wishes.seek
            runner.seek(wishes.seek, wishes.file, wishes.to)

    def _is_well(self) -> bool:
        return self._runner is not None and (
            self._runner.tally.events > 0 or (self._state == "running" and time.monotonic() - self._began > WELL)
        )

    def _tell(self) -> None:
        table = self._orders.source
        if self._is_well():
            self._file.error = None
        error = self._error or self._file.error
        said: dict[str, Any] = {
            "kind": table.get("kind"),
            "state": self._state,
            "error": error,
            "given": mark_of(table),
        }
        if self._runner is not None:
            said |= {**self._runner.describe(), "seat": self._seat}
        try:
            self._file.write(**said)
        except OSError as error:
            if not self._told:
                log.warning("the status of a source cannot be written: %s", os.strerror(error.errno or 0))
            self._told = 1
