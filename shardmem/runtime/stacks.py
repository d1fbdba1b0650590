"""Where the threads of a worker are at this moment, for whoever asks by signal.

The handler of the signal is C code of faulthandler: it answers also when the interpreter hangs in a call that does not
return. What it writes goes into memory of its own, a file without a name: standard error belongs to the log, and the
one who asks reads it through /proc/PID/fd.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal

NAME = "shardmem-stacks"
SIGNAL = signal.SIGRTMIN + 7  # libraries take the first few for themselves


def offer() -> None:
    """In the worker, before it loads its handler."""
    descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # whoever asks may cut it short
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)
