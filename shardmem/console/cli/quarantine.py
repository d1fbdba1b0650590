"""`shardmem quarantine`: list, show, replay and purge events that kept failing or killing their handler."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import click

from shardmem.console.cli.common import as_json, engine_option
from shardmem.errors import NotRunning, ShardmemError
from shardmem.settings import some

directory_option = click.option("--state-dir", help="Where the engine kept its files, if it is not running any more.")


@click.group(short_help="Events that kept failing: look, give back, throw away.")
def quarantine() -> None:
    """Events that kept failing or killing their handler: look at them, give them back, throw them away."""


def _common(command: Any) -> Any:
    return as_json(engine_option(directory_option(command)))


def _path(name: str | None, directory: str | None) -> tuple[str, str]:
    """(engine, its quarantine file), whether or not the engine is running."""
    from shardmem.client.client import only_engine
    from shardmem.config import default_directory, quarantine_file
    from shardmem.memory.engine_segment import ControlSegment

    if name is None:
        files = glob.glob(os.path.join(directory or default_directory(), "*.quarantine"))
        try:
            name = only_engine()
        except NotRunning:
            if len(files) != 1:
                raise
            name = os.path.basename(files[0]).removesuffix(".quarantine")
    if directory is None:
        try:
            control = ControlSegment.attach(name)
        except NotRunning:
            directory = default_directory()
        else:
            directory = control.state_dir
            control.close()
    return name, quarantine_file(directory, name)


def _open(name: str | None, directory: str | None) -> tuple[str, Any]:
    """(engine, Quarantine or None when nothing was ever set aside)."""
    from shardmem.runtime.quarantine import Quarantine

    engine, path = _path(name, directory)
    if not os.path.exists(path):
        return engine, None
    return engine, Quarantine(path)


@quarantine.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that were replayed.")
@_common
def list_(everything: bool, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """What is there: one line each, oldest first."""
    from shardmem.client.quarantine import describe

    engine, found = _open(name, state_dir)
    events = found.events(replayed=everything, payloads=False) if found else []
    if as_json:
        click.echo(json.dumps([describe(event) for event in events], indent=2))
        return
    if not events:
        kept = len(found.numbers(replayed=True)) if found else 0
        click.echo(
            f"engine {engine}: "
            + (
                "the quarantine is empty"
                if not kept
                else "nothing waits in the quarantine; "
                f"{some(kept, 'replayed event')} kept until purged (list --all, purge --all)"
            )
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("id", "when", "shard", "key", "attempts", "reason"):
        table.add_column(
            title,
            justify="right" if title in ("id", "shard", "attempts") else "left",
            overflow="ellipsis" if title in ("key", "reason") else "fold",
            no_wrap=True,
        )
    for event in events:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at)) + (" replayed" if event.replayed_at else "")
        table.add_row(
            *(
                Text(str(cell))
                for cell in (
                    event.id,
                    when,
                    event.shard,
                    _cut(repr(event.key), 24),
                    event.attempts,
                    _cut(event.reason.splitlines()[0] if event.reason else "", 200),
                )
            )
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


@quarantine.command()
@click.argument("id", type=int)
@_common
def show(id: int, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """Everything about one event: reason, traceback or signal, key and payload."""
    from shardmem.client.quarantine import describe

    _, found = _needed(name, state_dir)
    (event,) = found.events([id])
    described = describe(event, whole=True)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    trace = described.pop("traceback")
    described["at"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    for key, value in described.items():
        if value is not None:
            click.echo(f"{key:>10}  {value if isinstance(value, (str, int, float)) else json.dumps(value)}")
    if trace:
        click.echo(f"\n{trace}")


@quarantine.command()
@click.argument("ids", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that have not been replayed yet.")
@click.option(
    "--timeout", type=click.FloatRange(0), help="Seconds to wait for room in lanes; default: as long as it takes."
)
@_common
def replay(
    ids: tuple[int, ...],
    everything: bool,
    timeout: float | None,
    name: str | None,
    state_dir: str | None,
    as_json: bool,
) -> None:
    """Push events into the running engine again, as new events: they come behind what their keys got since.

    Mend the handler first ('shardmem reload', or run the engine anew).
    """
    from shardmem.client.quarantine import replay as give_back

    if bool(ids) == everything:
        raise click.UsageError("name the ids of events, or --all")
    engine, found = _needed(name, state_dir)
    given = give_back(engine, found, ids or None, timeout)
    if as_json:
        click.echo(json.dumps({"engine": engine, **asdict(given)}))
    else:
        click.echo(f"engine {engine}: {some(len(given.replayed), 'event')} replayed")
    if given.left:
        raise ShardmemError(
            f"{some(len(given.left), 'event')} left in quarantine, from event {given.left[0]} on: {given.why}"
        )


@quarantine.command()
@click.argument("ids", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Everything, those that were replayed too.")
@_common
def purge(ids: tuple[int, ...], everything: bool, name: str | None, state_dir: str | None, as_json: bool) -> None:
    """Throw events away, for good."""
    if bool(ids) == everything:
        raise click.UsageError("name the ids of events, or --all")
    engine, found = _open(name, state_dir)
    purged = found.purge(ids or None) if found else 0
    click.echo(
        json.dumps({"engine": engine, "purged": purged})
        if as_json
        else f"engine {engine}: {some(purged, 'event')} purged"
    )


def _needed(name: str | None, directory: str | None) -> tuple[str, Any]:
    engine, found = _open(name, directory)
    if found is None:
        raise ShardmemError(f"engine {engine}: nothing was ever set aside ({_path(name, directory)[1]} does not exist)")
    return engine, found
