"""Handlers that take their time: at a gate, at a lock, or for ever."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from shardmem import Batch, Context, Handler
from support.recorder import Recorder


class Hangs(Recorder):
    """Does not come back from handle() as long as there is a file `hang` when it is called."""

    def handle(self, batch: Batch) -> None:
        if (self.directory / "hang").exists():
            self.hang()
        super().handle(batch)

    def hang(self) -> None:
        while True:
            time.sleep(3600)


class Hanging(Handler):
    """Does not come back from open()."""

    def open(self, context: Context) -> None:
        while True:
            time.sleep(3600)

    def handle(self, batch: Batch) -> None: ...


class Hesitating(Recorder):
    """Waits in open() as long as somebody holds the lock `open-SHARD-INCARNATION`."""

    def open(self, context: Context) -> None:
        gate = os.open(
            Path(os.environ["RECORD_DIR"]) / f"open-{context.shard}-{context.incarnation}",
            os.O_RDWR | os.O_CREAT,
            0o600,
        )
        fcntl.flock(gate, fcntl.LOCK_SH)
        os.close(gate)
        super().open(context)


class Gated(Recorder):
    """Looks at nothing; only the gate."""

    def handle(self, batch: Batch) -> None:
        self.pass_gate(batch)


class Deaf(Recorder):
    """Does not end for SIGTERM while it has a batch in hand; nothing but SIGKILL helps."""

    def pass_gate(self, batch: Batch) -> None:
        (self.directory / f"waits-{self.context.shard}").touch()
        while True:
            time.sleep(3600)


class Slow(Recorder):
    """Slow, so that lanes fill and a flush that does not wait is caught."""

    def handle(self, batch: Batch) -> None:
        time.sleep(0.005)
        super().handle(batch)


def slow_when_told(batch: Batch) -> None:
    """An event that begins with b"slow" takes 0.3 s."""
    for _, payload in batch:
        if bytes(payload[:4]) == b"slow":
            time.sleep(0.3)


class ClosesDescriptors(Handler):
    """What a library does that turns its process into a daemon, as far as the memory for stacks goes."""

    def open(self, context: Context) -> None:
        for entry in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{entry}").startswith("/memfd:"):
                    os.close(int(entry))
            except FileNotFoundError:
                continue  # of the listing itself

    def handle(self, batch: Batch) -> None: ...
