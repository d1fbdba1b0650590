"""The worker process of one shard: its orders come on standard input.

It takes the lease of its shard, loads the handler, takes up what its predecessor left, says ready, and then: choose a
batch, call the handler, commit (checkpoint.py), or try again (failures.py). It goes on when the supervisor dies. It
ends when the supervisor says stop (shard state or engine state in the control segment), at SIGTERM after the batch in
hand, or when the handler fails.
"""

from __future__ import annotations

import faulthandler
import logging
import resource
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shardmem.errors import AlreadyRunning, BatchEscaped, HandlerError, ShardmemError, with_hint
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.native import arm_from_environment, ffi, lib
from shardmem.memory.reader import Reader
from shardmem.runtime import log_file, logs, stacks, streams
from shardmem.runtime.aside import Aside
from shardmem.runtime.batch import Batch, Scratch
from shardmem.runtime.child import ExitCode, Reports, WorkerOrders, begin, read_orders
from shardmem.runtime.commit import REST_NS, Commit, Immediate
from shardmem.runtime.failures import Failures
from shardmem.runtime.forked import fence
from shardmem.runtime.handler import Context, Handler, is_stateful, optional, wants_to_know
from shardmem.runtime.moves import Moves
from shardmem.runtime.opening import Opening, ToldToStop
from shardmem.runtime.outbox import Outbox, no_outbox
from shardmem.runtime.outcomes import OnError
from shardmem.state.keeper import Keeper, keeps_by_key
from shardmem.state.scope import Scope
from shardmem.state.store import MemoryStore
from shardmem.text import of_error

if TYPE_CHECKING:
    from shardmem.runtime.checkpoint import Checkpointed
    from shardmem.runtime.state import StateStore

LEASED_REST_NS = 100_000_000
SIGN_OF_LIFE = 0.4  # of stall_timeout
LONG_REST_S = 1.5  # after the first sleep: by then the supervisor may be at rest too (supervisor/pace.py)

log = logging.getLogger("shardmem.worker")


class Worker:
    """One life of one shard."""

    def __init__(
        self,
        control: ControlSegment,
        shard: int,
        *,
        batch_rows: int,
        spin_us: int,
        stall_timeout: float,
        say: Callable[..., None],
    ) -> None:
        self.control, self.shard = control, shard
        self._spin_ns, self._say = spin_us * 1000, say
        self._quiet_ns = int(stall_timeout * 1e9 * SIGN_OF_LIFE)
        held = lease.Lease.take(control.segment, lease.shard_byte(shard))
        if held is None:
            raise AlreadyRunning(
                f"shard {shard} of engine {control.engine!r} has a live worker (pid {control.view_shard(shard).pid})"
            )
        self._lease = held
        self.said = control.shard_error(shard)  # by the last life
        control.enter_worker(shard)
        self._inbox = control.open_inbox(shard)
        fence(control.segment, self._inbox.segment)
        self.reader = Reader.open(control, self._inbox, batch_rows)
        self.batch = ffi.new("sm_batch *")
        self.scratch = Scratch()
        self.stop_now = False

    @property
    def incarnation(self) -> int:
        return self.control.view_shard(self.shard).incarnation

    def set_phase(self, phase: str) -> None:
        self.control.set_worker_phase(self.shard, phase)

    def say_error(self, text: str) -> None:
        """Leave the reason where `status` finds it, whoever is alive by then."""
        self.control.set_worker_error(self.shard, text)

    def ordered_to_stop(self) -> bool:
        return self.stop_now or self.control.is_told_to_stop(self.shard)

    def _rest_ns(self) -> int:
        """The longest sleep. That a lease of a partition is renewed rings no bell, and events may wait for it."""
        return min(self._quiet_ns, LEASED_REST_NS if self.control.partitions.count else REST_NS)

    def run(self, commit: Commit, moves: Moves, failures: Failures) -> None:
        """Until told to stop. Raises HandlerError, with the event, when the handler fails and that is to stop the
        worker; BatchEscaped."""
        try:
            self._run(commit, moves, failures)
        except BatchEscaped:  # no event did it: none has failed, and none was in hand when the worker ended
            self.reader.try_later()
            raise

    def _run(self, commit: Commit, moves: Moves, failures: Failures) -> None:
        next_batch, attempt, batch, spin = self.reader.next, failures.attempt, self.batch, self._spin_ns
        schema, slots, shard, scratch = self.control.schema, self.control.slots, self.shard, self.scratch
        partitions, rest = self.control.partitions, self._rest_ns()
        idle, idle_since = True, 0.0
        work = Batch(schema, slots, shard, batch, scratch, partitions)  # before the sleep: no event waits for it
        while not self.ordered_to_stop():
            moves.step(idle)
            commit.step(idle)
            if failures.busy and not failures.step():
                idle = True
                continue
            if not next_batch(spin, min(rest, moves.patience_ns, commit.patience_ns, failures.patience_ns), batch):
                self._report_lane(batch.broken_seat)
            idle = not batch.rows
            if idle:
                idle_since, rest = idle_since or time.monotonic(), self._rest_ns()
                if failures.busy:
                    failures.idle()
                continue
            if idle_since:
                if time.monotonic() - idle_since > LONG_REST_S:
                    self._say(flows=True)
                idle_since = 0.0
            if batch.tries and failures.is_blamed():
                failures.died()
            elif not commit.take(batch):
                failures.passed()
            else:
                work._begin()
                attempt(work)
                work = Batch(schema, slots, shard, batch, scratch, partitions)
        commit.settle()
        failures.leave()

    def _report_lane(self, seat: int) -> None:
        view = self.control.view_seat(seat)
        text = (
            f"the lane of producer {seat} (pid {view.pid}) to shard {self.shard} is corrupt; it is left alone, other "
            f"lanes go on"
        )
        log.error("%s", text, extra={"seat": seat})
        self.say_error(text)


