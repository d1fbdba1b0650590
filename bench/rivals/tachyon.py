"""tachyon-ipc: a ring of one producer and one consumer, in memory that a unix socket hands over. Its package on PyPI
is source only and takes a compiler that is newer than those of most distributions, so its row says why it is empty."""

from __future__ import annotations

from bench.harness import Contender
from bench.rivals import BARE


class Tachyon(Contender):
    name = "tachyon-ipc"
    forms = {"records": "joined", "columns": "joined", "push": "single", "latency": "single"}
    note = f"tachyon-ipc: {BARE}; one producer and one consumer; the death of an end is not noticed"

    def missing(self) -> str:
        return "there are no wheels, and its source takes GCC 14 or Clang 17"


CONTENDERS = [Tachyon()]
