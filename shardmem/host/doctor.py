"""Will an engine run here, and what could go wrong? Each check looks at the host and at what the engine plans to
use."""

from __future__ import annotations

import errno
import math
import os
import platform
import resource
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shardmem import __version__
from shardmem.config import Config, default_directory
from shardmem.host.census import KEEP, REMOVE, Leftover
from shardmem.host.machine import Host
from shardmem.memory.engine_segment import ControlSegment, memory_needs
from shardmem.memory.native import LAYOUT_VERSION
from shardmem.places import SOCKET_ADDRESS
from shardmem.text import plural, size

OK, INFO, WARNING, ERROR = "ok", "info", "warning", "error"  # the levels of findings, and ok
PROBLEM = ERROR  # the name that the console still imports
LEVELS = (OK, INFO, WARNING, ERROR)
FAST_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")  # read without a system call
FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO
STATE_ROOM = 64 << 20  # bytes free for state and quarantine below which something is about to stop
SPARE_FILES = 32  # that a process has open beside segments


@dataclass(frozen=True)
class Check:
    name: str
    level: str
    found: str
    remedy: str = ""

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What an engine will use. shards: to start with. held: bytes that stand behind its segments already."""

    name: str
    shards: int
    most_shards: int
    producers: int
    control_bytes: int
    inbox_bytes: int
    lane_bytes: int
    state_directory: str | None = None
    state_wanted: bool = False
    held: int = 0

    @classmethod
    def of_config(cls, config: Config) -> Plan:
        needs = memory_needs(
            config.schema,
            slots=config.slots,
            max_shards=config.most_shards,
            max_producers=config.max_producers,
            lane_bytes=config.lane_bytes,
        )
        return cls(
            config.name,
            config.start_shards,
            config.most_shards,
            config.max_producers,
            *needs,
            config.directory,
            config.state_dir is not None,
        )

    @classmethod
    def of_engine(cls, control: ControlSegment) -> Plan:
        needs = memory_needs(
            control.schema,
            slots=control.slots,
            max_shards=control.max_shards,
            max_producers=control.max_producers,
            lane_bytes=control.lane_bytes,
        )
        return cls(
            control.engine,
            max(1, len(control.known_shards())),
            control.max_shards,
            control.max_producers,
            *needs,
            control.state_dir or None,
            control.state_dir not in ("", default_directory()),
        )

    @property
    def base(self) -> int:
        """Before any producer: the control segment, and the head of an inbox for each shard."""
        return self.control_bytes + self.most_shards * self.inbox_bytes

    @property
    def per_producer(self) -> int:
        return self.shards * self.lane_bytes

    @property
    def least(self) -> int:
        return self.base + self.per_producer

    @property
    def worst(self) -> int:
        return self.base + self.producers * self.most_shards * self.lane_bytes


def examine(host: Host, plan: Plan, leftovers: Iterable[Leftover]) -> list[Check]:
    """Every check, in the order in which things would fail."""
    return [
        versions(),
        *judged_for(host),
        *shared_memory(host, plan),
        *kernel(host),
        memory_group(host, plan),
        cores(host, plan),
        open_files(host, plan),
        processes(host, plan),
        sockets(host, plan),
        *state(host, plan),
        remove_ipc(host),
        clock(host),
        container(host),
        *stale(leftovers),
    ]


def worst_of(checks: Iterable[Check]) -> str:
    return max((check.level for check in checks), key=LEVELS.index)


# ---- memory ----------------------------------------------------------------------------------------------------------


def shared_memory(host: Host, plan: Plan) -> Iterator[Check]:
    name, shm = "shared memory", host.shm
    mount = f"mount -t tmpfs -o size={_megabytes(plan.worst)} tmpfs {shm}"
    try:
        room = host.statvfs(shm)
    except OSError as error:
        yield Check(name, ERROR, f"{shm} cannot be used: {error.strerror}", f"{mount}; in docker, no --ipc=none")
        return
    if room.f_flag & os.ST_RDONLY:
        yield Check(
            name,
            ERROR,
            f"{shm} is mounted read-only",
            f"mount -o remount,rw {shm}; in docker, no --read-only without --tmpfs {shm}",
        )
        return
    if not host.access(shm, os.W_OK | os.X_OK):
        yield Check(name, ERROR, f"{shm} is not writable for uid {host.uid}", f"chmod 1777 {shm}")
        return
    kind = next(
        (
            line.split()[2]
            for line in reversed((host.text("/proc/self/mounts") or "").splitlines())
            if line.split()[1:2] == [shm]
        ),
        "tmpfs",
    )
    if kind != "tmpfs":
        yield Check(
            "shared memory kind", WARNING, f"{shm} is {kind}, not tmpfs: what is in it is written to a disk", mount
        )
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    needs = (
        f"{plan.name} needs {size(plan.base)} and {size(plan.per_producer)} per producer at "
        f"{plural(plan.shards, 'shard')}, "
        f"{size(plan.worst)} with {plan.producers} producers at {plural(plan.most_shards, 'shard')}"
    )
    if not total:
        yield Check(name, OK, f"{shm} has no limit; {needs}")
        return
    found = f"{shm} has {size(free)} free of {size(total)}" + (
        f" and {size(plan.held)} are its own" if plan.held else ""
    )
    room_for = (free + plan.held - plan.base) // (plan.most_shards * plan.lane_bytes)
    remedy = (
        f"mount -o remount,size={_megabytes(total - free - plan.held + plan.worst)} {shm} (docker run --shm-size; in "
        f"Kubernetes a memory-backed emptyDir with a sizeLimit), or lower lane_bytes, max_producers or max_shards"
    )
    if free + plan.held < plan.least:
        yield Check(name, ERROR, f"{found}; {needs}: not one producer fits", remedy)
    elif free + plan.held < plan.worst:
        yield Check(
            name,
            WARNING,
            f"{found}; {needs}: {room_for} of {plan.producers} producers fit at all shards; "
            f"further producers get OutOfMemory",
            remedy,
        )
    else:
        yield Check(name, OK, f"{found}; {needs}")


def memory_group(host: Host, plan: Plan) -> Check:
    """Shared memory counts in the group of the process that touches it first."""
    limit, name = host.memory_limit(), "memory limit"
    if limit is None:
        return Check(name, OK, "no memory cgroup limits this process")
    found = (
        f"the memory cgroup allows {size(limit)}; lanes and control segment count in it, with at most "
        f"{size(plan.worst)}"
    )
    remedy = (
        "raise memory.max (docker run --memory, resources.limits.memory), or lower lane_bytes, max_producers or "
        "max_shards"
    )
    if limit < plan.least:
        return Check(name, ERROR, f"{found}: not one producer fits", remedy)
    if limit < plan.worst:
        return Check(name, WARNING, f"{found}: the kernel would kill a process when they fill", remedy)
    return Check(name, OK, found)


# ---- processes -------------------------------------------------------------------------------------------------------


def cores(host: Host, plan: Plan) -> Check:
    allowed, quota, name = host.cores(), host.cpu_quota(), "cores"
    there = min(allowed, quota) if quota is not None else allowed
    found = f"{there:g} core{'' if there == 1 else 's'} ({allowed} by affinity" + (
        f", {quota:g} by cpu quota)" if quota is not None else ")"
    )
    remedy = "fewer shards, or more cores: taskset, docker run --cpus, resources.limits.cpu"
    if plan.shards > math.ceil(there):
        return Check(name, WARNING, f"{found} for {plural(plan.shards, 'shard')}: workers compete for cores", remedy)
    if plan.most_shards > math.ceil(there):
        return Check(
            name,
            INFO,
            f"{found} for {plural(plan.shards, 'shard')} that may become {plan.most_shards}",
            "lower max_shards",
        )
    return Check(name, OK, f"{found} for {plan.shards} to {plural(plan.most_shards, 'shard')}")


def open_files(host: Host, plan: Plan) -> Check:
    soft, hard = host.limit(resource.RLIMIT_NOFILE)
    name, limit = "open files", "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} open files a process"
    supervisor = 4 * plan.most_shards + SPARE_FILES  # of each shard: inbox twice, pipe, pidfd
    each = plan.most_shards + 2  # of each producer: inboxes, control segment, lease
    producers = plan.producers * each + SPARE_FILES
    remedy = f"ulimit -n {max(supervisor, producers)} (systemd: LimitNOFILE=; docker run --ulimit nofile=)"
    if soft == resource.RLIM_INFINITY or soft >= max(supervisor, producers):
        return Check(name, OK, f"{limit}; the supervisor opens up to {supervisor}, a producer {each}")
    if soft < supervisor:
        return Check(
            name, ERROR, f"{limit}; the supervisor needs {supervisor} for {plural(plan.most_shards, 'shard')}", remedy
        )
    return Check(
        name,
        INFO,
        f"{limit}; a producer opens {each}, so {(soft - SPARE_FILES) // each} of the {plan.producers} "
        f"fit in one process",
        remedy,
    )


def processes(host: Host, plan: Plan) -> Check:
    name, needed = "processes", plan.most_shards + 1
    soft, _ = host.limit(resource.RLIMIT_NPROC)
    rooms = {}
    if soft != resource.RLIM_INFINITY and host.uid != 0:  # root is not held to it
        rooms[f"ulimit -u {soft:,}"] = soft - host.threads()
    if (group := host.process_room()) is not None:
        rooms["pids.max of the cgroup"] = group
    if not rooms:
        return Check(name, OK, f"no limit; the engine starts up to {needed}")
    by, room = min(rooms.items(), key=lambda entry: entry[1])
    found = f"room for {max(0, room):,} more by {by}; the engine starts up to {needed}"
    remedy = "raise it (systemd: TasksMax=; docker run --pids-limit; ulimit -u), or lower max_shards"
    if room < needed:
        return Check(name, ERROR, found, remedy)
    if room < needed * (1 + host.cores()):
        return Check(
            name, WARNING, f"{found}, and a library such as BLAS starts a thread for each core in each", remedy
        )
    return Check(name, OK, found)


def container(host: Host) -> Check:
    marks = {
        "docker": host.exists("/.dockerenv"),
        "podman": host.exists("/run/.containerenv"),
        "Kubernetes": "KUBERNETES_SERVICE_HOST" in host.environ,
    }
    kinds = [kind for kind, there in marks.items() if there]
    namespace = host.link("/proc/self/ns/pid")
    if not kinds and namespace in ("", FIRST_PID_NAMESPACE):
        return Check("container", OK, "none")
    where = f"this is a container ({', '.join(kinds)})" if kinds else "this is a PID namespace of its own"
    return Check(
        "container",
        INFO,
        f"{where}: producers in other containers reach the engine only if they share its "
        f"{host.shm}, and leases hold across them, but pids in `status` and signals of `stop` "
        f"do not",
        f"share {host.shm} (docker run --ipc=container:NAME, one emptyDir in all containers of a pod); run "
        f"`shardmem` beside the supervisor",
    )


# ---- the kernel ------------------------------------------------------------------------------------------------------

_REMEDIES = {
    "OFD locks": "Linux 3.15 or later; leases need it",
    "pidfd_open": "Linux 5.3 or later, and a seccomp profile that allows it (docker 20.10 or later); watching workers "
    "needs it",
    "futex": "a seccomp profile or a sandbox must allow it; waiting without spinning needs it",
    "posix_fallocate": "a writable tmpfs with room; without it a full /dev/shm would be a SIGBUS",
}


def kernel(host: Host) -> Iterator[Check]:
    """Each is really tried, on a scratch file in shared memory."""
    works = []
    for feature, attempt in host.trials.items():
        try:
            attempt(host.shm)
            works.append(feature)
        except (OSError, AttributeError, KeyError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                yield Check(feature, INFO, f"could not be tried: {host.shm} is full", "make room there, and look again")
                continue
            yield Check(
                feature,
                ERROR,
                f"does not work in {host.shm}: {getattr(error, 'strerror', None) or error}",
                _REMEDIES.get(feature, ""),
            )
    if works:
        yield Check("kernel", OK, f"{', '.join(works)}: tried, works")


def clock(host: Host) -> Check:
    source = (host.text("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "").strip()
    if not source:
        return Check("clock", INFO, "the clock source cannot be read", "no action if latencies look right")
    if source in FAST_CLOCKS:
        return Check("clock", OK, f"{source}: read without a system call")
    return Check(
        "clock",
        WARNING,
        f"{source}: each reading of the clock is a system call, and each push reads it",
        "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, or boot with tsc=reliable if "
        "it is not offered",
    )


def remove_ipc(host: Host) -> Check:
    """systemd-logind deletes what a user has in /dev/shm at the last logout. System users are spared."""
    name = "RemoveIPC"
    most = next(
        (
            int(line.split()[1])
            for line in (host.text("/etc/login.defs") or "").splitlines()
            if line.split()[:1] == ["SYS_UID_MAX"] and line.split()[1:2] and line.split()[1].isdigit()
        ),
        999,
    )
    if host.uid <= most:
        return Check(name, OK, f"uid {host.uid} is a system user (up to {most}): not affected")
    if not host.exists("/run/systemd/seats"):
        return Check(name, OK, "systemd-logind does not run here")
    value, place = True, "the default"
    drop_ins = {
        entry: f"{directory}/{entry}"
        for directory in ("/usr/lib/systemd/logind.conf.d", "/run/systemd/logind.conf.d", "/etc/systemd/logind.conf.d")
        for entry in host.names(directory)
        if entry.endswith(".conf")
    }  # of one name, the last directory's
    for path in ["/etc/systemd/logind.conf", *(drop_ins[entry] for entry in sorted(drop_ins))]:
        section = ""
        for line in map(str.strip, (host.text(path) or "").splitlines()):
            if line.startswith("["):
                section = line
            key, _, text = (part.strip().lower() for part in line.partition("="))
            if section == "[Login]" and key == "removeipc":
                value, place = text in ("1", "yes", "y", "true", "t", "on"), path
                if not text:  # back to the default
                    value, place = True, "the default"
    if not value:
        return Check(name, OK, f"no ({place})")
    if _lingers(host):
        return Check(name, OK, f"yes ({place}), but uid {host.uid} lingers, so logouts do not count")
    return Check(
        name,
        WARNING,
        f"yes ({place}): systemd-logind deletes the shared memory of uid {host.uid} at its last "
        f"logout, under running engines too",
        "RemoveIPC=no in /etc/systemd/logind.conf, or loginctl enable-linger, or run the engine as a system user",
    )


def _lingers(host: Host) -> bool:
    users = {
        int(parts[2]): parts[0]
        for line in (host.text("/etc/passwd") or "").splitlines()
        if len(parts := line.split(":")) > 2 and parts[2].isdigit()
    }
    return host.uid in users and host.exists(f"/var/lib/systemd/linger/{users[host.uid]}")


# ---- directories -----------------------------------------------------------------------------------------------------


def sockets(host: Host, plan: Plan) -> Check:
    name, path = "socket directory", os.path.join(host.sockets, f"{plan.name}.sock")
    if (length := len(os.fsencode(path))) > SOCKET_ADDRESS:
        return Check(
            name,
            ERROR,
            f"{path} is {length} bytes, the address of a unix socket at most {SOCKET_ADDRESS}",
            "a shorter TMPDIR, or a shorter name of the engine",
        )
    try:
        found = os.lstat(host.sockets)
    except FileNotFoundError:
        parent = _nearest(host.sockets)
        if host.access(parent, os.W_OK | os.X_OK):
            return Check(name, OK, f"{host.sockets} will be made")
        return Check(
            name,
            ERROR,
            f"{host.sockets} cannot be made: {parent} is not writable for uid {host.uid}",
            "set XDG_RUNTIME_DIR or TMPDIR",
        )
    if not stat.S_ISDIR(found.st_mode):
        return Check(name, ERROR, f"{host.sockets} is not a directory", "remove it")
    if found.st_uid != host.uid or stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        return Check(
            name,
            ERROR,
            f"{host.sockets} belongs to uid {found.st_uid} with mode {mode:o}, which must be private "
            f"to uid {host.uid} (mode 700)",
            f"rm -r {host.sockets}",
        )
    if not host.access(host.sockets, os.W_OK | os.X_OK):
        return Check(name, ERROR, f"{host.sockets} is not writable", f"chmod 700 {host.sockets}")
    return Check(name, OK, f"{host.sockets} is private and writable")


def state(host: Host, plan: Plan) -> Iterator[Check]:
    name, directory = "state directory", plan.state_directory
    if directory is None:
        return  # an engine without a supervisor of its own, as tests have it
    place = directory if os.path.exists(directory) else _nearest(directory)
    if not os.path.isdir(place) or not host.access(place, os.W_OK | os.X_OK):
        yield Check(
            name,
            ERROR if plan.state_wanted else WARNING,
            f"{directory} cannot be written to: {place} is not a writable directory for uid {host.uid}; a stateful "
            f"handler needs it",
            "set state_dir",
        )
        return
    if not host.statvfs(place).f_blocks:
        yield Check(
            name,
            ERROR if plan.state_wanted else WARNING,
            f"{directory}: files cannot be kept in {place}",
            "set state_dir",
        )
        return
    if place == directory and os.stat(directory).st_mode & 0o002:
        yield Check(
            name, WARNING, f"{directory} is writable for all users, and state is trusted", f"chmod o-w {directory}"
        )
    if (free := _free(host, place)) < STATE_ROOM:
        yield Check(
            name,
            ERROR if plan.state_wanted else WARNING,
            f"{directory} has {size(free)} free; a stateful handler's shard stops when its state cannot be written",
            f"make room there, {size(STATE_ROOM)} at least, or set state_dir",
        )
    elif place != directory or not os.stat(directory).st_mode & 0o002:
        yield Check(name, OK, f"{directory} " + ("is writable" if place == directory else "will be made"))


def _free(host: Host, path: str) -> int:
    room = host.statvfs(path)
    return room.f_bavail * room.f_frsize


def _nearest(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path) or "."
    return path


# ---- the rest --------------------------------------------------------------------------------------------------------


def versions() -> Check:
    return Check(
        "versions",
        OK,
        f"shardmem {__version__}, layout {LAYOUT_VERSION}, Python "
        f"{platform.python_version()}, numpy {np.__version__}, Linux "
        f"{os.uname().release} {os.uname().machine}",
    )


def judged_for(host: Host) -> Iterator[Check]:
    if host.about:
        yield Check("user", INFO, host.about)


def stale(leftovers: Iterable[Leftover]) -> Iterator[Check]:
    found = list(leftovers)
    for each in found:
        if each.stranded:
            yield Check("stranded engine", WARNING, f"engine {each.name} {each.reason}", each.remedy)
        elif each.discardable:
            yield Check("old engine", INFO, f"engine {each.name}: {each.reason}", each.remedy)
    going = [each for each in found if each.action == REMOVE]
    if going:
        taken = size(sum(each.bytes for each in going))
        yield Check(
            "leftovers",
            INFO,
            f"{plural(len(going), 'leftover')} with {taken}, which no process uses",
            "shardmem gc --dry-run, shardmem gc",
        )
    elif not any(each.stranded or each.discardable for each in found):
        in_use = sum(each.kind == "engine" and each.action == KEEP for each in found)
        yield Check("leftovers", OK, f"none; {plural(in_use, 'engine')} in use")


def _megabytes(number: int) -> str:
    return f"{-(-number // (1 << 20))}m"
