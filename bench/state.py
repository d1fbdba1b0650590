"""What keyed state and timers cost.

    python bench/state.py [--events 4000000] [--repeat 5] [--only NAME...] [--quick] [--json FILE] [--against FILE]

counting: 10,000 live keys, CPU time of the worker per event: a dict that nothing saves, `KeyedState` one by one and by
columns, snapshots of slots by hand, and the states of Quix Streams and bytewax, where they are installed; a checkpoint;
a question from another process. moves: a slot that moves, alone and under load; 50,000 timers that are due at once.
hosts: the state of a partition, 100 MB in a million values, from host to host. large: 10,000,000 keys (400,000 with
--quick), of which the memory takes a part. timers: 1,000,000 that are not due. killed: a worker with 1,000,000 keys.
Contenders take turns; medians of the repetitions.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

if __name__ == "__main__":
    import checkout

    checkout.use()

from bench import report, state_counting, state_large, state_moves  # noqa: E402
from bench.report import Row  # noqa: E402
from bench.state_counting import Columns, Keyed, Plain, Snapshots  # noqa: E402

Found = Callable[[list[Row]], None]
RIVALS = {"quix": "Quix Streams: its state, without Kafka", "bytewax": "bytewax: stateful_map"}


def counting(chosen: argparse.Namespace, found: Found) -> None:
    events = chosen.events or (300_000 if chosen.quick else 4_000_000)
    labels = {
        "dict": (Plain, "a dict that nothing saves", ""),
        "KeyedState": (Keyed, "KeyedState, one by one", "1.25 x"),
        "columns": (Columns, "KeyedState, add_many", "0.333 x"),
        "snapshots": (Snapshots, "snapshots of slots, by hand", ""),
        "asked": (Keyed, "KeyedState, asked 1,000 times a second", ""),
    }
    took: dict[str, list[float]] = {name: [] for name in (*labels, *RIVALS)}
    absent: dict[str, str] = {}
    for repetition in range(chosen.repeat):
        report.progress(f"state {repetition + 1}/{chosen.repeat}: counting")
        for name, (handler, _, _) in labels.items():
            took[name].append(state_counting.count(handler, events, asked=name == "asked"))
        for name in RIVALS.keys() - absent:
            said = state_counting.rival(name, events // 10)
            if isinstance(said, str):
                absent[name] = said
            else:
                took[name].append(said)
    case = "count per key, CPU"
    rows = [
        Row(case, name, label, "ns", took[name], ("KeyedState",) if name == "asked" else ("dict",), target=target)
        for name, (_, label, target) in labels.items()
    ]
    rows += [Row(case, name, RIVALS[name], "ns", took[name], ("dict",), absent=absent.get(name)) for name in RIVALS]
    found(rows)
    rounds = 20 if chosen.quick else 100
    kinds = (("KeyedState", Keyed, "15 ms"), ("snapshots", Snapshots, ""))  # 3 % of the interval, 0.5 s
    saving = {
        name: [state_counting.checkpoint_ms(handler, rounds) for _ in range(chosen.repeat)]
        for name, handler, _ in kinds
    }
    case = "checkpoint of 10,000 keys, CPU"
    found([Row(case, name, name, "ms", saving[name], ("snapshots",), target=target) for name, _, target in kinds])
    asked = [statistics.median(state_counting.asking(500)) * 1e6 for _ in range(chosen.repeat)]
    found([Row("ask for a value", "p50", "p50", "us", asked, target="200 us")])


def moves(chosen: argparse.Namespace, found: Found) -> None:
    others = []
    for repetition in range(chosen.repeat):
        report.progress(f"state {repetition + 1}/{chosen.repeat}: timers, a move")
        others.append(state_moves.timers_and_move())
    moved = [state_moves.move_of_10_000() * 1e3 for _ in range(chosen.repeat)]
    seconds = 1.0 if chosen.quick else 4.0
    tails = [[state_moves.push_tail(moving, seconds) for moving in (False, True)] for _ in range(chosen.repeat)]
    case = "push meanwhile, p99.9"
    found(
        [
            Row("timers", "50,000", "50,000 due at once, all saved", "s", [fired for fired, _ in others], target="1 s"),
            Row("a slot moves", "50,000 keys", "50,000 keys", "ms", [took * 1e3 for _, took in others]),
            Row("a slot moves", "10,000 keys", "10,000 keys", "ms", moved, target="50 ms"),
            Row(case, "still", "no slot moves", "us", [still for still, _ in tails]),
            Row(case, "moving", "10,000 keys move to and fro", "us", [moving for _, moving in tails], ("still",)),
        ]
    )


def hosts(chosen: argparse.Namespace, found: Found) -> None:
    values = state_moves.PARTITION // 10 if chosen.quick else state_moves.PARTITION
    report.progress(f"state: a partition of {values:,} values goes to another host")
    gone = [state_moves.partition_moves(values) for _ in range(min(3, chosen.repeat))]
    case = f"a partition of {values // 10_000:,} MB"
    found(
        [
            Row(case, "taken", "taken and uploaded, a directory", "s", [each[0] for each in gone]),
            Row(case, "restored", "fetched, checked, in place", "s", [each[1] for each in gone]),
            Row(case, "claimed", "in the files of two workers", "s", [each[2] for each in gone]),
            Row(case, "restore", "both together", "s", [each[1] + each[2] for each in gone], target="1 s"),
        ]
    )


def large(chosen: argparse.Namespace, found: Found) -> None:
    keys, events = (400_000, 200_000) if chosen.quick else (10_000_000, 2_000_000)
    report.progress(f"state: {keys:,} keys")
    small = state_large.large(keys // 20, events, "4GiB")
    much = state_large.large(keys, events, "16MiB" if chosen.quick else "256MiB")
    case, saving = f"{keys:,} keys, Zipf(1.1)", "checkpoint of 10,000 keys of many"
    found(
        [
            Row(case, "memory", "a twentieth of them, all in memory", "events/s", [small["rate"]]),
            Row(case, "file", "most of them in the file", "events/s", [much["rate"]], ("memory",), target="0.5 x"),
            Row(f"{case}, CPU", "memory", "a twentieth of them, all in memory", "ns", [small["cpu"]]),
            Row(f"{case}, CPU", "file", "most of them in the file", "ns", [much["cpu"]], ("memory",), target="2 x"),
            Row(case, "rss", "resident memory of the worker", "MB", [much["rss"]], target="600 MB"),
            Row(saving, "few", f"of {keys // 20:,}", "ms", [small["saving"]]),
            Row(saving, "many", f"of {keys:,}", "ms", [much["saving"]], ("few",), target="1.2 x"),
        ]
    )


def timers(chosen: argparse.Namespace, found: Found) -> None:
    count = 100_000 if chosen.quick else 1_000_000
    report.progress(f"state: {count:,} timers that are not due")
    found([Row("timers", "idle", f"{count:,} not due", "share", [state_large.idle_timers(count)], target="0.05")])


def killed(chosen: argparse.Namespace, found: Found) -> None:
    keys = 100_000 if chosen.quick else 1_000_000
    without, with_state = [], []
    for repetition in range(chosen.repeat):
        report.progress(f"state {repetition + 1}/{chosen.repeat}: kill -9")
        without.append(state_large.killed(state_large.Stateless, 0))
        with_state.append(state_large.killed(state_large.Stateful, keys))
    case = "kill -9 to the first event"
    found(
        [
            Row(case, "stateless", "a handler without state", "ms", without),
            Row(case, "keys", f"{keys:,} keys", "ms", with_state, ("stateless",), target="100 ms more"),
        ]
    )


PARTS = {part.__name__: part for part in (counting, moves, hosts, large, timers, killed)}


def measure(chosen: argparse.Namespace, found: Found) -> None:
    for name in chosen.only or PARTS:
        PARTS[name](chosen, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help="of a round of counting (4,000,000; 300,000 with --quick)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    report.options(parser, repeat=5)
    chosen = parser.parse_args()
    report.run("state", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
