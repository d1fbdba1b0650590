"""The machine as `shardmem doctor` sees it: files below a root and calls of the kernel, each of which a test may
replace."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pwd
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from shardmem.host.census import recorded_socket
from shardmem.memory import lease
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.segment import SHM_DIRECTORY
from shardmem.places import socket_path

FUTEX = {"x86_64": 202, "aarch64": 98}
_WAKE = 1


def _ofd_locks(directory: str) -> None:
    with tempfile.TemporaryFile(dir=directory) as file:
        again = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if not lease.lock(file.fileno(), lease.SUPERVISOR):
                raise OSError(errno.EAGAIN, "a lock that nobody holds is not given")
            if not lease.is_locked(again, lease.SUPERVISOR):
                raise OSError(errno.ENOLCK, "a lock that is held is not seen")
        finally:
            os.close(again)


def _pidfd_open(directory: str) -> None:
    os.close(os.pidfd_open(os.getpid()))


def _futex(directory: str) -> None:
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as memory:
            word = ctypes.c_uint32.from_buffer(memory)
            try:
                call = ctypes.CDLL(None, use_errno=True).syscall
                if call(FUTEX[os.uname().machine], ctypes.byref(word), _WAKE, 1, None, None, 0) < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                del word


def _posix_fallocate(directory: str) -> None:
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), mmap.PAGESIZE, mmap.PAGESIZE)
        if not os.fstat(file.fileno()).st_blocks:
            raise OSError(errno.EOPNOTSUPP, "it reserves nothing")


TRIALS: dict[str, Callable[[str], None]] = {
    "OFD locks": _ofd_locks,
    "pidfd_open": _pidfd_open,
    "futex": _futex,
    "posix_fallocate": _posix_fallocate,
}


@dataclass(frozen=True)
class Host:
    """process: whose groups, mounts and namespaces count, as it is called in /proc. about: for whom that is, if it is
    not the caller."""

    root: str = "/"
    process: str = "self"
    about: str = ""
    shm: str = SHM_DIRECTORY
    sockets: str = os.path.dirname(socket_path("any"))
    uid: int = field(default_factory=os.geteuid)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    statvfs: Callable[[str], os.statvfs_result] = os.statvfs
    access: Callable[[str, int], bool] = os.access
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    cores: Callable[[], int] = lambda: len(os.sched_getaffinity(0))
    trials: Mapping[str, Callable[[str], None]] = field(default_factory=lambda: TRIALS)

    @classmethod
    def of_engine(cls, control: ControlSegment) -> Host:
        """The machine as an engine has it, for root too: what root may is not what the user of the engine may, and the
        limits are those of its supervisor."""
        uid = os.fstat(control.segment.descriptor).st_uid
        if uid == os.geteuid():
            return cls()
        sockets = os.path.dirname(recorded_socket(control) or socket_path(control.engine, uid))
        allowed = access_of(uid)
        view, name = control.view_engine(), _name_of(uid)
        if not control.supervisor_alive():
            about = f"judged for {name}, with the limits of this process: no supervisor of the engine runs"
            return cls(uid=uid, sockets=sockets, access=allowed, about=about)
        pid = view.pid
        return cls(
            process=str(pid),
            about=f"judged for {name}, with the limits of its supervisor, pid {pid}",
            uid=uid,
            sockets=sockets,
            access=allowed,
            limit=lambda what: limits_of(pid, what),
            cores=lambda: len(os.sched_getaffinity(pid)),
        )

    def path(self, path: str) -> str:
        path = path.replace("/proc/self/", f"/proc/{self.process}/", 1)
        return os.path.join(self.root, path.lstrip("/"))

    def text(self, path: str) -> str | None:
        """What the file says; None when it is not there, or not ours to read."""
        try:
            with open(self.path(path)) as file:
                return file.read()
        except (OSError, UnicodeDecodeError):
            return None

    def exists(self, path: str) -> bool:
        return os.path.exists(self.path(path))

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def link(self, path: str) -> str:
        try:
            return os.readlink(self.path(path))
        except OSError:
            return ""

    def cgroup(self, controller: str, *files: str) -> Iterator[list[str]]:
        """What the files say in this process's group and in each group around it; those of either version of
        cgroups."""
        for line in (self.text("/proc/self/cgroup") or "").splitlines():
            number, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            bases = (
                [f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}"] if controllers else ["/sys/fs/cgroup"]
            )
            parts = [part for part in path.split("/") if part]
            for base in bases:
                for depth in range(len(parts), -1, -1):
                    said = [self.text("/".join([base, *parts[:depth], name])) for name in files]
                    if all(text is not None for text in said):
                        yield [text.strip() for text in said if text is not None]

    def memory_limit(self) -> int | None:
        """Bytes; the least of the groups around this process."""
        said = [*self.cgroup("memory", "memory.max"), *self.cgroup("memory", "memory.limit_in_bytes")]
        return min((int(text) for (text,) in said if text.isdigit() and int(text) < 1 << 60), default=None)

    def cpu_quota(self) -> float | None:
        """Cores; the least of the groups around this process."""
        said = [text.split() for (text,) in self.cgroup("cpu", "cpu.max")]
        said += self.cgroup("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")
        return min((int(quota) / int(period) for quota, period in said if quota.isdigit()), default=None)

    def process_room(self) -> int | None:
        """How many processes the groups around this one still have room for."""
        return min(
            (int(most) - int(now) for most, now in self.cgroup("pids", "pids.max", "pids.current") if most.isdigit()),
            default=None,
        )

    def threads(self) -> int:
        """Of all processes of this user: what RLIMIT_NPROC counts."""
        found = 0
        for entry in self.names("/proc"):
            try:
                if entry.isdigit() and os.stat(self.path(f"/proc/{entry}")).st_uid == self.uid:
                    found += len(self.names(f"/proc/{entry}/task"))
            except OSError:
                pass
        return found


_LIMITS = {resource.RLIMIT_NOFILE: "Max open files", resource.RLIMIT_NPROC: "Max processes"}


def limits_of(pid: int, what: int) -> tuple[int, int]:
    """Of another process, which a capability is needed to ask the kernel for, and none to read."""
    with open(f"/proc/{pid}/limits") as file:
        line = next(line for line in file if line.startswith(_LIMITS[what]))
    soft, hard = line.removeprefix(_LIMITS[what]).split()[:2]
    return _number(soft), _number(hard)


def _number(text: str) -> int:
    return resource.RLIM_INFINITY if text == "unlimited" else int(text)


def access_of(uid: int) -> Callable[[str, int], bool]:
    """What `os.access` would say to another user; it says to root that all is allowed."""
    try:
        user = pwd.getpwuid(uid)
        groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
    except KeyError:
        groups = set()

    def access(path: str, mode: int) -> bool:
        try:
            found = os.stat(path)
            read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        except OSError:
            return False
        if uid == 0:
            return not (mode & os.W_OK and read_only)
        shift = 6 if found.st_uid == uid else 3 if found.st_gid in groups else 0
        return found.st_mode >> shift & mode == mode and not (mode & os.W_OK and read_only)

    return access


def _name_of(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
