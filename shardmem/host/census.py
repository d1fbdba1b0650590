"""What lies below /dev/shm under shardmem's name: facts (`observe`), and what should become of each (`judge`, pure).

Who lives is the kernel's word: leases decide. Age and pids only explain, or hold back what leases would allow.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shardmem.errors import LayoutMismatch, NotRunning, SegmentCorrupt, ShardmemError
from shardmem.memory import lease
from shardmem.memory.engine_segment import ENGINE_NAME, ControlSegment
from shardmem.memory.holders import mapped_by
from shardmem.memory.segment import PREFIX, SHM_DIRECTORY, control_name
from shardmem.places import socket_path
from shardmem.text import listed, plural

KEEP, REMOVE, SKIP = "keep", "remove", "skip"
YOUNG_S = 3.0  # a supervisor that has just created its segment is about to take the lease on it
_MAGIC_AND_VERSION = 12  # where they are is the same in every layout
_CONTROL = re.compile(rf"{re.escape(PREFIX)}({ENGINE_NAME.pattern})\.control")
_INBOX = re.compile(rf"{re.escape(PREFIX)}({ENGINE_NAME.pattern})\.inbox\.(\d+)\.(\d+)")
_SOCKET = re.compile(rf"({ENGINE_NAME.pattern})\.sock")


@dataclass(frozen=True)
class File:
    path: str
    inode: tuple[int, int] = (0, 0)
    uid: int = 0
    bytes: int = 0  # that memory stands behind
    age: float = 1e9  # seconds since it was made
    regular: bool = True


@dataclass(frozen=True)
class InboxFacts:
    file: File
    shard: int
    generation: int
    named: bool  # the control segment says that this is the inbox of that shard
    users: tuple[int, ...] = ()  # pids that have it mapped, as far as they can be seen; looked for if not named


@dataclass(frozen=True)
class EngineFacts:
    """All that is there under one engine's name. Pids are for people.

    condition: of the control segment: absent, unreadable, unformatted, foreign (another layout version, or not ours),
        damaged, or ready. trouble: a sentence about it.
    """

    name: str
    control: File | None = None
    condition: str = "absent"
    trouble: str = ""
    locked: bool = False
    supervisor: int | None = None
    workers: tuple[tuple[int, int], ...] = ()  # (shard, pid)
    producers: tuple[tuple[int, int], ...] = ()  # (seat, pid)
    state: str = ""
    in_flight: int = 0
    unreadable: int = 0  # of them, in lanes that were found corrupt
    inboxes: tuple[InboxFacts, ...] = ()
    socket: File | None = None
    answers: bool = False  # a process listens at the socket


@dataclass(frozen=True)
class Leftover:
    """What is left of an engine, what becomes of it, and why. `done`: it was carried out."""

    kind: str  # engine, inbox, socket, entry
    name: str
    action: str
    reason: str
    bytes: int = 0
    files: tuple[File, ...] = field(default=(), repr=False)
    events: int = 0
    pids: tuple[int, ...] = ()
    remedy: str = ""
    discardable: bool = False  # no process uses it, but accepted events would be lost
    stranded: bool = False  # accepted events wait in it, and no process handles them
    done: bool = False

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "done": self.done,
            "reason": self.reason,
            "bytes": self.bytes,
            "events": self.events,
            "pids": list(self.pids),
            "remedy": self.remedy,
            "files": [file.path for file in self.files],
        }


# ---- judgement: pure -------------------------------------------------------------------------------------------------


def judge(facts: EngineFacts, uid: int, discard: bool = False) -> list[Leftover]:
    """discard: the user has said that the events of this engine may be lost."""
    found = [_engine(facts, uid, discard)] if facts.control is not None else []
    # A live supervisor, or a process that is becoming one, sees to its inboxes and its socket. While workers or
    # producers live, the next one is awaited: it would find the lease taken if gc were just at it, and give up.
    if facts.supervisor is None and facts.condition != "unreadable" and not facts.locked:
        found += [_stray(facts, inbox, uid) for inbox in facts.inboxes if not _belongs(facts, inbox)]
        if facts.socket is not None and facts.socket.uid == uid:
            found.append(_socket(facts, facts.socket))
    return found


def _belongs(facts: EngineFacts, inbox: InboxFacts) -> bool:
    return facts.condition in ("foreign", "damaged", "unreadable") or inbox.named


def _engine(facts: EngineFacts, uid: int, discard: bool) -> Leftover:
    assert facts.control is not None
    files = tuple(inbox.file for inbox in facts.inboxes if _belongs(facts, inbox)) + (facts.control,)
    common: dict[str, Any] = {
        "kind": "engine",
        "name": facts.name,
        "files": files,
        "bytes": sum(file.bytes for file in files),
        "events": facts.in_flight,
    }
    if foreign := [file for file in files if file.uid != uid]:
        return Leftover(
            action=SKIP,
            reason=f"belongs to uid {foreign[0].uid}; this is uid {uid}",
            **common,
            remedy="run gc as that user",
        )
    if facts.condition == "unreadable" or not all(file.regular for file in files):
        return Leftover(action=SKIP, reason=facts.trouble or "is not a regular file", **common)
    if facts.condition == "unformatted":
        if facts.locked:
            return Leftover(action=KEEP, reason="another process is creating or removing it", **common)
        if facts.control.age < YOUNG_S:
            return Leftover(
                action=KEEP,
                **common,
                reason=f"is {facts.control.age:.1f} s old and not formatted yet: its creator may be at work",
            )
        return Leftover(action=REMOVE, reason="was never formatted: its creator was killed while creating it", **common)
    if facts.condition in ("foreign", "damaged"):
        if facts.locked:
            return Leftover(action=KEEP, reason=f"{facts.trouble}; a process holds a lease on it", **common)
        if discard:
            return Leftover(
                action=REMOVE, reason=f"{facts.trouble}; events that it may hold are lost, as asked", **common
            )
        return Leftover(
            action=KEEP,
            reason=f"{facts.trouble}; no process holds a lease on it",
            discardable=True,
            **common,
            remedy=f"to remove it, with the events that it may hold: shardmem gc --discard {facts.name}",
        )
    return _ready(facts, discard, common)


def _ready(facts: EngineFacts, discard: bool, common: dict[str, Any]) -> Leftover:
    workers, producers = _pids(facts.workers), _pids(facts.producers)
    waiting = f"{plural(facts.in_flight, 'event')} in flight" if facts.in_flight else "no event in flight"
    if facts.supervisor is not None:
        return Leftover(
            action=KEEP,
            pids=(facts.supervisor, *workers),
            **common,
            reason=f"in use: {facts.state}, supervisor pid {facts.supervisor}, {plural(len(workers), 'worker')}, "
            f"{plural(len(producers), 'producer')}, {waiting}",
        )
    if workers:
        return Leftover(
            action=KEEP,
            pids=workers,
            stranded=True,
            **common,
            reason=f"has live workers (pids {listed(workers)}) and no supervisor; {waiting}",
            remedy=f"run it again to adopt them, or end them: shardmem gc --end-orphans {facts.name}",
        )
    if producers:
        return Leftover(
            action=KEEP,
            pids=producers,
            stranded=facts.in_flight > 0,
            **common,
            reason=f"has connected producers (pids {listed(producers)}), no supervisor and no worker; {waiting}",
            remedy="run it again, or end the producers",
        )
    if facts.locked:
        return Leftover(action=KEEP, reason="another process is starting or stopping it", **common)
    if facts.in_flight:
        beyond = f", {facts.unreadable:,} of them in corrupt lanes that no run can read" if facts.unreadable else ""
        if discard:
            return Leftover(action=REMOVE, reason=f"{waiting}{beyond}: lost, as asked", **common)
        return Leftover(
            action=KEEP,
            **common,
            reason=f"{waiting}{beyond} ({facts.state}, no process uses it)",
            discardable=True,
            stranded=True,
            remedy=f"run it again to handle them; or to discard them: shardmem gc --discard {facts.name}",
        )
    if facts.state == "starting" and common["files"][-1].age < YOUNG_S and not discard:
        return Leftover(
            action=KEEP,
            reason=f"is {common['files'][-1].age:.1f} s old: its supervisor may be about to take it",
            **common,
        )
    return Leftover(action=REMOVE, reason=f"no process uses it, no event in flight ({facts.state})", **common)


def _stray(facts: EngineFacts, inbox: InboxFacts, uid: int) -> Leftover:
    common: dict[str, Any] = {
        "kind": "inbox",
        "name": os.path.basename(inbox.file.path),
        "files": (inbox.file,),
        "bytes": inbox.file.bytes,
    }
    if inbox.file.uid != uid or not inbox.file.regular:
        return Leftover(
            action=SKIP,
            reason=f"belongs to uid {inbox.file.uid}; this is uid {uid}"
            if inbox.file.uid != uid
            else "is not a regular file",
            **common,
        )
    if inbox.users:
        return Leftover(
            action=KEEP,
            reason=f"no control segment names it, but processes have it mapped (pids {listed(inbox.users)})",
            pids=inbox.users,
            remedy="end them",
            **common,
        )
    if facts.condition in ("absent", "unformatted"):
        return Leftover(
            action=REMOVE, reason="its engine has no control segment, so its events cannot be reached", **common
        )
    return Leftover(
        action=REMOVE,
        reason=f"engine {facts.name} has no inbox of shard {inbox.shard} with generation "
        f"{inbox.generation}: left from an earlier run",
        **common,
    )


def _socket(facts: EngineFacts, file: File) -> Leftover:
    common: dict[str, Any] = {"kind": "socket", "name": file.path, "files": (file,)}
    if facts.answers:
        return Leftover(
            action=KEEP, reason=f"a process listens on it, although engine {facts.name} has no supervisor", **common
        )
    return Leftover(action=REMOVE, reason=f"engine {facts.name} has no supervisor", **common)


def _pids(held: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(pid for _, pid in held)


# ---- observation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    sockets: str = os.path.dirname(socket_path("any"))
    uid: int = field(default_factory=os.geteuid)


def census(places: Places, only: Collection[str] = ()) -> tuple[list[EngineFacts], list[Leftover]]:
    """Every engine (or those) of which anything is there, and entries that are no engine's."""
    names, others = set(), []
    for entry in _entries(SHM_DIRECTORY):
        match = _CONTROL.fullmatch(entry) or _INBOX.fullmatch(entry)
        if match:
            names.add(match[1])
        elif entry.startswith(PREFIX) and not only:
            others.append(Leftover("entry", entry, SKIP, "does not have a name that shardmem uses"))
    names |= {match[1] for match in map(_SOCKET.fullmatch, _entries(places.sockets)) if match}
    users = functools.cache(_users)
    return [observe(name, places, users=users) for name in sorted(names) if not only or name in only], others


