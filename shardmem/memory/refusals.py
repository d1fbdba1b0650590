"""What the system refuses, in words: which limit it was, how far away, and what raises it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

from shardmem.errors import OutOfMemory, SegmentError

SHM_DIRECTORY = "/dev/shm"
_MAPS_SPARE = 64  # mappings that a process makes and drops in passing, around the limit


def refused(doing: str, error: OSError, *, what: str = "", need: int = 0) -> SegmentError:
    """The error of ours for one of the system's. doing: as in "cannot create /dev/shm/x". need: bytes that were asked
    for, by `what`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfMemory.of_segment(what or doing, need, free_bytes(), SHM_DIRECTORY)
    explain = _EXPLAIN.get(error.errno or 0)
    text, hint = explain(need) if explain else (os.strerror(error.errno or 0), "")
    return SegmentError(f"{doing}: {text} (errno {error.errno})", hint=hint or None)


def free_bytes() -> int:
    with contextlib.suppress(OSError):
        space = os.statvfs(SHM_DIRECTORY)
        return space.f_bavail * space.f_frsize
    return 0


def out_of_memory(doing: str, need: int) -> SegmentError:
    """Ordinary memory of this process ran out."""
    return refused(doing, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), need=need)


def _descriptors(need: int) -> tuple[str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"no descriptor is left; RLIMIT_NOFILE allows this process {soft:,}",
        f"Raise it, to {hard:,} without privileges: `ulimit -n`, `LimitNOFILE=` of systemd, `docker run --ulimit "
        f"nofile=`; or close what is not needed",
    )


def _descriptors_of_all(need: int) -> tuple[str, str]:
    return (
        f"no descriptor is left on this host; fs.file-max allows {_number('/proc/sys/fs/file-max')}",
        "Raise it: `sysctl -w fs.file-max=...`",
    )


def _address_space(need: int) -> tuple[str, str]:
    """mmap says ENOMEM of a limit on address space and of one on the number of mappings alike."""
    limit, hints = resource.getrlimit(resource.RLIMIT_AS)[0], "Lower `lane_bytes` or `max_producers`, or raise "
    used = _pages_used() * resource.getpagesize()
    if limit != resource.RLIM_INFINITY and used + need > limit - (1 << 22):
        return (
            f"no address space is left: {need:,} bytes more than the {used:,} in use pass RLIMIT_AS={limit:,}",
            hints + "it: `ulimit -v unlimited`",
        )
    mappings, most = _mappings(), _number("/proc/sys/vm/max_map_count")
    if mappings and most.isdigit() and mappings + _MAPS_SPARE >= int(most):
        return (
            f"no mapping is left: this process has {mappings:,}, and vm.max_map_count allows {most}",
            "Raise it: `sysctl -w vm.max_map_count=...`",
        )
    return (
        f"the kernel has no memory to map {need:,} bytes",
        hints + "the limit that it meets: RLIMIT_AS (`ulimit -v`), vm.max_map_count, or the memory of its cgroup",
    )


def _locked(need: int) -> tuple[str, str]:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return (
        f"{need:,} bytes more cannot be locked; this process locks all that it maps, and RLIMIT_MEMLOCK is {limit:,}",
        "Raise it: `ulimit -l`, `LimitMEMLOCK=` of systemd; or do not use mlockall",
    )


def _file_size(need: int) -> tuple[str, str]:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return f"{need:,} bytes are more than a file can have", "Lower `lane_bytes` or `max_producers`"
    return (
        f"{need:,} bytes are more than RLIMIT_FSIZE={limit:,} allows a file",
        "Raise it: `ulimit -f unlimited`; or lower `lane_bytes` or `max_producers`",
    )


def _not_writable(need: int) -> tuple[str, str]:
    return f"{SHM_DIRECTORY} cannot be written to by uid {os.geteuid()}", f"shardmem needs a writable {SHM_DIRECTORY}"


def _no_directory(need: int) -> tuple[str, str]:
    return f"there is no {SHM_DIRECTORY}", f"Mount one: `mount -t tmpfs tmpfs {SHM_DIRECTORY}`"


_EXPLAIN = {
    errno.EMFILE: _descriptors,
    errno.ENFILE: _descriptors_of_all,
    errno.ENOMEM: _address_space,
    errno.EAGAIN: _locked,
    errno.EFBIG: _file_size,
    errno.EACCES: _not_writable,
    errno.EPERM: _not_writable,
    errno.EROFS: _not_writable,
    errno.ENOENT: _no_directory,
    errno.ENOTDIR: _no_directory,
}


def _number(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as file:
        return file.read().strip()
    return "a number that cannot be read"


def _pages_used() -> int:
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0])
    return 0


def _mappings() -> int:
    with contextlib.suppress(OSError), open("/proc/self/maps", "rb") as file:
        return sum(1 for _ in file)
    return 0
