"""The supervisor's role, taken on fresh memory or on what an earlier supervisor left, whatever killed it and wherever.

Workers and producers carry on without a supervisor, so the next one finds an engine in the middle of things. It changes
nothing that runs: the engine stays `running`, live workers are adopted by their leases, dead ones started, and what was
begun goes on. What a shard was at comes from three words:

    none                                          an inbox that nobody was told of yet, or not any more: its file goes
    provisioning, weight 0, without slots         a replacement (replacements.py) that had not begun: given up
    active, weight 0                              cordoned, if it has slots or the board says so; else a replacement as
                                                  above if no shard drains, or one that has begun and goes on
    provisioning                                  joins when it is ready
    active, failed                                its worker is adopted or started
    draining                                      the drain goes on
    stopped, in an engine that runs               its removal goes on
    anything, in an engine that does not run      a run that ended with events left: starts like a first one
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np

from shardmem.config import Config
from shardmem.errors import AlreadyRunning, ConfigError, NotRunning, SegmentCorrupt
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import BOARD_BYTES, point
from shardmem.memory.segment import control_name, inbox_files, inbox_name, path_of
from shardmem.policy import NOBODY, LeastSlots, ShardCoordinator, Strategy
from shardmem.runtime import logs
from shardmem.runtime.state_files import remove_files
from shardmem.status.health import hangs
from shardmem.status.observer import Observer
from shardmem.supervisor.history import History
from shardmem.supervisor.recovery import take_words
from shardmem.text import listed

NO_SHARD = 0xFFFF
HELD_BRIEFLY = 0.3  # seconds: `shardmem gc` takes the lease of an engine while it looks whether anybody holds it

log = logging.getLogger("shardmem.supervisor")


@dataclass
class Takeover:
    """An engine whose role was taken, and what is to be done in it. running: the engine is, and stays so. inboxes: of
    all shards that have one. left: events in flight by then; None: the memory is fresh.
    """

    control: ControlSegment
    lease: lease.Lease
    fresh: bool
    observer: Observer
    history: History
    running: bool = False
    inboxes: dict[int, InboxSegment] = field(default_factory=dict)
    joining: list[int] = field(default_factory=list)  # provisioning in an engine that runs
    draining: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    never_started: list[int] = field(default_factory=list)
    left: int | None = None

    @classmethod
    def take(cls, config: Config, is_named: bool = True) -> Takeover:
        """The role alone. Raises AlreadyRunning, ConfigError, LayoutMismatch, ShardmemError; then nothing is held."""
        check_directory(config)
        control, held, fresh = take_role(config, is_named)
        control.enter_supervisor()
        logs.incarnate(control.view_engine().incarnation)
        history = History(lambda text: _post(control, text), BOARD_BYTES)
        return cls(control, held, fresh, Observer(control), history)

    def find(self, config: Config, strategy: Strategy) -> None:
        """Look at what is there, and finish what a killed supervisor had begun. Raises ConfigError: it does not fit."""
        if not self.fresh:
            check_fit(self.control, config)
            mended = take_words(self.control)
            self.history.take_up(*self.observer.history(), self.observer.status())
            for shard, text in mended:
                self.history.note("memory_damaged", text, shard)
        else:
            self.control.remember()
        _find_shards(self, config, strategy)
        if not self.fresh:
            self.left = sum(self.observer.in_flight().values())

    def abort(self, config: Config) -> None:
        """The engine cannot be opened: what was there before stays, what we made goes."""
        if self.fresh:
            self.remove_segments(config)
        self.lease.release()

    def remove_segments(self, config: Config) -> None:
        for inbox in self.inboxes.values():
            inbox.segment.unlink()
        self.control.segment.unlink()
        if config.state_dir is None:  # then state lasts as long as the memory whose events it reflects
            remove_files(config.worker_settings()["state_files"])

    @property
    def states(self) -> dict[int, str]:
        """For the mapper."""
        return {
            shard: "provisioning"
            if shard in (*self.joining, *self.never_started)
            else "draining"
            if shard in (*self.draining, *self.stopped)
            else "active"
            for shard in self.inboxes
        }


def _post(control: ControlSegment, text: bytes) -> None:
    control.post("events", text)


def take_role(config: Config, is_named: bool = True) -> tuple[ControlSegment, lease.Lease, bool]:
    """The control segment of this name, the supervisor's lease on it, and whether it is fresh."""
    deadline = time.monotonic() + HELD_BRIEFLY
    while True:
        fresh = False
        try:
            control = ControlSegment.create(
                config.name,
                config.schema,
                slots=config.slots,
                max_shards=config.most_shards,
                max_producers=config.max_producers,
                lane_bytes=config.lane_bytes,
                backpressure=config.backpressure,
                state_dir=config.directory,
                is_named=is_named,
            )
            fresh = True
        except FileExistsError:
            try:
                control = ControlSegment.attach(config.name, wait=1.0)
            except NotRunning:
                # A second without a format: whoever began it was killed in the act, or is slower than that; then it
                # finds below that the name is no longer its own.
                if lease.is_free(control_name(config.name), lease.SUPERVISOR):
                    if inboxes := inbox_files(config.name):  # they come after the format, so it was there
                        raise SegmentCorrupt(
                            f"{path_of(control_name(config.name))} is not formatted, and engine {config.name!r} has "
                            f"inboxes ({listed(inboxes)}): somebody has written over it",
                            hint=f"To lose what they hold, and begin anew: `shardmem gc --discard {config.name}`",
                        ) from None
                    try:
                        os.unlink(path_of(control_name(config.name)))
                    except FileNotFoundError:
                        pass
                continue
        try:
            held = lease.Lease.take(control.segment, lease.SUPERVISOR)
        except BaseException:  # no descriptor is left
            if fresh and not lease.is_held(control.segment, lease.SUPERVISOR):
                control.segment.unlink()
            control.close()
            raise
        if held is None:
            if time.monotonic() < deadline:
                control.close()
                time.sleep(0.01)
                continue
            pid = control.view_engine().pid
            helps = hangs(control) or (
                f"To push into it: `shardmem.connect({config.name!r})`, as each process of a web server does. "
                f"Otherwise choose another name, or stop it with `shardmem stop {config.name}`"
            )
            control.close()
            raise AlreadyRunning(f"engine {config.name!r} is already run by process {pid}", hint=helps)
        if control.segment.is_current():
            point("takeover.locked")
            return control, held, fresh
        held.release()
        control.close()


