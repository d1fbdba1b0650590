"""All benchmarks, one after the other, each in a process of its own, into one JSON.

    python bench/suite.py [NAME...] [--short | --quick] [--json FILE] [--against FILE]
    python bench/suite.py --page FILE > docs/results.md

NAME: of the programs below, in their order; default: all. All of them take over an hour; --short takes less than half
of one: five repetitions (two of state, one of kills, outages, files and Kafka), shorter rounds, and neither ten million
keys nor a partition that goes to another host with its state. --quick proves that all of them run. --against compares
the ratios, and the figures that have none, with those of an earlier --json, each beside the noise of both. --page
writes the page of the documentation from a --json, and measures nothing. Run it alone on the machine. Ends with 1 if
one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    import checkout

    checkout.use()

HERE = Path(__file__).parent
LONGEST = 45 * 60.0  # seconds of one program
PROGRAMS = {  # and how --short runs each
    "run": ("--repeat", "5", "--seconds", "0.3"),
    "handler": (),
    "model": ("--repeat", "5", "--seconds", "1"),
    "start": (),
    "idle": ("--repeat", "5", "--seconds", "10"),
    "large": ("--repeat", "5"),
    "elastic": ("--repeat", "5", "--seconds", "2"),
    "recovery": ("--repeat", "5", "--seconds", "2"),
    "kills": ("--seconds", "40"),
    "outage": ("--repeat", "1", "--seconds", "20"),
    "state": ("--repeat", "2", "--events", "1000000", "--only", "counting", "moves", "timers", "killed"),
    "ingest": ("--mb", "100"),
    "kafka": ("--repeat", "1", "--events", "500000"),
}


def ends_well(command: list[str]) -> bool:
    """Also False: it did not end. Its engines end with it."""
    with subprocess.Popen(command, start_new_session=True) as program:
        try:
            return program.wait(LONGEST) == 0
        except BaseException as error:  # Ctrl-C too, which does not reach another session
            os.killpg(program.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            print(f"stuck for {LONGEST:.0f} s: {' '.join(command[:2])}", file=sys.stderr)
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROGRAMS))
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--short", action="store_true", help="fewer rounds: the page in less than half an hour")
    how.add_argument("--quick", action="store_true", help="short and few rounds: proves, does not measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the --json of an earlier run")
    parser.add_argument("--page", type=Path, metavar="FILE", help="print the page of this --json, and measure nothing")
    chosen = parser.parse_args()
    if chosen.page:
        from bench.page import page

        print(page(json.loads(chosen.page.read_text())))
        return 0
    if unknown := [name for name in chosen.names if name not in PROGRAMS]:
        parser.error(f"{unknown[0]} is no benchmark; there are {', '.join(PROGRAMS)}")
    before = json.loads(chosen.against.read_text())["benchmarks"] if chosen.against else {}
    found, failed = {}, []
    with tempfile.TemporaryDirectory(prefix="shardmem-bench-") as directory:
        for name in chosen.names or PROGRAMS:
            print(f"== {name}", flush=True)
            written, earlier = Path(directory, f"{name}.json"), Path(directory, f"{name}-before.json")
            command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(written)]
            command += ["--quick"] if chosen.quick else PROGRAMS[name] if chosen.short else []
            if name in before:
                earlier.write_text(json.dumps(before[name]))
                command += ["--against", str(earlier)]
            if not ends_well(command):
                failed.append(name)
            if written.exists():
                found[name] = json.loads(written.read_text())
            if chosen.json:  # what is measured stays, whatever becomes of those that come after it
                chosen.json.write_text(json.dumps({"benchmarks": found}, indent=1) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
