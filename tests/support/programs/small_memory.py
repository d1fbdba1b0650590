"""A program in shared memory of a few MB."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shardmem
from shardmem.errors import with_hint
from support.programs import order, program, reply
from support.programs.source import Source
from support.recorder import payload
from support.rig import PATIENCE, Log, drained


@program
def in_small_memory() -> None:
    """Run in a mount namespace of its own. Says what happened at each step with a /dev/shm of a few MB."""
    import ctypes

    orders = order()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={orders['size']}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    told: dict[str, Any] = {}

    def free() -> int:
        space = os.statvfs("/dev/shm")
        return space.f_bavail * space.f_frsize

    def look() -> dict[str, Any]:
        return {
            "free": free(),
            "segments": sorted(os.listdir("/dev/shm")),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    def attempt(step: str, work: Callable[[], Any]) -> None:
        before = look()
        try:
            work()
            said: dict[str, Any] = {"error": None}
        except shardmem.ShardmemError as error:
            said = {
                "error": type(error).__name__,
                "text": with_hint(error),
                "need": getattr(error, "need", None),
                "free": getattr(error, "free", None),
            }
        told[step] = {**said, "before": before, "after": look()}

    def engine(name: str, **settings: Any) -> shardmem.Engine:
        return shardmem.Engine(
            name, handler="support.recorder:Recorder", shards=1, lane_bytes=65536, **{"max_shards": 1, **settings}
        )

    def leave_free(amount: int) -> None:
        """Fills the rest."""
        with open("/dev/shm/ballast", "wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free() - amount)

    with engine("first") as first, Log(Path(orders["directory"])) as log, first.producer() as producer:
        source = Source(0, log)
        source.push(producer, "push", 1, 10)
        attempt("second engine", engine("second", max_shards=1024).start)
        source.push(producer, "push", 1, 10)
        leave_free(512 * os.stat("/dev/shm/shardmem.first.control").st_blocks)  # for a control segment and no inbox
        attempt("third engine", engine("third").start)
        os.unlink("/dev/shm/ballast")
        leave_free(80000)  # for one lane
        with first.producer() as one, first.producer() as two:
            attempt("lane 1", lambda: one.push(0, payload(1, 0, 0)))
            attempt("lane 2", lambda: two.push(0, payload(2, 0, 0)))

            def again() -> None:
                for _ in range(19):
                    try:
                        two.push(0, payload(2, 0, 0))
                    except shardmem.OutOfMemory:
                        pass
                two.push(0, payload(2, 0, 0))

            attempt("lane 2 again", again)
            source.push(producer, "push", 1, 10)
            os.unlink("/dev/shm/ballast")
            attempt("lane 2 at last", lambda: two.push(0, payload(2, 0, 0)))
        for number in (1, 2):
            log.rows("accepted", number, [0], [0])
        source.push(producer, "push", 1, 10)
        producer.flush(PATIENCE)
        told["status"] = drained(first)
    told["left"] = sorted(os.listdir("/dev/shm"))
    reply(**told)