def check_directory(config: Config) -> None:
    """Raises ConfigError when nothing can be kept in `state_dir`: not at the first event that has to be set aside, or
    the first checkpoint, which would stop a shard, but before there is one."""
    try:
        os.makedirs(config.directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"state_dir={config.directory!r} cannot be written to by uid {os.getuid()}: {error.strerror}; state and "
            f"quarantine are kept there. Make it writable, or choose another"
        ) from None


def check_fit(control: ControlSegment, config: Config) -> None:
    """Raises ConfigError when the memory that was found is of other settings."""
    wanted = {
        "schema": config.schema,
        "slots": config.slots,
        "lane_bytes": config.lane_bytes,
        "max_producers": config.max_producers,
        "state_dir": config.directory,
    }
    different = [
        f"{key} is {getattr(control, key)} there and {value} here"
        for key, value in wanted.items()
        if getattr(control, key) != value
    ]
    if control.max_shards < config.start_shards:
        different.append(f"max_shards is {control.max_shards} there and {config.start_shards} shards are to start here")
    if different:
        raise ConfigError(
            f"shared memory of engine {config.name!r} is left from an earlier run and does not fit: "
            f"{'; '.join(different)}. Run it once more with the old settings and stop it, which handles "
            f"what is there; or lose that: 'shardmem gc --discard {config.name}'; or choose another name"
        )


