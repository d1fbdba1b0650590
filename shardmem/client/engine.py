"""An engine inside a program: a supervisor process of its own that lives and ends with a block."""

from __future__ import annotations

import logging
import os
import secrets
import select
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shardmem.client.calls import ControlCalls
from shardmem.client.client import Client
from shardmem.client.engine_settings import EngineSettings, HandlerLike
from shardmem.client.revival import Revival
from shardmem.client.shard_news import NewsReader, OnShard, ShardNews
from shardmem.client.state import StateAccess, StateValue
from shardmem.config import Config
from shardmem.errors import AlreadyRunning, NotRunning, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.holders import open_holder
from shardmem.runtime.child import Child, Report, ReportReader, SupervisorOrders, launch
from shardmem.runtime.handler import HandlerRef, importing_main
from shardmem.runtime.producer import Producer, ProducerOptions
from shardmem.status.document import Status, Where
from shardmem.status.observer import Observer
from shardmem.status.where import where

if TYPE_CHECKING:
    from typing_extensions import Unpack

REVIVALS = 5  # supervisors in a row that may be killed while the engine ends

log = logging.getLogger("shardmem.engine")


class Engine(ControlCalls):
    """Workers that run `handler` on what producers push; a supervisor process of its own, which ends with the block.

    - `handler`: a function of one `Batch`, a `Handler` class or instance, or `"module:name"`. It runs in worker
      processes, so it must be importable there: top level of a module, or of the script itself under
      `if __name__ == "__main__":`.
    - `name`: for `shardmem.connect(name)` and `shardmem status`; made up if not given. Events that are not handled when
      a named engine ends stay in shared memory for its next run; those of an unnamed one cannot be found again and go.
    - `dtype`, `key`: a numpy structured dtype and the name of its key field make a records engine; without a dtype it
      carries events, whose keys come with each push.
    - `shards`: how many workers, for good; or `min_shards` (1) to `max_shards` (the number of cores), as the policy
      decides.
    - `slots`: hash buckets of keys, a power of two. `lane_bytes`: ring of each producer to each shard, a power of two;
      half of it is the largest event. `max_producers`: how many can be connected at once.
    - `backpressure`: "block", "fail", "drop_newest", "drop_oldest" or "sample", when a lane is full.
    - `state_dir`: where the state of a stateful handler outlives the engine.
    - `on_shard_created`, `on_shard_removed`: called with the number of each shard that has become active (the first
      ones too), and of each that has handed over everything and ends, by a thread of this process. Not at the end of
      the engine.
    - and every other setting of docs/settings.md, under its name there. Durations are in seconds, sizes in bytes; text
      with a unit ("250ms", "4MiB") does as well.

    Raises ConfigError (every fault in one), OutOfMemory, AlreadyRunning (name is taken), HandlerError.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        handler: HandlerLike,
        on_shard_created: OnShard | None = None,
        on_shard_removed: OnShard | None = None,
        **settings: Unpack[EngineSettings],
    ) -> None:
        if importing_main():
            raise RuntimeError(
                "an Engine is being made while a worker process imports this script to find the handler in it; "
                'put the part that makes the engine under  if __name__ == "__main__":'
            )
        self._named, self._inherited = name is not None, False
        self._ending = self._unready = False
        self.name = name if name is not None else f"engine-{os.getpid()}-{secrets.token_hex(3)}"
        self._config = Config.of(name=self.name, handler=handler, **settings)
        self._handler = HandlerRef.of(handler)
        self._process: Child | None = None
        self._reports: ReportReader | NewsReader
        self._news = ShardNews(on_shard_created, on_shard_removed)
        self._control: ControlSegment | None = None
        self._last: Status | None = None
        self._state: StateAccess | None = None
        self._revival: Revival | None = None
        self._reviving = threading.RLock()
        self._looking = threading.Lock()  # at the memory, which another thread may be about to let go
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()

    def __repr__(self) -> str:
        running = "running" if self._control is not None else "not started" if self._process is None else "ended"
        return f"<Engine {self.name!r}, {running}>"

    # ---- life --------------------------------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Returns when every worker is ready. `with Engine(...)` calls it."""
        if self._process is not None:
            raise ShardmemError(f"engine {self.name!r} was already started", hint="Make a new Engine to start again")
        report = self._launch()
        if not report or "ready" not in report:
            self._end(report)
        self._control = ControlSegment.attach(self.name)
        self._observer = Observer(self._control)
        self._revival = Revival(self)
        return self

    def _launch(self) -> Report | None:
        """A supervisor process; what it says first. If an earlier one left live workers, it adopts them."""
        settings = asdict(self._config)
        for key in ("handler", "dtype", "key"):
            del settings[key]
        orders = SupervisorOrders(
            self._handler,
            settings,
            self._config.schema.to_json(),
            self._config.start_shards if self._control is None else 0,
            keep_unfinished=self._named,
            tell_shards=self._news.is_wanted,
        )
        self._process = launch("supervisor", orders)
        self._reports = self._news.read(self._process.reports)
        # Not collected before its end of the lifeline is closed: an engine that is forgotten drains and ends too.
        weakref.finalize(self, _close_lifeline, self._process)
        weakref.finalize(self, self._news.tell, None)
        _running.add(self)
        return self._reports.next(self._config.boot_timeout + 30)

    def _revive(self) -> None:
        """A new supervisor if the last one was killed; workers and producers have gone on without."""
        assert self._process is not None
        if self._inherited:
            return
        with self._reviving:
            for turn in range(REVIVALS):
                if not self._was_killed():
                    return
                report = self._launch_another()
                if not report or "ready" not in report:
                    if turn == REVIVALS - 1 or self._process.wait() >= 0:
                        self._end(report)

    def _was_killed(self) -> bool:
        """Before anybody had asked it to end, or before it could get ready in the place of one that was."""
        assert self._process is not None
        code = self._process.poll()
        return code is not None and (code < 0 or self._unready)

    def _launch_another(self) -> Report | None:
        assert self._process is not None
        self._reports.close()
        _close_lifeline(self._process)
        return self._launch()

    def _end_revival(self) -> None:
        """From here on whoever ends the engine sees to its supervisor."""
        with self._reviving:
            self._ending = True
        if self._revival is not None:
            self._revival.end()

    # ---- for Revival -------------------------------------------------------------------------------------------------

    def supervisor_pidfd(self) -> int | None:
        with self._reviving:
            assert self._process is not None
            return os.dup(self._process.pidfd) if self._process.poll() is None else None

    def revive(self) -> bool:
        """Changes nothing but the supervisor: other threads are using the rest."""
        with self._reviving:
            assert self._process is not None
            if self._ending or self._inherited or not self._was_killed():
                return False
            report = self._launch_another() or {}
            self._unready = "ready" not in report
            if self._unready:
                self._process.kill()
                self._process.wait()
                log.error("engine %s has no supervisor: %s", self.name, report.get("error", "the last one was killed"))
            return report.get("kind") != AlreadyRunning.__name__  # then it has one that somebody else has started

    def stop(self, now: bool = False) -> Status:
        """Drain, stop, and return the last status. now: do not drain. Raises HandlerError if a shard is failed then."""
        if self._process is None:
            raise NotRunning(f"engine {self.name!r} was never started")
        if self._inherited:
            raise NotRunning(
                f"engine {self.name!r} belongs to the process that this one was forked from; it ends there"
            )
        if self._control is None:  # stopped before
            return self.status()
        self._end_producers()
        self._end_revival()
        for _ in range(REVIVALS):
            self._revive()
            if self._process.poll() is None:
                if now:
                    self._process.send_signal(signal.SIGINT)
                _close_lifeline(self._process)
            report = self._reports.last()
            if self._process.wait() >= 0 or report:  # otherwise it was killed before it could end the engine
                break
        if self._process.wait() != 0 or (report and report.get("error")):
            self._end(report)
        if report and report.get("status"):
            self._last = report["status"]
        self._forget_memory()
        assert self._last is not None
        return self._last

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if self._process is None or self._control is None or self._inherited:
            return
        if error is None:
            self.stop()
            return
        try:
            self.stop()
        except ShardmemError as second:  # the block's own error matters more; do not hide it
            if not isinstance(error, ShardmemError):
                error.__notes__ = [*getattr(error, "__notes__", ()), f"and engine {self.name!r} ended badly: {second}"]

    # ---- use ---------------------------------------------------------------------------------------------------------

    def producer(self, **options: Unpack[ProducerOptions]) -> Producer:
        """A producer of this engine; options as of Producer. Other processes use `shardmem.connect(engine.name)`."""
        defaults: Any = {"backpressure": self._config.backpressure, "spin_us": self._config.spin_us}
        producer = Producer(self.name, **(defaults | options))
        self._producers.add(producer)
        return producer

    def status(self) -> Status:
        """What `shardmem status --json` prints. After the end of the engine: the last one."""
        with self._looking:
            if self._control is not None:
                return self._observer.status()
        if self._last is None:
            raise NotRunning(f"engine {self.name!r} is not running")
        return self._last

    def where(self, key: int | str | bytes) -> Where:
        """Which shard handles the events of this key. Raises ConfigError: not a key of this engine; NotRunning."""
        with self._looking:
            if self._control is None:
                raise NotRunning(f"engine {self.name!r} is not running")
            return where(self._control, key)

    def state(self, name: str, key: int | str | bytes, type: Any = Any) -> StateValue | None:
        """The last committed value of a key of a `KeyedState`, with its age; None: it has none. type: what it was
        declared as; without it, objects are dicts and lists. Raises NotRunning."""
        with self._looking:
            if self._control is None:
                raise NotRunning(f"engine {self.name!r} is not running")
            if self._state is None:
                self._state = StateAccess(self._control.state_dir, self.name)
            return self._state.get(name, key, type)

    def command(self, name: str, **wanted: Any) -> dict[str, Any]:
        """One call of the control API; once more if the supervisor is killed before it has answered."""
        return self._ask(lambda client: client.command(name, **wanted))

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _ask(self, command: Callable[[Client], dict[str, Any]]) -> dict[str, Any]:
        """A command, once more if the supervisor is killed before it has answered: each goes on from where things
        are."""
        if self._control is None:
            raise NotRunning(f"engine {self.name!r} is not running")
        assert self._process is not None
        for _ in range(REVIVALS):
            self._revive()
            asked = self._process
            try:
                with Client(self.name) as client:
                    return command(client)
            except NotRunning as error:
                said = error
                try:
                    if self._inherited or asked.wait(1.0) >= 0:
                        raise
                except subprocess.TimeoutExpired:
                    raise said from None  # it lives, and does not answer
        raise said

    def _forget_memory(self) -> None:
        with self._looking:
            if self._control is not None:
                self._observer.close()
                if self._state is not None:
                    self._state.close()
                self._control.close()
                self._control = None
        if self._revival is not None:
            self._revival.join()
        self._end_producers()
        self._news.finish()

    def _end_producers(self) -> None:
        """They are not to wait for an engine that this program has ended."""
        for producer in list(self._producers):
            producer._end_with_engine()

    def _clean_up(self) -> None:
        """No supervisor will be: end the workers, who would go on without it, and an engine that nobody can name."""
        if self._control is None:
            return
        control = self._control
        control.set_state("stopped")  # a worker that is still booting ends when it comes in
        for shard in control.known_shards():
            if control.worker_alive(shard):
                pidfd = open_holder(control.view_shard(shard).pid, control.segment)
                if pidfd is None:
                    continue
                if control.worker_alive(shard):  # so the number was still its own when it was opened
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                    if not select.select([pidfd], [], [], 10)[0]:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
        self._last = self._observer.status()
        if not self._named:
            for shard in control.known_shards():
                inbox = self._observer.inbox(shard, control.view_shard(shard).generation)
                if inbox is not None:
                    inbox.segment.unlink()
            control.segment.unlink()

    def _find_what_it_left(self, pid: int) -> None:
        """The memory of a supervisor that died before it was ready, if it is of that one and nobody has taken it
        over."""
        try:
            control = ControlSegment.attach(self.name)
        except ShardmemError:
            return
        if control.view_engine().pid != pid or control.supervisor_alive():
            control.close()
            return
        self._control, self._observer = control, Observer(control)

    def _end(self, report: Report | None) -> None:
        """The supervisor ended, or never got ready: raise why."""
        assert self._process is not None
        self._end_revival()
        _close_lifeline(self._process)
        try:
            code = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reports.close()
        crashed = code < 0 or not report or bool(report.get("error") and report.get("kind") is None)
        if crashed and self._control is None:
            self._find_what_it_left(self._process.pid)
        if crashed or self._control is not None and any(map(self._control.worker_alive, self._control.known_shards())):
            self._clean_up()
        self._forget_memory()
        if report and report.get("status"):
            self._last = report["status"]
            self._last["supervisor"]["alive"] = False
        if report and report.get("error"):
            error = ShardmemError.of(report)
            left = self._last["accounting"]["in_flight"] if self._last else 0
            if left:
                error.detail = f"{left:,} accepted events were not handled; " + (
                    f"they stay in shared memory: start engine {self.name!r} again to handle them."
                    if self._named
                    else "they are lost: an unnamed engine cannot be resumed."
                )
            raise error
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code} without a report"
        raise ShardmemError(f"the supervisor of engine {self.name!r} {how}", hint="See its standard error")


def _close_lifeline(process: Child) -> None:
    if not process.stdin.closed:
        try:
            process.stdin.write(b"stop\n")  # the end of the file alone waits for copies in other processes
            process.stdin.close()
        except (BrokenPipeError, OSError):
            pass


def _forget_in_child() -> None:
    """A forked child is not the parent: its copy of the lifeline must neither keep the engine alive nor end it."""
    for engine in list(_running):
        engine._inherited = True
        if engine._process is not None and not engine._process.stdin.closed:
            engine._process.stdin.close()


_running: weakref.WeakSet[Engine] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_in_child)
