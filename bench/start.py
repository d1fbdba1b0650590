"""How long it takes until an engine is ready, and until the command line has answered.

    python bench/start.py [--repeat 9] [--quick] [--json FILE] [--against FILE]

Engine: from `Engine(...)` in a program that has imported shardmem to two workers that are ready, each a process of its
own, started by the engine's supervisor. Program: the same from the start of the interpreter to the end of the engine's
start. Status: the command `shardmem status` as a whole, of an engine of two shards. Beside them `python -c "import
numpy"`, which each of these processes does at least once: what is allowed is 1.5 times that and 150 ms. Bytecode is
compiled, as an installed package has it. The handler is in a file that imports nothing: what one imports itself comes
on top, in the workers alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

if __name__ == "__main__":
    import checkout

    checkout.use()

import shardmem  # noqa: E402
from bench import report  # noqa: E402
from bench.ignoring import handle  # noqa: E402
from bench.report import Row  # noqa: E402

NUMPY = ["-c", "import numpy"]
FACTOR, MORE_MS = 1.5, 150.0
ALLOWED = f"{FACTOR} x numpy + {MORE_MS:.0f} ms"
PROGRAM = """
import shardmem, time
from shardmem import Engine
from bench.ignoring import handle
started = time.perf_counter()
engine = Engine(handler=handle, shards=2).start()
print(time.perf_counter() - started, flush=True)
engine.stop()
"""


def ms_of(arguments: list[str]) -> float:
    """Of a Python process, as a whole."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd="/", check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - started)


def ms_to_ready() -> tuple[float, float]:
    """(of the engine, of the program that starts it)."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd="/", stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        said = program.stdout.readline()
        took = 1000 * (time.perf_counter() - started)
        if not said:
            raise SystemExit("start.py: the engine did not get ready")
    return 1000 * float(said), took


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    numpy, engine, program, status = list[float](), list[float](), list[float](), list[float]()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ms_of(NUMPY)
    ms_to_ready()
    with shardmem.Engine(handler=handle, shards=2) as running:
        for repetition in range(chosen.repeat):
            report.progress(f"status {repetition + 1}/{chosen.repeat}")
            numpy.append(ms_of(NUMPY))
            status.append(ms_of(["-m", "shardmem", "status", running.name]))
    for repetition in range(chosen.repeat):
        report.progress(f"start {repetition + 1}/{chosen.repeat}")
        numpy.append(ms_of(NUMPY))
        ready, whole = ms_to_ready()
        engine.append(ready)
        program.append(whole)
    allowed = [FACTOR * each + MORE_MS for each in numpy]
    for case, figures, target in (
        ("engine to ready", engine, "1 x allowed"),
        ("program to ready", program, ""),
        ("shardmem status", status, "1 x allowed"),
    ):
        found(
            [
                Row(case, "shardmem", "shardmem", "ms", figures, ("import numpy", ALLOWED), target=target),
                Row(case, "import numpy", "import numpy", "ms", numpy),
                Row(case, ALLOWED, ALLOWED, "ms", allowed),
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.options(parser, repeat=9, quick=2)
    chosen = parser.parse_args()
    report.run("start", chosen, lambda rows: measure(chosen, rows))


if __name__ == "__main__":
    main()