def _find_shards(takeover: Takeover, config: Config, strategy: Strategy) -> None:
    """Every shard has an inbox and every slot a shard. Also finishes what a killed supervisor had begun."""
    control = takeover.control
    takeover.running = control.state == "running"
    if not takeover.running:
        control.set_state("starting")
    _finish_removals(control)
    _sweep(control)
    owners, _ = control.slot_table()
    used, unweighted = set(owners.tolist()) | _shards_of_handoffs(control), []
    for shard in control.known_shards():
        takeover.inboxes[shard] = control.take_inbox(shard)
        state, view = control.shard_state(shard), control.view_shard(shard)
        if not takeover.running:
            control.set_shard_state(shard, "provisioning")
        elif state == "provisioning":
            (takeover.never_started if shard not in used and not view.weight else takeover.joining).append(shard)
        elif state == "draining":
            takeover.draining.append(shard)
        elif state == "stopped":
            takeover.stopped.append(shard)
        elif state == "active" and not view.weight:
            unweighted.append(shard)
        elif state == "failed":  # a new supervisor is a new chance: the handler may have been mended
            control.set_shard_state(shard, "active")
    cordoned = takeover.observer.board()["cordoned"]
    for shard in unweighted:
        if takeover.draining:
            control.set_shard_weight(shard, 1000)
        elif shard not in used and shard not in cordoned:
            control.set_shard_state(shard, "draining")
            takeover.draining.append(shard)
    unowned = np.flatnonzero(owners == NO_SHARD).tolist()
    if unowned:  # the table is written last, so as long as it has gaps the shards may have too
        missing = set() if takeover.running and takeover.inboxes else set(range(config.start_shards))
        for shard in missing - set(takeover.inboxes):
            takeover.inboxes[shard] = InboxSegment.create(control, shard, 1)
            control.set_shard_generation(shard, 1)
            control.set_shard_weight(shard, 1000)
            control.set_shard_state(shard, "provisioning")
        for shard, slots in _first_owners(owners, sorted(takeover.inboxes), strategy).items():
            for slot in slots:
                control.set_slot(slot, shard)
    elif not takeover.running and len(takeover.inboxes) != config.start_shards:
        log.warning(
            "engine %s: %d shards were asked for; shared memory of an earlier run has %d and keeps them",
            config.name,
            config.start_shards,
            len(takeover.inboxes),
        )


def _first_owners(owners: np.ndarray, shards: list[int], strategy: Strategy) -> dict[int, list[int]]:
    """As the strategy says; evenly, when what it says cannot be."""
    found = np.where(owners == NO_SHARD, NOBODY, owners.astype(np.int64)).tolist()
    try:
        proposed = ShardCoordinator(len(found), shards, strategy, owners=found).propose()
        if set(proposed) <= set(shards):
            return proposed
        log.error("strategy %s: allocate answered %s, and there are shards %s", strategy, set(proposed), shards)
    except Exception:
        log.exception("strategy %s: allocate failed; slots are spread evenly", strategy)
    return ShardCoordinator(len(found), shards, LeastSlots(), owners=found).propose()


def _finish_removals(control: ControlSegment) -> None:
    """Shards whose counts are kept already: only their inbox and their state are left."""
    for shard in control.known_shards():
        view = control.view_shard(shard)
        if view.generation <= view.retired_generation and control.shard_state(shard) == "stopped":
            _unlink(inbox_name(control.engine, shard, view.generation))
            control.set_shard_state(shard, "none")


def _sweep(control: ControlSegment) -> None:
    """Inboxes of this engine that no shard has: made by a supervisor that was killed before it could say so."""
    known = {inbox_name(control.engine, shard, control.shard_generation(shard)) for shard in control.known_shards()}
    for name in inbox_files(control.engine):
        if name not in known:
            _unlink(name)


def _unlink(name: str) -> None:
    try:
        os.unlink(path_of(name))
    except FileNotFoundError:
        pass
    except OSError as error:  # somebody put a directory there: it is in nobody's way
        log.warning("%s cannot be removed: %s", path_of(name), error.strerror)


def _shards_of_handoffs(control: ControlSegment) -> set[int]:
    return {shard for move in control.moves() for shard in (move.source, move.target)}
