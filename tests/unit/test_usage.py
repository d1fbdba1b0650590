"""CPU time and memory of processes, as /proc says."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from shardmem.runtime.child import Child
from shardmem.status.usage import Usage, used_by
from support.rig import wait_until


def test_cpu_time_and_memory_of_a_process_are_what_psutil_says():
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    cpu_s, rss = used_by(os.getpid())
    known = psutil.Process()
    times = known.cpu_times()
    assert 0 < cpu_s <= times.user + times.system + 0.02
    assert rss == pytest.approx(known.memory_info().rss, rel=0.2)


@pytest.mark.parametrize("pid", [-1, 0, 1 << 40])
def test_of_what_is_no_process_nothing_is_known(pid):
    assert used_by(pid) == Usage().of(0, 1, pid) == (None, None)


def test_a_number_that_another_program_has_by_now_is_no_worker():
    usage, worker = Usage(), Child("worker")
    try:
        assert usage.of(0, 1, os.getpid()) == (None, None)
        wait_until(lambda: Usage().of(0, 2, worker.pid)[1], "it has become a worker's program")
        assert usage.of(0, 2, worker.pid)[1] > 0, "the next life of the shard"
    finally:
        worker.kill()
        worker.wait()
        worker.close()
