"""The supervisor: creates the shared memory, spawns one worker per shard, watches them, drains and removes.

One event loop, no threads, except for what may wait for the quarantine's file (quarantine.py). The data path never
waits for it: it only writes words that producers and workers read. What there is, is the fleet's (fleet.py); here are
the signals, and the loop that does the work of each stage (stages.py) until the last has ended (life.py says when one
does).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping

from shardmem.config import Config
from shardmem.errors import AlreadyRunning, ConfigError, LayoutMismatch, ShardmemError, with_hint
from shardmem.http.server import Api
from shardmem.memory.segment import outlive_lost_memory
from shardmem.private_files import make_directory
from shardmem.runtime.child import ExitCode
from shardmem.runtime.handler import HandlerRef
from shardmem.runtime.streams import Terminal
from shardmem.settings_sources import Origin
from shardmem.status.document import Status
from shardmem.supervisor.background import Background
from shardmem.supervisor.board import Board
from shardmem.supervisor.commands import Commands
from shardmem.supervisor.configured import policy_of, strategy_of
from shardmem.supervisor.control_loop import ControlLoop
from shardmem.supervisor.descriptors import Descriptors
from shardmem.supervisor.explained import rows
from shardmem.supervisor.fleet import Fleet
from shardmem.supervisor.life import Life, Stage
from shardmem.supervisor.notify import Notify
from shardmem.supervisor.pace import TICK
from shardmem.supervisor.prestart import Prestarted
from shardmem.supervisor.reload import Reload
from shardmem.supervisor.replacements import Replacements
from shardmem.supervisor.segments import SegmentWatch
from shardmem.supervisor.sources import Sources
from shardmem.supervisor.stages import Stages
from shardmem.supervisor.takeover import Takeover
from shardmem.supervisor.upkeep import Upkeep
from shardmem.text import of_error

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP)

log = logging.getLogger("shardmem.supervisor")


class Supervisor:
    """Runs one engine. `run` returns when it has ended; `outcome` is then the last status document. origins: where
    each setting was set, as it was last read."""

    def __init__(
        self,
        config: Config,
        handler: HandlerRef,
        prestarted: Prestarted,
        *,
        keep_unfinished: bool = True,
        on_ready: Callable[[Status], None] = lambda status: None,
        read_again: Callable[[], tuple[Config, HandlerRef]] | None = None,
        notify: Notify | None = None,
        origins: Callable[[], Mapping[str, Origin]] = dict,
        on_created: Callable[[int], None] | None = None,
        on_removed: Callable[[int], None] | None = None,
    ) -> None:
        self._config, self._handler, self._notify = config, handler, notify or Notify()
        self._prestarted = prestarted
        self._keep_unfinished, self._on_ready, self._read_again = keep_unfinished, on_ready, read_again
        self._on_created, self._on_removed = on_created, on_removed
        self._origins = origins
        self._life, self._terminal = Life(), Terminal()
        self._descriptors = Descriptors()
        self._api = Api(
            config.name, config.http_port, config.http_token, config.http_address, config.http_allowed_hosts
        )
        self.outcome: Status | None = None
        self._on_reload: Callable[[], object] = lambda: None  # nothing runs yet that could be reloaded
        self._on_step: Callable[[int], object] = lambda step: None

    @property
    def error(self) -> ShardmemError | None:
        """Why it ended, when nobody had asked for it."""
        return self._life.error

    def request_stop(self, now: bool = False) -> None:
        """Drain and stop; asked a second time, or with `now`, stop without draining."""
        self._life.request_stop(now)

    async def run(self) -> int:
        """Exit code: 0 as asked, 1 failed, 2 configuration, 3 a worker cannot boot, 4 already running."""
        outlive_lost_memory()
        with self._signals():
            try:
                takeover, fleet = self._open()
            except ShardmemError as error:
                self._life.fail(error, _exit_code_of(error))
            except OSError as error:
                self._life.fail(ShardmemError(f"cannot open engine {self._config.name!r}: {error}"))
            if self._life.advance() is Stage.ENDED:
                assert self.error is not None  # or it would go on
                log.error("%s", with_hint(self.error))
                return self._life.exit_code
            await self._lead(takeover, fleet)
        return self._life.exit_code

    async def _lead(self, takeover: Takeover, fleet: Fleet) -> None:
        """The engine, until it has ended."""
        background, sources = Background(), Sources(fleet.config)
        replacements = Replacements(fleet)
        reload = Reload(fleet, self._life, self._notify, replacements, self._read_again, sources)
        board = Board(fleet, reload, self._api.places)
        commands = Commands(fleet, self._life, reload, board)
        loop = ControlLoop(fleet, self._life, commands, replacements, background, board)
        stages = Stages(
            fleet,
            takeover,
            self._life,
            commands,
            reload,
            loop,
            background,
            self._api,
            self._notify,
            sources,
            keep_unfinished=self._keep_unfinished,
            on_ready=self._on_ready,
            settings=lambda: rows(fleet.config, self._origins()),
        )
        self._on_reload = lambda: background.start("the reload", reload.run())
        self._on_step = lambda step: background.start("a signal's order", _scale_by(commands, step))
        watch = SegmentWatch(fleet, self._life, replacements, background)
        watching = [
            Background().start("looking after the workers", self._watch_workers(fleet, watch)),
            Background().start(
                "the upkeep of files", Upkeep(self._api, self._config, fleet.observer, fleet.history).run()
            ),
        ]
        try:
            while self._life.stage is not Stage.ENDED:
                await self._work(stages, fleet)
                self._life.advance()
            self.outcome = stages.finish()
        finally:
            for each in watching:
                each.cancel()
            self._api.close()
            takeover.lease.release()
            self._notify.close()
            self._descriptors.close()

    async def _work(self, stages: Stages, fleet: Fleet) -> None:
        """Of one stage. What goes wrong in it ends the engine, and never without its workers."""
        try:
            await stages.work()
        except Exception as error:
            if isinstance(error, ShardmemError):  # a limit that was met: it says all in words
                self._life.fail(error)
            else:
                log.exception("the supervisor failed while it was %s", self._life.stage.name.lower())
                self._life.fail(ShardmemError(f"the supervisor failed: {of_error(error)}"))
            if self._life.stage is Stage.STOPPING:
                for worker in fleet.workers.living():
                    worker.kill()

    def _open(self) -> tuple[Takeover, Fleet]:
        """Create the segments, or take up those of an earlier supervisor."""
        if self._config.state_dir is None:
            make_directory(self._config.directory)
        config, takeover = self._config, Takeover.take(self._config, self._keep_unfinished)
        try:
            policy, strategy = policy_of(config), strategy_of(config)
            takeover.find(config, strategy)
            self._api.bind()
        except BaseException:
            takeover.abort(config)
            raise
        if not takeover.fresh:
            log.info(
                "engine %s: took up shared memory of an earlier %s, %d events in flight",
                config.name,
                "supervisor" if takeover.running else "run",
                takeover.left,
            )
        return takeover, Fleet(
            config,
            self._handler,
            self._prestarted,
            takeover,
            policy,
            strategy,
            self._life,
            on_created=self._on_created,
            on_removed=self._on_removed,
            descriptors=self._descriptors,
        )

    async def _watch_workers(self, fleet: Fleet, watch: SegmentWatch) -> None:
        """As long as there are workers, while the engine drains too."""
        while True:
            fleet.control.beat()
            try:
                watch.look()
                fleet.stuck.look()
            except Exception:
                log.exception("a look after the workers failed; the next one is soon")
            if self._life.has_run:  # before that there is nothing to say
                self._notify.tick(fleet.observer.status)
            is_steady = self._life.stage is Stage.RUNNING and not self._life.is_stopping
            await fleet.pace.wait(self._notify.patience if is_steady else TICK)

    # ---- signals ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """From before the engine is taken over: a TERM right after that would end it by the signal."""

        def received(number: int) -> None:
            if number not in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
                self._life.request_stop(now=number != signal.SIGTERM)
            elif number == signal.SIGHUP and self._terminal.is_gone:
                log.warning("the terminal was closed; the engine goes on, as it would with nohup")
            elif self._life.has_run and number == signal.SIGHUP:
                self._on_reload()
            elif self._life.has_run:
                self._on_step(1 if number == signal.SIGTTIN else -1)

        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, received, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)


async def _scale_by(commands: Commands, step: int) -> None:
    """One shard more or fewer, asked for by signal: nobody waits for an answer, so the log gets it."""
    try:
        done = await commands.scale_by(step)
        log.info("%s by signal: %d shards run", "one more" if step > 0 else "one fewer", len(done["shards"]))
    except ShardmemError as error:
        log.warning("%s by signal: %s", "one more" if step > 0 else "one fewer", error)


def _exit_code_of(error: ShardmemError) -> ExitCode:
    if isinstance(error, AlreadyRunning):
        return ExitCode.ALREADY
    return ExitCode.CONFIG if isinstance(error, (ConfigError, LayoutMismatch)) else ExitCode.FAILED
