"""Each check of doctor at each of its levels: the host is a directory and a few functions that the test makes up."""

from __future__ import annotations

import errno
import os
import resource
from types import SimpleNamespace

import pytest

from shardmem.config import Config
from shardmem.host import doctor
from shardmem.host.census import KEEP, REMOVE, Leftover
from shardmem.host.doctor import LEVELS, Check, Plan, examine, worst_of
from shardmem.host.machine import TRIALS, Host
from shardmem.memory.engine_segment import memory_needs

MIB = 1 << 20
# 3 MiB .. 33 MiB
PLAN = Plan("e", shards=2, most_shards=4, producers=8, control_bytes=MIB, inbox_bytes=4096, lane_bytes=MIB)


@pytest.fixture
def host(tmp_path):
    """`host(files, **changes)`: a machine on which all is well, but for what is given."""

    def make(files: dict[str, str] | None = None, **changes) -> Host:
        for path, text in (files or {}).items():
            at = tmp_path / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(text)
        shm, sockets = tmp_path / "shm", tmp_path / "sockets"
        shm.mkdir(exist_ok=True)
        sockets.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "root": str(tmp_path),
            "shm": str(shm),
            "sockets": str(sockets),
            "uid": os.geteuid(),
            "environ": {},
            "statvfs": lambda path: room(),
            "limit": lambda what: (resource.RLIM_INFINITY,) * 2,
            "cores": lambda: 8,
            "trials": {"works": lambda path: None},
        }
        return Host(**{**settings, **changes})

    return make


def room(free: int = 64, total: int = 64, flags: int = 0) -> SimpleNamespace:
    """In MiB."""
    return SimpleNamespace(f_blocks=total, f_bavail=free, f_frsize=MIB, f_flag=flags)


def expect(check: Check, level: str, *parts: str) -> None:
    said = f"{check.level}: {check.found} -> {check.remedy}"
    assert level == check.level, said
    for part in parts:
        assert part in said, said
    assert check.remedy or level == "ok", f"no remedy: {said}"


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free, total, level, parts",
    [
        (
            64,
            64,
            "ok",
            ["64.0 MiB free of 64.0 MiB", "2.0 MiB per producer at 2 shards", "33.0 MiB with 8 producers at 4 shards"],
        ),
        # 64 - 20 used by others, 34 to be used
        (20, 64, "warning", ["4 of 8 producers fit at all shards", "size=78m", "--shm-size"]),
        (4, 64, "warning", ["0 of 8 producers fit at all shards"]),
        (3, 64, "error", ["not one producer fits", "lower lane_bytes"]),
        (0, 0, "ok", ["no limit"]),
    ],
)
def test_shared_memory_is_weighed_against_what_the_engine_may_use(host, free, total, level, parts):
    (check,) = doctor.shared_memory(host(statvfs=lambda path: room(free, total)), PLAN)
    expect(check, level, *parts)


def test_what_an_engine_holds_already_is_not_needed_again(host):
    poor = host(statvfs=lambda path: room(1, 64))
    held = Plan(**{**vars(PLAN), "held": 40 * MIB})
    assert ("error", "ok") == tuple(check.level for plan in (PLAN, held) for check in doctor.shared_memory(poor, plan))


def missing(path):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"statvfs": missing}, ["No such file or directory", "mount -t tmpfs -o size=34m", "--ipc=none"]),
        ({"statvfs": lambda path: room(flags=os.ST_RDONLY)}, ["mounted read-only", "remount,rw"]),
        ({"access": lambda path, mode: False}, ["is not writable for uid", "chmod 1777"]),
    ],
)
def test_shared_memory_that_cannot_be_used_is_a_problem(host, changes, parts):
    (check,) = doctor.shared_memory(host(**changes), PLAN)
    expect(check, "error", *parts)


