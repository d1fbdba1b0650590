"""What a handler pays for each event, by the way that it takes the events of a batch.

    python bench/handler.py [--events 4096] [--repeat 5] [--quick] [--json FILE] [--against FILE]

CPU time of this thread for one event of 64 bytes: making what the handler sees, going through it, and letting go of it.
Beside each way stands the same loop over a plain Python list of objects that exist already: what is left to be saved.
Batches are of one lane, as `push_columns` fills it, and are not taken twice. There are no other processes, so a machine
that is busy changes the figures little.
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    import checkout

    checkout.use()

import numpy as np  # noqa: E402

from bench import report  # noqa: E402
from bench.instructions import engine  # noqa: E402
from bench.report import Row  # noqa: E402

if TYPE_CHECKING:
    from shardmem.runtime.batch import Batch

SIZE, LIVE, LANE = 64, 64, 1 << 22  # bytes of an event, keys, bytes of the lane
PLAIN = "plain list"


# ---- the ways ------------------------------------------------------------------------------------------------------


def pairs(batch: Any) -> None:
    for _key, _payload in batch:
        pass


def payloads(batch: Batch) -> None:
    for _payload in batch.payloads:
        pass


def by_key(batch: Batch) -> None:
    for _key, some in batch.by_key():
        for _payload in some:
            pass


def columns(batch: Batch) -> None:
    found = batch.columns()
    int((found.ends - found.starts).sum())


def plain_payloads(events: list[bytes]) -> None:
    for _payload in events:
        pass


def plain_by_key(events: list[tuple[Any, bytes]]) -> None:
    groups = collections.defaultdict(list)
    for key, payload in events:
        groups[key].append(payload)
    for _key, some in groups.items():
        for _payload in some:
            pass


def plain_columns(events: list[tuple[Any, bytes]]) -> None:
    np.array([key for key, _ in events])
    sum(len(payload) for _, payload in events)


WAYS: dict[str, tuple[Callable[[Any], None], Callable[[Any], None]]] = {
    "pairs": (pairs, pairs),
    "payloads": (payloads, plain_payloads),
    "by_key": (by_key, plain_by_key),
    "columns": (columns, plain_columns),
}


# ---- measuring -----------------------------------------------------------------------------------------------------


def ns_of_batches(way: Callable[[Any], None], kind: str, count: int, rounds: int) -> float:
    """CPU time of the way for one event; kind: of keys, "int" or "str"."""
    from shardmem.memory.native import ffi, lib
    from shardmem.runtime.batch import Batch, Scratch
    from shardmem.runtime.producer import Producer

    keys, data, offsets = events_of(kind, count)
    took, handled = 0, 0
    with engine(None, None, 1, LANE) as (control, inboxes), Producer(control.engine, backpressure="fail") as producer:
        reader = lib.sm_reader_new(control.address, control.geometry, inboxes[0].address, -1, 0, count)
        batch, scratch = ffi.new("sm_batch *"), Scratch()
        for _ in range(rounds):
            for _ in range(max(1, LANE // 2 // (count * (SIZE + 40)))):
                producer.push_columns(keys, data, offsets)
            while lib.sm_next(reader, 0, 0, batch) == lib.SM_OK and batch.rows:
                work = Batch(control.schema, control.slots, 0, batch, scratch)
                started = time.thread_time_ns()
                way(work)
                took += time.thread_time_ns() - started
                work._end()
                handled += batch.rows
                lib.sm_commit(reader)
        lib.sm_reader_free(reader)
    return took / handled


def ns_of_lists(way: Callable[[Any], None], kind: str, count: int, rounds: int) -> float:
    data = bytes(count * SIZE)
    given: list[Any] = [bytes(data[i * SIZE : (i + 1) * SIZE]) for i in range(count)]
    if way is not plain_payloads:
        given = list(zip(keys_of(kind, count), given))
    started = time.thread_time_ns()
    for _ in range(4 * rounds):
        way(given)
    return (time.thread_time_ns() - started) / (4 * rounds * count)


def keys_of(kind: str, count: int) -> list[Any]:
    return [i % LIVE * 1_000_003 if kind == "int" else f"user-{i % LIVE:08}" for i in range(count)]


def events_of(kind: str, count: int) -> tuple[Any, bytes, np.ndarray]:
    """(keys, data, offsets) for `push_columns`."""
    keys = keys_of(kind, count)
    offsets = np.arange(count + 1, dtype="u8")
    made: Any = ("".join(keys).encode(), offsets * np.uint64(len(keys[0])), str) if kind == "str" else np.array(keys)
    return made, bytes(count * SIZE), offsets * np.uint64(SIZE)


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    rounds = 4 if chosen.quick else 40
    for kind in ("int", "str"):
        for name, (way, plain) in WAYS.items():
            ours, theirs = [], []
            for repetition in range(chosen.repeat):
                report.progress(f"handler {name}, {kind} keys {repetition + 1}/{chosen.repeat}")
                ours.append(ns_of_batches(way, kind, chosen.events, rounds))
                theirs.append(ns_of_lists(plain, kind, chosen.events, rounds))
            case = f"{name}, {kind}"
            found([Row(case, "batch", "batch", "ns", ours, (PLAIN,)), Row(case, PLAIN, PLAIN, "ns", theirs, (PLAIN,))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=4096, metavar="N", help="of a batch (4096)")
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("handler", chosen, lambda rows: measure(chosen, rows))


if __name__ == "__main__":
    main()