def main() -> int:
    begin()
    arm_from_environment()
    lib.sm_keep_heap()  # before the handler has a say: arrays that it makes and frees with each batch cost half or less
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # a supervisor that finds it stuck wants to know where
    stacks.offer()
    # A terminal's Ctrl-C and its end go to the whole process group; the supervisor decides what they mean for workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if (told := _orders()) is None:
        return ExitCode.BOOT  # its supervisor was killed before it could say for what; the next one starts another
    orders, reports = told
    streams.open_null(0)
    settings = orders.settings
    worker = None
    try:
        worker = Worker(
            ControlSegment.attach(orders.engine),
            orders.shard,
            batch_rows=settings["batch_rows"],
            spin_us=settings["spin_us"],
            stall_timeout=settings["stall_timeout"],
            say=reports.say,
        )
        if orders.forgiven:
            worker.reader.forgive()
        logs.incarnate(worker.incarnation)
        rules = OnError(**settings["failures"])
        opening = Opening(worker.control, worker.shard, rules, worker.said, worker.ordered_to_stop, reports.say)
        aside = Aside(worker.control, worker.shard, worker.reader, rules.quarantine_file, rules.quarantine_limit)
        commit = _commit_of(worker, orders, settings, rules, opening, aside)
        commit.take_up()
        moves = Moves(worker.control, worker.shard, worker.reader, commit, reports.say)
        failures = Failures(
            worker.control,
            worker.shard,
            worker.reader,
            worker.batch,
            commit,
            aside,
            rules,
            orders.ended,
            worker.said,
            worker.scratch,
        )
    except ToldToStop:
        return _stopped(worker)
    except AlreadyRunning as error:  # the shard's words are another's
        return _taken(reports, error)
    except BaseException as error:  # sys.exit("no DATABASE_URL") is a reason like any other
        return _boot_failure(worker, reports, error)

    def finish(*_: Any) -> None:
        worker.stop_now = True

    signal.signal(signal.SIGTERM, finish)
    knows = commit.saves or wants_to_know(commit.handler)
    worker.control.set_worker_stateful(worker.shard, knows, commit.saves)
    worker.set_phase("ready")
    reports.say(ready=True)
    try:
        worker.run(commit, moves, failures)
        optional(commit.handler, "close")()
        commit.close()
    except ToldToStop:
        return _stopped(worker)
    except AlreadyRunning as error:  # its words in shared memory are another's by now
        return _taken(reports, error)
    except BaseException as error:
        return _failure(worker, reports, error, is_final=settings["failures"]["on_error"] == "stop")
    return _stopped(worker)


def _stopped(worker: Worker | None) -> int:
    if worker is not None:
        worker.set_phase("stopped")
    return ExitCode.OK


