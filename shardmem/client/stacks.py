"""Asking a worker where its threads are: see runtime/stacks.py."""

from __future__ import annotations

import os
import signal
import time
from typing import BinaryIO, TypedDict

from shardmem.errors import ConfigError, NotRunning, ShardmemError
from shardmem.memory.engine_segment import ControlSegment
from shardmem.memory.holders import open_holder
from shardmem.runtime.stacks import NAME, SIGNAL

WAIT_S = 5.0
LOOK_S = 0.01
LARGEST = 1 << 20  # bytes of earlier answers that are kept


class Stacks(TypedDict):
    shard: int
    pid: int
    incarnation: int
    in_hand_s: float | None  # for how long it has had its batch
    text: str


def stacks(control: ControlSegment, shard: int, timeout: float = WAIT_S) -> Stacks:
    """Raises ConfigError: no such shard; NotRunning: it has no worker that can be asked; ShardmemError: no answer."""
    if not 0 <= shard < control.room or not (view := control.view_shard(shard)).state:
        raise ConfigError(f"there is no shard {shard}; there are {control.known_shards()}")
    if not view.pid or (pidfd := open_holder(view.pid, control.segment)) is None:
        raise NotRunning(
            f"shard {shard} has no worker that can be seen from here",
            hint=f"See `shardmem status {control.engine}`; from a container, ask where its workers run",
        )
    try:
        with _memory(view.pid, shard) as file:
            text = _answer(view.pid, pidfd, file, timeout)
    finally:
        os.close(pidfd)
    since = view.batch_since_ns
    in_hand = max(0.0, (time.monotonic_ns() - since) / 1e9) if since else None
    return {"shard": shard, "pid": view.pid, "incarnation": view.incarnation, "in_hand_s": in_hand, "text": text}


def _memory(pid: int, shard: int) -> BinaryIO:
    """What its faulthandler writes to. Without it the signal would kill the worker."""
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{entry}"
            try:
                if os.readlink(path).startswith(f"/memfd:{NAME}"):
                    return open(path, "r+b", buffering=0)
            except FileNotFoundError:
                continue  # closed meanwhile
    except PermissionError:
        raise NotRunning(f"the worker of shard {shard} (pid {pid}) cannot be looked into by this user") from None
    except OSError as error:
        raise NotRunning(f"the worker of shard {shard} (pid {pid}) cannot be asked: {error.strerror}") from None
    raise NotRunning(
        f"the worker of shard {shard} (pid {pid}) cannot be asked yet, or its handler has closed its descriptors"
    )


def _answer(pid: int, pidfd: int, file: BinaryIO, timeout: float) -> str:
    if file.seek(0, os.SEEK_END) > LARGEST:
        file.truncate(0)
    begin = file.seek(0, os.SEEK_END)
    busy_before = _threads_that_block(pid)
    signal.pidfd_send_signal(pidfd, SIGNAL)
    deadline = time.monotonic() + timeout
    while True:
        over = not _is_pending(pid) and _threads_that_block(pid) <= busy_before
        if over and file.seek(0, os.SEEK_END) > begin:
            file.seek(begin)
            return file.read().decode(errors="replace").strip()
        if time.monotonic() > deadline:
            state = _field(f"/proc/{pid}/status", "State")
            raise ShardmemError(
                f"the worker (pid {pid}) does not answer within {timeout:g} s; its state is {state or 'gone'}",
                hint="One that is stopped answers when it is continued; one in disk sleep waits for the kernel",
            )
        time.sleep(LOOK_S)


def _is_pending(pid: int) -> bool:
    pending = _mask(f"/proc/{pid}/status", "ShdPnd") | _mask(f"/proc/{pid}/status", "SigPnd")
    return bool(pending & 1 << (SIGNAL - 1))


def _threads_that_block(pid: int) -> set[str]:
    """A signal is blocked while its handler runs: it has written everything when no thread blocks it any more."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return set()
    return {each for each in threads if _mask(f"/proc/{pid}/task/{each}/status", "SigBlk") & 1 << (SIGNAL - 1)}


def _mask(path: str, name: str) -> int:
    return int(_field(path, name) or "0", 16)


def _field(path: str, name: str) -> str:
    try:
        with open(path) as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), "")
    except OSError:
        return ""
