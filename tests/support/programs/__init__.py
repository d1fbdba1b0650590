"""Programs that tests start as processes of their own. Orders come as lines of JSON on standard input, and the replies
go as lines of JSON to standard output. A test hands over the function itself (rig.Program), so a name that is misspelt
fails when the test is collected; the process is told where it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

MainFunction: TypeAlias = Callable[[], None]
NOT_REACHED, UNHAPPY = 7, 8  # exit codes

_programs: dict[str, MainFunction] = {}


def program(main: MainFunction) -> MainFunction:
    """Marks the main function of a program."""
    _programs[name_of(main)] = main
    return main


def name_of(main: MainFunction) -> str:
    return f"{main.__module__}:{main.__qualname__}"


def command_of(main: MainFunction) -> list[str]:
    """The arguments of Python that run it, in the directory `tests`."""
    if _programs.get(name_of(main)) is not main:
        raise ValueError(f"{name_of(main)} is not a program: it is not marked with @program")
    return ["-m", "support.programs", name_of(main)]


def order() -> dict[str, Any]:
    line = sys.stdin.buffer.readline()
    return json.loads(line) if line else {}


def reply(**what: Any) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()
