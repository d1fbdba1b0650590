"""No process is signalled because a word in shared memory names it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest

import shardmem
from shardmem.client.client import _UnixConnection
from shardmem.errors import SegmentError
from shardmem.memory import lease
from shardmem.memory.holders import open_holder
from shardmem.memory.native import lib


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 99_999_999_999, "innocent"])
def test_stop_signals_no_process_but_one_that_uses_the_memory(loopback, pid: int | str) -> None:
    engine = loopback()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        number = innocent.pid if pid == "innocent" else pid
        held = lease.Lease.take(engine.control.segment, lease.SUPERVISOR)
        lib.sm_supervisor_enter(engine.control.address, number, lib.sm_now_ns())
        with shardmem.Client(engine.name) as client, pytest.raises(SegmentError, match="No process was signalled"):
            client.stop(timeout=1)
        assert innocent.poll() is None
        innocent.communicate(b"\n")
        assert innocent.returncode == 0
        held.release()


def test_a_process_that_has_the_memory_mapped_is_found(loopback) -> None:
    pidfd = open_holder(os.getpid(), loopback().control.segment)
    assert pidfd is not None
    os.close(pidfd)


def test_commands_go_to_no_socket_of_another_user_than_the_engine_s(sockets) -> None:
    """The path is in memory that an engine's user can write: root would give its commands to any socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sockets / "s"))
        listener.listen()
        with contextlib.closing(_UnixConnection(str(sockets / "s"), os.geteuid() + 1)) as asking:
            with pytest.raises(OSError, match=f"uid {os.geteuid()} listens there"):
                asking.request("POST", "/stop")
        with listener.accept()[0] as asked:
            assert asked.recv(1) == b""