def test_shared_memory_on_a_disk_is_a_warning(host, tmp_path):
    mounts = f"tmpfs {tmp_path}/shm tmpfs rw 0 0\n/dev/sda1 {tmp_path}/shm ext4 rw 0 0\n"
    kind, _ = doctor.shared_memory(host({"/proc/self/mounts": mounts}), PLAN)
    expect(kind, "warning", "is ext4, not tmpfs")


def groups(**files: str) -> dict[str, str]:
    """A process in /a/b of cgroups of version 2; of /a only is known what is said, and of the root nothing."""
    return {
        "/proc/self/cgroup": "0::/a/b\n",
        **{f"/sys/fs/cgroup/a/{name.replace('__', '.')}": text for name, text in files.items()},
    }


@pytest.mark.parametrize(
    "files, level, part",
    [
        ({}, "ok", "no memory cgroup limits"),
        (groups(memory__max="max\n"), "ok", "no memory cgroup limits"),
        (groups(memory__max=f"{64 * MIB}\n"), "ok", "allows 64.0 MiB"),
        (groups(memory__max=f"{20 * MIB}\n"), "warning", "would kill a process"),
        (groups(memory__max=f"{2 * MIB}\n"), "error", "not one producer fits"),
        (
            {**groups(memory__max=f"{64 * MIB}\n"), "/sys/fs/cgroup/a/b/memory.max": f"{20 * MIB}"},
            "warning",
            "allows 20.0 MiB",
        ),
        (
            {"/proc/self/cgroup": "7:memory:/x\n0::/\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * MIB}"},
            "error",
            "2.0 MiB",
        ),
        (
            {
                "/proc/self/cgroup": "7:memory:/x\n",
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712",
            },
            "ok",
            "no memory",
        ),
    ],
)
def test_the_limits_of_memory_groups_of_either_version(host, files, level, part):
    expect(doctor.memory_group(host(files), PLAN), level, part)


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cores, files, level, part",
    [
        (8, {}, "ok", "8 cores (8 by affinity) for 2 to 4 shards"),
        (3, {}, "info", "for 2 shards that may become 4"),
        (1, {}, "warning", "1 core (1 by affinity) for 2 shards: workers compete for cores"),
        (8, groups(cpu__max="150000 100000\n"), "info", "1.5 cores (8 by affinity, 1.5 by cpu quota)"),
        (8, groups(cpu__max="100000 100000\n"), "warning", "1 by cpu quota"),
        (8, groups(cpu__max="max 100000\n"), "ok", "8 cores (8 by affinity)"),
        (
            8,
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            "warning",
            "0.5 by cpu quota",
        ),
        (
            8,
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            "ok",
            "8 by affinity)",
        ),
    ],
)
def test_cores_by_affinity_and_quota_against_shards(host, cores, files, level, part):
    expect(doctor.cores(host(files, cores=lambda: cores), PLAN), level, part)


@pytest.mark.parametrize(
    "soft, level, part",
    [
        (resource.RLIM_INFINITY, "ok", "no limit"),
        (1024, "ok", "the supervisor opens up to 48, a producer 6"),
        (64, "info", "so 5 of the 8 fit in one process"),
        (40, "error", "the supervisor needs 48 for 4 shards"),
    ],
)
def test_open_files(host, soft, level, part):
    expect(doctor.open_files(host(limit=lambda what: (soft, 4096)), PLAN), level, part)


@pytest.mark.parametrize(
    "soft, files, level, part",
    [
        (resource.RLIM_INFINITY, {}, "ok", "no limit; the engine starts up to 5"),
        (1000, {}, "ok", "room for 997 more by ulimit -u 1,000"),
        (13, {}, "warning", "BLAS"),
        (5, {}, "error", "room for 2 more by ulimit -u 5"),
        (1000, groups(pids__max="4", pids__current="4"), "error", "room for 0 more by pids.max"),
        (1000, groups(pids__max="max", pids__current="4"), "ok", "room for 997 more"),
    ],
)
def test_processes_by_rlimit_and_by_group(host, tmp_path, soft, files, level, part):
    for thread in ("1", "2", "3"):
        (tmp_path / f"proc/77/task/{thread}").mkdir(parents=True)
    os.chown(tmp_path / "proc/77", 1000, -1) if os.geteuid() == 0 else None
    uid = 1000 if os.geteuid() == 0 else os.geteuid()
    expect(doctor.processes(host(files, limit=lambda what: (soft, soft), uid=uid), PLAN), level, part)


