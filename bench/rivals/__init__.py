"""The contenders, one module each; every module has a list `CONTENDERS` and imports without its rival.

The ends are the rivals' natural ones. Queues that several processes may share are shared in the 2x2
cases; pipes and services that join two ends become two independent pairs there, which is the easier
task. Buffers are 16 MiB where the rival lets us say so.
"""

from __future__ import annotations

import importlib
import mmap

from bench.harness import Contender

MODULES = (
    "bench.contender_shardmem",
    "bench.floor",
    "bench.rivals.mp_queue",
    "bench.rivals.mp_pipe",
    "bench.rivals.fasterfifo",
    "bench.rivals.hyper_queue",
    "bench.rivals.zeromq",
    "bench.rivals.iceoryx",
    "bench.rivals.subetha_ipc",
    "bench.rivals.kick",
    "bench.rivals.slick",
    "bench.rivals.cloudtoid",
    "bench.rivals.tachyon",
)
BUFFER = 16 << 20
BARE = "no keys, no workers, no second delivery of what a consumer had taken when it died"  # in the notes


def counts() -> memoryview:
    """Words that processes which are forked from here share, one for each pair: so many messages were received. For
    rivals that lose what is not read in time."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")


class Absent(Contender):
    """Stands for a module that cannot be imported, so that the table shows the gap."""

    forms = {"records": "", "lists": "", "columns": "", "push": "", "latency": ""}

    def __init__(self, module: str, why: str) -> None:
        self.name = module.rpartition(".")[2].removeprefix("contender_")
        self.pip = "." if self.name == "shardmem" else None
        self.why = why

    def label(self, kind: str) -> str:
        return self.name

    def missing(self) -> str:
        return self.why


def load(module: str) -> list[Contender]:
    """The contenders of one module. Measuring processes load no other: imports have side effects."""
    try:
        return importlib.import_module(module).CONTENDERS
    except Exception as error:  # a module in the making may raise anything, and is no reason to stop the run
        return [Absent(module, f"{type(error).__name__}: {error}")]


def unimportable(module: str) -> str | None:
    """What `Contender.missing` returns for a rival that is one Python package."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken build may raise anything
        return f"{type(error).__name__}: {error}"
    return None
