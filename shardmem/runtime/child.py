"""How a process of ours starts, and how it reports to the one that started it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def python_command(module: str) -> list[str]:
    """Runs `main()` of a module of ours in a fresh interpreter.

    Not `python -m`: that puts the current directory first on the path, and there may be a `shardmem` folder in it that is
    not this package (a source tree without the compiled extension, for one).
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-c", f"import sys; sys.path[0] = {root!r}; from {module} import main; sys.exit(main())"]


class Reports:
    """Lines of JSON to the supervisor. It may be gone: then nobody needs them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, **what: Any) -> None:
        try:
            os.write(self._descriptor, json.dumps(what).encode() + b"\n")
        except OSError:
            pass
