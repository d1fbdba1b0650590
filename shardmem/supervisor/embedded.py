"""The supervisor process of an embedded engine.

Its orders come on standard input, one line of JSON, and standard input stays open as long as the parent wants the
engine: end of file means the parent has left its block, or was killed, and the engine drains and ends (lifeline.py).
"""

from __future__ import annotations

import json
from contextlib import closing

from shardmem.runtime.child import ExitCode, begin, read_line
from shardmem.supervisor.prestart import Prestarted


def main() -> int:
    begin()
    if (line := read_line()) is None:
        return ExitCode.OK  # nobody wants the engine any more
    with closing(Prestarted(json.loads(line)["workers"])) as prestarted:
        from shardmem.supervisor.lifeline import run  # imports for as long as the workers do

        return run(line, prestarted)
