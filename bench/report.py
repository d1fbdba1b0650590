"""What every benchmark hands in: rows of figures, one JSON form, and a comparison with an earlier run.

A row is one contender's figures in one case, one for each repetition. Ratios are between medians of this run: absolute
figures belong to the machine and to nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LESS_IS_BETTER = ("us", "ms", "s", "ns", "MB", "MiB")


@dataclass
class Row:
    """One line of the table: a contender's figures in a case, one per repetition that did not fail. references: the
    contenders of this case that it is compared with. target: what the figure, or its ratio, should be."""

    case: str
    contender: str
    label: str
    unit: str  # events/s, MB/s, share, count, or one of LESS_IS_BETTER
    values: list[float]
    references: tuple[str, ...] = ()
    pinning: str = ""
    failures: list[str] = field(default_factory=list)
    absent: str | None = None
    target: str = ""
    ratios: dict[str, float] | None = None
    note: str = ""  # what the contender does not do


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    try:
        version = subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True).stdout
        compiler = version.splitlines()[0]
    except (OSError, IndexError):
        compiler = "none"
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gcc": compiler,
        # A shared machine explains more outliers than any of the above.
        "load": round(os.getloadavg()[0], 2),
    }


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def relate(rows: list[Row]) -> None:
    """Ratios to the references of the same case."""
    for row in rows:
        row.ratios = {}
        for name in row.references:
            # The first of that name: the floor's second row has a ratio to the first, too.
            base = next((r for r in rows if r.case == row.case and r.contender == name), None)
            if base and base is not row and base.values and row.values:
                row.ratios[name] = statistics.median(row.values) / statistics.median(base.values)


def human(value: float, unit: str) -> str:
    if unit in LESS_IS_BETTER:
        return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    if unit in ("share", "count"):
        return f"{value:,.4g}"
    if unit == "MB/s":
        return f"{value:,.0f} MB/s"
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}/s" if value < 999.5 * scale else f"{value / scale:.0f}{letter}/s"
    return f"{value:.0f}/s"


def times(ratio: float) -> str:
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.3g} x"


def cells(row: Row) -> list[str]:
    figures = ["", "", ""]
    if row.values:
        figures = [human(f(row.values), row.unit) for f in (min, statistics.median, max)]
    ratios = (row.ratios or {}).items()
    says = [f"{times(ratio)} {name}" for name, ratio in ratios]
    if not says and row.contender in row.references and row.values:
        says = ["reference"]
    if row.failures:
        total = len(row.failures) + len(row.values)
        says.append(f"FAILED {len(row.failures)} of {total}: {row.failures[0]}")
    if row.target:
        says.append(f"target {row.target}")
    return [row.case, row.pinning, row.label, *figures, row.absent or ", ".join(says)]


HEAD = ["case", "cpus", "contender", "min", "median", "max", "ratio of medians"]


WIDTHS = [16, 6, 44, 9, 9, 9]


def line(texts: list[str]) -> str:
    padded = (t.rjust(w) if 3 <= k <= 5 else t.ljust(w) for k, (t, w) in enumerate(zip(texts, WIDTHS)))
    return "  ".join([*padded, texts[-1]]).rstrip()


def spread(values: list[float]) -> float:
    """Half of the way from the lowest to the highest, as a part of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values) if values else 0.0


def compare(rows: list[Row], before: dict[str, Any]) -> list[str]:
    """Ratio now by ratio before, of all rows that both runs have; the figure itself where there is no ratio. Beyond
    noise: by more than the spreads of all figures that it is made of."""
    old = {(row["case"], row["label"]): row for row in before["rows"]}
    bases = {(row["case"], row["contender"]): row for row in reversed(before["rows"])}
    lines = []
    for row in rows:
        was = old.get((row.case, row.label))
        if was is None or not row.values or not was["values"]:
            continue
        if not row.references:
            then, now = statistics.median(was["values"]), statistics.median(row.values)
            if then:
                lines.append(compared(row, then, now, f" {row.unit}", spread(row.values) + spread(was["values"])))
        for name, ratio in (row.ratios or {}).items():
            if name in (was["ratios"] or {}):
                base = next(r for r in rows if r.case == row.case and r.contender == name)
                earlier = bases[row.case, name]["values"]
                noise = sum(map(spread, (row.values, base.values, was["values"], earlier)))
                lines.append(compared(row, was["ratios"][name], ratio, f" x {name}", noise))
    return lines


def compared(row: Row, then: float, now: float, of: str, noise: float) -> str:
    change = now / then
    better = (change > 1) == (row.unit not in LESS_IS_BETTER)
    verdict = "within noise" if abs(change - 1) <= noise else "BETTER" if better else "WORSE"
    return f"{row.case:16}  {row.label:44}  {then:.3g} -> {now:.3g}{of}: {change:.2f} (noise {noise:.2f}), {verdict}"


def options(parser: argparse.ArgumentParser, repeat: int, quick: int = 1) -> None:
    """Those of every benchmark."""
    parser.add_argument("--quick", action="store_true", help="short and few rounds: proves, does not measure")
    parser.add_argument("--repeat", type=int, metavar="N", help=f"repetitions (default {repeat}; {quick} with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the --json of an earlier run")
    parser.set_defaults(repeats=(repeat, quick))


def run(
    name: str, chosen: argparse.Namespace, measure: Callable[[Callable[[list[Row]], None]], list[dict[str, Any]] | None]
) -> list[Row]:
    """measure is given what to hand the rows of a case to, as soon as it is done; they are printed then. It may return
    raw figures for the JSON."""
    before = json.loads(chosen.against.read_text()) if chosen.against else None
    chosen.repeat = chosen.repeat or chosen.repeats[chosen.quick]
    host, started, rows = machine(), time.time(), list[Row]()
    print(", ".join(f"{key} {value}" for key, value in host.items()))
    print("\n" + line(HEAD), flush=True)

    def found(some: list[Row]) -> None:
        relate(some)
        progress("")
        for row in some:
            print(line(cells(row)), flush=True)
        print(flush=True)
        rows.extend(some)

    raw = measure(found)
    for note in sorted({row.note for row in rows if row.note}):
        print(note)
    if before is not None:
        print("\n".join(compare(rows, before)))
    if chosen.json:
        settings = {key: str(value) for key, value in vars(chosen).items() if key not in ("json", "against", "repeats")}
        document = {
            "benchmark": name,
            "machine": host,
            "settings": settings,
            "ended": round(time.time(), 1),
            "seconds": round(time.time() - started, 1),
        }
        document |= {"rows": [asdict(row) for row in rows], "measurements": raw or []}
        chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    return rows