def test_root_is_not_held_to_the_number_of_processes(host):
    expect(doctor.processes(host(limit=lambda what: (1, 1), uid=0), PLAN), "ok", "no limit")


@pytest.mark.parametrize(
    "files, environ, level, part",
    [
        ({}, {}, "ok", "none"),
        ({"/.dockerenv": ""}, {}, "info", "(docker)"),
        ({"/run/.containerenv": ""}, {}, "info", "(podman)"),
        ({}, {"KUBERNETES_SERVICE_HOST": "x"}, "info", "(Kubernetes)"),
    ],
)
def test_containers(host, files, environ, level, part):
    expect(doctor.container(host(files, environ=environ)), level, part)


@pytest.mark.parametrize("namespace, level", [("pid:[4026531836]", "ok"), ("pid:[4026532999]", "info")])
def test_a_pid_namespace_of_its_own_is_noted(host, tmp_path, namespace, level):
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    os.symlink(namespace, tmp_path / "proc/self/ns/pid")
    expect(doctor.container(host()), level)


# ---- the kernel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", list(TRIALS))
def test_every_feature_is_tried_for_real_and_leaves_nothing(feature):
    before = os.listdir("/proc/self/fd")
    TRIALS[feature]("/dev/shm")
    assert len(before) == len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("feature", [name for name in TRIALS if name != "pidfd_open"])
def test_a_trial_fails_where_there_is_no_scratch_file(feature, tmp_path):
    with pytest.raises(OSError):
        TRIALS[feature](str(tmp_path / "nowhere"))


def test_a_feature_that_does_not_work_is_a_problem_and_the_others_are_named(host):
    def refused(path):
        raise OSError(errno.EPERM, "Operation not permitted")

    broken, rest = doctor.kernel(host(trials={"pidfd_open": refused, "futex": lambda path: None}))
    expect(broken, "error", "Operation not permitted", "seccomp")
    assert "pidfd_open" == broken.name
    expect(rest, "ok", "futex: tried, works")


@pytest.mark.parametrize("source, level", [("tsc", "ok"), ("kvm-clock", "ok"), ("hpet", "warning"), (None, "info")])
def test_the_clock_source(host, source, level):
    files = {"/sys/devices/system/clocksource/clocksource0/current_clocksource": f"{source}\n"} if source else {}
    expect(doctor.clock(host(files)), level, source or "cannot be read")


LOGIND = {"/run/systemd/seats/x": "", "/etc/passwd": "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n"}
DROP = "logind.conf.d/10-ours.conf"


