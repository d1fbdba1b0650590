"""`shardmem state`: values of keyed state as they were last saved: get, list, count, export and import."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from shardmem.console.cli.common import EngineFirst, as_json, engines_like
from shardmem.errors import NotRunning, ShardmemError
from shardmem.text import plural

if TYPE_CHECKING:  # imports numpy
    from shardmem.client.state import StateAccess

directory_option = click.option("--state-dir", help="Where the engine keeps its files, if it does not run.")


@click.group(short_help="Ask for keyed state, export and import it.")
def state() -> None:
    """Values of keyed state as they were last saved. They are read from the files of the engine: no worker notices, and
    it need not run."""


def _where(name: str | None, directory: str | None) -> tuple[str, str]:
    """(engine, the directory of its files), whether or not it runs."""
    from shardmem.client.client import only_engine
    from shardmem.config import default_directory
    from shardmem.memory.engine_segment import ControlSegment

    name = name or only_engine()
    if directory is None:
        try:
            control = ControlSegment.attach(name)
        except NotRunning:
            directory = default_directory()
        else:
            directory = control.state_dir
            control.close()
    return name, directory


class _EngineThenState(EngineFirst):
    """A state may be left out too."""

    def is_name(self, word: str, options: Mapping[str, Any]) -> bool:
        from shardmem.config import default_directory, state_directory
        from shardmem.memory.segment import engine_names

        directory = options.get("state_dir")
        directory = directory if isinstance(directory, str) else default_directory()
        return word in engine_names() or os.path.isdir(state_directory(directory, word))


@contextlib.contextmanager
def _access(name: str | None, directory: str | None) -> Iterator[tuple[str, StateAccess]]:
    from shardmem.client.state import StateAccess

    engine, where = _where(name, directory)
    access = StateAccess(where, engine)
    if not os.path.isdir(access.directory):
        raise ShardmemError(
            f"engine {engine}: no state was ever saved",
            detail=f"{access.directory} does not exist.",
            hint="An engine that does not run is found by --state-dir",
        )
    with contextlib.closing(access):
        yield engine, access


@state.command(cls=EngineFirst)
@click.argument("state", shell_complete=engines_like)
@click.argument("key")
@click.option("--int", "as_int", is_flag=True, help="KEY is a number; without it, it is text, or else a number.")
@click.option("--bytes", "as_bytes", is_flag=True, help="KEY is bytes, as text in UTF-8.")
@directory_option
@as_json
def get(
    state: str, key: str, as_int: bool, as_bytes: bool, name: str | None, state_dir: str | None, as_json: bool
) -> None:
    """Print the value of KEY in STATE, and how old the checkpoint is that saved it."""
    from shardmem.client.state import describe, find_text

    with _access(name, state_dir) as (engine, access):
        found = find_text(access, state, key, "int" if as_int else "bytes" if as_bytes else None)
        if found is None:
            if access.has(state):
                raise ShardmemError(f"engine {engine}: state {state!r} has no value for key {key!r}")
            known = ", ".join(access.some_names()) or "none"
            raise ShardmemError(f"engine {engine} has saved nothing in a state {state!r}; states with values: {known}")
    described = describe(state, *found)
    if as_json:
        click.echo(json.dumps(described, indent=2))
    else:
        click.echo(
            f"{json.dumps(described['value'])}  saved {described['age']:.1f} s ago by shard {described['shard']}"
        )


@state.command("list", cls=_EngineThenState)
@click.argument("state", required=False, shell_complete=engines_like)
@click.option("--limit", type=click.IntRange(0), default=100, show_default=True, help="0: all of them.")
@directory_option
@as_json
def list_(state: str | None, limit: int, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """List the values of STATE, or without it the states and how many values each has."""
    from shardmem.client.state import json_of, key_as_json

    if state is None:
        _print_counts(name, state_dir, as_json)
        return
    with _access(name, state_dir) as (_, access):
        found = access.items(state)
        for key, value in itertools.islice(found, limit or None):
            if as_json:
                click.echo(json.dumps({"key": key_as_json(key), "value": json_of(value)}))
            else:
                click.echo(f"{key!r}  {json.dumps(json_of(value))}")
        if next(found, None) is not None:
            click.echo(f"... there are more: --limit {10 * limit}", err=True)


@state.command(cls=EngineFirst)
@directory_option
@as_json
def count(name: str | None, state_dir: str | None, as_json: bool) -> None:
    """Count the values of each state."""
    _print_counts(name, state_dir, as_json)


def _print_counts(name: str | None, directory: str | None, as_json: bool) -> None:
    with _access(name, directory) as (_, access):
        counts = access.count()
    if as_json:
        click.echo(json.dumps(counts))
        return
    for each, number in counts.items():
        click.echo(f"{each}  {plural(number, 'value')}")
    if not counts:
        click.echo("no values")


@state.command(cls=EngineFirst)
@click.option("--slots", "wanted", help="Only these slots, as in 17,40-60.")
@click.option(
    "--partition", type=click.IntRange(0), help="The state of this partition, as a snapshot: a file to be imported."
)
@click.option("--compact", is_flag=True, help="Frames by slot, smaller and faster than lines of JSON.")
@click.option("--output", "-o", type=click.File("wb"), default="-", help="Default: standard output.")
@directory_option
def export(
    wanted: str | None, partition: int | None, compact: bool, output: Any, name: str | None, state_dir: str | None
) -> None:
    """Write values, timers and snapshots: each slot as it was saved last."""
    if partition is not None:
        if wanted or compact or getattr(output, "name", "-") in ("-", "<stdout>"):
            raise click.UsageError("--partition takes --output FILE, and neither --slots nor --compact")
        with _access(name, state_dir) as (named, access):
            _export_partition(access.directory, named, partition, output.name)
        return
    from shardmem.runtime.state_export import export_compact, export_lines
    from shardmem.runtime.state_reader import StateReader
    from shardmem.slot_ranges import parse_slots

    with _access(name, state_dir) as (_, access):
        with contextlib.closing(StateReader(access.directory)) as reader:
            slots = set(parse_slots(wanted, reader.slots)) if wanted else None
            if compact:
                for frame in export_compact(reader, slots):
                    output.write(frame)
            else:
                for line in export_lines(reader, slots):
                    output.write(line.encode() + b"\n")


def _export_partition(directory: str, engine: str, number: int, path: str) -> None:
    from shardmem.runtime.partition_count import counted
    from shardmem.runtime.partition_state import StateFiles
    from shardmem.runtime.state_reader import StateReader
    from shardmem.state.partitions import Layout

    found = counted(directory)
    if found is None or number >= found.partitions:
        has = "no partitions" if found is None else f"partitions 0 to {found.partitions - 1}"
        raise ShardmemError(f"engine {engine}: there is no partition {number}; its state has {has}")
    with contextlib.closing(StateReader(directory)) as reader:
        layout = Layout(reader.slots, found.partitions)
    StateFiles(directory, None).export(layout, number, path)


@state.command("import", cls=EngineFirst)
@click.argument("source", type=click.File("rb"))
@click.option(
    "--partitions", type=click.IntRange(1), help="Lay lines of JSON out for so many partitions: the topic has grown."
)
@click.option("--slots", type=click.IntRange(1), help="Lay lines of JSON out for an engine with so many slots.")
@directory_option
def import_(source: Any, partitions: int | None, slots: int | None, name: str | None, state_dir: str | None) -> None:
    """Take what `export` wrote, any form, into the files of an engine that does not run. What is there under the same
    keys is replaced; the state of a partition, as a whole."""
    from shardmem.config import state_directory
    from shardmem.memory.segment import engine_names
    from shardmem.runtime.state_export import import_state

    if name is None or state_dir is None:
        raise click.UsageError("import needs NAME and --state-dir")
    if name in engine_names():
        raise ShardmemError(
            f"engine {name} exists, and its workers write to its files", hint=f"Stop it first: `shardmem stop {name}`"
        )
    taken = import_state(source, state_directory(state_dir, name), partitions, slots)
    click.echo(f"engine {name}: {taken:,} values, timers and snapshots imported")
