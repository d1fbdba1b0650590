"""Instructions per operation, counted by valgrind: the figure that a busy or a slow machine does not change.

    python bench/instructions.py [--check | --write]

push: one event of 64 bytes under an int key. send: 4,096 records of 64 bytes over four shards. batch: 256 events that
were pushed together, from `sm_next` through a handler that reads all payloads to `sm_commit`. pairs: the same with a
handler that iterates. singles: as batch, of 256 events that were pushed one by one, so of 256 frames. All of it through
Python, in one process and without contention.

Prints {case: instructions} as JSON. Each run does all cases, and one of them more often than the first run did; the
difference is that case's alone, without the interpreter's start and the setting up. --check compares with
`instructions.json` and ends with 1 where a case takes over 10 % more; without valgrind, or without figures of this
platform, it says so and ends with 0. --write replaces what the file says of this platform.
What is counted depends on the interpreter and the architecture, so figures are kept by both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardmem.memory.engine_segment import ControlSegment, InboxSegment
    from shardmem.runtime.batch import Batch
    from shardmem.runtime.producer import Producer

FIGURES = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.10
FEW = {"push": 200, "send": 4, "batch": 8, "pairs": 8, "singles": 8}
MANY = {"push": 4200, "send": 36, "batch": 72, "pairs": 72, "singles": 72}
BATCH_ROWS, BLOCK, PAYLOAD = 256, 4096, b"x" * 64
DTYPE = [("key", "<u8"), ("rest", "V56")]
COMMAND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
DEADLINE = 120.0  # seconds of one run, which takes about 5


# ---- what is counted -----------------------------------------------------------------------------------------------


@contextmanager
def engine(
    dtype: Any, key: str | None, shards: int, lane_bytes: int, slots: int = 64, max_producers: int = 2
) -> Iterator[tuple[ControlSegment, list[InboxSegment]]]:
    """Segments without processes, as tests/unit has them: nobody but this thread executes instructions."""
    from shardmem.memory.engine_segment import ControlSegment, InboxSegment
    from shardmem.memory.native import lib
    from shardmem.policy.placement import first_table
    from shardmem.schema import Schema

    control = ControlSegment.create(
        f"instructions-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        Schema.of(dtype, key),
        slots=slots,
        max_shards=shards,
        max_producers=max_producers,
        lane_bytes=lane_bytes,
    )
    inboxes: list[InboxSegment] = []
    try:
        for shard in range(shards):
            inboxes.append(InboxSegment.create(control, shard, 1))
            lib.sm_set_shard_generation(control.address, shard, 1)
            lib.sm_set_shard_weight(control.address, shard, 1000)
            control.set_shard_state(shard, "active")
        for slot, shard in enumerate(first_table(slots, range(shards))):
            lib.sm_set_slot(control.address, slot, shard)
        control.set_state("running")
        yield control, inboxes
    finally:
        for inbox in inboxes:
            inbox.segment.unlink()
            inbox.close()
        control.segment.unlink()
        control.close()


def push(rounds: int) -> None:
    from shardmem.runtime.producer import Producer

    with engine(None, None, 1, 1 << 21) as (control, _), Producer(control.engine, backpressure="fail") as producer:
        for number in range(rounds):
            producer.push(number, PAYLOAD)


def send(rounds: int) -> None:
    import numpy as np

    from shardmem.runtime.producer import Producer

    records = np.zeros(BLOCK, DTYPE)
    records["key"] = np.arange(BLOCK)
    with engine(DTYPE, "key", 4, 1 << 22) as (control, _), Producer(control.engine, backpressure="fail") as producer:
        for _ in range(rounds):
            producer.send(records)


def payloads(batch: Batch) -> int:
    read = 0
    for payload in batch.payloads:
        read += len(payload)
    return read


def iterated(batch: Batch) -> int:
    read = 0
    for _key, payload in batch:
        read += len(payload)
    return read


def handle(rounds: int, fill: Callable[[Producer], None], handler: Callable[[Batch], int] = payloads) -> None:
    """Whatever `rounds` says, the same is pushed; so many batches of it are handled, as runtime/worker.py does it."""
    from shardmem.memory.native import ffi, lib
    from shardmem.runtime.batch import Batch, Scratch
    from shardmem.runtime.producer import Producer

    with (
        engine(None, None, 1, 1 << 22) as (control, inboxes),
        Producer(control.engine, backpressure="fail") as producer,
    ):
        fill(producer)
        reader = lib.sm_reader_new(control.address, control.geometry, inboxes[0].address, -1, 0, BATCH_ROWS)
        batch, scratch, read = ffi.new("sm_batch *"), Scratch(), 0
        for _ in range(rounds):
            lib.sm_next(reader, 0, 0, batch)
            work = Batch(control.schema, control.slots, 0, batch, scratch)
            read += handler(work)
            work._end()
            lib.sm_commit(reader)
        lib.sm_reader_free(reader)
    if read != rounds * BATCH_ROWS * len(PAYLOAD):
        raise RuntimeError(f"{read} bytes in {rounds} batches of {BATCH_ROWS} events")


def together(producer: Producer) -> None:
    for _ in range(MANY["batch"]):
        producer.push_many(list(range(BATCH_ROWS)), [PAYLOAD] * BATCH_ROWS)


def batch(rounds: int) -> None:
    handle(rounds, together)


def pairs(rounds: int) -> None:
    handle(rounds, together, iterated)


def singles(rounds: int) -> None:
    def fill(producer: Producer) -> None:
        for number in range(MANY["singles"] * BATCH_ROWS):
            producer.push(number, PAYLOAD)

    handle(rounds, fill)


CASES = {"push": push, "send": send, "batch": batch, "pairs": pairs, "singles": singles}


# ---- counting ------------------------------------------------------------------------------------------------------


class Uncounted(Exception):
    """No figure could be taken."""


def instructions(rounds: dict[str, int]) -> int:
    """Of one run of all cases, each so often."""
    command = [*COMMAND, sys.executable, __file__, "--run", json.dumps(rounds)]
    # The threads of OpenBLAS spin, some 40 million instructions in one run and more in the next.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=environment)
    counted = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or not counted:
        raise Uncounted(f"valgrind ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return int(counted[1].replace(",", ""))


def measure() -> dict[str, int]:
    """Instructions of one operation of each case."""
    if not shutil.which(COMMAND[0]):
        raise Uncounted(f"{COMMAND[0]} is not installed")
    base = instructions(FEW)
    return {name: round((instructions({**FEW, name: MANY[name]}) - base) / (MANY[name] - FEW[name])) for name in CASES}


def target() -> str:
    return f"{sys.implementation.cache_tag}-{platform.machine()}"


def excesses(now: dict[str, int], before: dict[str, int]) -> list[str]:
    """The cases that take more than they may."""
    return [
        f"{name}: {now[name]:,} instructions, {now[name] / figure - 1:.0%} more than the {figure:,} of {FIGURES.name}"
        for name, figure in before.items()
        if now[name] > figure * (1 + TOLERANCE)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions per operation.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help=f"compare with {FIGURES.name}")
    what.add_argument("--write", action="store_true", help=f"replace the figures of {target()} in {FIGURES.name}")
    what.add_argument("--run", metavar="ROUNDS", help=argparse.SUPPRESS)  # in valgrind's hands
    chosen = parser.parse_args()
    if chosen.run:
        for name, rounds in json.loads(chosen.run).items():
            CASES[name](rounds)
        return 0
    figures: dict[str, dict[str, int]] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if chosen.check and target() not in figures:
        print(f"skipped: {FIGURES.name} has no figures of {target()}; --write takes them", file=sys.stderr)
        return 0
    if chosen.check and not shutil.which(COMMAND[0]):
        print(f"skipped: {COMMAND[0]} is not installed", file=sys.stderr)
        return 0
    try:
        now = measure()
    except Uncounted as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(now))
    if chosen.write:
        FIGURES.write_text(json.dumps({**figures, target(): now}, indent=2, sort_keys=True) + "\n")
    found = excesses(now, figures[target()]) if chosen.check else []
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
