"""Carries out what the census finds. Every removal happens under the leases that it is about, and is judged again
there."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection
from dataclasses import replace

from shardmem.errors import NotRunning, ShardmemError
from shardmem.host.census import KEEP, REMOVE, EngineFacts, File, Leftover, Places, census, judge, observe
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.holders import mapped_by
from shardmem.memory.segment import SHM_DIRECTORY, control_name, path_of

TERM_GRACE_S = 10.0  # that a worker may take to finish the batch in hand


def gc(
    places: Places,
    only: Collection[str] = (),
    *,
    dry_run: bool = False,
    end_orphans: bool = False,
    discard: str | None = None,
    patience: float = TERM_GRACE_S,
) -> list[Leftover]:
    """What was found, and what was done about it. only: engines to look at. discard: the one whose events may be lost,
    and the only one that is looked at. Raises NotRunning, ShardmemError when that one cannot be discarded."""
    engines, found = census(places, (discard,) if discard else only)
    if discard and not engines:
        raise NotRunning(f"there is nothing of an engine named {discard!r} here")
    for facts in engines:
        stuck = ""
        if end_orphans and facts.workers and facts.supervisor is None:
            if dry_run:
                stuck = (
                    f"its workers (pids {', '.join(str(pid) for _, pid in facts.workers)}) would get TERM, and end "
                    "after the "
                    f"batch in hand; events in flight stay, and memory without events would be removed"
                )
            else:
                stuck = _end_workers(facts, patience)
                facts = observe(facts.name, places)
        findings = judge(facts, places.uid, facts.name == discard)
        if discard and not any(each.action == REMOVE for each in findings if each.kind == "engine"):
            kept = [each for each in findings if each.kind == "engine"]
            if kept:
                raise ShardmemError(
                    f"engine {discard!r} {kept[0].reason}; its memory is not discarded"
                    + (f": {stuck}" if stuck else "")
                )
        if not dry_run and any(each.action == REMOVE for each in findings):
            findings = _sweep(findings, facts.name, places, facts.name == discard)
        found += [replace(each, remedy=stuck) if stuck and each.kind == "engine" else each for each in findings]
    return found


def _sweep(before: list[Leftover], name: str, places: Places, discard: bool) -> list[Leftover]:
    everything = any(each.kind == "engine" and each.action == REMOVE for each in before)
    try:
        claim, blocker = Claim.take(name, everything), "another process has just taken a lease on it"
    except OSError as error:
        claim, blocker = None, f"it cannot be locked: {error.strerror}"
    if claim is None:
        return [replace(each, action=KEEP, reason=blocker) if each.action == REMOVE else each for each in before]
    done = []
    with claim:
        facts = observe(name, places, claim.descriptor, claim.placeholder)
        # Inboxes and socket first: when the control segment is gone, a new engine of this name may be making its own.
        for each in sorted(judge(facts, places.uid, discard), key=lambda each: each.kind == "engine"):
            if each.action == REMOVE and each.kind == "engine" and not everything:
                each = replace(each, action=KEEP, reason="its last user has just ended; run gc again")
            elif each.action == REMOVE:
                if each.kind == "engine" and facts.condition == "ready":
                    _refuse(name)
                try:
                    for file in each.files:
                        _unlink(file)
                    each = replace(each, done=True)
                except OSError as error:
                    each = replace(each, action=KEEP, reason=f"cannot be removed: {error.strerror}")
            done.append(each)
    return done


def _refuse(name: str) -> None:
    """A producer that has mapped the segment and is about to take a seat must find a stopped engine, not inboxes that
    are gone, or those of the next engine of that name. This word is the supervisor's, whose lease the claim holds."""
    control = ControlSegment.attach(name)
    control.set_state("stopped")
    control.close()


def _unlink(file: File) -> None:
    try:
        found = os.lstat(file.path)
        if (found.st_dev, found.st_ino) == file.inode:
            os.unlink(file.path)
    except FileNotFoundError:
        pass


class Claim:
    """Holds the supervisor's lease of a name, or every lease of it: no supervisor of that name can start in between.

    Where there is no control segment, an empty file stands for it, locked before it gets the name. A supervisor that
    comes takes it for one that is being created, and waits; if this process is killed, for one whose creator was
    killed.
    """

    def __init__(self, descriptor: int, path: str, placeholder: bool) -> None:
        self.descriptor, self.placeholder, self._path = descriptor, placeholder, path

    @classmethod
    def take(cls, name: str, everything: bool) -> Claim | None:
        """None: another process holds a lease."""
        path = path_of(control_name(name))
        while True:
            placeholder = False
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                descriptor, placeholder = os.open(SHM_DIRECTORY, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), True
            try:
                if not (lease.take_everything(descriptor) if everything else lease.lock(descriptor, lease.SUPERVISOR)):
                    os.close(descriptor)
                    return None
                if placeholder:
                    # With a directory given, or os.link calls link(2), which does not follow the link in /proc to the
                    # file.
                    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
                if _is(path, descriptor):
                    return cls(descriptor, path, placeholder)
            except FileExistsError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        if self.placeholder:
            os.unlink(self._path)
        os.close(self.descriptor)


def _is(path: str, descriptor: int) -> bool:
    try:
        named, ours = os.lstat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def _end_workers(facts: EngineFacts, patience: float) -> str:
    """TERM: after the batch in hand; no new supervisor meanwhile. Returns what is left to do by hand, in words."""
    claim = Claim.take(facts.name, everything=False)
    if claim is None:
        return "its supervisor is back"
    assert facts.control is not None
    waiting: dict[int, int] = {}
    unknown = []
    with claim:
        for shard, pid in facts.workers:
            try:
                pidfd = os.pidfd_open(pid)
            except (OSError, OverflowError):
                unknown.append(pid)
                continue
            # The number is that of the worker if it has the segment mapped, and the lease is still held: in another PID
            # namespace it would be that of any process.
            held = lease.is_locked(claim.descriptor, lease.shard_byte(shard))
            if facts.control.inode[1] in mapped_by(pid) and held:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                waiting[pidfd] = pid
            else:
                os.close(pidfd)
                unknown.append(pid)
        deadline = time.monotonic() + patience
        while waiting and (ended := select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))[0]):
            for pidfd in ended:
                os.close(pidfd)
                del waiting[pidfd]
        for pidfd in waiting:
            os.close(pidfd)
    said = [
        f"pid {pid} did not end within {patience:g} s of TERM: its handler is busy; kill it, no event is lost"
        for pid in waiting.values()
    ]
    return "; ".join(said + [f"pid {pid} cannot be seen from here: end it in its own PID namespace" for pid in unknown])