@pytest.mark.parametrize(
    "uid, files, level, part",
    [
        (0, LOGIND, "ok", "uid 0 is a system user"),
        (999, LOGIND, "ok", "uid 999 is a system user"),
        (500, {**LOGIND, "/etc/login.defs": "# SYS_UID_MAX 5\nSYS_UID_MAX 499\n"}, "warning", "uid 500"),
        (1000, {}, "ok", "does not run here"),
        (1000, LOGIND, "warning", "yes (the default): systemd-logind deletes the shared memory of uid 1000"),
        (1000, {**LOGIND, "/etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, "warning", "the default"),
        (
            1000,
            {**LOGIND, "/etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"},
            "ok",
            "no (/etc/systemd/logind.conf)",
        ),
        (1000, {**LOGIND, "/etc/systemd/logind.conf": "[Other]\nRemoveIPC=no\n"}, "warning", "the default"),
        (
            1000,
            {
                **LOGIND,
                "/etc/systemd/logind.conf": "[Login]\nRemoveIPC=yes\n",
                f"/etc/systemd/{DROP}": "[Login]\nRemoveIPC = off\n",
            },
            "ok",
            f"no (/etc/systemd/{DROP})",
        ),
        (
            1000,
            {
                **LOGIND,
                f"/etc/systemd/{DROP}": "[Login]\nRemoveIPC=yes\n",
                f"/usr/lib/systemd/{DROP}": "[Login]\nRemoveIPC=no\n",
            },
            "warning",
            f"yes (/etc/systemd/{DROP})",
        ),
        (1000, {**LOGIND, "/var/lib/systemd/linger/ann": ""}, "ok", "lingers"),
    ],
)
def test_remove_ipc_concerns_people_and_not_system_users(host, uid, files, level, part):
    expect(doctor.remove_ipc(host(files, uid=uid)), level, part)


# ---- directories -----------------------------------------------------------------------------------------------------


def test_the_socket_directory_must_be_private(host, tmp_path):
    expect(doctor.sockets(host(), PLAN), "ok", "private and writable")
    expect(doctor.sockets(host(uid=os.geteuid() + 1), PLAN), "error", "belongs to uid")
    (tmp_path / "sockets").chmod(0o755)
    expect(doctor.sockets(host(), PLAN), "error", "with mode 755", "private")
    expect(doctor.sockets(host(sockets=str(tmp_path / "new")), PLAN), "ok", "will be made")
    expect(
        doctor.sockets(host(sockets=str(tmp_path / "new"), access=lambda path, mode: False), PLAN),
        "error",
        "cannot be made",
        "TMPDIR",
    )
    (tmp_path / "file").write_text("")
    expect(doctor.sockets(host(sockets=str(tmp_path / "file")), PLAN), "error", "is not a directory")
    (tmp_path / "sockets").chmod(0o700)
    expect(doctor.sockets(host(access=lambda path, mode: False), PLAN), "error", "is not writable")


def test_an_address_that_is_too_long_for_a_socket_is_a_problem(host):
    expect(
        doctor.sockets(host(sockets="/" + "x" * 100), Plan(**{**vars(PLAN), "name": "e" * 2})),
        "error",
        "109 bytes",
        "at most 107",
    )
    expect(doctor.sockets(host(sockets="/" + "x" * 99), Plan(**{**vars(PLAN), "name": "e"})), "ok")


@pytest.mark.parametrize("wanted, level", [(True, "error"), (False, "warning")])
def test_a_state_directory_that_cannot_be_written_to(host, tmp_path, wanted, level):
    plan = Plan(**{**vars(PLAN), "state_directory": str(tmp_path / "a/b"), "state_wanted": wanted})
    (check,) = doctor.state(host(), plan)
    expect(check, "ok", "will be made")
    (check,) = doctor.state(host(access=lambda path, mode: False), plan)
    expect(check, level, "cannot be written to")


def test_a_state_directory_that_everybody_can_write_to_is_a_warning(host, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (check,) = doctor.state(host(), Plan(**{**vars(PLAN), "state_directory": str(tmp_path / "open")}))
    expect(check, "warning", "for all users")
    (tmp_path / "open").chmod(0o700)
    (check,) = doctor.state(host(), Plan(**{**vars(PLAN), "state_directory": str(tmp_path / "open")}))
    expect(check, "ok", "is writable")
    assert [] == list(doctor.state(host(), PLAN)), "there is none"


@pytest.mark.parametrize("wanted, level", [(True, "error"), (False, "warning")])
def test_a_state_directory_that_is_all_but_full(host, tmp_path, wanted, level):
    plan = Plan(**{**vars(PLAN), "state_directory": str(tmp_path), "state_wanted": wanted})
    (check,) = doctor.state(host(statvfs=lambda path: room(63, 1000)), plan)
    expect(check, level, "has 63.0 MiB free", "64.0 MiB at least")


def test_that_everybody_can_write_there_does_not_hide_that_there_is_no_room(host, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    plan = Plan(**{**vars(PLAN), "state_directory": str(tmp_path / "open")})
    assert ["for all users", "has 1.0 MiB free"] == [
        part
        for check in doctor.state(host(statvfs=lambda path: room(1, 64)), plan)
        for part in ("for all users", "has 1.0 MiB free")
        if part in check.found
    ]


def test_a_file_system_that_keeps_no_files_is_no_place_for_state(host, tmp_path):
    (check,) = doctor.state(
        host(statvfs=lambda path: room(0, 0)), Plan(**{**vars(PLAN), "state_directory": str(tmp_path / "a")})
    )
    expect(check, "warning", "files cannot be kept")


# ---- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "finding, level, part",
    [
        (None, "ok", "none; 0 engines in use"),
        (Leftover("engine", "x", KEEP, "in use: running"), "ok", "none; 1 engine in use"),
        (Leftover("engine", "x", REMOVE, "no process uses it", bytes=2 * MIB), "info", "1 leftover with 2.0 MiB"),
        (
            Leftover("engine", "x", KEEP, "layout version 1", discardable=True, remedy="discard it"),
            "info",
            "layout version 1",
        ),
        (
            Leftover("engine", "x", KEEP, "3 events in flight", discardable=True, stranded=True, remedy="run it"),
            "warning",
            "3 events in flight",
        ),
    ],
)
def test_leftovers(finding, level, part):
    (check,) = doctor.stale([finding] if finding else [])
    expect(check, level, part)


def test_the_plan_is_what_a_real_engine_takes(loopback):
    engine = loopback(shards=2, lane_bytes=1 << 16, max_producers=4)
    plan = Plan.of_engine(engine.control)
    with engine.producer() as producer:
        producer.push_many(list(range(100)), [b"x"] * 100)  # opens both lanes
        taken = [
            os.fstat(segment.descriptor).st_blocks * 512
            for segment in (engine.control.segment, *(i.segment for i in engine.inboxes))
        ]

    assert [plan.control_bytes, *[plan.inbox_bytes + plan.lane_bytes] * 2] == taken
    assert plan.least == sum(taken) and plan.worst == plan.base + 4 * 2 * ((1 << 16) + 4096)
    assert (2, 2, 4) == (plan.shards, plan.most_shards, plan.producers)


def test_the_plan_of_a_configuration_is_that_of_its_engine(loopback):
    engine = loopback(
        dtype=[("k", "u8"), ("v", "f8")], key="k", shards=1, lane_bytes=1 << 16, max_producers=4, state_dir="/s"
    )
    config = Config.of(
        name=engine.name,
        handler="m:f",
        dtype=[("k", "u8"), ("v", "f8")],
        key="k",
        slots=64,
        lane_bytes="64KiB",
        max_producers=4,
        shards=1,
        max_shards=2,
        state_dir="/s",
    )
    there, here = Plan.of_engine(engine.control), Plan.of_config(config)

    assert there == here
    assert here.state_wanted and "/s" == here.state_directory
    assert (there.control_bytes, 4096, (1 << 16) + 4096) == memory_needs(
        config.schema, slots=64, max_shards=2, max_producers=4, lane_bytes=1 << 16
    )


def test_all_checks_pass_on_a_good_host_and_the_worst_decides(host, tmp_path):
    fine = {"/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc"}
    checks = examine(host(fine), Plan(**{**vars(PLAN), "state_directory": str(tmp_path)}), [])
    assert {"ok"} == {check.level for check in checks}, checks
    assert {
        "versions",
        "kernel",
        "shared memory",
        "memory limit",
        "cores",
        "open files",
        "processes",
        "socket directory",
        "state directory",
        "RemoveIPC",
        "clock",
        "container",
        "leftovers",
    } == {check.name for check in checks}
    for level in LEVELS:
        assert level == worst_of([*checks, Check("x", level, "y")])


def test_a_full_dev_shm_is_no_kernel_without_futexes_and_is_said_first(host, tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    found = list(doctor.kernel(host(trials={"futex": full, "OFD locks": full})))
    assert {each.level for each in found} == {doctor.INFO}
    assert all("is full" in each.found and "seccomp" not in each.remedy for each in found)