def observe(
    name: str,
    places: Places,
    descriptor: int | None = None,
    placeholder: bool = False,
    users: Callable[[], Mapping[int, tuple[int, ...]]] | None = None,
) -> EngineFacts:
    """What is there of one engine. descriptor: of the control segment's file, on which the caller holds leases that are
    not to be counted. placeholder: that file is the caller's own and stands for none. users: who has which inode
    mapped."""
    control = None if placeholder else _file(os.path.join(SHM_DIRECTORY, control_name(name)))
    facts: dict[str, Any] = {"name": name, "control": control}
    found = sorted(
        (int(match[2]), int(match[3]), entry)
        for entry in _entries(SHM_DIRECTORY)
        if (match := _INBOX.fullmatch(entry)) and match[1] == name
    )
    named: dict[tuple[int, int], bool] = {}
    if control is not None:
        if descriptor is not None:
            facts |= _control(name, descriptor, named)
        elif control.uid != places.uid or not control.regular:
            facts |= {"condition": "unreadable"}
        else:
            try:
                opened = os.open(control.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return observe(name, places, users=users)
            except OSError as error:
                facts |= {"condition": "unreadable", "trouble": f"cannot be opened: {error.strerror}"}
            else:
                try:
                    facts |= _control(name, opened, named)
                finally:
                    os.close(opened)
    inboxes = []
    for shard, generation, entry in found:
        file = _file(os.path.join(SHM_DIRECTORY, entry))
        if file is not None:
            inboxes.append(InboxFacts(file, shard, generation, (shard, generation) in named))
    strays_matter = facts.get("condition", "absent") in ("absent", "unformatted", "ready") and not facts.get("locked")
    if strays_matter and not all(inbox.named for inbox in inboxes):  # who uses them takes a look at every process
        used = (users or _users)()
        inboxes = [
            inbox if inbox.named else replace(inbox, users=used.get(inbox.file.inode[1], ())) for inbox in inboxes
        ]
    listens = _file(facts.pop("listens", None) or os.path.join(places.sockets, f"{name}.sock"))
    return EngineFacts(
        **facts,
        inboxes=tuple(inboxes),
        socket=listens,
        answers=listens is not None and listens.uid == places.uid and _answers(listens.path),
    )


def _control(name: str, descriptor: int, named: dict[tuple[int, int], bool]) -> dict[str, Any]:
    locked = lease.anything_held(descriptor)
    # Read, not mapped: a page that was never reserved costs memory when it is mapped and touched, and SIGBUS when there
    # is none left, which is just when gc is needed.
    head = os.pread(descriptor, _MAGIC_AND_VERSION, 0)
    if len(head) < _MAGIC_AND_VERSION or not int.from_bytes(head[8:], "little"):
        return {"condition": "unformatted", "locked": locked}
    try:
        control = ControlSegment.attach(name)
    except LayoutMismatch as error:
        return {"condition": "foreign", "locked": locked, "trouble": str(error).partition(";")[0]}
    except NotRunning:
        return {"condition": "unformatted", "locked": locked}
    except (SegmentCorrupt, ValueError, KeyError, TypeError) as error:
        return {"condition": "damaged", "locked": locked, "trouble": f"cannot be understood: {error}".partition(";")[0]}
    except ShardmemError as error:
        return {"condition": "unreadable", "locked": locked, "trouble": str(error)}
    try:
        if control.engine != name:
            return {"condition": "damaged", "locked": locked, "trouble": f"says that it is engine {control.engine!r}"}
        return dict(locked=locked, **_ready_facts(control, descriptor, named))
    finally:
        control.close()


def _ready_facts(control: ControlSegment, descriptor: int, named: dict[tuple[int, int], bool]) -> dict[str, Any]:
    def held(byte: int) -> bool:
        return lease.is_locked(descriptor, byte)

    view = control.view_engine()
    facts: dict[str, Any] = {
        "condition": "ready",
        "listens": recorded_socket(control),
        "state": control.state,
        "supervisor": view.pid if held(lease.SUPERVISOR) else None,
        "workers": tuple(
            (shard, control.view_shard(shard).pid) for shard in range(control.room) if held(lease.shard_byte(shard))
        ),
        "producers": tuple(
            (seat, control.view_seat(seat).pid) for seat in range(control.max_producers) if held(lease.seat_byte(seat))
        ),
    }
    in_flight = unreadable = 0
    for shard in control.known_shards():
        shard_view = control.view_shard(shard)
        if shard_view.generation <= shard_view.retired_generation:
            named[shard, shard_view.generation] = True
            continue
        try:
            inbox = control.open_inbox(shard, shard_view.generation)
        except NotRunning:
            continue
        except ShardmemError as error:
            if _of_another_engine(control, shard, shard_view.generation):
                continue
            return {**facts, "condition": "damaged", "trouble": str(error)}
        named[shard, shard_view.generation] = True
        lanes = inbox.lanes()
        inbox.close()
        in_flight += sum(lane.in_flight for lane in lanes)
        unreadable += sum(lane.in_flight for lane in lanes if lane.broken)
    return {**facts, "in_flight": in_flight, "unreadable": unreadable}


def recorded_socket(control: ControlSegment) -> str | None:
    """Where its supervisor said that it listens, under another environment perhaps."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        path = json.loads(control.board("decisions")).get("socket")
        return path if os.path.basename(path) == f"{control.engine}.sock" else None
    return None


def _of_another_engine(control: ControlSegment, shard: int, generation: int) -> bool:
    with contextlib.suppress(ShardmemError):
        return control.inbox_condition(shard, generation) == "foreign"
    return False


def _file(path: str) -> File | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    age = max(0.0, time.time() - found.st_mtime)
    return File(
        path, (found.st_dev, found.st_ino), found.st_uid, found.st_blocks * 512, age, stat.S_ISREG(found.st_mode)
    )


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as end:
        try:
            end.connect(path)
        except BlockingIOError:
            return True  # its queue is full: it is listened to, if slowly
        except OSError:
            return False
    return True


def _users() -> dict[int, tuple[int, ...]]:
    """Who has which inode mapped; processes of other users and of other PID namespaces cannot be seen."""
    found: dict[int, tuple[int, ...]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            for inode in mapped_by(int(entry)):
                found[inode] = (*found.get(inode, ()), int(entry))
    return found
