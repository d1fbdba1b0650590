"""The C floor as a contender: compiles `floor.c` and runs it. See there for what it measures.

Two rows in the records cases: the consumer reads the first u64 of every event, as everybody here does,
or every byte of it, as a handler would that looks at all fields. In the latency case it is the time
that the kernel takes to wake a parked process, which every parked consumer pays.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from bench.harness import DEADLINE, POOL, Contender, Failed, Trial, spread, throughput

SOURCE = Path(__file__).with_name("floor.c")
DIRECTORY = "SHARDMEM_BENCH_BUILD"  # the runner's temporary directory: one compilation per run


def build() -> Path:
    """The compiled program, in the runner's temporary directory."""
    program = Path(os.environ[DIRECTORY], "floor")
    if not program.exists():
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-std=c11", "-O3", "-Wall", "-o", str(program), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise Failed(f"no C compiler ({compiler})") from None
        except subprocess.CalledProcessError as error:
            raise Failed(f"{compiler}: {error.stderr.strip().splitlines()[-1]}") from None
    return program


class Floor(Contender):
    name = "C floor"

    def __init__(self, touch: str) -> None:
        self.touch = touch
        self.forms = {"records": "SPSC ring" if touch == "first" else "SPSC ring, all bytes read"}
        if touch == "first":
            self.forms["latency"] = "futex wake"

    def missing(self) -> str | None:
        try:
            build()
        except Failed as error:
            return str(error)
        return None

    def measure(self, trial: Trial) -> dict[str, Any]:
        if trial.kind == "latency":
            count = int(trial.rate * trial.seconds)
            return spread(self._run(trial, "wake", count=count, rate=trial.rate)["latencies"])
        ring = dict(frame=trial.size, touch=self.touch, pool=POOL, **trial.floor)
        # As in `harness.run`: short runs find the rate. The program warms its ring up by itself.
        events, wanted = 64 * POOL, trial.seconds * 1e9
        while (result := self._ring(trial, events=events, **ring))["ns"] < wanted / 2:
            events = int(events * min(8.0, wanted / result["ns"]))
        return throughput(result["events"], result["ns"] / 1e9)

    def _ring(self, trial: Trial, **options: Any) -> dict[str, Any]:
        result = self._run(trial, "ring", **options)
        if not result["right"]:
            raise Failed("the sum of the events is wrong")
        return result

    def _run(self, trial: Trial, what: str, **options: Any) -> Any:
        options["pairs"] = trial.producers
        if trial.cpu("producer", 0) is not None:
            ends = ("producer", trial.producers), ("consumer", trial.consumers)
            options["cpus"] = ",".join(str(trial.cpu(role, i)) for role, n in ends for i in range(n))
        command = [str(build()), what, *(f"{name}={value}" for name, value in options.items())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        if done.returncode:
            raise Failed(f"floor: {done.stderr.strip() or f'ended with {done.returncode}'}")
        return json.loads(done.stdout)


CONTENDERS = [Floor("first"), Floor("all")]
