"""Forked children, and how they ended."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

from support.programs import UNHAPPY
from support.rig import PATIENCE


def forked(work: Callable[[], None]) -> int:
    """Runs `work` in a forked child and ends it there, with 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    code = UNHAPPY
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap(pid: int, timeout: float = PATIENCE) -> int:
    """Its exit code, negative for a signal. A child that does not end is killed and counts as killed by SIGALRM."""
    pidfd = os.pidfd_open(pid)
    ended = select.select([pidfd], [], [], timeout)[0]
    os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if ended else -signal.SIGALRM
