"""The supervisor's role, taken on fresh memory or on what an earlier supervisor left, whatever killed it and wherever.

Workers and producers carry on without a supervisor, so the next one finds an engine in the middle of things. It changes
nothing that runs: the engine stays `running`, live workers are adopted by their leases, dead ones started, and what was
begun goes on. What a shard was at comes from three words:

    none                                          an inbox that nobody was told of yet, or not any more: its file goes
    provisioning, weight 0, without slots         a replacement (replacements.py) that had not begun: given up
    active, weight 0                              the same, if no shard drains; otherwise it has begun, and goes on
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
from shardmem.errors import AlreadyRunning, ConfigError, NotRunning
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.inbox_segment import InboxSegment
from shardmem.memory.native import ffi, lib, point
from shardmem.memory.segment import control_name, inbox_files, inbox_name, path_of
from shardmem.policy import first_table
from shardmem.status.health import hangs

NO_SHARD = 0xFFFF
HELD_BRIEFLY = 0.3  # seconds: `shardmem gc` takes the lease of an engine while it looks whether anybody holds it

log = logging.getLogger("shardmem.supervisor")


@dataclass
class Found:
    """What is to be done. running: the engine is, and stays so. inboxes: of all shards that have one."""

    running: bool = False
    inboxes: dict[int, InboxSegment] = field(default_factory=dict)
    joining: list[int] = field(default_factory=list)  # provisioning in an engine that runs
    draining: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    useless: list[int] = field(default_factory=list)

    @property
    def states(self) -> dict[int, str]:
        """For the mapper."""
        return {
            shard: "provisioning"
            if shard in (*self.joining, *self.useless)
            else "draining"
            if shard in (*self.draining, *self.stopped)
            else "active"
            for shard in self.inboxes
        }


def take_role(config: Config) -> tuple[ControlSegment, lease.Lease, bool]:
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
            )
            fresh = True
        except FileExistsError:
            try:
                control = ControlSegment.attach(config.name, wait=1.0)
            except NotRunning:
                # A second without a format: whoever began it was killed in the act, or is slower than that; then it
                # finds below that the name is no longer its own.
                if lease.is_free(control_name(config.name), lease.SUPERVISOR):
                    try:
                        os.unlink(path_of(control_name(config.name)))
                    except FileNotFoundError:
                        pass
                continue
        held = lease.Lease.take(control.segment, lease.SUPERVISOR)
        if held is None:
            if time.monotonic() < deadline:
                control.close()
                time.sleep(0.01)
                continue
            pid = control.view_engine().pid
            helps = hangs(control) or f"Choose another name, or stop it with 'shardmem stop {config.name}'"
            control.close()
            raise AlreadyRunning(f"engine {config.name!r} is already run by process {pid}. {helps}")
        if control.segment.is_current():
            point("takeover.locked")
            return control, held, fresh
        held.release()
        control.close()


def check_directory(config: Config) -> None:
    """Raises ConfigError when nothing can be kept in `state_dir`: not at the first event that has to be set aside, or the first
    checkpoint, which would stop a shard, but before there is one."""
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


def find_shards(control: ControlSegment, config: Config) -> Found:
    """Every shard has an inbox and every slot a shard. Also finishes what a killed supervisor had begun."""
    found = Found(running=control.state == "running")
    if not found.running:
        control.set_state("starting")
    _finish_removals(control)
    _sweep(control)
    owners, _ = control.slot_table()
    used, lonely = set(owners.tolist()) | _moving_at(control), []
    for shard in control.known_shards():
        found.inboxes[shard] = control.open_inbox(shard)
        state, view = control.shard_state(shard), control.view_shard(shard)
        if not found.running:
            control.set_shard_state(shard, "provisioning")
        elif state == "provisioning":
            (found.useless if shard not in used and not view.weight else found.joining).append(shard)
        elif state == "draining":
            found.draining.append(shard)
        elif state == "stopped":
            found.stopped.append(shard)
        elif state == "active" and not view.weight:
            lonely.append(shard)
        elif state == "failed":  # a new supervisor is a new chance: the handler may have been mended
            control.set_shard_state(shard, "active")
    for shard in lonely:
        if found.draining:
            lib.sm_set_shard_weight(control.address, shard, 1000)
        else:
            control.set_shard_state(shard, "draining")
            found.draining.append(shard)
    unowned = np.flatnonzero(owners == NO_SHARD).tolist()
    if unowned:  # the table is written last, so as long as it has gaps the shards may have too
        for shard in set(range(config.start_shards)) - set(found.inboxes):
            found.inboxes[shard] = InboxSegment.create(control, shard, 1)
            lib.sm_set_shard_generation(control.address, shard, 1)
            lib.sm_set_shard_weight(control.address, shard, 1000)
            control.set_shard_state(shard, "provisioning")
        table = first_table(control.slots, sorted(found.inboxes))
        for slot in unowned:
            lib.sm_set_slot(control.address, slot, table[slot])
    elif not found.running and len(found.inboxes) != config.start_shards:
        log.warning(
            "engine %s: %d shards were asked for; shared memory of an earlier run has %d and keeps them",
            config.name,
            config.start_shards,
            len(found.inboxes),
        )
    return found


def _finish_removals(control: ControlSegment) -> None:
    """Shards whose counts are kept already: only their inbox and their state are left."""
    for shard in control.known_shards():
        view = control.view_shard(shard)
        if view.generation <= view.retired_generation:
            _unlink(inbox_name(control.engine, shard, view.generation))
            control.set_shard_state(shard, "none")


def _sweep(control: ControlSegment) -> None:
    """Inboxes of this engine that no shard has: made by a supervisor that was killed before it could say so."""
    known = {
        inbox_name(control.engine, shard, control.view_shard(shard).generation) for shard in control.known_shards()
    }
    for name in inbox_files(control.engine):
        if name not in known:
            _unlink(name)


def _unlink(name: str) -> None:
    try:
        os.unlink(path_of(name))
    except FileNotFoundError:
        pass


def _moving_at(control: ControlSegment) -> set[int]:
    slots, view = np.empty(control.slots, "u4"), ffi.new("sm_move_view *")
    count = lib.sm_view_moving(
        control.address, control.geometry, ffi.cast("uint32_t *", slots.ctypes.data), control.slots
    )
    found = set()
    for slot in slots[:count].tolist():
        lib.sm_view_move(control.address, slot, view)
        found |= {view.source, view.target}
    return found