def _orders() -> tuple[WorkerOrders, Reports] | None:
    """Those of a spare tell what it will be; when it is needed, it gets others."""
    told = read_orders(WorkerOrders)
    if told is None:
        return None
    orders, settings = told[0], told[0].settings
    if orders.descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (orders.descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    logs.set_up(settings["log_format"], settings["log_level"], orders.engine, orders.shard)
    log_file.keep_in(settings["log_file"])
    if orders.spare:
        logs.keep()
        orders.handler.prepare()
        _saving()
        told[1].say(prepared=True)
        told = read_orders(WorkerOrders)
    if told is not None:
        logs.move(told[0].shard)
    return told


def _commit_of(
    worker: Worker, orders: WorkerOrders, settings: dict[str, Any], rules: OnError, opening: Opening, aside: Aside
) -> Commit:
    control = worker.control
    context = Context(
        control.engine,
        worker.shard,
        worker.incarnation,
        control.slots,
        logging.getLogger(f"shardmem.handler.{worker.shard}"),
        f"{control.geometry.engine_id:016x}",
        lambda: control.partitions.count,
        lambda: outboxes.take(),
    )
    logs.keep()

    scope = Scope(control.slots, MemoryStore(), shard=worker.shard)
    keeper = Keeper(scope, settings["state_cache_bytes"])

    def made() -> Handler:
        handler = orders.handler.load()
        if keeps_by_key(handler):
            keeper.bind(handler)
        optional(handler, "open")(context)
        return handler

    def opened() -> Handler:
        return opening.until_open(made)

    outboxes = _Outboxes(settings["outbox"])
    handler = opened()
    if not is_stateful(handler) and outboxes.outbox is None:
        outboxes.is_late = True
        return Immediate(control, worker.shard, worker.reader, handler)
    checkpointed, state_store = _saving()
    store = state_store(
        settings["state_files"], worker.shard, control.geometry.engine_id, control.slots, keep=settings["keep_state"]
    )
    scope.store = outboxes.store = store
    return checkpointed(
        control,
        worker.shard,
        worker.reader,
        handler,
        keeper,
        store,
        settings["checkpoint_interval"],
        opened,
        rules,
        aside.retract,
        # A person who asked for this start has been told, and may go on without.
        expects_state=control.has_saved_state(worker.shard) and not orders.forgiven,
        outbox=outboxes.outbox,
    )


def _saving() -> tuple[type[Checkpointed], type[StateStore]]:
    """What a handler with state needs: 10 ms of imports, for which the others do not wait."""
    from shardmem.runtime.checkpoint import Checkpointed
    from shardmem.runtime.state import StateStore

    return Checkpointed, StateStore


class _Outboxes:
    """Of a worker whose handler may take one in `open`, before there is a store."""

    def __init__(self, is_configured: bool) -> None:
        self._is_configured, self.is_late = is_configured, False
        self.outbox: Outbox | None = None
        self.store: StateStore | None = None

    def take(self) -> Outbox:
        """Raises ShardmemError."""
        if not self._is_configured:
            raise no_outbox("it is not configured", "Set `outbox`: kafka://host:port, or a table [outbox.kafka]")
        if self.is_late:
            raise no_outbox(
                "this handler has no checkpoints", "Take `context.outbox` in open(), so that it gets checkpoints"
            )
        if self.outbox is None:
            self.outbox = Outbox(lambda: 0 if self.store is None else self.store.backlog())
        return self.outbox


def _taken(reports: Reports, error: AlreadyRunning) -> int:
    log.error("%s", with_hint(error))
    reports.say(taken=True)
    return ExitCode.ALREADY


def _failure(worker: Worker, reports: Reports, error: BaseException, *, is_final: bool) -> int:
    """is_final: with on_error="stop" the user wants nothing to go on until somebody has looked. A handler that keeps a
    view would do so with every batch, in each of its lives."""
    is_final = is_final or isinstance(error, BatchEscaped)
    of_user = isinstance(error, (HandlerError, BatchEscaped))
    hint = f" (hint: {error.hint})" if isinstance(error, ShardmemError) and error.hint else ""
    text = with_hint(error) if of_user else of_error(error) + hint
    worker.say_error(text)
    worker.set_phase("halted" if is_final else "failed")
    log.error("%s", text, exc_info=_of_user(error))
    reports.say(failed=text, final=is_final)
    return ExitCode.FAILED


def _of_user(error: BaseException) -> BaseException | None:
    """What has a traceback that helps: the user's code. Our own errors say all in words."""
    if isinstance(error, HandlerError):
        return error.__cause__
    return None if isinstance(error, ShardmemError) else error


def _boot_failure(worker: Worker | None, reports: Reports, error: BaseException) -> int:
    text = with_hint(error) if isinstance(error, ShardmemError) else of_error(error)
    log.error("cannot start: %s", text, exc_info=_of_user(error))
    if worker is not None:
        worker.say_error(text)
        worker.set_phase("failed")
    reports.say(boot_failed=text)
    return ExitCode.BOOT
